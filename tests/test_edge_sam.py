"""EdgeSAM: RepViT against its definition, its fused form, its decoder's options. Numbers: tests/parity."""

import copy
import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from anysam.errors import OptionError, UnknownModelError
from anysam.models import PromptableModel, build, edge_sam
from anysam.models.edge_sam import (
    SIZES,
    EdgeSam,
    RepVggDepthwise,
    RepVit,
    RepVitConfig,
    build_edge_sam,
    build_image_encoder,
    convert_state_dict,
    stability_score,
)
from anysam.models.layers import fuse
from anysam.preprocess import Preprocess

CASES = Path(__file__).parent / "parity" / "cases"

TINY = RepVitConfig(
    widths=(8, 16, 32, 48),
    depths=(1, 2, 3, 2),
    squeeze_excite=((0,), (1,), (0, 2), (1,)),
    image_size=64,
    out_channels=32,
)


def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Random values in every tensor, norms' statistics included, of a size that keeps the signal's size."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in module.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 1.5, generator=generator)
        elif value.is_floating_point() and value.dim() > 1:
            value.normal_(std=value[0].numel() ** -0.5, generator=generator)
        elif value.is_floating_point():
            value.uniform_(0.5, 1.0, generator=generator)
    return module


def tiny_encoder(**changes: object) -> RepVit:
    encoder = randomise(build_image_encoder(dataclasses.replace(TINY, **changes)))
    assert isinstance(encoder, RepVit)
    return encoder.eval()


def tiny_network() -> EdgeSam:
    network = randomise(build_edge_sam(TINY, Preprocess(name="tiny_64", long_side=64, pad_to=64))).eval()
    assert isinstance(network, EdgeSam)
    return network


def pixels(batch: int = 1, side: int = 64) -> Tensor:
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(1))


