"""Low-rank adaptation of every family: nothing changes at first, merged is unmerged, only the products learn."""

import numpy as np
import pytest
import torch
from torch import nn

from anysam.errors import OptionError, WeightsError
from anysam.train import lora
from anysam.train.lora import LoraLinear, adapter_state_dict, inject, merge_adapter, merged_state_dict
from anysam.train.promptable import encoding_parts
from anysam.weights_files import read_metadata, read_state_dict, save_checkpoint
from tiny_models import TINY, filled

# Where each family has attention, and the layers in its tiny encoder and its decoder of two blocks: q and v, or all.
DECODER = {"anysam_lite": "decoder", "tap": "image_decoder"}
FAMILIES = [family for family in TINY if family not in ("fast_sam", "object_aware")]
WITHOUT_ATTENTION = ("anysam_lite", "edge_sam", "efficientvit_sam")  # encoders whose projections are convolutions


def tiny(family):
    return filled(TINY[family][1]()).eval().requires_grad_(False)


def parts_of(family, network):
    encoders = [] if family in WITHOUT_ATTENTION else encoding_parts(network)
    return [*encoders, DECODER.get(family, "mask_decoder")]


def moved(network, seed=1):
    """Products that are no longer zero."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, lora.LowRank):
            module.b.data.normal_(std=0.1, generator=generator)
    return network


def answers(network, seed=2):
    """What a network says of a made-up image and three prompts, as one vector."""
    frame = network.preprocess
    side = frame.image_side or frame.long_side
    pixels = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(seed))
    points = torch.tensor([[[20.0, 30.0], [0.0, 0.0]], [[50.0, 11.0], [0.0, 0.0]], [[5.0, 6.0], [50.0, 40.0]]])
    labels = torch.tensor([[1, -1], [1, -1], [2, 3]])
    features = network.encode_image(pixels)
    decoded = [network.decode(features, points, labels, None, multimask) for multimask in (True, False)]
    return torch.cat([part.flatten() for one in decoded for part in (one.low_res_logits, one.iou_predictions)])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("targets", ["qv", "all"])
def test_merged_weights_answer_as_unmerged_ones(family, targets):
    network = tiny(family)
    parts = parts_of(family, network)
    with torch.no_grad():
        base = answers(network)
        keys = set(network.state_dict())
        inject(network, parts, 2, 3.0, targets)
        torch.testing.assert_close(answers(network), base, atol=1e-4, rtol=1e-4)  # B is zero at the start
        moved(network)
        expected = answers(network)
        assert float((expected - base).abs().max()) > 0.01
        merged = tiny(family)
        merged.load_state_dict(merged_state_dict(network))  # strict: the saved file is an ordinary one
        assert set(merged.state_dict()) == keys
        torch.testing.assert_close(answers(merged), expected, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("family", ["sam", "mobile_sam", "efficient_sam", "sam_lightening", "tap"])  # every attention
def test_gradients_reach_the_products_alone_and_are_right(family):
    network = tiny(family).double()
    inject(network, parts_of(family, network), 2, 3.0, "all")
    moved(network.double())
    learning = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert all(name.endswith((".a", ".b")) for name in learning) and len(learning) > 10
    points, labels = torch.tensor([[[20.0, 30.0], [0.0, 0.0]]]), torch.tensor([[1, -1]])
    frame = network.preprocess
    side = frame.image_side or frame.long_side
    pixels = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def value():
        features = {name: each.requires_grad_() for name, each in network.encode_image(pixels).items()}
        logits = network.decode(features, points, labels, None, True).low_res_logits
        return (logits * torch.linspace(-1, 1, logits.numel(), dtype=logits.dtype).view_as(logits)).sum()

    value().backward()
    rng = np.random.default_rng(0)
    checked = 0
    for name in sorted(learning):
        gradient = learning[name].grad
        if gradient is None or not gradient.any():
            continue  # of attention to oneself alone, only the values count
        place = tuple(int(rng.integers(n)) for n in gradient.shape)
        if checked < 6:
            values = []
            for step in (1e-5, -2e-5):
                learning[name].data[place] += step
                with torch.no_grad():
                    values.append(float(value()))
            learning[name].data[place] += 1e-5
            assert (values[0] - values[1]) / 2e-5 == pytest.approx(float(gradient[place]), rel=2e-3, abs=1e-5), name
        checked += 1
    assert checked >= 0.7 * len(learning)


def test_queries_and_values_alone_change_in_fused_projections():
    for family, module_name in (("sam", "image_encoder.blocks.0.attn"), ("mobile_sam", "")):
        network = tiny(family)
        before = {name: value.clone() for name, value in network.state_dict().items()}
        names = inject(network, ["image_encoder"], 2, 2.0, "qv")
        merged = merged_state_dict(moved(network))
        for name in names:
            attention = network.get_submodule(name.rpartition(".")[0])
            changed = (merged[f"{name}.weight"] != before[f"{name}.weight"]).any(dim=1)  # (3 D,)
            # The attention itself tells which rows are keys: those whose change changes no query and no value.
            if family == "sam":
                q, k, v = changed.chunk(3)
            else:
                q, k, v = (each.flatten() for each in attention._heads(changed[None, None]))
            assert q.all() and v.all() and not k.any()
        same = [name for name in before if name.rpartition(".")[0] not in names]
        assert module_name == "" or f"{module_name}.qkv" in names
        assert all(torch.equal(before[name], merged[name]) for name in same)


def test_rank_and_alpha_scale_what_is_added():
    layer = nn.Linear(6, 4)
    network = nn.ModuleDict({"decoder": nn.ModuleDict({"q_proj": layer})})
    weight = layer.weight.detach().clone()
    inject(network, ["decoder"], 2, 8.0, "qv")
    product = moved(network)["decoder"]["q_proj"]
    assert isinstance(product, LoraLinear)
    a, b = product.products()["q"].a, product.products()["q"].b
    assert a.shape == (2, 6) and b.shape == (4, 2)
    x = torch.randn(5, 6)
    expected = x @ (weight + 8.0 / 2 * b @ a).T + layer.bias
    torch.testing.assert_close(product(x), expected)
    torch.testing.assert_close(product.weight, weight + 4.0 * b @ a)


@pytest.mark.parametrize("family", WITHOUT_ATTENTION)
def test_an_encoder_of_convolutions_takes_no_lora(family):
    network = tiny(family)
    with pytest.raises(OptionError, match="no attention"):
        inject(network, encoding_parts(network), 4, 4.0, "qv")
    with pytest.raises(OptionError, match="at least 1, got 0"):
        inject(network, [DECODER.get(family, "mask_decoder")], 0, 4.0, "qv")


@pytest.mark.parametrize("family", ["sam", "mobile_sam"])
def test_an_adapter_alone_gives_the_merged_weights_back(family):
    network = tiny(family)
    inject(network, parts_of(family, network), 3, 5.0, "all")
    merged, adapter = merged_state_dict(moved(network)), adapter_state_dict(network)
    assert sum(value.numel() for value in adapter.values()) < 0.5 * sum(value.numel() for value in merged.values())
    again = merge_adapter(tiny(family), adapter)
    assert set(again) == set(merged)
    for name, value in merged.items():
        torch.testing.assert_close(again[name], value, atol=1e-6, rtol=1e-6)


def test_an_adapter_of_another_network_is_refused():
    network = tiny("sam")
    inject(network, ["mask_decoder"], 3, 5.0, "all")
    adapter = adapter_state_dict(network)
    with pytest.raises(WeightsError, match="no adapter of this network"):
        merge_adapter(tiny("anysam_lite"), adapter)
    with pytest.raises(WeightsError, match="no adapter of this network: 'pe_layer"):
        merge_adapter(tiny("sam"), {"pe_layer": torch.zeros(1)})
    name = next(iter(adapter))
    with pytest.raises(WeightsError, match="another network"):
        merge_adapter(tiny("sam"), {key: value[:, :1] if key == name else value for key, value in adapter.items()})


def test_the_command_merges_an_adapter_into_a_file(tmp_path, monkeypatch):
    import anysam

    network = anysam.checkpoints.load_model("anysam_lite")[0]
    inject(network, ["decoder"], 2, 2.0, "qv")
    save_checkpoint(tmp_path / "adapter.safetensors", adapter_state_dict(moved(network)), {"variant": "anysam_lite"})
    monkeypatch.setattr(
        "sys.argv", ["lora", "anysam_lite", str(tmp_path / "adapter.safetensors"), str(tmp_path / "m.safetensors")]
    )
    lora.main()
    assert read_metadata(tmp_path / "m.safetensors")["variant"] == "anysam_lite"
    merged = merged_state_dict(network)
    for name, value in read_state_dict(tmp_path / "m.safetensors").items():
        torch.testing.assert_close(value, merged[name], atol=1e-6, rtol=1e-6)
    assert anysam.load(tmp_path / "m.safetensors").variant == "anysam_lite"
