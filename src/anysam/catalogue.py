"""The table of model variants: one row each, with prompts, size, weights file and licences. Imports no torch.

Everything that lists models (the command line, the documentation, the loader, the tests) reads `VARIANTS`. A fact that
is stated nowhere is None here, never a guess: a row without a sha256 has its hash recorded at the first download.

Addresses come from the projects' own pages, sizes and hashes from there or from other projects that pin the same files.
(The suffix in the name of a SAM file is not the beginning of its sha256.)
"""

import difflib
import re
from dataclasses import dataclass

from anysam.errors import UnknownModelError

PROMPT_KINDS = ("point", "box", "mask")
DEFAULT_VARIANT = "anysam_lite"

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class WeightsFile:
    """A file of weights as it is published.

    name: the file's name, without folders: its name in the cache and on a mirror.
    url: the full https address, or None when the file is not downloadable (it ships inside the package).
    sha256: 64 lower-case hex digits, or None when no published hash is known.
    bytes: the file's size, or None when it is not known.
    """

    name: str
    url: str | None = None
    sha256: str | None = None
    bytes: int | None = None

    def __post_init__(self) -> None:
        if not self.name or self.name.startswith(".") or "/" in self.name or "\\" in self.name:
            raise ValueError(f"a weights file is named without folders or a leading dot, got {self.name!r}")
        if self.sha256 is not None and not _SHA256.fullmatch(self.sha256):
            raise ValueError(f"sha256 of {self.name} must be 64 lower-case hex digits or None, got {self.sha256!r}")
        if self.bytes is not None and self.bytes <= 0:
            raise ValueError(f"bytes of {self.name} must be positive or None, got {self.bytes}")


@dataclass(frozen=True)
class Variant:
    """One model that can be named on the command line or in `anysam.load`.

    name: the unique public name, for example "sam_vit_b".
    family, size: what `anysam.models.build(family, size)` takes.
    prompts: the prompt kinds the model understands, each one of PROMPT_KINDS.
    parameters: how many values are learned (buffers not counted), or None when it is not known here.
    file: the published or shipped weights.
    code_licence, weights_licence: SPDX identifiers where there is one, else words.
    source: the repository the architecture is described in.
    summary: one short line for people choosing a model.
    """

    name: str
    family: str
    size: str
    prompts: tuple[str, ...]
    parameters: int | None
    file: WeightsFile
    code_licence: str
    weights_licence: str
    source: str
    summary: str

    def __post_init__(self) -> None:
        unknown = [kind for kind in self.prompts if kind not in PROMPT_KINDS]
        if unknown or not self.prompts:
            raise ValueError(f"prompts of {self.name} must be some of {PROMPT_KINDS}, got {self.prompts}")

    @property
    def megabytes(self) -> float | None:
        """Size of the published weights file in units of 10**6 bytes, or None when it is not known."""
        return None if self.file.bytes is None else self.file.bytes / 1e6


_SAM_PROMPTS = ("point", "box", "mask")
_SAM_SOURCE = "https://github.com/facebookresearch/segment-anything"
_SAM_FILES = "https://dl.fbaipublicfiles.com/segment_anything/"

VARIANTS: tuple[Variant, ...] = (
    Variant(
        name="anysam_lite",
        family="anysam_lite",
        size="lite",
        prompts=_SAM_PROMPTS,
        parameters=4_806_964,
        file=WeightsFile(
            name="anysam_lite.safetensors",
            sha256="b7ddcf617c9d1eca6e3d6752c77bd4aeb2654cd938d0aab2ea71e161473e2034",
            bytes=9_643_456,
        ),
        code_licence="Apache-2.0",
        weights_licence="Apache-2.0 (read the card)",
        source="this package",
        summary="small model inside the package: works at once, offline, on a CPU",
    ),
    Variant(
        name="sam_vit_b",
        family="sam",
        size="vit_b",
        prompts=_SAM_PROMPTS,
        parameters=93_735_472,
        file=WeightsFile(
            name="sam_vit_b_01ec64.pth",
            url=_SAM_FILES + "sam_vit_b_01ec64.pth",
            sha256="ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
            bytes=375_042_383,
        ),
        code_licence="Apache-2.0",
        weights_licence="Apache-2.0",
        source=_SAM_SOURCE,
        summary="SAM with the base image encoder",
    ),
    Variant(
        name="sam_vit_l",
        family="sam",
        size="vit_l",
        prompts=_SAM_PROMPTS,
        parameters=312_342_832,
        file=WeightsFile(
            name="sam_vit_l_0b3195.pth",
            url=_SAM_FILES + "sam_vit_l_0b3195.pth",
            sha256="3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
            bytes=1_249_524_607,
        ),
        code_licence="Apache-2.0",
        weights_licence="Apache-2.0",
        source=_SAM_SOURCE,
        summary="SAM with the large image encoder: close to the best quality",
    ),
    Variant(
        name="sam_vit_h",
        family="sam",
        size="vit_h",
        prompts=_SAM_PROMPTS,
        parameters=641_090_608,
        file=WeightsFile(
            name="sam_vit_h_4b8939.pth",
            url=_SAM_FILES + "sam_vit_h_4b8939.pth",
            sha256="a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
            bytes=2_564_550_879,
        ),
        code_licence="Apache-2.0",
        weights_licence="Apache-2.0",
        source=_SAM_SOURCE,
        summary="SAM with the huge image encoder: the best quality, the slowest",
    ),
)


def find_variant(name: str) -> Variant:
    """The row called exactly `name`. Raises UnknownModelError with the nearest names, or with all if none is near."""
    for variant in VARIANTS:
        if variant.name == name:
            return variant
    names = [variant.name for variant in VARIANTS]
    near = difflib.get_close_matches(name.lower().replace("-", "_"), names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known models are {', '.join(names)}."
    raise UnknownModelError(f"There is no model called {name!r}; {hint}")
