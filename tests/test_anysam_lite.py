"""The built-in network with random weights: shapes, prompts as maps, and independence of prompts from each other."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import anysam
from anysam.models.anysam_lite import AnySamLite, build
from anysam.models.anysam_lite_decoder import LiteConfig, draw_box, draw_prompts, limit_to_box, sample
from anysam.preprocess import upscale_logits

CLICK, PADDED_BOX = [[10.0, 20.0], [0.0, 0.0]], [[8.0, 16.0], [40.0, 48.0]]


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return build("lite").eval().requires_grad_(False)


@pytest.fixture(scope="module")
def features(network):
    return network.encode_image(torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1)))


def test_features_and_logits_follow_the_shape_of_the_input(network, features):
    assert features["image_embeddings"].shape == (1, 128, 4, 6)
    assert features["skip8"].shape[-2:] == (8, 12) and features["skip4"].shape[-2:] == (16, 24)
    points, labels = torch.tensor([CLICK]), torch.tensor([[1, -1]])
    logits, ious, _ = network.decode(features, points, labels, None, multimask=True)
    assert logits.shape == (1, 3, 16, 24) and ious.shape == (1, 3)
    logits, ious, _ = network.decode(features, points, labels, None, multimask=False)
    assert logits.shape == (1, 1, 16, 24) and ious.shape == (1, 1)


def test_a_batch_of_prompts_equals_the_prompts_one_by_one(network, features):
    points, labels = torch.tensor([CLICK, PADDED_BOX]), torch.tensor([[1, -1], [2, 3]])
    masks = torch.randn(2, 1, 16, 24)
    for mask_logits in (None, masks):
        logits, ious, _ = network.decode(features, points, labels, mask_logits, multimask=True)
        for i in range(2):
            own = None if mask_logits is None else mask_logits[i : i + 1]
            one, iou, _ = network.decode(features, points[i : i + 1], labels[i : i + 1], own, multimask=True)
            torch.testing.assert_close(logits[i : i + 1], one, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(ious[i : i + 1], iou, rtol=1e-4, atol=1e-5)


def test_every_kind_of_prompt_changes_the_logits(network, features):
    def logits(points, labels, mask=None):
        return network.decode(features, torch.tensor([points]), torch.tensor([labels]), mask, multimask=False)[0]

    base = logits(CLICK, [1, -1])
    assert not torch.allclose(base, logits(CLICK, [0, -1]))
    assert not torch.allclose(base, logits([[30.0, 20.0], [0.0, 0.0]], [1, -1]))
    assert not torch.allclose(base, logits(CLICK, [1, -1], torch.ones(1, 1, 16, 24)))
    assert not torch.allclose(logits(PADDED_BOX, [2, 3]), logits([[8.0, 16.0], [60.0, 48.0]], [2, 3]))
    # where a padding token stands must not matter
    torch.testing.assert_close(base, logits([CLICK[0], [77.0, 33.0]], [1, -1]))


def test_features_sampled_at_a_cell_centre_are_that_cell():
    features = torch.randn(1, 5, 4, 6)
    centres = torch.tensor([[[2 * 16 + 7.5, 1 * 16 + 7.5], [0 * 16 + 7.5, 3 * 16 + 7.5]]])
    torch.testing.assert_close(
        sample(features, centres, 16), torch.stack([features[0, :, 1, 2], features[0, :, 3, 0]])[None]
    )


def test_clicks_are_drawn_where_they_are_and_padding_is_not():
    skip = torch.randn(1, 7, 8, 12)
    maps = draw_prompts(skip, torch.tensor([[[43.5, 19.5], [3.0, 3.0]]]), torch.tensor([[1, -1]]), None)
    assert maps.shape == (1, 12, 8, 12)
    near, wide, background_near, background_wide, similar, dissimilar = maps[0, :6]
    assert divmod(int(near.argmax()), 12) == (2, 5) and near.max() == pytest.approx(1.0)
    assert near[2, 6] == pytest.approx(torch.exp(torch.tensor(-0.5)).item(), rel=1e-5)  # one cell is one sigma
    assert wide[2, 6] == pytest.approx(torch.exp(torch.tensor(-0.02)).item(), rel=1e-5)  # and a fifth of the wide one's
    assert background_near.abs().max() == 0 and background_wide.abs().max() == 0 and dissimilar.abs().max() == 0
    unit = torch.nn.functional.normalize(skip, dim=1)[0]
    torch.testing.assert_close(similar, torch.einsum("chw,c->hw", unit, unit[:, 2, 5]).clamp(min=0))
    assert maps[0, 6:].abs().max() == 0


def test_a_box_is_drawn_as_inside_and_relative_position():
    centres = torch.arange(8) * 8 + 3.5
    points, labels = torch.tensor([[[8.0, 16.0], [40.0, 48.0]]]), torch.tensor([[2, 3]])
    there, inside, u, v = (t[0] for t in draw_box(centres, centres, points, labels))
    assert there.min() == 1
    # cell (3, 2) has its centre at x 19.5, y 27.5; the box spans x 8..40, y 16..48
    assert inside[3, 2] == 1 and inside[0, 2] == -1
    assert inside[3, 1] == pytest.approx((11.5 - 8) / 8)
    assert u[3, 2] == pytest.approx((19.5 - 24) / 16) and v[3, 2] == pytest.approx((27.5 - 32) / 16)
    assert u[3, 7] == 2  # clipped


def test_a_previous_mask_is_averaged_to_the_cells_and_marked():
    skip = torch.randn(1, 7, 8, 12)
    mask = torch.full((1, 1, 16, 24), -2.0)
    mask[0, 0, :2, :2] = torch.tensor([[2.0, 4.0], [6.0, 100.0]])
    maps = draw_prompts(skip, torch.tensor([CLICK]), torch.tensor([[1, -1]]), mask)
    assert (maps[0, 10] == 1).all()
    assert maps[0, 11, 0, 0] == pytest.approx((2 + 4 + 6 + 8) / 4 / 4)  # values are clipped to 8 and divided by 4
    assert maps[0, 11, 5, 5] == pytest.approx(-0.5)


def test_a_mask_that_is_positive_everywhere_becomes_exactly_its_box():
    size = (384, 512)  # input and image of one size, so that the box needs no rescaling
    for x0, y0, x1, y1 in [(10, 20, 200, 90), (101, 33, 117, 61), (0, 0, 512, 384), (300, 250, 309, 258)]:
        points = torch.tensor([[[float(x0), float(y0)], [float(x1), float(y1)]]])
        limited = limit_to_box(torch.full((1, 1, 96, 128), 9.0), points, torch.tensor([[2, 3]]))
        mask = upscale_logits(limited, AnySamLite.preprocess, size, size)[0, 0] > 0
        box = torch.zeros(size, dtype=torch.bool)
        box[y0:y1, x0:x1] = True
        assert (mask & ~box).sum() == 0
        # only the corners are rounded off a little by the interpolation
        assert (box & ~mask).sum() <= 16


def test_the_limit_needs_a_box_and_yields_to_a_click_outside_it():
    logits = torch.full((3, 2, 96, 128), 9.0)
    box, elsewhere = [[40.0, 40.0], [80.0, 80.0]], [200.0, 60.0]
    points = torch.tensor([[*box, elsewhere], [*box, elsewhere], [*box, elsewhere]])
    labels = torch.tensor([[2, 3, 0], [2, 3, 1], [1, 1, 1]])  # background click, foreground click, no box at all
    limited = limit_to_box(logits, points, labels)
    positive = (limited > 0).any(dim=2).any(dim=1)  # (P, w): columns
    assert positive[0].nonzero().flatten().tolist() == list(range(10, 20))
    assert positive[1].nonzero().flatten().tolist() == list(range(10, 50))
    assert torch.equal(limited[2], logits[2])


def test_a_tiny_box_still_leaves_something():
    for x in (100.0, 101.0, 102.5, 103.0):
        points = torch.tensor([[[x, x], [x + 2, x + 2]]])
        limited = limit_to_box(torch.full((1, 1, 96, 128), 9.0), points, torch.tensor([[2, 3]]))
        mask = upscale_logits(limited, AnySamLite.preprocess, (384, 512), (384, 512))[0, 0] > 0
        assert 4 <= mask.sum() <= 64


def plainly(network, features, points, labels, multimask=True):
    """What the decoder's plain form says, in one call: logits (P, C, h, w), limited to boxes, and predicted IoU."""
    features = {name: value.contiguous(memory_format=torch.channels_last) for name, value in features.items()}
    logits, ious = network.decoder(features, points, labels, None)
    chosen = slice(1, None) if multimask else slice(0, 1)
    return limit_to_box(logits[:, chosen], points, labels), ious[:, chosen]


