"""What goes wrong with projects, each with the HTTP status that says so; no HTTP here."""

from anysam.errors import AnySamError

_LONGEST = 1000  # characters of a message, which may quote what was received


class ProjectError(AnySamError):
    """A request about projects that is not done. status: of HTTP. detail: a sentence. retry_after: seconds, or None."""

    def __init__(self, status: int, detail: str, retry_after: int | None = None) -> None:
        self.status = status
        self.detail = printable(detail)
        self.retry_after = retry_after
        super().__init__(self.detail)


def unknown(what: str, identity: object) -> ProjectError:
    """404 for an id that does not exist."""
    return ProjectError(404, f"There is no {what} {identity}; it may have been deleted.")


def refused(detail: str) -> ProjectError:
    """422 for values that are not accepted."""
    return ProjectError(422, detail)


def conflict(detail: str) -> ProjectError:
    """409 for a request that does not go with what is there."""
    return ProjectError(409, detail)


def printable(text: str) -> str:
    """A text that UTF-8 can hold, on one line and not too long: lone surrogates become question marks."""
    text = " ".join(text.encode("utf-8", "replace").decode("utf-8").replace("\0", " ").split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
