"""The grid's pipeline against the published order of work, written out naively here: equal records, bit for bit."""

import dataclasses

import numpy as np
import pytest
import torch
from torch.nn import functional

from anysam.automatic import regions
from anysam.automatic.candidates import Candidates
from anysam.automatic.decoding import make_resize
from anysam.automatic.grid_mode import grid_records
from anysam.automatic.grids import chosen_grids, crop_boxes
from anysam.automatic.interface import PointMasks, Resize
from anysam.automatic.options import EverythingOptions
from anysam.errors import AnySamError, OptionError
from anysam.masks import encode_rle
from anysam.preprocess import Preprocess
from naive_regions import clean_mask

FRAME = Preprocess(long_side=64, pad_to=64, name="test")
BICUBIC = Preprocess(long_side=64, pad_to=64, keep_aspect=False, mask_resize="bicubic", name="test bicubic")
KINDS = ("smooth", "rough", "steps", "empty", "full", "tiny", "blob")


@dataclasses.dataclass(frozen=True)
class Seen:
    """A stand-in for EncodedImage: what the resizing needs."""

    original_size: tuple[int, int]
    input_size: tuple[int, int]


class RandomModel:
    """Answers each point with three random masks of many kinds, always the same for a point of an image's size."""

    def __init__(self, seed=0, preprocess=FRAME, kinds=KINDS, most_points=None):
        self.seed, self.preprocess, self.kinds, self.most_points = seed, preprocess, kinds, most_points
        self.batches = []

    def encode(self, image):
        size = image.shape[:2]
        return Seen(size, self.preprocess.input_size(size))

    def resize(self, encoded):
        return make_resize(self.preprocess, encoded, torch.device("cpu"))

    def decode_points(self, encoded, points, least_iou):
        if self.most_points is not None and len(points) > self.most_points:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.batches.append(len(points))
        cells = self.preprocess.low_res_size(encoded.input_size)
        answers = [self.answer(point, encoded.original_size, cells) for point in points]
        ious = torch.stack([iou for _, iou in answers])  # (P, 3)
        kept = (ious > least_iou).flatten().nonzero()[:, 0]
        logits = torch.stack([logits for logits, _ in answers]).flatten(0, 1)[kept]  # (K, h, w)
        return PointMasks(logits, kept, ious)

    def answer(self, point, size, cells):
        generator = np.random.default_rng((self.seed, *size, *np.round(point * 64).astype(int)))
        kind = self.kinds[generator.integers(len(self.kinds))]
        noise = torch.from_numpy(generator.standard_normal((1, 3, *cells)).astype(np.float32))
        coarse = torch.from_numpy(generator.standard_normal((1, 3, 4, 4)).astype(np.float32))
        smooth = functional.interpolate(coarse, cells, mode="bicubic")[0]  # (3, h, w)
        y, x = (torch.arange(side)[:, None] - generator.uniform(0.3, 0.7) * side for side in cells)
        logits = {
            "blob": 8 * (generator.uniform(0.1, 0.35) * min(cells) - torch.hypot(y, x.T).float()) + smooth,
            "smooth": smooth * 12 - 2,
            "rough": noise[0] * 3 - 4,
            # Plateaus exactly at the thresholds.
            "steps": (smooth * 3).round().clamp(-2, 2),
            "empty": smooth.abs() * -3 - 0.5,
            "full": smooth.abs() * 3 + 1,
            "tiny": smooth - smooth.amax(dim=(1, 2), keepdim=True) + 0.05,
        }[kind]
        ious = torch.from_numpy((0.5 + generator.integers(0, 50, 3) / 100).astype(np.float32))  # with ties
        return logits.contiguous(), ious


def naive_box(mask):
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [columns[0], rows[0], columns[-1], rows[-1]] if len(rows) else [0, 0, 0, 0]


def naive_nms(masks, scores, threshold):
    """Greedily, in single precision, boxes without their last row and column."""
    order = sorted(range(len(masks)), key=lambda i: -scores[i])
    boxes = [np.array(mask["box"], dtype=np.float32) for mask in masks]
    kept = []
    for i in order:
        for j in kept:
            x0, y0 = np.maximum(boxes[i][:2], boxes[j][:2])
            x1, y1 = np.minimum(boxes[i][2:], boxes[j][2:])
            both = max(x1 - x0, np.float32(0)) * max(y1 - y0, np.float32(0))
            one, other = ((b[2] - b[0]) * (b[3] - b[1]) for b in (boxes[i], boxes[j]))
            with np.errstate(invalid="ignore"):
                if float(both / (other + one - both)) > threshold:
                    break
        else:
            kept.append(i)
    return [masks[i] for i in kept]