def shaken(config, dtype):
    """A network whose norms and biases are not the identity, as those of a new one are."""
    network = AnySamLite(config).to(memory_format=torch.channels_last).eval().requires_grad_(False).to(dtype)
    for name, parameter in network.named_parameters():
        if "norm" in name or name.endswith("bias"):
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return network


def between(ious):
    """A threshold in the middle of the predicted IoUs, in the widest gap nearby: rounding does not decide there."""
    values = ious.flatten().sort().values
    nearby = values[len(values) // 3 : len(values) // 3 * 2 + 2]
    widest = nearby.diff().argmax()
    return nearby[widest : widest + 2].mean().item()


def random_clicks(count, dtype=torch.float32):
    points = torch.rand(count, 2, 2, dtype=dtype) * torch.tensor([96.0, 64.0])
    points[0, 0] = torch.tensor([-0.5, -0.5])  # a corner of the image
    return points, torch.tensor([[1, -1]]).expand(count, 2)


def assert_kept(kept, logits, ious, least, rows):
    wanted = ious > least
    assert torch.equal(kept.candidates, wanted.flatten().nonzero()[:, 0]) and kept.candidates.dtype == torch.int64
    torch.testing.assert_close(kept.iou_predictions, ious, rtol=1e-5, atol=1e-5)
    expected = logits[wanted][:, :rows]
    assert kept.low_res_logits.shape == expected.shape == (int(wanted.sum()), rows, logits.shape[-1])
    if len(expected):
        assert (kept.low_res_logits - expected).abs().max() < 1e-4 * logits.std()


@pytest.mark.parametrize("config", [LiteConfig(), LiteConfig(32, 12, 8, 2, 24, 96), LiteConfig(64, 8, 4, 4, 16, 128)])
def test_kept_masks_of_clicks_are_those_of_the_plain_decoder(config):
    torch.manual_seed(2)
    network = shaken(config, torch.float32)
    features = network.encode_image(torch.randn(1, 3, 64, 96))
    points, labels = random_clicks(19)  # more than are held at once
    for multimask in (True, False):
        logits, ious = plainly(network, features, points, labels, multimask)
        for least in (-torch.inf, between(ious), ious.max().item() + 1e-3):
            kept = network.decode_kept(features, points, labels, multimask, least, 16)
            assert_kept(kept, logits, ious, least, 16)


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 8, 9, 15, 16])
def test_kept_masks_have_the_rows_that_are_wanted(network, features, rows):
    points, labels = random_clicks(3)
    logits, ious = plainly(network, features, points, labels)
    assert_kept(network.decode_kept(features, points, labels, True, -torch.inf, rows), logits, ious, -torch.inf, rows)


