"""The simplest engine that keeps to the protocol: one thing after another in threads, nothing bounded. For tests."""

import asyncio
import secrets
from dataclasses import dataclass

import numpy as np
from safetensors.torch import save

from anysam.images import read_image
from anysam.results import MaskRecord
from anysam.serve.engine_types import (
    Answer,
    EmbeddingFile,
    EngineStats,
    ImageState,
    NotEnabled,
    Progress,
    UnknownImage,
)


@dataclass
class Kept:
    size: tuple[int, int]
    encoded: object


class PlainEngine:
    """cancelled: how many everything modes were closed before their end."""

    ready = True

    def __init__(self, model, max_pixels=10**8):
        self.model, self.max_pixels = model, max_pixels
        self.variant = model.variant
        self.kept = {}
        self.cancelled = 0
        self.hold = None  # an asyncio.Event that everything mode waits for between its progress and its result
        self.fault = None  # raised by predict

    async def add_image(self, data):
        pixels = await asyncio.to_thread(read_image, data, self.max_pixels)
        encoded = (await asyncio.to_thread(self.model.encode, pixels)).rounded()
        image_id = secrets.token_hex(16)
        self.kept[image_id] = Kept(pixels.shape[:2], encoded)
        return self.image_state(image_id)

    def image_state(self, image_id):
        return ImageState(image_id, self._find(image_id).size, "ready")

    async def wait(self, image_id, seconds):
        return self.image_state(image_id)

    def remove(self, image_id):
        self._find(image_id)
        del self.kept[image_id]

    async def embedding(self, image_id):
        encoded = self._find(image_id).encoded
        data = save({name: value.half().contiguous() for name, value in encoded.features.items()})
        return EmbeddingFile(data, "e" + image_id, encoded.original_size, encoded.input_size)

    async def predict(self, image_id, prompts, multimask, low_res_logits):
        if self.fault is not None:
            raise self.fault
        kept = self._find(image_id)
        if any(prompt.text is not None for prompt in prompts):
            raise NotEnabled("This server has no text model.")
        predictions = await asyncio.to_thread(self.model.predict, kept.encoded, prompts, multimask)
        return [
            Answer(
                tuple(
                    MaskRecord.from_mask(mask, score, prompt)
                    for mask, score in zip(each.masks, each.iou_predictions, strict=True)
                ),
                each.best,
                each.low_res_logits if low_res_logits else None,
            )
            for prompt, each in zip(prompts, predictions, strict=True)
        ]

    async def everything(self, image_id, options):
        kept = self._find(image_id)
        finished = False
        try:
            yield Progress(0.5)
            if self.hold is not None:
                await self.hold.wait()
            records = await asyncio.to_thread(self.model.everything, kept.encoded, options)
            finished = True
            yield tuple(records)
        finally:
            self.cancelled += not finished

    async def describe(self, image_id, what):
        self._find(image_id)
        raise NotEnabled("This server has no describer; start it with --describe.")

    def stats(self):
        return EngineStats(images=len(self.kept), ready=len(self.kept))

    def close(self):
        self.kept.clear()

    def _find(self, image_id):
        if image_id not in self.kept:
            raise UnknownImage(image_id)
        return self.kept[image_id]


def photograph(height=60, width=80):
    """An image with a bright disc in the middle."""
    y, x = np.mgrid[:height, :width]
    disc = (y - height / 2) ** 2 + (x - width / 2) ** 2 < (min(height, width) / 3) ** 2
    pixels = np.full((height, width, 3), 40, dtype=np.uint8)
    pixels[disc] = (220, 180, 60)
    return pixels
