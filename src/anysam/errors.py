"""Every error this package raises on purpose.

A message is one complete sentence on one line that says what was wrong, the value received, what is accepted and,
where there is one, the next step. Catch `AnySamError` to catch them all; the command line
prints the message and exits with 2.
"""


class AnySamError(Exception):
    """Base of all errors below."""


class OptionError(AnySamError):
    """An argument or command-line option has a value that is not accepted."""


class ImageError(AnySamError):
    """An image is missing, unreadable, damaged, too large or of a kind that cannot become RGB."""


class PromptError(AnySamError):
    """A prompt is malformed, lies outside the image or is of a kind the model does not take."""


class UnknownModelError(AnySamError):
    """No model has the name that was asked for."""


class WeightsError(AnySamError):
    """A weights file is missing, damaged or does not fit the model."""


class DownloadError(WeightsError):
    """Weights could not be fetched."""


class OutputError(AnySamError):
    """A result could not be written: an unwritable folder, a full disk, an unknown format."""


class ExportError(AnySamError):
    """A model cannot be written for another runtime, or what came out differs from it."""


class MissingExtraError(AnySamError):
    """An optional dependency is not installed; the message holds its install line."""


class LicenceError(WeightsError):
    """The licence of weights is not among those that the user allows."""
