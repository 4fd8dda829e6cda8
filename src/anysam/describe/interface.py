"""What is asked of whatever connects pictures with words, and what it answers. Computes nothing."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np

from anysam.errors import OptionError
from anysam.results import MaskRecord


@runtime_checkable
class ImageTextModel(Protocol):
    """A model of the CLIP kind: how well texts fit pictures."""

    def similarities(self, pictures: Iterable[np.ndarray], texts: Sequence[str]) -> np.ndarray:
        """Pictures, each (H, W, 3) uint8 RGB of any size, and T texts -> logits (N, T) float32.

        For a picture, the softmax of its logits says how probable each text is among them: CLIP's logits are 100 times
        the cosine of their features. The pictures are taken one batch at a time, so that an iterator which makes them
        holds few. No pictures give (0, T). Raises OptionError for an empty text or none.
        """
        ...


@dataclass(frozen=True)
class Words:
    """What is said of a mask; the fields are those of `MaskRecord`."""

    label: str | None = None
    label_score: float | None = None
    label_scores: Mapping[str, float] = field(default_factory=dict)
    caption: str | None = None
    caption_score: float | None = None

    def added_to(self, record: MaskRecord) -> MaskRecord:
        """The record with these words. What they do not say, such as a caption that nobody asked for, stays."""
        named = self.label is not None
        said = self.caption is not None
        return replace(
            record,
            label=self.label if named else record.label,
            label_score=self.label_score if named else record.label_score,
            label_scores=dict(self.label_scores) if named else record.label_scores,
            caption=self.caption if said else record.caption,
            caption_score=self.caption_score if said else record.caption_score,
        )


@runtime_checkable
class Describer(Protocol):
    """Whatever finds words for masks that are there already.

    names: all names that a label can be, in the vocabulary's order; empty if labels are not asked for.
    """

    @property
    def names(self) -> tuple[str, ...]: ...

    def words(
        self, image: np.ndarray, records: Sequence[MaskRecord], progress: Callable[[float], None] | None = None
    ) -> list[Words]:
        """Words for each mask of an image (H, W, 3) uint8 RGB. The records' sizes are the image's.

        progress: called with the part done, rising to 1.
        """
        ...

    def facts(self) -> dict[str, Any]:
        """What a result's reader wants to know of it, in JSON form: model, weights_sha256, vocabulary, ..."""
        ...


def describe_records(
    describer: Describer,
    image: np.ndarray,
    records: Sequence[MaskRecord],
    progress: Callable[[float], None] | None = None,
) -> list[MaskRecord]:
    """The records of an image (H, W, 3) uint8 RGB, with words; an empty list for none.

    A mask without a pixel gets no words. Raises OptionError for a mask of another size than the image's.
    """
    size = (image.shape[0], image.shape[1])
    for number, record in enumerate(records, start=1):
        if record.size != size:
            raise OptionError(
                f"Mask {number} of {len(records)} belongs to an image of {record.size[1]}x{record.size[0]} pixels, but "
                f"this one has {size[1]}x{size[0]}; give the masks of this image, at its original size."
            )
    places = [i for i, record in enumerate(records) if record.area]
    described = list(records)
    if places:
        found = describer.words(image, [records[i] for i in places], progress)
        for i, words in zip(places, found, strict=True):
            described[i] = words.added_to(records[i])
    return described
