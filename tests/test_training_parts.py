"""Losses, prompt sampling, augmentation and the backbone's conversion, each against a second computation."""

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from anysam.datasets import ImageEntry
from anysam.models.sam_decoder import BACKGROUND, BOX_BOTTOM_RIGHT, BOX_TOP_LEFT, FOREGROUND, PADDING
from anysam.train import augment
from anysam.train.losses import mask_iou, mask_loss
from anysam.train.prompt_sampling import add_corrections, first_prompts


def test_mask_loss_is_20_focal_plus_dice_as_written_in_numpy():
    rng = np.random.default_rng(0)
    logits, target = rng.normal(size=(2, 3, 5, 7)), rng.random((2, 5, 7)) > 0.6
    p = 1 / (1 + np.exp(-logits))
    t = np.broadcast_to(target[:, None], p.shape).astype(float)
    right = np.where(t == 1, p, 1 - p)
    focal = (-((1 - right) ** 2) * np.log(right)).mean(axis=(2, 3))
    dice = 1 - (2 * (p * t).sum((2, 3)) + 1) / (p.sum((2, 3)) + t.sum((2, 3)) + 1)
    ours = mask_loss(torch.from_numpy(logits), torch.from_numpy(target.astype(float)))
    np.testing.assert_allclose(ours.numpy(), 20 * focal + dice, rtol=1e-6)


def test_mask_iou_by_hand():
    logits = torch.tensor([[[[1.0, 1.0, -1.0, -1.0]], [[-1.0, -1.0, -1.0, -1.0]]]])  # (1, 2, 1, 4)
    target = torch.tensor([[[1.0, 0.0, 1.0, 0.0]]])
    assert mask_iou(logits, target).tolist() == [[pytest.approx(1 / 3), 0.0]]


def test_first_prompts_are_a_click_with_padding_or_the_two_corners():
    clicks, boxes = (
        torch.tensor([[5.0, 6.0], [7.0, 8.0]]),
        torch.tensor([[0.0, 1.0, 20.0, 30.0], [2.0, 3.0, 40.0, 50.0]]),
    )
    points, labels = first_prompts(clicks, boxes, torch.tensor([False, True]), jitter=0.0, generator=torch.Generator())
    assert labels.tolist() == [[FOREGROUND, PADDING], [BOX_TOP_LEFT, BOX_BOTTOM_RIGHT]]
    assert points[0, 0].tolist() == [5.0, 6.0]
    assert points[1].tolist() == [[2.0, 3.0], [40.0, 50.0]]


def test_jittered_boxes_keep_their_order_and_stay_within_20_pixels():
    boxes = torch.tensor([[50.0, 60.0, 450.0, 66.0]]).repeat(200, 1)
    points, _ = first_prompts(
        torch.zeros(200, 2),
        boxes,
        torch.ones(200, dtype=torch.bool),
        jitter=0.5,
        generator=torch.Generator().manual_seed(0),
    )
    assert (points[:, 1] > points[:, 0]).all()
    assert (points.flatten(1)[:, [0, 2]] - boxes[:, [0, 2]]).abs().max() <= 20
    assert points.flatten(1).std(dim=0)[0] > 5


def test_corrections_hit_the_error_and_carry_its_sign():
    target = torch.zeros(2, 8, 8)
    target[:, 2:6, 2:6] = 1
    logits = torch.where(target > 0, 1.0, -1.0)
    logits[0, 4:6, 2:6] = -1  # a part is missing
    logits[1, 0, 0] = 1  # one cell is too much
    generator = torch.Generator().manual_seed(0)
    hit = set()
    for _ in range(60):
        old = torch.zeros(2, 1, 2), torch.ones(2, 1, dtype=torch.long)
        points, labels = add_corrections(*old, logits, target, generator)
        assert labels[:, 1].tolist() == [FOREGROUND, BACKGROUND]
        x, y = ((points[:, 1] + 0.5) / 4).floor().long().T  # the cell each click fell into
        assert 4 <= y[0] < 6 and 2 <= x[0] < 6
        assert (int(x[1]), int(y[1])) == (0, 0)
        hit.add((int(x[0]), int(y[0])))
    assert len(hit) == 8  # every cell that is missing gets its turn


def test_careful_corrections_are_in_the_middle_of_the_largest_error():
    target = torch.zeros(1, 16, 16)
    target[:, 2:13, 2:13] = 1
    logits = torch.where(target > 0, 1.0, -1.0)
    logits[:, 2:9, 2:9] = -1  # missing: 7 x 7 cells with the middle at 5, 5
    logits[:, 14:, 14:] = 1
    old = torch.zeros(1, 1, 2), torch.ones(1, 1, dtype=torch.long)
    for seed in range(10):
        points, labels = add_corrections(*old, logits, target, torch.Generator().manual_seed(seed), centred=1.0)
        assert ((points[0, 1] + 0.5) / 4).floor().tolist() == [5, 5] and labels[0, 1] == FOREGROUND


