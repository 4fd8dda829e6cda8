"""One image's encoding, as a store for tasks that would make it again, and as a file. Computes nothing new."""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from anysam.encoded_image import EncodedImage
from anysam.serve.engine_types import EmbeddingFile
from anysam.store import EmbeddingStore


@dataclass(frozen=True, eq=False)
class OneEncoding:
    """A store that knows one image's encoding; parts of the image are encoded, or found on disk."""

    encoded: EncodedImage
    store: EmbeddingStore | None

    def encode(self, model: Any, image: np.ndarray) -> EncodedImage:
        if image.shape[:2] == self.encoded.original_size:  # parts are smaller
            return self.encoded
        return model.encode(image) if self.store is None else self.store.encode(model, image)


def embedding_file(encoded: EncodedImage) -> EmbeddingFile:
    """The tag is of the values, since the order of a file's facts is not fixed."""
    rounded = {name: encoded.features[name].detach().cpu().half().contiguous() for name in sorted(encoded.features)}
    digest = hashlib.sha256(repr((encoded.variant, encoded.weights_sha256, encoded.original_size)).encode())
    for name, value in rounded.items():
        digest.update(f"{name} {tuple(value.shape)};".encode())
        digest.update(value.numpy().data)
    return EmbeddingFile(encoded.to_bytes(compact=True), digest.hexdigest(), encoded.original_size, encoded.input_size)
