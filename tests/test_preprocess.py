"""Frames: image -> input, prompt -> input, logits -> image, by hand and against Pillow."""

import numpy as np
import pytest
import torch
from PIL import Image

from anysam.preprocess import Preprocess, mask_to_logits, prepare_image, prompt_tokens, upscale_logits
from anysam.prompts import Prompt, resolve_prompt

SAM = Preprocess(name="sam", long_side=1024, pad_to=1024)
FLEXIBLE = Preprocess(name="flexible", long_side=512, pad_to=None, pad_multiple=32)
SMALL = Preprocess(name="small", long_side=64, pad_to=64)


@pytest.mark.parametrize(
    ("original", "expected"),
    [
        ((600, 800), (768, 1024)),
        ((1100, 733), (1024, 682)),  # 682.4
        ((1, 1), (1024, 1024)),
        ((33, 1500), (23, 1024)),  # 22.5
        ((1, 5000), (1, 1024)),  # 0.2 would be no image
    ],
)
def test_input_size_rounds_half_up_and_never_to_nothing(original: tuple[int, int], expected: tuple[int, int]) -> None:
    assert SAM.input_size(original) == expected
    assert SAM.padded_size(expected) == (1024, 1024)
    assert SAM.low_res_size(expected) == (256, 256)


@pytest.mark.parametrize(
    ("original", "padded"), [((480, 640), (384, 512)), ((375, 500), (384, 512)), ((1, 900), (32, 512))]
)
def test_padded_size_follows_the_image_where_it_is_not_square(
    original: tuple[int, int], padded: tuple[int, int]
) -> None:
    input_size = FLEXIBLE.input_size(original)
    assert FLEXIBLE.padded_size(input_size) == padded
    assert FLEXIBLE.low_res_size(input_size) == (padded[0] // 4, padded[1] // 4)


@pytest.mark.parametrize("changes", [{"long_side": 0}, {"pad_to": 32}, {"pad_multiple": 0}, {"low_res_stride": 0}])
def test_impossible_frames_are_refused(changes: dict) -> None:
    with pytest.raises(ValueError, match="must"):
        Preprocess(**({"name": "x", "long_side": 64, "pad_to": 64} | changes))


def test_prepare_image_resizes_normalises_and_pads() -> None:
    image = np.random.default_rng(0).integers(0, 256, (30, 50, 3), dtype=np.uint8)
    pixels, input_size = prepare_image(image, SMALL)
    assert input_size == (38, 64)
    assert pixels.shape == (1, 3, 64, 64)
    assert pixels.dtype == torch.float32
    resized = np.asarray(Image.fromarray(image).resize((64, 38), Image.Resampling.BILINEAR), dtype=np.float64)
    expected = (resized - [123.675, 116.28, 103.53]) / [58.395, 57.12, 57.375]
    np.testing.assert_allclose(pixels[0, :, :38].permute(1, 2, 0).numpy(), expected, atol=1e-6)
    assert not pixels[0, :, 38:].any()


def test_prepare_image_pads_right_too_and_casts() -> None:
    pixels, input_size = prepare_image(np.full((50, 30, 3), 255, dtype=np.uint8), SMALL, "cpu", torch.bfloat16)
    assert input_size == (64, 38)
    assert pixels.dtype == torch.bfloat16
    assert (pixels[0, :, :, :38] > 2).all()
    assert not pixels[0, :, :, 38:].any()


def tokens_of(prompt: Prompt) -> tuple[list, list]:
    points, labels = prompt_tokens(resolve_prompt(prompt, (600, 800)), SAM, (600, 800))
    assert points.dtype == torch.float32
    assert labels.dtype == torch.int64
    return points.tolist(), labels.tolist()


def test_points_are_scaled_and_followed_by_one_padding_point() -> None:
    points, labels = tokens_of(Prompt(points=[[100, 50], [800, 600]], labels=[1, 0]))
    assert points == [[128, 64], [1024, 768], [0, 0]]
    assert labels == [1, 0, -1]


def test_box_corners_come_last_and_need_no_padding_point() -> None:
    assert tokens_of(Prompt(box=[100, 50, 200, 300])) == ([[128, 64], [256, 384]], [2, 3])
    points, labels = tokens_of(Prompt(points=[[400, 300]], labels=[0], box=[100, 50, 200, 300]))
    assert points == [[512, 384], [128, 64], [256, 384]]
    assert labels == [0, 2, 3]


def test_each_axis_has_its_own_scale() -> None:
    prompt = resolve_prompt(Prompt(points=[[733, 1100]]), (1100, 733))
    points, _ = prompt_tokens(prompt, SAM, (1100, 733))
    assert points[0].tolist() == [682, 1024]


def test_earlier_logits_alone_give_the_padding_point_alone() -> None:
    assert tokens_of(Prompt(low_res_logits=np.zeros((256, 256)))) == ([[0, 0]], [-1])


def test_full_mask_is_sure_inside_the_image_and_sure_of_the_padding() -> None:
    logits = mask_to_logits(np.ones((48, 64), dtype=bool), SMALL, (48, 64), (16, 16))
    assert logits.shape == (16, 16)
    assert (logits[:12] == 10).all()
    assert (logits[12:] == -10).all()


def test_cell_half_covered_by_the_mask_is_undecided() -> None:
    mask = np.zeros((64, 64), dtype=bool)
    mask[:, :6] = True  # one cell of 4 pixels and half of the next
    logits = mask_to_logits(mask, SMALL, (64, 64), (16, 16))
    assert logits[5, :3].tolist() == [10, 0, -10]


@pytest.mark.parametrize("preprocess", [SAM, FLEXIBLE])
@pytest.mark.parametrize("size", [(600, 800), (1100, 733), (333, 77)])
def test_mask_survives_the_way_to_the_decoder_and_back(preprocess: Preprocess, size: tuple[int, int]) -> None:
    y, x = np.mgrid[: size[0], : size[1]]
    mask = ((y - 0.6 * size[0]) / size[0]) ** 2 + ((x - 0.4 * size[1]) / size[1]) ** 2 < 0.1
    input_size = preprocess.input_size(size)
    low_res = mask_to_logits(mask, preprocess, input_size, preprocess.low_res_size(input_size))
    back = upscale_logits(low_res[None, None], preprocess, input_size, size)[0, 0].numpy() > 0
    assert (back & mask).sum() / (back | mask).sum() > 0.98


def test_upscaling_is_two_bilinear_steps_with_the_padding_cut_off_between() -> None:
    low_res = np.random.default_rng(0).standard_normal((16, 16)).astype(np.float32)
    ours = upscale_logits(torch.from_numpy(low_res)[None, None], SMALL, (48, 64), (90, 120))[0, 0]
    # Pillow's bilinear filter, which for enlarging is plain interpolation between pixel centres.
    padded = Image.fromarray(low_res).resize((64, 64), Image.Resampling.BILINEAR)
    expected = padded.crop((0, 0, 64, 48)).resize((120, 90), Image.Resampling.BILINEAR)
    np.testing.assert_allclose(ours.numpy(), np.asarray(expected), atol=1e-5)


def test_upscaling_works_in_float32() -> None:
    logits = upscale_logits(torch.zeros(2, 3, 16, 16, dtype=torch.bfloat16), SMALL, (48, 64), (1, 1))
    assert logits.dtype == torch.float32
    assert logits.shape == (2, 3, 1, 1)


@pytest.mark.parametrize("size", [(48, 64), (64, 48), (17, 64), (64, 3), (64, 64), (33, 61)])
def test_upscaling_without_the_padding_is_what_it_is_with_it(size: tuple[int, int]) -> None:
    low_res = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    whole = torch.nn.functional.interpolate(low_res, (64, 64), mode="bilinear", align_corners=False)
    cut = whole[..., : size[0], : size[1]]
    expected = torch.nn.functional.interpolate(cut, (90, 120), mode="bilinear", align_corners=False)
    assert torch.equal(upscale_logits(low_res, SMALL, size, (90, 120)), expected)