def test_a_perfect_mask_is_clicked_inside_and_an_empty_one_anywhere():
    target = torch.zeros(2, 8, 8)
    target[0, 6, 3] = 1
    old = torch.zeros(2, 1, 2), torch.ones(2, 1, dtype=torch.long)
    points, labels = add_corrections(*old, torch.where(target > 0, 1.0, -1.0), target, torch.Generator())
    assert ((points[0, 1] + 0.5) / 4).floor().tolist() == [3, 6] and labels[0, 1] == FOREGROUND
    assert (points[1, 1] >= -0.5).all() and (points[1, 1] < 31.5).all() and labels[1, 1] == BACKGROUND


@pytest.fixture
def square_entry(tmp_path):
    """A red rectangle on grey, whose mask is the rectangle."""
    mask = np.zeros((120, 160), np.uint8)
    mask[30:90, 50:120] = 1
    image = np.where(mask[..., None] == 1, (255, 0, 0), (128, 128, 128)).astype(np.uint8)
    path = tmp_path / "square.png"
    Image.fromarray(image).save(path)
    counts = coco_mask.encode(np.asfortranarray(mask))["counts"]
    return ImageEntry(path, "set", (120, 160), (counts,), (int(mask.sum()),))


def test_crops_keep_image_and_masks_aligned(square_entry, monkeypatch):
    monkeypatch.setattr(augment, "recolour", lambda image, rng: image)
    rng = np.random.default_rng(1)
    seen = 0
    for _ in range(30):
        sample = augment.training_sample(square_entry, (96, 128), 160, 4, rng)
        if sample is None:
            continue
        seen += 1
        red = (sample.image[..., 0].astype(int) - sample.image[..., 1]) > 128
        coverage = red.reshape(24, 4, 32, 4).mean(axis=(1, 3))  # (h, w)
        # a shift by a whole cell would give about 0.05, by half a pixel 0.006
        assert np.abs(coverage - sample.masks[0]).mean() < 0.015
        x, y = sample.clicks[0].astype(int)
        assert red[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2].any()
        ys, xs = np.nonzero(red)
        np.testing.assert_allclose(sample.boxes[0], [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], atol=2)
    assert seen >= 20


def test_whole_images_are_resized_to_the_long_side_and_padded(square_entry):
    sample = augment.whole_sample(square_entry, 320, 64, 4, np.random.default_rng(0))
    assert sample.image.shape == (256, 320, 3) and not sample.image[240:].any()
    assert sample.masks.shape == (1, 64, 80)
    np.testing.assert_allclose(sample.boxes[0], [100, 60, 240, 180], atol=1)


def disc_crop(centre, radius, colour, size=(60, 80)):
    y, x = np.mgrid[: size[0], : size[1]]
    mask = ((y - centre[1]) ** 2 + (x - centre[0]) ** 2 <= radius**2).astype(np.uint8)
    return augment.Crop(np.full((*size, 3), colour, np.uint8), (mask,))


def test_a_pasted_object_covers_the_crop_and_what_is_below_loses_its_pixels():
    crop, donor = disc_crop((40, 30), 25, 50), disc_crop((20, 20), 9, 200)
    places = set()
    for seed in range(20):
        result = augment.pasted(crop, donor, np.random.default_rng(seed))
        assert result is not None
        mask, below = result.masks
        assert np.array_equal(result.image[..., 0] == 200, mask == 1)  # its pixels, and no others, come along
        assert mask.sum() == donor.masks[0].sum() and not (mask & below).any()
        assert np.array_equal(below | (mask & crop.masks[0]), crop.masks[0])
        places.add(tuple(np.argwhere(mask).min(axis=0)))
    assert len(places) > 10


def test_what_is_too_large_to_paste_or_hides_everything_is_left_out():
    wide = augment.Crop(np.zeros((60, 80, 3), np.uint8), (np.ones((60, 80), np.uint8),))
    assert augment.pasted(disc_crop((40, 30), 25, 50), wide, np.random.default_rng(0)) is None
    small, fills = disc_crop((10, 10), 6, 50, (24, 24)), disc_crop((10, 10), 7, 200, (24, 24))
    lost = [augment.pasted(small, fills, np.random.default_rng(seed)) for seed in range(40)]
    assert any(each is None for each in lost)  # on top of the only mask
    for each in lost:
        if each is not None:
            assert each.masks[1].sum() >= 0.3 * small.masks[0].sum()


def test_crops_with_a_donor_have_its_object_first(square_entry):
    rng = np.random.default_rng(0)
    samples = [augment.training_sample(square_entry, (96, 128), 160, 4, rng, square_entry) for _ in range(10)]
    assert {len(sample.masks) for sample in samples if sample is not None} == {1, 2}