def test_kept_masks_of_any_prompt_without_a_mask_are_those_of_the_plain_decoder(network, features):
    boxes = torch.tensor([PADDED_BOX, [[20.0, 10.0], [90.0, 60.0]], [[3.0, 3.0], [5.0, 5.0]]])
    several = torch.rand(5, 4, 2) * 60
    for points, labels in [
        (boxes, torch.tensor([[2, 3]] * 3)),
        (boxes, torch.tensor([[2, 3], [1, -1], [0, -1]])),
        (several, torch.tensor([[1, 0, 1, -1], [1, 1, 2, 3], [0, 0, 0, -1], [1, 0, 2, 3], [1, -1, -1, -1]])),
        (several[:, :1], torch.ones(5, 1).long()),
        (torch.rand(2, 40, 2) * 60, torch.ones(2, 40).long()),
    ]:
        logits, ious = plainly(network, features, points, labels)
        least = between(ious)
        assert_kept(network.decode_kept(features, points, labels, True, least, 13), logits, ious, least, 13)


def test_kept_masks_in_float64_differ_by_rounding_alone():
    torch.manual_seed(3)
    network = shaken(LiteConfig(32, 12, 8, 2, 24, 96), torch.float64)
    features = network.encode_image(torch.randn(1, 3, 96, 64, dtype=torch.float64))
    points, labels = random_clicks(5, torch.float64)
    logits, ious = plainly(network, features, points, labels)
    kept = network.decode_kept(features, points, labels, True, -torch.inf, 24)
    torch.testing.assert_close(kept.low_res_logits, logits.flatten(0, 1), rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(kept.iou_predictions, ious, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_kept_masks_in_half_precision_are_those_of_decode(dtype):
    torch.manual_seed(4)
    network = shaken(LiteConfig(32, 12, 8, 2, 24, 96), dtype)
    features = network.encode_image(torch.randn(1, 3, 64, 96, dtype=dtype))
    points, labels = random_clicks(5)
    logits, ious, _ = network.decode(features, points, labels, None, True)
    least = between(ious.float())
    kept = network.decode_kept(features, points, labels, True, least, 10)
    assert torch.equal(kept.low_res_logits, logits[ious > least][:, :10])


def test_many_clicks_decoded_at_once_are_those_of_the_plain_decoder_and_leave_the_features_alone(network, features):
    before = {name: value.clone() for name, value in features.items()}
    points, labels = random_clicks(6)
    logits, ious = plainly(network, features, points, labels)
    decoded = network.decode(features, points, labels, None, True)
    assert (decoded.low_res_logits - logits).abs().max() < 1e-4 * logits.std()
    torch.testing.assert_close(decoded.iou_predictions, ious, rtol=1e-5, atol=1e-5)
    assert all(torch.equal(features[name], before[name]) for name in features)


def test_kept_masks_of_the_shipped_weights_on_a_photograph():
    model = anysam.load()
    photograph = Image.open(Path(__file__).parents[1] / "examples" / "images" / "coffee.png").convert("RGB")
    features = model.encode(np.asarray(photograph.resize((300, 211)))).features
    points = torch.rand(6, 2, 2, generator=torch.Generator().manual_seed(5)) * 400
    labels = torch.tensor([[1, -1]]).expand(6, 2)
    logits, ious = plainly(model.network, features, points, labels)
    least, rows = between(ious), logits.shape[2] - 3
    assert_kept(model.network.decode_kept(features, points, labels, True, least, rows), logits, ious, least, rows)


def test_gradients_flow_through_many_clicks():
    network = AnySamLite(LiteConfig(32, 12, 8, 2, 24, 96))
    features = network.encode_image(torch.randn(1, 3, 64, 96))
    points, labels = random_clicks(5)
    network.decode(features, points, labels, None, True).low_res_logits.sum().backward()
    assert all(network.decoder.maps8.weight.grad[:, channel].abs().max() > 0 for channel in (0, 1, 4))