def naive_crop(model, image, crop, grid, options):
    """Every filter before the suppression, every mask at full size."""
    x0, y0, x1, y1 = crop
    encoded = model.encode(image[y0:y1, x0:x1])
    exact = model.resize(encoded).exact
    found = []
    for point in grid * np.array([x1 - x0, y1 - y0]):
        answer = model.decode_points(encoded, point[None], -np.inf)
        for logits, iou in zip(answer.low_res_logits, answer.iou_predictions[0], strict=True):
            if options.pred_iou_thresh > 0 and not iou > options.pred_iou_thresh:
                continue
            full = exact(logits[None])[0]  # (H, W)
            narrow, wide = ((full > s * options.stability_score_offset).sum(dtype=torch.int32) for s in (1, -1))
            stability = narrow / wide
            if options.stability_score_thresh > 0 and not stability >= options.stability_score_thresh:
                continue
            mask = (full > 0).numpy()
            box = np.array(naive_box(mask)) + [x0, y0, x0, y0]
            ends = np.array([0, 0, image.shape[1], image.shape[0]])
            if ((abs(box - np.array(crop)) <= 20) & (abs(box - ends) > 20)).any():
                continue
            whole = np.zeros(image.shape[:2], dtype=bool)
            whole[y0:y1, x0:x1] = mask
            values = {"mask": whole, "box": box, "iou": float(iou), "stability": float(stability)}
            found.append(values | {"point": (point + [x0, y0]).tolist(), "crop": crop})
    return naive_nms(found, [mask["iou"] for mask in found], options.box_nms_thresh)


def naive(model, image, options):
    crops, layers = crop_boxes(image.shape[:2], options.crop_n_layers, options.crop_overlap_ratio)
    grids = chosen_grids(options)
    found = []
    for crop, layer in zip(crops, layers, strict=True):
        found += naive_crop(model, image, crop, grids[layer], options)
    if len(crops) > 1:
        areas = [(m["crop"][2] - m["crop"][0]) * (m["crop"][3] - m["crop"][1]) for m in found]
        found = naive_nms(found, [1 / area for area in areas], options.crop_nms_thresh)
    if options.min_mask_region_area:
        cleaned = [clean_mask(mask["mask"], options.min_mask_region_area) for mask in found]
        found = [mask | {"mask": new, "box": naive_box(new)} for mask, (new, _) in zip(found, cleaned, strict=True)]
        threshold = max(options.box_nms_thresh, options.crop_nms_thresh)
        found = naive_nms(found, [1 - changed for _, changed in cleaned], threshold)
    return found


def assert_same(records, expected):
    assert len(records) == len(expected)
    for record, mask in zip(records, expected, strict=True):
        assert record.segmentation == encode_rle(mask["mask"])
        assert record.area == mask["mask"].sum()
        x0, y0, x1, y1 = mask["box"]
        assert record.box == ((x0, y0, x1 + 1, y1 + 1) if mask["mask"].any() else (0, 0, 0, 0))
        assert record.predicted_iou == mask["iou"]
        np.testing.assert_equal(record.stability_score, mask["stability"])  # NaN is NaN
        assert record.prompt == {"points": [mask["point"]], "labels": [1]}
        assert record.crop_box == mask["crop"]


def picture(height, width):
    return np.zeros((height, width, 3), dtype=np.uint8)


SIZES = [(40, 56), (200, 150), (7, 9), (1, 50), (300, 3), (1, 1), (64, 64), (33, 255)]
OPTIONS = {
    "filtered": {"pred_iou_thresh": 0.7, "stability_score_thresh": 0.6},
    "unfiltered": {"pred_iou_thresh": 0, "stability_score_thresh": 0},
    "overlapping": {"pred_iou_thresh": 0.6, "stability_score_thresh": 0.3, "box_nms_thresh": 1.0},
    "disjoint": {"pred_iou_thresh": 0.5, "stability_score_thresh": 0.5, "box_nms_thresh": 0.0},
    "wide": {"pred_iou_thresh": 0.6, "stability_score_thresh": 0.2, "stability_score_offset": 2.5},
    "no_offset": {"pred_iou_thresh": 0.6, "stability_score_thresh": 1.0, "stability_score_offset": 0},
    "cleaned": {"pred_iou_thresh": 0.6, "stability_score_thresh": 0.3, "min_mask_region_area": 30},
}


