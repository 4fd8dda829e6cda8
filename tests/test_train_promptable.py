"""What the recipes with prompts share: frames, drawn points and boxes, losses; each against a computation by hand."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

import anysam
from anysam.datasets import ImageEntry
from anysam.errors import ImageError
from anysam.masks import mask_iou, mask_to_box
from anysam.models import Decoded
from anysam.models.sam_decoder import MaskDecoder
from anysam.prompts import Prompt
from anysam.train.promptable import (
    IGNORED,
    add_points,
    bce_dice,
    cell_centres,
    cut,
    decode_tokens,
    encode_images,
    encoding_parts,
    first_prompts,
    noisy_boxes,
    read_example,
    sam_loss,
    sample_errors,
    score_prompts,
    to_input_frame,
    valid_area,
    valid_cells,
)
from tiny_models import TINY, filled, tiny_model

INPUTS = Path(__file__).parent / "parity" / "inputs"


class Entries(list):
    """A list of ImageEntry as an ImageDataset."""

    name = "photographs"


def with_small_decoder(network):
    """A tiny network with a mask decoder of fewer hidden units, quicker to learn."""
    network.mask_decoder = MaskDecoder(64, num_heads=4, mlp_dim=64)
    return network


def small_sam(seed=0):
    """A tiny SAM with that decoder, as a frozen teacher."""
    return filled(with_small_decoder(TINY["sam"][1]()), seed).eval().requires_grad_(False)


def entry_of(path, masks, **more):
    """An ImageEntry of a file with masks (H, W) bool."""
    rles = tuple(coco_mask.encode(np.asfortranarray(mask, np.uint8))["counts"] for mask in masks)
    areas = tuple(int(mask.sum()) for mask in masks)
    return ImageEntry(path, "photographs", masks[0].shape, rles, areas, name=path.name, **more)


def photographs(folder, count, side=96):
    """Pieces of the golden photographs, with their bright or dark regions as masks, largest first."""
    entries = Entries()
    rng = np.random.default_rng(3)
    photos = [np.array(Image.open(INPUTS / name).convert("RGB").reduce(2)) for name in ("wide.png", "tall.png")]
    while len(entries) < count:
        photo = photos[len(entries) % 2]
        top, left = (int(rng.integers(n - side)) for n in photo.shape[:2])
        piece = photo[top : top + side, left : left + side * 5 // 4]
        grey = cv2.GaussianBlur(piece, (0, 0), 3).mean(axis=2)
        masks = []
        for side_of in (grey > np.median(grey), grey <= np.median(grey)):
            _, regions, facts, _ = cv2.connectedComponentsWithStats(side_of.astype(np.uint8))
            masks += [regions == i for i in range(1, len(facts)) if 200 < facts[i, 4] < 0.8 * grey.size]
        if masks:
            path = folder / f"{len(entries)}.png"
            Image.fromarray(piece).save(path)
            entries.append(entry_of(path, sorted(masks, key=lambda mask: -mask.sum())))
    return entries


@pytest.fixture(scope="module")
def entries(tmp_path_factory):
    return photographs(tmp_path_factory.mktemp("photographs"), 4)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_an_example_has_masks_boxes_and_points_of_the_same_objects(entries):
    model = tiny_model("sam")
    entry = entries[0]
    example = read_example(entry, model.network.preprocess, 8, np.random.default_rng(1))
    masks = [entry.decode(i) > 0 for i in range(len(entry.masks))]
    assert len(example.masks) == len(masks) and example.name == entry.name
    scale = 64 / max(entry.size)
    found = set()
    for coverage, box, point in zip(example.masks, example.boxes, example.points, strict=True):
        expected = [np.abs(mask_to_box(mask) * scale - box.numpy()).max() for mask in masks]
        index = int(np.argmin(expected))
        found.add(index)
        assert expected[index] < 0.5  # of the frame's 64 pixels; the frame's height is rounded
        x, y = point.numpy() / scale
        assert masks[index][int(np.clip(round(y), 0, 95)), int(round(x))]
        rows, columns = example.valid
        assert not coverage[rows:].any() and not coverage[:, columns:].any()
        area = float(coverage.sum()) * 16  # cells of 4 x 4 pixels
        assert area == pytest.approx(masks[index].sum() * scale**2, rel=0.05)
    assert len(found) == len(masks)
    assert example.valid == (-(-example.input_size[0] // 4), -(-example.input_size[1] // 4))


def test_an_example_draws_different_masks_and_leaves_out_what_fills_no_cell(entries, tmp_path):
    preprocess = tiny_model("sam").network.preprocess
    drawn = {
        tuple(read_example(entries[0], preprocess, 1, np.random.default_rng(i)).boxes[0].tolist()) for i in range(40)
    }
    assert len(drawn) == len(entries[0].masks) > 1
    speck = np.zeros(entries[0].size, bool)
    speck[3, 3] = True
    assert read_example(entry_of(entries[0].path, [speck]), preprocess, 4, np.random.default_rng(0)) is None
    (tmp_path / "broken.png").write_bytes(b"no image")
    broken = entry_of(tmp_path / "broken.png", [np.ones((8, 8), bool)])
    with pytest.raises(ImageError):
        read_example(broken, preprocess, 4, np.random.default_rng(0))
    assert read_example(broken, preprocess, 4, np.random.default_rng(0), with_pixels=False).pixels is None


def test_points_enter_the_frame_as_those_of_predictions(entries):
    model = tiny_model("efficientvit_sam")  # its prompts are in another frame than its pixels
    network, size = model.network, entries[0].size
    encoded = model.encode(entries[0].read_image())
    points = np.array([[30.0, 40.0], [80.0, 12.0]])
    expected = model.predict(encoded, [Prompt(points=point[None]) for point in points], multimask=True)
    tokens = first_prompts(
        to_input_frame(points, network.preprocess, size), torch.zeros(2, 4), torch.zeros(2, dtype=bool)
    )
    with torch.no_grad():
        decoded = network.decode(encoded.features, *tokens, None, True)
    for own, logits in zip(expected, decoded.low_res_logits, strict=True):
        np.testing.assert_allclose(logits.numpy(), own.low_res_logits, atol=1e-4)


def test_valid_cells_and_areas_end_where_the_image_ends():
    preprocess = tiny_model("sam").network.preprocess
    assert valid_cells(preprocess, (41, 64)) == (11, 16)
    area = valid_area(preprocess, (42, 64), (16, 16))
    # A reduction by 4 looks at the two pixels in a cell's middle: rows 41 and 42 of cell 10, one of them image.
    assert area[:, 0].tolist() == [1.0] * 10 + [0.5] + [0.0] * 5
    assert torch.equal(area, area[:, :1].expand(16, 16))
    assert cut(torch.zeros(2, 16, 16), (11, 9)).shape == (2, 11, 9)


def test_boxes_and_points_become_two_tokens_each():
    points, boxes = (
        torch.tensor([[5.0, 6.0], [7.0, 8.0]]),
        torch.tensor([[1.0, 2.0, 30.0, 40.0], [3.0, 4.0, 50.0, 60.0]]),
    )
    tokens, labels = first_prompts(points, boxes, torch.tensor([True, False]))
    assert tokens.tolist() == [[[1.0, 2.0], [30.0, 40.0]], [[7.0, 8.0], [0.0, 0.0]]]
    assert labels.tolist() == [[2, 3], [1, -1]]
    tokens, labels = add_points(tokens, labels, torch.tensor([[9.0, 9.0], [4.0, 4.0]]), torch.tensor([0, 1]))
    assert labels.tolist() == [[0, 2, 3], [1, 1, -1]] and tokens[1].tolist() == [[4.0, 4.0], [7.0, 8.0], [0.0, 0.0]]


def test_noise_of_boxes_is_a_part_of_their_sides_and_limited():
    boxes = torch.tensor([[200.0, 300.0, 300.0, 350.0]]).repeat(4000, 1)
    moved = noisy_boxes(boxes, 0.1, 20.0, (1000, 1000), seeded()) - boxes
    assert moved.std(0).numpy() == pytest.approx([10, 5, 10, 5], rel=0.1)
    assert float(moved.abs().max()) == 20.0
    assert torch.equal(noisy_boxes(boxes, 0.0, 20.0, (1000, 1000), seeded()), boxes)
    tiny = noisy_boxes(
        torch.tensor([[0.0, 0.0, 1.0, 1.0], [63.0, 40.0, 64.0, 41.0]]).repeat(500, 1), 3.0, 20.0, (41, 64), seeded()
    )
    assert bool((tiny[:, 2:] - tiny[:, :2] >= 1 - 1e-5).all()) and bool((tiny >= 0).all())
    assert float(tiny[:, 2].max()) <= 64 and float(tiny[:, 3].max()) <= 41


def test_errors_are_drawn_uniformly_with_the_label_that_corrects_them():
    predicted, target = torch.zeros(5, 7, dtype=torch.bool), torch.zeros(5, 7, dtype=torch.bool)
    predicted[1, 2] = target[1, 2] = True  # right
    predicted[4, 6] = True  # too much
    target[0, 3] = target[2, 0] = True  # missing
    errors = sample_errors(predicted.repeat(3000, 1, 1), target.repeat(3000, 1, 1), seeded())
    drawn = {}
    for cell, label in zip(errors.cells.tolist(), errors.labels.tolist(), strict=True):
        drawn[(*cell, label)] = drawn.get((*cell, label), 0) + 1
    assert set(drawn) == {(6, 4, 0), (3, 0, 1), (0, 2, 1)}  # x, y, label
    assert all(900 < count < 1100 for count in drawn.values())
    assert bool(errors.found.all()) and errors.counts.unique().tolist() == [3]


def test_no_error_is_drawn_where_there_are_too_few():
    predicted = torch.zeros(3, 8, 8, dtype=torch.bool)
    target = predicted.clone()
    target[1, 0, :3] = True
    target[2, 7, 4:] = True
    errors = sample_errors(predicted, target, seeded(), least=4)
    assert errors.found.tolist() == [False, False, True] and errors.counts.tolist() == [0, 3, 4]
    assert errors.cells[:2].tolist() == [[0, 0], [0, 0]] and int(errors.cells[2, 1]) == 7
    assert cell_centres(torch.tensor([[0, 2]]), 4).tolist() == [[1.5, 9.5]]  # of pixels 0 to 3 and 8 to 11


def test_the_loss_is_that_of_the_best_mask_and_of_all_predicted_ious():
    torch.manual_seed(0)
    logits, target = torch.randn(2, 3, 4, 4), (torch.rand(2, 4, 4) > 0.5).float()
    logits[0, 1] = 6 * target[0] - 3
    decoded = Decoded(logits, torch.rand(2, 3))
    losses, ious = sam_loss(decoded, target)
    for p in range(2):
        masks = []
        for c in range(3):
            x, t = logits[p, c].double(), target[p].double()
            probability = torch.sigmoid(x)
            right = torch.where(t > 0, probability, 1 - probability)
            focal = (-((1 - right) ** 2) * right.log()).mean()
            dice = 1 - (2 * (probability * t).sum() + 1) / (probability.sum() + t.sum() + 1)
            masks.append(20 * focal + dice)
            assert float(ious[p, c]) == pytest.approx(mask_iou((x > 0).numpy(), t.numpy() > 0), abs=1e-6)
        error = ((decoded.iou_predictions[p] - ious[p]) ** 2).mean()
        assert float(losses[p]) == pytest.approx(float(min(masks) + error), rel=1e-4)


def test_cross_entropy_and_dice_count_valid_cells_only():
    logits = torch.tensor([[[[2.0, -1.0], [0.5, 9.0]]]])
    target = torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]])
    valid = torch.tensor([[1.0, 1.0], [0.5, 0.0]])
    bce, dice = bce_dice(logits, target, valid)
    p = [1 / (1 + np.exp(-x)) for x in (2.0, -1.0, 0.5)]
    cost = -np.log(p[0]) - np.log(1 - p[1]) - 0.5 * np.log(1 - p[2])
    assert float(bce) == pytest.approx(cost / 2.5, rel=1e-5)
    assert float(dice) == pytest.approx(1 - (2 * p[0] + 1) / (p[0] + p[1] + 0.5 * p[2] + 1 + 1), rel=1e-5)


def test_tokens_are_those_of_decode_and_ignored_points_are_zeros():
    network = tiny_model("edge_sam").network
    features = {"image_embeddings": torch.randn(1, 64, 4, 4, generator=seeded())}
    points, labels = torch.rand(2, 3, 2, generator=seeded()) * 60, torch.tensor([[1, 0, -1], [1, 2, 3]])
    with torch.no_grad():
        for tokens, multimask in ((slice(0, 1), False), (slice(1, 4), True)):
            own, expected = (
                decode_tokens(network, features, points, labels, tokens),
                network.decode(features, points, labels, None, multimask),
            )
            assert torch.equal(own.low_res_logits, expected.low_res_logits)
            assert torch.equal(own.iou_predictions, expected.iou_predictions)
        seen = []
        hook = network.mask_decoder.transformer.layers[0].register_forward_pre_hook(
            lambda _, inputs: seen.append(inputs[0])
        )
        ignored = labels.clone()
        ignored[0, 1] = IGNORED
        decode_tokens(network, features, points, ignored, slice(0, 4))
        hook.remove()
    assert seen[0].shape == (2, 5 + 3, 64)  # IoU and mask tokens first
    assert not seen[0][0, 6].any() and bool(seen[0][0, 5].any()) and bool(seen[0][1, 6].any())


@pytest.mark.parametrize("family", ["sam", "anysam_lite"])
def test_images_of_any_shapes_are_encoded_as_alone(family):
    network = tiny_model(family).network
    sizes = [(64, 64), (32, 64), (64, 64)] if family == "anysam_lite" else [(64, 64)] * 3
    pixels = [torch.randn(3, *size, generator=seeded(i)) for i, size in enumerate(sizes)]
    with torch.no_grad():
        for own, together in zip(pixels, encode_images(network, pixels), strict=True):
            for name, value in network.encode_image(own[None]).items():
                torch.testing.assert_close(together[name], value, atol=1e-4, rtol=1e-4)


def test_what_encodes_is_told_from_what_decodes():
    parts = {
        family: encoding_parts(tiny_model(family).network)
        for family in TINY
        if family not in ("fast_sam", "object_aware")
    }
    assert parts.pop("anysam_lite") == ["backbone", "neck"]
    assert set(map(tuple, parts.values())) == {("image_encoder",)}


def test_scores_are_those_of_predictions_and_leave_the_network_as_it_was(entries, tmp_path):
    model = anysam.load()
    network = model.network
    (tmp_path / "broken.png").write_bytes(b"no image")
    dataset = Entries([entries[0], entry_of(tmp_path / "broken.png", [np.ones((8, 8), bool)]), entries[1]])
    network.train()
    kept = {}
    scores = score_prompts(network, "anysam_lite", dataset, 1, kept)
    assert all(module.training for module in network.modules()) and set(kept) == {"0.png", "1.png"}
    network.eval()
    boxes = []
    for entry in entries[:2]:
        target = entry.decode(0) > 0
        found = model.predict(model.encode(entry.read_image()), Prompt(box=mask_to_box(target)), multimask=False)
        boxes.append(mask_iou(found.masks[0], target))
    assert scores["box"] == pytest.approx(np.mean(boxes), abs=1e-6) and scores["masks"] == 2
    assert scores["miou"] == pytest.approx((scores["box"] + scores["click"]) / 2)
    assert score_prompts(network, "anysam_lite", dataset, 1, kept) == scores
