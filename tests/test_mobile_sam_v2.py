"""MobileSAMv2's promptable side: parts become one state_dict, encoders by size. Numbers: test_parity.py."""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from anysam.errors import UnknownModelError, WeightsError
from anysam.models import mobile_sam, mobile_sam_v2, sam
from anysam.models.mobile_sam_v2 import HalfInputSam, build, build_from, merge_parts
from anysam.models.sam_decoder import MaskDecoder, PromptEncoder
from anysam.preprocess import Preprocess

TINY = mobile_sam.TinyVitConfig(
    embed_dims=(8, 8, 8, 8),
    depths=(1, 1, 1, 1),
    num_heads=(1, 1, 1),
    window_sizes=(3, 3, 3),
    strides=(2, 2, 1),
    image_size=32,
    num_classes=3,
    out_channels=32,
)
PREPROCESS = Preprocess(name="tiny_32", long_side=32, pad_to=32)


def part(state_dict: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}


@pytest.fixture
def whole() -> dict[str, Tensor]:
    return dict(build_from(TINY, PREPROCESS).state_dict())


@pytest.fixture
def decoder(whole: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    return {"PromtEncoder": part(whole, "prompt_encoder."), "MaskDecoder": part(whole, "mask_decoder.")}


def assert_same(ours: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[key], expected[key]) for key in expected)


@pytest.mark.parametrize("wrapper", ["model", "state_dict", None])
@pytest.mark.parametrize("first", ["encoder", "decoder"])
def test_decoder_and_tiny_vit_become_one(whole: dict, decoder: dict, wrapper: str | None, first: str) -> None:
    encoder = part(whole, "image_encoder.")
    encoder_file = encoder if wrapper is None else {wrapper: encoder, "epoch": 8}
    parts = [encoder_file, decoder] if first == "encoder" else [decoder, encoder_file]
    merged = merge_parts(parts)
    assert_same(merged, whole)
    build_from(TINY, PREPROCESS).load_state_dict(merged, strict=True)


def test_only_the_image_encoder_of_a_whole_network_counts(whole: dict, decoder: dict) -> None:
    other = {f"module.{key}": value + 1 for key, value in whole.items()}
    merged = merge_parts([{"state_dict": other}, decoder])
    assert merged.keys() == whole.keys()
    assert all(torch.equal(merged[key], value + key.startswith("image_encoder.")) for key, value in whole.items())


def test_tables_are_left_out_and_a_missing_classifier_is_zeros(whole: dict, decoder: dict) -> None:
    encoder = part(whole, "image_encoder.")
    with_tables = encoder | {"layers.1.blocks.0.attn.attention_bias_idxs": torch.zeros(9, 9).long()}
    assert_same(merge_parts([{"model": with_tables}, decoder]), whole)
    without = {key: value for key, value in encoder.items() if "head." not in key}
    merged = merge_parts([{"model": without}, decoder])
    assert merged.keys() == whole.keys()
    assert merged["image_encoder.head.weight"].shape == (1000, 320)  # of the published size
    assert not merged["image_encoder.norm_head.weight"].any()


def test_a_bare_vit_is_an_encoder(decoder: dict) -> None:
    config = sam.VitConfig(embed_dim=8, depth=1, num_heads=1, global_blocks=(0,), image_size=32)
    encoder = dict(sam.ImageEncoderViT(config).state_dict())
    merged = merge_parts([decoder, encoder])
    assert_same(part(merged, "image_encoder."), encoder)


@pytest.mark.parametrize(
    ("choose", "message"),
    [
        (lambda encoder, decoder: [encoder], "0 prompt-guided decoders and 1 image encoders"),
        (lambda encoder, decoder: [decoder], "1 prompt-guided decoders and 0 image encoders"),
        (lambda encoder, decoder: [decoder, encoder, encoder], "1 prompt-guided decoders and 2 image encoders"),
        (lambda encoder, decoder: [decoder, decoder, encoder], "2 prompt-guided decoders"),
        (lambda encoder, decoder: [], "0 prompt-guided decoders and 0 image encoders"),
        (lambda encoder, decoder: [encoder, {"MaskDecoder": decoder["MaskDecoder"]}], "exactly PromtEncoder and MaskD"),
        (lambda encoder, decoder: [encoder, decoder | {"epoch": 1}], "exactly PromtEncoder and MaskDecoder"),
        (lambda encoder, decoder: [encoder, decoder | {"MaskDecoder": 3}], "MaskDecoder of part 2 holds no tensors"),
        (
            lambda encoder, decoder: [decoder, encoder | {"lr": 0.1}],
            "part 2 holds no state_dict: 'lr' is of type float",
        ),
        (lambda encoder, decoder: [decoder, {"conv.weight": torch.zeros(1)}], "first key: conv.weight"),
        (lambda encoder, decoder: [decoder, {}], "part 2 holds no tensors"),
        (lambda encoder, decoder: [decoder, encoder["head.weight"]], "Part 2 of 2 is a Tensor"),
    ],
)
def test_what_does_not_fit_is_refused(whole: dict, decoder: dict, choose, message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        merge_parts(choose(part(whole, "image_encoder."), decoder))


@torch.no_grad()
def test_half_input_is_the_bilinear_resize_to_half() -> None:
    network = HalfInputSam(nn.Identity(), PromptEncoder(), MaskDecoder(), PREPROCESS)
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = functional.interpolate(pixels, (16, 16), mode="bilinear")
    torch.testing.assert_close(network.encode_image(pixels)["image_embeddings"], expected)


@pytest.mark.parametrize(
    ("size", "encoder_parameters"),
    [("tiny_vit", 6_065_532), ("efficientvit_l2", 57_264_032), ("sam_vit_h", 637_026_048)],
)
def test_every_size_is_its_encoder_and_the_sam_decoder(size: str, encoder_parameters: int) -> None:
    with torch.device("meta"):
        network = build(size)
    assert sum(value.numel() for value in network.image_encoder.parameters()) == encoder_parameters
    # As published: of the prompt encoder and of the mask decoder.
    assert sum(value.numel() for value in network.prompt_encoder.parameters()) == 6_220
    assert sum(value.numel() for value in network.mask_decoder.parameters()) == 4_058_340
    assert network.preprocess.long_side == network.preprocess.pad_to == 1024
    assert network.preprocess.image_side is None
    assert isinstance(network, HalfInputSam) == (size == "efficientvit_l2")


def test_tiny_vit_has_the_keys_of_mobile_sam() -> None:
    with torch.device("meta"):
        ours, other = build("tiny_vit"), mobile_sam.build("tiny_vit")
    assert list(ours.state_dict()) == list(other.state_dict())


def test_build_names_what_there_is() -> None:
    with pytest.raises(UnknownModelError, match="'l1'; its sizes are tiny_vit, efficientvit_l2, sam_vit_h"):
        mobile_sam_v2.build("l1")
