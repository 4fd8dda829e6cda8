"""Decoding many prompts by low rank against MaskDecoder, which makes every prompt's image tokens."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from anysam.models import KeepingModel, Kept, low_rank_decoder
from anysam.models.low_rank_decoder import decode_kept
from anysam.models.sam import Sam
from anysam.models.sam_decoder import MaskDecoder, PromptEncoder
from anysam.preprocess import Preprocess
from tiny_models import tiny_model

EVERYTHING = float("-inf")
HEIGHT, WIDTH = 6, 5
Inputs = tuple[Tensor, Tensor, Tensor, Tensor]


@pytest.fixture(params=["numba", "torch"])
def loops(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both forms of the loops."""
    if request.param == "numba":
        pytest.importorskip("numba", reason="the extra `fast` is not installed")
    else:
        monkeypatch.setattr(low_rank_decoder, "_kernels", lambda: None)
    return request.param


@pytest.fixture
def low_rank_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ordinary decoder must not help out."""
    monkeypatch.delattr(MaskDecoder, "forward_kept")


def randomised(module: nn.Module, gain: float = 1.0) -> nn.Module:
    """Weights that keep the size of what goes through, times `gain`; norms' gains and all biases random too."""
    generator = torch.Generator().manual_seed(0)
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            if parameter.dim() > 1:
                fan_in = parameter.shape[0] if isinstance(part, nn.ConvTranspose2d) else parameter[0].numel()
                nn.init.normal_(parameter, std=gain * fan_in**-0.5, generator=generator)
            elif name == "weight":
                nn.init.normal_(parameter, mean=1, std=0.3 * gain, generator=generator)
            else:
                nn.init.normal_(parameter, std=0.3 * gain, generator=generator)
    return module.eval().requires_grad_(False)


def decoder_and_inputs(
    prompts: int = 6, tokens: int = 2, gain: float = 1.0, offset: float = 0.0, dtype: torch.dtype = torch.float32
) -> tuple[MaskDecoder, Inputs]:
    """A decoder of 64 channels and 2 heads, image embeddings, position code, sparse and dense embeddings."""
    decoder = randomised(MaskDecoder(transformer_dim=64, num_heads=2, mlp_dim=32), gain).to(dtype)
    generator = torch.Generator().manual_seed(1)
    shapes = [(1, 64, HEIGHT, WIDTH), (1, 64, HEIGHT, WIDTH), (prompts, tokens, 64), (1, 64, 1, 1)]
    image, image_pe, sparse, dense = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    return decoder, (image + offset, image_pe, sparse, dense.expand(-1, -1, HEIGHT, WIDTH))


def check_masks(kept: Kept, logits: Tensor, ious: Tensor, least_iou: float, rows: int, tolerance: float) -> None:
    """`kept` against all logits (P, C, h, w) and ious (P, C); logits by tolerance * their standard deviation."""
    expected = [i for i, iou in enumerate(ious.flatten().tolist()) if iou > least_iou]
    assert kept.candidates.tolist() == expected
    assert kept.candidates.dtype == torch.int64
    assert kept.low_res_logits.shape == (len(expected), rows, logits.shape[3])
    torch.testing.assert_close(kept.iou_predictions, ious, atol=tolerance * 10, rtol=tolerance)
    wanted = logits.flatten(0, 1)[expected]  # (K, h, w)
    difference = (kept.low_res_logits - wanted[:, :rows]).abs().amax((1, 2)) / wanted.std((1, 2))
    assert difference.max() < tolerance


@torch.inference_mode()
@pytest.mark.parametrize("chosen", [slice(1, 4), slice(0, 1)])
@pytest.mark.parametrize("tokens", [0, 1, 3])
def test_all_masks_are_those_of_the_ordinary_decoder(
    chosen: slice, tokens: int, loops: str, low_rank_only: None
) -> None:
    decoder, values = decoder_and_inputs(tokens=tokens)
    logits, ious = decoder.forward_all(*values, chosen)
    kept = decode_kept(decoder, *values, chosen, EVERYTHING, 4 * HEIGHT)
    check_masks(kept, logits, ious[:, chosen], EVERYTHING, 4 * HEIGHT, 5e-5)


