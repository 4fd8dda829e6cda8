import cv2
import numpy as np
import pytest
import torch

from anysam import Prompt
from anysam.encoded_image import EncodedImage
from anysam.preprocess import upscale_logits
from anysam.results import MaskRecord
from anysam.serve import mask_records
from anysam.serve.mask_records import MaskMaker
from tiny_models import TINY, tiny_model

SIZES = [(48, 64), (64, 48), (200, 333), (479, 641), (3, 3), (1, 90), (7, 500), (64, 64)]


def encoded_as(model, size):
    """An encoding of an image of `size` (H, W), but for its features, which masks do not need."""
    frame = model.network.preprocess
    return EncodedImage({}, size, frame.input_size(size), model.variant, repr(frame), model.weights_sha256)


def drawn_logits(shape, seed):
    """Smooth logits (h, w) float32 of both signs."""
    coarse = np.random.default_rng(seed).normal(size=(5, 5)).astype(np.float32) * 12
    return cv2.resize(coarse, shape[::-1], interpolation=cv2.INTER_CUBIC)


def wanted(model, encoded, logits):
    """The record of the mask that `Model.predict` makes of logits (h, w)."""
    frame = model.network.preprocess
    full = upscale_logits(torch.from_numpy(logits)[None, None], frame, encoded.input_size, encoded.original_size)
    return MaskRecord.from_mask((full[0, 0] > 0).numpy(), 0.5)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("family", ["anysam_lite", "sam", "tap"])
def test_records_are_those_of_the_masks_that_predict_makes(family, size):
    model = tiny_model(family)
    encoded = encoded_as(model, size)
    maker = MaskMaker.of(model, encoded)
    shape = model.network.preprocess.low_res_size(encoded.input_size)
    for seed in range(6):
        logits = drawn_logits(shape, seed)
        for values in (logits, np.round(logits), np.sign(logits), logits - 9, np.full_like(logits, -1.0), abs(logits)):
            assert maker.record(np.ascontiguousarray(values), 0.5) == wanted(model, encoded, values)


def test_pixels_that_opencv_puts_elsewhere_are_corrected(monkeypatch):
    model = tiny_model("anysam_lite")
    encoded = encoded_as(model, (479, 641))
    shape = model.network.preprocess.low_res_size(encoded.input_size)
    logits = drawn_logits(shape, 0)
    resized = MaskMaker._resized
    noise = np.random.default_rng(0).uniform(-0.9, 0.9, (641, 479)).astype(np.float32)
    limit = mask_records._DIFFERENCE * float(np.abs(logits).max())
    monkeypatch.setattr(MaskMaker, "_resized", lambda self, values: resized(self, values) + limit * noise)
    assert MaskMaker.of(model, encoded).record(logits, 0.5) == wanted(model, encoded, logits)
    monkeypatch.setattr(MaskMaker, "_resized", lambda self, values: resized(self, values) + 300 * limit * noise)
    assert MaskMaker.of(model, encoded).record(logits, 0.5) != wanted(model, encoded, logits)  # so the noise counts


@pytest.mark.parametrize(("size", "family"), [((479, 641), "sam"), ((1500, 2000), "anysam_lite"), ((60, 3), "sam")])
def test_opencv_is_nearer_to_pytorch_than_what_is_looked_at_again(size, family):
    model = tiny_model(family)
    encoded = encoded_as(model, size)
    shape = model.network.preprocess.low_res_size(encoded.input_size)
    maker, frame = MaskMaker.of(model, encoded), model.network.preprocess
    for seed in range(3):
        logits = drawn_logits(shape, seed)
        full = upscale_logits(torch.from_numpy(logits)[None, None], frame, encoded.input_size, size)[0, 0].numpy()
        ours = maker._resized(logits[: maker.shape[0], : maker.shape[1]]).T
        assert np.abs(ours - full).max() < mask_records._DIFFERENCE * np.abs(logits).max() / 5


def test_a_large_image_is_made_in_parts_with_the_same_masks(monkeypatch):
    model = tiny_model("anysam_lite")
    encoded = encoded_as(model, (300, 400))
    maker = MaskMaker.of(model, encoded)
    shape = model.network.preprocess.low_res_size(encoded.input_size)
    monkeypatch.setattr(mask_records, "_WHOLE_PIXELS", 1000)
    monkeypatch.setattr(MaskMaker, "_whole_spans", None)
    for seed in range(4):
        logits = drawn_logits(shape, seed)
        assert maker.record(logits, 0.5) == wanted(model, encoded, logits)


def test_models_whose_masks_are_not_means_of_cells_are_left_to_predict():
    for family in ("efficient_sam", "fast_sam"):
        model = tiny_model(family)
        encoded = model.encode(np.zeros((48, 64, 3), dtype=np.uint8))
        assert MaskMaker.of(model, encoded) is None


@pytest.mark.parametrize("family", [family for family in TINY if family != "object_aware"])
def test_every_family_is_answered_as_by_predict(family):
    from anysam.serve.clicks import ClickPool, PreparedImage

    model = tiny_model(family)
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    encoded = model.encode(image)
    mask = np.zeros((48, 64), dtype=bool)
    mask[10:30, 20:50] = True
    prompts = [Prompt(points=[[30, 20]]), Prompt(box=[10, 5, 50, 40]), Prompt(mask=mask), Prompt(points=[[3, 3]])]
    found = model.predict(encoded, prompts)
    pool = ClickPool(model, 1, 8)
    try:
        answers = pool.ask(PreparedImage.of(model, encoded), prompts, None, True).result(60)
    finally:
        pool.close()
        pool.join(5)
    for answer, each in zip(answers, found, strict=True):
        records = [MaskRecord.from_mask(*pair) for pair in zip(each.masks, each.iou_predictions, strict=True)]
        assert list(answer.masks) == records and answer.best == each.best
        np.testing.assert_array_equal(answer.low_res_logits, each.low_res_logits)