def by_definition(state: dict[str, Tensor], config: RepVitConfig, x: Tensor) -> Tensor:
    """The encoder as the papers write it, branch by branch, from nothing but the published names of its tensors."""

    def conv_norm(x: Tensor, name: str, stride: int = 1) -> Tensor:
        weight = state[f"{name}.c.weight"]
        x = functional.conv2d(
            x, weight, stride=stride, padding=weight.shape[-1] // 2, groups=x.shape[1] // weight.shape[1]
        )
        mean, variance, scale, shift = (
            state[f"{name}.bn.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / torch.sqrt(variance + 1e-5) * scale + shift

    def gate(x: Tensor, name: str) -> Tensor:
        if f"{name}.fc1.weight" not in state:
            return x
        y = x.mean((2, 3), keepdim=True)
        y = functional.conv2d(y, state[f"{name}.fc1.weight"], state[f"{name}.fc1.bias"]).relu()
        return x * functional.conv2d(y, state[f"{name}.fc2.weight"], state[f"{name}.fc2.bias"]).sigmoid()

    def layer_norm(x: Tensor, name: str) -> Tensor:
        mean, variance = x.mean(1, keepdim=True), x.var(1, keepdim=True, unbiased=False)
        weight, bias = state[f"{name}.weight"][:, None, None], state[f"{name}.bias"][:, None, None]
        return (x - mean) / torch.sqrt(variance + 1e-6) * weight + bias

    x = functional.gelu(conv_norm(x, "features.0.0", stride=2))
    x = conv_norm(x, "features.0.2", stride=2)
    block, maps = 1, []
    for stage, depth in enumerate(config.depths):
        for index in range(depth):
            name = f"features.{block}"
            mixer = f"{name}.token_mixer"
            if stage and not index:
                x = conv_norm(x, f"{mixer}.0", stride=1 if stage == 3 and not config.two_scales else 2)
                x = conv_norm(gate(x, f"{mixer}.1"), f"{mixer}.2")
            else:
                x = gate(conv_norm(x, f"{mixer}.0.conv") + conv_norm(x, f"{mixer}.0.conv1") + x, f"{mixer}.1")
            hidden = functional.gelu(conv_norm(x, f"{name}.channel_mixer.m.0"))
            x = x + conv_norm(hidden, f"{name}.channel_mixer.m.2")
            block += 1
        maps.append(x)
    if config.two_scales:
        coarse = functional.conv2d(maps[3], state["fuse_stage3.op_list.0.weight"])
        size = (2 * coarse.shape[2], 2 * coarse.shape[3])
        coarse = functional.interpolate(coarse, size, mode=config.upsample, align_corners=False)
        x = functional.conv2d(maps[2], state["fuse_stage2.weight"]) + coarse
    x = layer_norm(functional.conv2d(x, state["neck.0.weight"]), "neck.1")
    return layer_norm(functional.conv2d(x, state["neck.2.weight"], padding=1), "neck.3")


@torch.no_grad()
@pytest.mark.parametrize("form", ["training form", "fused"])
@pytest.mark.parametrize("changes", [{}, {"upsample": "bilinear"}, {"two_scales": False}])
def test_encoder_is_the_definition(changes: dict, form: str) -> None:
    encoder = tiny_encoder(**changes)
    images = pixels(batch=2)
    expected = by_definition(encoder.state_dict(), dataclasses.replace(TINY, **changes), images)
    ours = (fuse(encoder) if form == "fused" else encoder)(images)
    assert ours.shape == (2, 32, 4, 4)
    assert (ours - expected).abs().max() < 1e-4 * expected.std()


@torch.no_grad()
def test_fusing_removes_all_norms_and_leaves_the_original_as_it_was() -> None:
    encoder = tiny_encoder()
    before = copy.deepcopy(encoder.state_dict())
    fused = fuse(encoder)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    torch.testing.assert_close(fuse(fused)(pixels()), fused(pixels()))  # a second time changes nothing


@torch.no_grad()
def test_depthwise_branches_become_one_kernel() -> None:
    mixer = RepVggDepthwise(1).eval()
    mixer.conv.c.weight[:] = torch.arange(9.0).reshape(1, 1, 3, 3)
    mixer.conv1.c.weight[:] = 20.0
    for norm in (mixer.conv.bn, mixer.conv1.bn):
        norm.load_state_dict({"running_var": torch.tensor([4 - 1e-5])}, strict=False)  # so it halves
    mixer.conv1.bn.bias[:] = 3.0
    kernel = mixer.fused()
    torch.testing.assert_close(kernel.weight.flatten(), torch.tensor([0, 0.5, 1, 1.5, 2 + 10 + 1, 2.5, 3, 3.5, 4]))
    torch.testing.assert_close(kernel.bias, torch.tensor([3.0]))


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_are_finite_and_near(dtype: torch.dtype) -> None:
    encoder = tiny_encoder()
    expected = encoder(pixels())
    for form in (copy.deepcopy(encoder), fuse(copy.deepcopy(encoder))):
        ours = form.to(dtype)(pixels().to(dtype))
        assert ours.dtype == dtype
        assert (ours.float() - expected).abs().mean() < 0.05 * expected.std()


@torch.no_grad()
def test_sums_over_channels_do_not_leave_the_range_of_float16() -> None:
    encoder, largest = tiny_encoder(), []
    hook = encoder.neck[0].register_forward_hook(lambda module, inputs, y: largest.append(y.abs().max().item()))
    encoder(pixels())
    hook.remove()
    encoder.neck[0].load_state_dict({"weight": encoder.neck[0].state_dict()["weight"] * (2e5 / largest[0])})
    expected, ours = encoder(pixels()), encoder.half()(pixels().half())  # float16 ends at 65504
    assert (ours.float() - expected).abs().mean() < 0.05 * expected.std()


def test_every_parameter_of_the_training_form_learns() -> None:
    encoder = tiny_encoder().train()
    encoder(pixels(batch=2)).square().sum().backward()
    still = [name for name, value in encoder.named_parameters() if value.grad is None or not value.grad.any()]
    assert still == []


def test_gradients_pass_through_the_fused_form() -> None:
    encoder = tiny_encoder()
    gradients = []
    for form in (encoder, fuse(copy.deepcopy(encoder))):
        images = pixels().requires_grad_()
        form(images)[:, :4].sum().backward()
        gradients.append(images.grad)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-5)


def test_state_dicts_have_the_official_keys_shapes_and_order() -> None:
    with torch.device("meta"):
        whole = build("edge_sam", "m1").state_dict()
        alone = build_image_encoder(dataclasses.replace(SIZES["m1"], two_scales=False)).state_dict()
    official = json.loads((CASES / "edge_sam" / "manifest.json").read_text())["tensors"]
    encoder = "image_encoder."
    assert {name: list(value.shape) for name, value in whole.items()} == {n: s for n, (s, _) in official.items()}
    assert [n for n in whole if n.startswith(encoder)] == [n for n in official if n.startswith(encoder)]
    official = json.loads((CASES / "edge_sam_rep_vit_m1_nofuse" / "manifest.json").read_text())["tensors"]
    assert [(name, list(value.shape)) for name, value in alone.items()] == [(n, s) for n, (s, _) in official.items()]


@pytest.mark.parametrize(("size", "blocks"), [("m1", 26), ("m2", 24), ("m3", 34)])
def test_every_size_has_its_published_number_of_blocks(size: str, blocks: int) -> None:
    with torch.device("meta"):
        network = edge_sam.build(size)
    assert isinstance(network.image_encoder, RepVit)
    assert len(network.image_encoder.features) == 1 + blocks


def test_unknown_sizes_and_shapes_are_refused() -> None:
    with pytest.raises(UnknownModelError, match="'m4'; its sizes are m1, m2, m3"):
        edge_sam.build("m4")
    changes: tuple[dict, ...] = ({"depths": (1, 2)}, {"widths": (7, 16, 32, 48)}, {"image_size": 65})
    for change in changes:
        with pytest.raises(ValueError, match=next(iter(change))):
            dataclasses.replace(TINY, **change)


def test_checkpoints_of_the_encoder_alone_get_its_prefix() -> None:
    encoder = tiny_encoder().state_dict()
    network = tiny_network().state_dict()
    assert list(convert_state_dict(encoder)) == [name for name in network if name.startswith("image_encoder.")]
    assert convert_state_dict(network) == network


@torch.no_grad()
def test_the_decoder_gives_one_three_or_four_masks() -> None:
    network = tiny_network()
    assert isinstance(network, PromptableModel)
    features = network.encode_image(pixels())
    prompt = features, torch.tensor([[[10.0, 20.0], [0, 0]]]), torch.tensor([[1, -1]]), None
    one, three, four = (network.decode_masks(*prompt, number, False) for number in (1, 3, 4))
    assert four.low_res_logits.shape == (1, 4, 16, 16)
    torch.testing.assert_close(torch.cat([one.low_res_logits, three.low_res_logits], 1), four.low_res_logits)
    torch.testing.assert_close(torch.cat([one.iou_predictions, three.iou_predictions], 1), four.iou_predictions)
    for multimask, expected in ((False, one), (True, three)):
        decoded = network.decode(*prompt, multimask)
        torch.testing.assert_close(decoded.low_res_logits, expected.low_res_logits)
        torch.testing.assert_close(decoded.iou_predictions, expected.iou_predictions)
    with pytest.raises(OptionError, match="1, 3 or 4 masks of a prompt, not 2"):
        network.decode_masks(*prompt, 2, False)


@torch.no_grad()
def test_stability_scores_take_the_place_of_predicted_ious() -> None:
    network = tiny_network()
    features = network.encode_image(pixels())
    prompt = features, torch.tensor([[[10.0, 20.0]]]), torch.tensor([[1]]), None
    decoded = network.decode_masks(*prompt, 4, True)
    torch.testing.assert_close(decoded.iou_predictions, stability_score(decoded.low_res_logits))


def test_stability_is_the_share_of_a_mask_that_a_higher_threshold_keeps() -> None:
    logits = torch.tensor([[2.0, 1.5, 1.0, 0.5], [-0.5, -1.0, -2.0, 3.0]]).reshape(1, 1, 2, 4)
    # Above +1: 2, 1.5, 3. Above -1: these and 1, 0.5, -0.5.
    empty = torch.full((1, 1, 2, 4), -5.0)
    assert stability_score(torch.cat([logits, empty], dim=1)).tolist() == [[0.5, 0.0]]


@torch.no_grad()
def test_padding_alone_is_no_prompt_token() -> None:
    network = tiny_network()
    features, mask = network.encode_image(pixels()), torch.randn(1, 1, 16, 16)
    padded = network.decode(features, torch.zeros(1, 1, 2), torch.tensor([[-1]]), mask, True)
    none = network.decode(features, torch.zeros(1, 0, 2), torch.zeros(1, 0).long(), mask, True)
    torch.testing.assert_close(padded.low_res_logits, none.low_res_logits)