@torch.inference_mode()
def test_in_float64_the_algebra_is_exact(low_rank_only: None) -> None:
    decoder, values = decoder_and_inputs(dtype=torch.float64, gain=2.0, offset=10.0)
    logits, ious = decoder.forward_all(*values)
    kept = decode_kept(decoder, *values, slice(0, 4), EVERYTHING, 4 * HEIGHT)
    check_masks(kept, logits, ious, EVERYTHING, 4 * HEIGHT, 1e-10)


@torch.inference_mode()
@pytest.mark.parametrize(("gain", "offset"), [(3.0, 0.0), (1.0, 300.0), (3.0, 100.0)])
def test_large_weights_and_large_means_cost_no_accuracy(
    gain: float, offset: float, loops: str, low_rank_only: None
) -> None:
    # Against float64, beside the ordinary decoder in float32: large weights make scores that amplify any rounding.
    decoder, values = decoder_and_inputs(gain=gain, offset=offset)
    kept = decode_kept(decoder, *values, slice(1, 4), EVERYTHING, 4 * HEIGHT).low_res_logits
    ordinary = decoder.forward_all(*values, slice(1, 4))[0].flatten(0, 1)
    exact = decoder.double().forward_all(*(value.double() for value in values), slice(1, 4))[0].flatten(0, 1)
    error, usual = (((x - exact).abs().amax((1, 2)) / exact.std((1, 2))).max() for x in (kept, ordinary))
    assert error < max(5 * usual, 1e-5)
    assert error < 1e-3


@torch.inference_mode()
@pytest.mark.parametrize("rows", [1, 4, 10, 4 * HEIGHT])
def test_only_what_is_above_the_threshold_is_made_and_only_the_rows_wanted(
    rows: int, loops: str, low_rank_only: None
) -> None:
    decoder, values = decoder_and_inputs(prompts=9)
    logits, ious = decoder.forward_all(*values, slice(1, 4))
    ious = ious[:, 1:]
    least = ious.flatten().sort().values[12:14].mean().item()
    kept = decode_kept(decoder, *values, slice(1, 4), least, rows)
    check_masks(kept, logits, ious, least, rows, 5e-5)
    assert len(kept.candidates) == 14


@torch.inference_mode()
def test_the_threshold_is_exclusive(low_rank_only: None) -> None:
    decoder, values = decoder_and_inputs()
    ious = decode_kept(decoder, *values, slice(1, 4), EVERYTHING, 4).iou_predictions
    best = decode_kept(decoder, *values, slice(1, 4), ious.max().item(), 4)
    assert len(best.candidates) == 0


@torch.inference_mode()
@pytest.mark.parametrize("ordinary", [False, True])
def test_nothing_kept_is_no_masks_and_all_scores(ordinary: bool) -> None:
    decoder, values = decoder_and_inputs()
    decode = decoder.forward_kept if ordinary else lambda *args: decode_kept(decoder, *args)
    kept = decode(*values, slice(1, 4), float("inf"), 7)
    assert kept.low_res_logits.shape == (0, 7, 4 * WIDTH)
    assert kept.candidates.shape == (0,)
    torch.testing.assert_close(kept.iou_predictions, decoder.forward_all(*values)[1][:, 1:])