@pytest.mark.parametrize("chosen", OPTIONS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_records_are_those_of_the_published_order(size, chosen):
    options = EverythingOptions(points_per_side=4, **OPTIONS[chosen])
    model = RandomModel(seed=sum(size))
    assert_same(grid_records(model, picture(*size), options, None), naive(model, picture(*size), options))


@pytest.mark.parametrize("chosen", ["filtered", "unfiltered"])
@pytest.mark.parametrize("size", [(40, 56), (150, 90), (1, 9)], ids=str)
def test_resizing_with_negative_weights_gives_the_published_records(size, chosen):
    options = EverythingOptions(points_per_side=4, **OPTIONS[chosen])
    model = RandomModel(preprocess=BICUBIC)
    assert_same(grid_records(model, picture(*size), options, None), naive(model, picture(*size), options))


@pytest.mark.parametrize("chosen", OPTIONS)
def test_masks_resized_as_a_whole_as_on_a_gpu_give_the_published_records(chosen, monkeypatch):
    make = regions.Frame.of.__func__
    monkeypatch.setattr(
        regions.Frame, "of", classmethod(lambda cls, *given: dataclasses.replace(make(cls, *given), whole=True))
    )
    options = EverythingOptions(points_per_side=4, **OPTIONS[chosen])
    model = RandomModel()
    assert_same(grid_records(model, picture(90, 64), options, None), naive(model, picture(90, 64), options))


@pytest.mark.parametrize("layers", [1, 2])
def test_crops_give_the_published_records(layers):
    options = EverythingOptions(
        points_per_side=4,
        crop_n_layers=layers,
        crop_n_points_downscale_factor=2,
        pred_iou_thresh=0.6,
        stability_score_thresh=0.2,
        min_mask_region_area=20,
    )
    model = RandomModel(seed=layers, kinds=("blob", "smooth"))
    expected = naive(model, picture(150, 200), options)
    assert len({mask["crop"] for mask in expected}) > 1
    assert_same(grid_records(model, picture(150, 200), options, None), expected)


def test_own_points_are_asked_in_their_order():
    grids = [np.array([[0.9, 0.1], [0.5, 0.5]]), np.array([[0.25, 0.75]])]
    options = EverythingOptions(
        points_per_side=None, point_grids=grids, crop_n_layers=1, pred_iou_thresh=0, stability_score_thresh=0
    )
    model = RandomModel()
    assert_same(grid_records(model, picture(60, 80), options, None), naive(model, picture(60, 80), options))


def test_pixels_that_rounding_decides_are_resized_as_published(monkeypatch):
    """With a margin of rounding so wide that every mask is unsure, everything is resized as published."""
    model, options = RandomModel(), EverythingOptions(points_per_side=3, pred_iou_thresh=0.5, stability_score_thresh=0)
    expected = naive(model, picture(40, 56), options)
    monkeypatch.setattr(regions, "ROUNDING", 1e-2)
    assert_same(grid_records(model, picture(40, 56), options, None), expected)


def test_images_too_large_to_be_resized_at_once_have_the_same_masks(monkeypatch):
    model, options = RandomModel(kinds=("smooth", "rough")), EverythingOptions(points_per_side=4, pred_iou_thresh=0.5)
    expected = grid_records(model, picture(90, 64), options, None)
    monkeypatch.setattr(regions, "EXACT_PIXELS", 0)

    def never(*arguments):
        raise AssertionError

    monkeypatch.setattr(regions, "_exact_counts", never)
    monkeypatch.setattr(regions, "_exact_spans", never)
    assert [record.to_dict() for record in grid_records(model, picture(90, 64), options, None)] == [
        record.to_dict() for record in expected
    ]


def test_masks_are_the_same_for_every_bound_of_memory_and_size_of_batch(monkeypatch):
    options = {"points_per_side": 8, "pred_iou_thresh": 0.5, "stability_score_thresh": 0.3}
    model, image = RandomModel(), picture(90, 64)
    expected = [record.to_dict() for record in grid_records(model, image, EverythingOptions(**options), None)]
    for more in ({"points_per_batch": 3}, {"max_memory": 200 * 2**20}, {"max_memory": 2**30}):
        records = grid_records(model, image, EverythingOptions(**options, **more), None)
        assert [record.to_dict() for record in records] == expected

    finished = []
    finish = Candidates._finish_worst
    monkeypatch.setattr(
        Candidates, "_finish_worst", lambda self, frame: (finished.append(self.nbytes), finish(self, frame))
    )
    monkeypatch.setattr("anysam.automatic.candidates.Candidates.__init__", small_budget(Candidates.__init__))
    records = grid_records(model, image, EverythingOptions(**options, points_per_batch=4), None)
    assert [record.to_dict() for record in records] == expected
    assert len(finished) > 3


def small_budget(init):
    def smaller(self, *arguments, **named):
        init(self, *arguments, **{**named, "budget": 5000})

    return smaller


def test_a_bound_that_is_too_small_is_refused_before_the_image_is_encoded():
    model = RandomModel()
    model.encode = None
    with pytest.raises(OptionError, match=r"At most 1M .* need \d+M above the loaded model"):
        grid_records(model, picture(40, 56), EverythingOptions(max_memory=1_000_000), None)


def test_points_per_batch_does_not_break_the_bound():
    model = RandomModel(most_points=10**6)
    options = EverythingOptions(points_per_side=10, points_per_batch=100, pred_iou_thresh=0.5, max_memory=500 * 2**20)
    grid_records(model, picture(40, 56), options, None)
    assert sum(model.batches) == 100 and 1 < max(model.batches) <= 64


def test_a_full_device_halves_the_points_asked_at_once():
    options = EverythingOptions(points_per_side=6, points_per_batch=36, pred_iou_thresh=0.5, stability_score_thresh=0.3)
    expected = grid_records(RandomModel(), picture(40, 56), options, None)
    model = RandomModel(most_points=5)
    records = grid_records(model, picture(40, 56), options, None)
    assert [record.to_dict() for record in records] == [record.to_dict() for record in expected]
    assert model.batches == [5] * 7 + [1]
    with pytest.raises(AnySamError, match="too small for a single point"):
        grid_records(RandomModel(most_points=0), picture(40, 56), options, None)


def test_suppressed_candidates_pay_for_nothing(monkeypatch):
    """Candidates with one box: only those down to the first stable one are looked at."""
    looked = []
    counts = regions._counts
    monkeypatch.setattr(
        regions, "_counts", lambda region, frame, levels: (looked.append(region), counts(region, frame, levels))[1]
    )
    model = RandomModel(kinds=("full",))
    records = grid_records(model, picture(40, 56), EverythingOptions(points_per_side=8, pred_iou_thresh=0), None)
    assert len(records) == 1
    assert len(looked) < 10 < 3 * 64


def test_progress_rises_to_one():
    told = []
    options = EverythingOptions(points_per_side=4, points_per_batch=5, crop_n_layers=1)
    grid_records(RandomModel(), picture(90, 64), options, told.append)
    assert len(told) == 5 * 4 + 1
    assert all(a < b for a, b in zip(told, told[1:], strict=False))
    assert told[0] > 0 and told[-1] == 1


def test_nothing_found_is_an_empty_list():
    options = EverythingOptions(points_per_side=2, pred_iou_thresh=1.0, crop_n_layers=1, min_mask_region_area=5)
    assert grid_records(RandomModel(), picture(40, 56), options, None) == []


def test_an_image_with_fewer_pixels_than_crops_is_refused():
    with pytest.raises(OptionError, match="3x2 pixels is too small for 3 layers"):
        grid_records(RandomModel(), picture(2, 3), EverythingOptions(crop_n_layers=3, crop_overlap_ratio=0), None)


def test_logits_of_the_images_own_size_need_no_resizing():
    class OwnSize(RandomModel):
        def resize(self, encoded):
            return Resize(encoded.original_size, lambda logits: logits, None, None, True)

        def decode_points(self, encoded, points, least_iou):
            answers = [self.answer(point, encoded.original_size, encoded.original_size) for point in points]
            ious = torch.stack([iou for _, iou in answers])  # (P, 3)
            kept = (ious > least_iou).flatten().nonzero()[:, 0]
            logits = torch.stack([logits for logits, _ in answers]).flatten(0, 1)[kept]  # (K, H, W)
            return PointMasks(logits, kept, ious)

    options = EverythingOptions(points_per_side=4, pred_iou_thresh=0.6, stability_score_thresh=0.3)
    model = OwnSize()
    assert_same(grid_records(model, picture(50, 70), options, None), naive(model, picture(50, 70), options))
