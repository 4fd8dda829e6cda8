"""A tiny model whose encoder and decoder wait at gates, so that tests of queues decide what happens when."""

import dataclasses
import threading

from anysam.models import PromptableModel
from tiny_models import tiny_model

_SECONDS = 60  # only a test that fails waits for so long


class Gate:
    """Open at first. What comes to a closed one waits; `arrived` waits for the next arrival, at an open one too."""

    def __init__(self):
        self._open = threading.Event()
        self._open.set()
        self._arrivals = threading.Semaphore(0)
        self.error = None  # raised, once, by whatever passes next
        self.fail_at = None  # a size of work that raises

    def close(self):
        self._open.clear()

    def open(self):
        self._open.set()

    def arrived(self):
        assert self._arrivals.acquire(timeout=_SECONDS), "nothing came to the gate"

    def go_through(self, size=1):
        self._arrivals.release()
        assert self._open.wait(_SECONDS), "the gate was never opened"
        error, self.error = self.error, None
        if size == self.fail_at:
            raise MemoryError
        if error is not None:
            raise error


class HeldNetwork:
    """A network behind two gates. encoded: sizes (H, W); batches: images at once; decoded: prompts at once."""

    def __init__(self, network: PromptableModel):
        self._network = network
        self.preprocess = network.preprocess
        self.multimask_default = network.multimask_default
        self.float32_parts = network.float32_parts
        self.encoding, self.decoding = Gate(), Gate()
        self.encoded, self.batches, self.decoded = [], [], []

    def encode_image(self, pixels):
        self.encoding.go_through(len(pixels))
        self.encoded += [tuple(pixels.shape[-2:])] * len(pixels)
        self.batches.append(len(pixels))
        return self._network.encode_image(pixels)

    def decode(self, features, points, labels, mask_logits, multimask):
        self.decoding.go_through(len(points))
        self.decoded.append(len(points))
        return self._network.decode(features, points, labels, mask_logits, multimask)


def held_model():
    """(the model, its network with the gates)."""
    model = tiny_model("anysam_lite", seed=3)  # of this one no mask of the tests is empty
    network = HeldNetwork(model.network)
    return dataclasses.replace(model, network=network), network