@torch.inference_mode()
@pytest.mark.parametrize("cells", [1, 7, 10])
@pytest.mark.parametrize("prompts", [1, 4, 100])
@pytest.mark.parametrize("threads", [1, 3])
def test_how_the_work_is_divided_changes_nothing(
    prompts: int, cells: int, threads: int, loops: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder, values = decoder_and_inputs(prompts=5)
    least = decode_kept(decoder, *values, slice(1, 4), EVERYTHING, 22).iou_predictions.median().item()
    usual = decode_kept(decoder, *values, slice(1, 4), least, 22)
    assert 0 < len(usual.candidates) < 15
    monkeypatch.setattr(low_rank_decoder, "_PROMPTS_AT_ONCE", prompts)
    monkeypatch.setattr(low_rank_decoder, "_CELLS_AT_ONCE", cells)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        divided = decode_kept(decoder, *values, slice(1, 4), least, 22)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(divided, usual)


@torch.inference_mode()
def test_each_thread_computes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that four threads are not sixteen."""
    decoder, values = decoder_and_inputs(prompts=5)
    seen = []
    through_layers = low_rank_decoder._through_layers

    def counting(*arguments: object) -> object:
        torch.ones(1 << 20).add_(1)  # large enough to be shared among threads
        seen.append(torch.get_num_threads())
        return through_layers(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(low_rank_decoder, "_through_layers", counting)
    monkeypatch.setattr(low_rank_decoder, "_PROMPTS_AT_ONCE", 1)
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        decode_kept(decoder, *values, slice(1, 4), EVERYTHING, 22)
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)
    assert seen == [1] * 5


def test_threads_share_a_network(loops: str) -> None:
    decoder, values = decoder_and_inputs(prompts=5)
    other = (values[0] + 1, *values[1:])

    @torch.inference_mode()
    def decode(inputs: Inputs) -> Tensor:
        return decode_kept(decoder, *inputs, slice(1, 4), EVERYTHING, 24).low_res_logits

    alone = [decode(values), decode(other)]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(decode, [values, other] * 8))
    for i, masks in enumerate(together):
        torch.testing.assert_close(masks, alone[i % 2])


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_takes_the_ordinary_path(dtype: torch.dtype) -> None:
    decoder, values = decoder_and_inputs(dtype=dtype)
    logits, ious = decoder.forward_all(*values, slice(1, 4))
    kept = decode_kept(decoder, *values, slice(1, 4), EVERYTHING, 4 * HEIGHT)
    torch.testing.assert_close(kept.low_res_logits, logits.flatten(0, 1), atol=0, rtol=0)
    torch.testing.assert_close(kept.iou_predictions, ious[:, 1:], atol=0, rtol=0)


@torch.inference_mode()
@pytest.mark.parametrize(("prompts", "tokens"), [(6, 20), (1, 2)])
def test_many_tokens_or_few_prompts_take_the_ordinary_path(
    prompts: int, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(low_rank_decoder, "share_image")
    decoder, values = decoder_and_inputs(prompts=prompts, tokens=tokens)
    logits, ious = decoder.forward_all(*values, slice(1, 4))
    least = ious[:, 1:].median().item()
    kept = decode_kept(decoder, *values, slice(1, 4), least, 10)
    check_masks(kept, logits, ious[:, 1:], least, 10, 5e-5)


@torch.no_grad()
def test_a_network_in_training_is_evaluated_likewise(loops: str, low_rank_only: None) -> None:
    decoder, values = decoder_and_inputs()
    frozen = decode_kept(decoder, *values, slice(1, 4), EVERYTHING, 8).low_res_logits
    decoder.requires_grad_(True)
    masks = decode_kept(decoder, *values, slice(1, 4), EVERYTHING, 8).low_res_logits
    torch.testing.assert_close(masks, frozen, atol=0, rtol=0)


def test_gradients_take_the_ordinary_path() -> None:
    decoder, values = decoder_and_inputs()
    decoder.requires_grad_(True)
    kept = decode_kept(decoder, *values, slice(1, 4), EVERYTHING, 8)
    kept.low_res_logits.square().mean().backward()
    assert decoder.transformer.layers[0].cross_attn_image_to_token.q_proj.weight.grad is not None


@torch.inference_mode()
@pytest.mark.parametrize("multimask", [True, False])
@pytest.mark.parametrize("tokens", ["point", "box", "none"])
def test_sam_decodes_as_with_every_mask(multimask: bool, tokens: str, loops: str, low_rank_only: None) -> None:
    preprocess = Preprocess(name="small", long_side=128, pad_to=128)
    network = Sam(nn.Identity(), PromptEncoder(256, (8, 8), (128, 128)), MaskDecoder(), preprocess)
    randomised(network)
    assert isinstance(network, KeepingModel)
    generator = torch.Generator().manual_seed(2)
    features = {"image_embeddings": torch.randn(1, 256, 8, 8, generator=generator)}
    points = 128 * torch.rand(5, 2, 2, generator=generator)
    labels = torch.tensor({"point": [1, -1], "box": [2, 3], "none": [-1]}[tokens]).expand(5, -1)
    points = points[:, : labels.shape[1]]
    decoded = network.decode(features, points, labels, None, multimask)
    kept = network.decode_kept(features, points, labels, multimask, EVERYTHING, 24)
    check_masks(kept, decoded.low_res_logits, decoded.iou_predictions, EVERYTHING, 24, 5e-5)


@torch.inference_mode()
@pytest.mark.parametrize("family", ["sam", "mobile_sam", "mobile_sam_v2", "edge_sam", "slim_sam", "sam_lightening"])
def test_families_with_this_decoder_keep_masks(family: str) -> None:
    network = tiny_model(family).network
    assert isinstance(network, KeepingModel)
    side = network.preprocess.pad_to
    generator = torch.Generator().manual_seed(3)
    pixels = torch.randn(1, 3, side, side, generator=generator)
    features = network.encode_image(pixels)
    points = side * torch.rand(4, 1, 2, generator=generator)
    labels = torch.ones(4, 1, dtype=torch.int64)
    for multimask in (True, False):
        decoded = network.decode(features, points, labels, None, multimask)
        least = decoded.iou_predictions.mean().item()
        rows = decoded.low_res_logits.shape[2] // 2
        kept = network.decode_kept(features, points, labels, multimask, least, rows)
        check_masks(kept, decoded.low_res_logits, decoded.iou_predictions, least, rows, 5e-5)


def test_the_compiled_gelu_and_norm_have_torchs_values() -> None:
    pytest.importorskip("numba", reason="the extra `fast` is not installed")
    from anysam.models import low_rank_kernels as kernels

    generator = torch.Generator().manual_seed(4)
    x, shared = 3 * torch.randn(2, 5, 4 * 24, generator=generator)
    a, gain, bias = (torch.randn(n, generator=generator) for n in (5, 24, 24))
    summed = (x + a[:, None] * shared).double().unflatten(1, (4, 24))
    expected = functional.gelu(functional.layer_norm(summed, (24,), gain.double(), bias.double(), 1e-6))
    result = x.numpy().copy()
    kernels.add_norm_gelu(result, shared.numpy(), a.numpy(), gain.numpy(), bias.numpy(), 1e-6)
    torch.testing.assert_close(torch.from_numpy(result).double(), expected.flatten(1), atol=3e-6, rtol=3e-6)


def test_the_compiled_gelu_is_accurate_everywhere() -> None:
    pytest.importorskip("numba", reason="the extra `fast` is not installed")
    from anysam.models import low_rank_kernels as kernels

    # One channel, one mask of weight 1: the mask is gelu itself, cell by cell.
    values = torch.cat([torch.linspace(-12, 12, 16 * 5000), torch.tensor([1e4, -1e4, 3e38, -3e38] * 4)])
    cells = len(values) // 16
    out = torch.empty(1, 4 * cells, 4)
    one = torch.ones(1).numpy()
    kernels.gelu_masks(values.view(cells, 16).numpy(), 0 * one, one[None], 0, 1, out.numpy())
    # From rows and columns back to a cell, its quarter, and the quarter's.
    found = out.view(cells, 2, 2, 2, 2).permute(0, 1, 3, 2, 4).reshape(-1)
    exact = functional.gelu(values.double())
    assert ((found - exact).abs() <= 4e-7 * values.abs().clamp(min=1)).all()


def test_without_numba_the_loops_are_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(low_rank_decoder.importlib, "import_module", missing)
    assert low_rank_decoder._kernels() is None
