"""SlimSAM's recipe: importance against a naive one, pruning that keeps the function, losses, and both stages run."""

import copy
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from torch import Tensor, nn
from torch.nn import functional

import anysam
from anysam import catalogue, checkpoints, identification
from anysam.checkpoints import save_checkpoint
from anysam.datasets import Entries, ImageEntry
from anysam.errors import OptionError
from anysam.models.sam import PREPROCESS, ImageEncoderViT, Sam, VitConfig, build_sam
from anysam.models.slim_sam import SIZES, SlimVitConfig, encoder_config
from anysam.train import slim_gradients, slim_sam, slimming
from anysam.train.configs.data import DataConfig
from anysam.train.configs.loop import LoopConfig
from anysam.train.configs.slim_sam import SlimSamConfig
from anysam.train.loop import train
from anysam.train.slim_gradients import Disturbance, gather_gradients
from anysam.train.slim_sam import SlimSamTask
from anysam.train.slimming import Bottleneck, Kept, prune_encoder
from anysam.train.task import Step
from tiny_models import filled, frame

PHOTOS = Path(__file__).parent / "parity" / "inputs"
# 4 x 4 tokens, so that windows of 3 are padded; heads of 8 and hidden layers of 64 channels.
TEACHER = VitConfig(
    embed_dim=32, depth=3, num_heads=4, global_blocks=(1,), image_size=64, window_size=3, mlp_ratio=2, out_channels=16
)
BLOCKS = [f"blocks.{index}." for index in range(3)]


def teacher(seed: int = 0) -> Sam:
    network = filled(build_sam(TEACHER, frame(PREPROCESS)), seed).eval().requires_grad_(False)
    assert isinstance(network, Sam)
    return network


def encoder(seed: int = 0, with_positions: bool = True) -> ImageEncoderViT:
    """The teacher's; without positions, with those zeros as relative positions that pruning puts there."""
    found = teacher(seed).image_encoder
    assert isinstance(found, ImageEncoderViT)
    for name, value in found.state_dict().items():
        if ".rel_pos_" in name and not with_positions:
            value.zero_()
    return found


def pixels(count: int = 1, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(seed))


def crops(folder: Path, count: int) -> Entries:
    """Parts of a photograph, as files of their own, without masks."""
    folder.mkdir()
    photo = np.asarray(Image.open(PHOTOS / "wide.png").convert("RGB"))
    entries = []
    for index in range(count):
        y, x = 110 * (index % 4), 150 * (index // 4)
        path = folder / f"{index}.png"
        Image.fromarray(photo[y : y + 150, x : x + 200]).save(path)
        entries.append(ImageEntry(path, "crops", (150, 200), (), (), name=path.name))
    return Entries("crops", entries)


# Importance and choice


def naive_products(network: ImageEncoderViT, images: Tensor, noises: Tensor) -> dict[str, Tensor]:
    """|weight x gradient| as the published script has it: a teacher that is a copy, gradients that pile up."""
    student = copy.deepcopy(network).requires_grad_(True)
    for image, noise in zip(images, noises, strict=True):
        (student(image[None]) - (network(image[None]) + noise)).square().mean().backward()
    return {name: (value * value.grad).abs() for name, value in student.named_parameters() if value.grad is not None}


def summed_gradients(network: ImageEncoderViT, images: Tensor, noises: Tensor) -> dict[str, Tensor]:
    total: dict[str, Tensor] = {}
    for image, noise in zip(images, noises, strict=True):
        for name, value in slimming.disturbed_gradients(network, image[None], noise[None]).items():
            total[name] = total.get(name, 0) + value
    return total


def tied(values: list[Tensor]) -> Tensor:
    """Channels at the same offset of the 4 heads of 8 get their sum."""
    return torch.stack([torch.stack([values[offset + 8 * head] for head in range(4)]).sum() for offset in range(8)] * 4)


def test_importance_is_that_of_a_naive_implementation() -> None:
    network, images = encoder().double(), pixels(2).double()  # the difference to what is disturbed loses digits
    noises = 0.01 * torch.randn(2, 16, 4, 4, generator=torch.Generator().manual_seed(1)).double()
    products, gradients = naive_products(network, images, noises), summed_gradients(network, images, noises)
    assert not any(parameter.requires_grad for parameter in network.parameters())  # left as it was

    embedding = []
    for channel in range(32):
        members = [products["patch_embed.proj.weight"][channel], products["neck.0.weight"][:, channel]]
        for block in BLOCKS:
            members += [part[:, channel] for part in products[f"{block}attn.qkv.weight"].chunk(3)]
            members += [products[f"{block}attn.proj.weight"][channel], products[f"{block}mlp.lin2.weight"][channel]]
            members.append(products[f"{block}mlp.lin1.weight"][:, channel])
        embedding.append(torch.stack([member.sum() for member in members]).mean())
    expected = tied(embedding)
    torch.testing.assert_close(slimming.embedding_importance(network, gradients), expected / expected.mean())

    plain, scaled = (slimming.bottleneck_importance(network, gradients, kind) for kind in ("none", "gaussian"))
    for index, block in enumerate(BLOCKS):
        q, k, v = products[f"{block}attn.qkv.weight"].chunk(3)
        proj = products[f"{block}attn.proj.weight"]
        own = [(q[c].sum() + k[c].sum() + v[c].sum() + proj[:, c].sum()) / 4 for c in range(32)]
        torch.testing.assert_close(plain.attention[index], tied(own))
        lin1, lin2 = products[f"{block}mlp.lin1.weight"], products[f"{block}mlp.lin2.weight"]
        hidden = torch.stack([(lin1[c].sum() + lin2[:, c].sum()) / 2 for c in range(64)])
        torch.testing.assert_close(plain.mlp[index], hidden)
        torch.testing.assert_close(scaled.mlp[index], (hidden - hidden.mean()) / (hidden.std() + 1e-8))
    with pytest.raises(OptionError, match="normalisation must be one of mean, gaussian, none, got 'max'"):
        slimming.embedding_importance(network, gradients, "max")


def test_the_least_important_channels_of_a_set_go() -> None:
    importance = torch.tensor([5.0, 1.0, 4.0, 2.0, 0.0, 3.0])
    assert slimming.keep_locally(importance, 0.5).tolist() == [0, 2, 5]
    assert slimming.keep_locally(importance, 0.5, multiple=2).tolist() == [0, 2]  # three would stay, rounded down
    two_heads = torch.tensor([3.0, 1.0, 2.0, 3.0, 1.0, 2.0])
    assert slimming.keep_locally(two_heads, 0.3, heads=2, multiple=2).tolist() == [0, 2, 3, 5]
    assert slimming.keep_locally(importance, 0.0).tolist() == [0, 1, 2, 3, 4, 5]


def test_channels_of_all_sets_compete_for_the_places() -> None:
    """Worked by hand: the four least are 0, 1, 2 and 5, so three of the first set go and one of the second."""
    sets = [torch.tensor([0.0, 5.0, 1.0, 7.0]), torch.tensor([6.0, 2.0, 8.0, 9.0])]
    assert [each.tolist() for each in slimming.keep_globally(sets, 0.5)] == [[3], [0, 2, 3]]
    # in twos, the last of the three is spared, and the one of the second
    assert [each.tolist() for each in slimming.keep_globally(sets, 0.5, multiple=2)] == [[2, 3], [0, 1, 2, 3]]
    assert [len(each) for each in slimming.keep_globally(sets, 0.0)] == [4, 4]
    # a set that would lose all loses nothing
    assert [each.tolist() for each in slimming.keep_globally([sets[0] - 9, sets[1]], 0.5)] == [[0, 1, 2, 3]] * 2
    heads = [torch.tensor([1.0, 2.0, 1.0, 2.0]), torch.tensor([4.0, 3.0, 4.0, 3.0])]
    assert [each.tolist() for each in slimming.keep_globally(heads, 0.25, heads=2)] == [[1, 3], [0, 1, 2, 3]]


# Pruning


def bottleneck(attention: list[int], mlp: list[int]) -> Kept:
    """The same channels stay in all blocks; attention: offsets in a head."""
    inner = torch.tensor([offset + 8 * head for head in range(4) for offset in attention])
    return Kept(bottleneck=Bottleneck((inner,) * 3, (torch.tensor(mlp),) * 3))


@torch.no_grad()
def test_hidden_channels_that_do_nothing_can_go() -> None:
    network, stays = encoder(with_positions=False), [*range(0, 20), *range(33, 64)]
    for block in network.blocks:
        block.mlp.lin2.weight[:, 20:33] = 0
    pruned = prune_encoder(network, bottleneck(list(range(8)), stays))
    assert encoder_config(pruned).mlp_widths == (51, 51, 51)
    torch.testing.assert_close(pruned(pixels(2)), network(pixels(2)))


@torch.no_grad()
def test_channels_of_heads_that_do_nothing_can_go() -> None:
    """Narrower heads scale their queries less: made up for here, learned in the recipe."""
    network, stays = encoder(with_positions=False), [0, 2, 3, 6, 7]
    gone = [offset + 8 * head for head in range(4) for offset in (1, 4, 5)]
    for block in network.blocks:
        for third in range(3):
            rows = [32 * third + channel for channel in gone]
            block.attn.qkv.weight[rows], block.attn.qkv.bias[rows] = 0, 0
        block.attn.proj.weight[:, gone] = torch.randn(32, len(gone))  # of values that are 0
    pruned = prune_encoder(network, bottleneck(stays, list(range(64))))
    assert encoder_config(pruned).attention_widths == (20, 20, 20)
    assert not torch.allclose(pruned(pixels()), network(pixels()), atol=1e-3)
    for block in pruned.blocks:
        block.attn.qkv.weight[:20] *= (5 / 8) ** 0.5
        block.attn.qkv.bias[:20] *= (5 / 8) ** 0.5
    torch.testing.assert_close(pruned(pixels()), network(pixels()))


@torch.no_grad()
def test_channels_of_the_embedding_that_do_nothing_can_go() -> None:
    """Layer norms see how many channels there are, so they are left out, on both sides."""
    network, stays = encoder(with_positions=False), [offset + 8 * head for head in range(4) for offset in (1, 2, 7)]
    gone = [channel for channel in range(32) if channel not in stays]
    network.patch_embed.proj.weight[gone], network.patch_embed.proj.bias[gone] = 0, 0
    network.pos_embed[..., gone] = 0
    for block in network.blocks:
        for layer in (block.attn.proj, block.mlp.lin2):
            layer.weight[gone], layer.bias[gone] = 0, 0
    pruned = prune_encoder(network, Kept(embedding=torch.tensor(stays)))
    assert encoder_config(pruned).embed_dim == 12
    assert torch.equal(pruned.blocks[1].norm2.bias, network.blocks[1].norm2.bias[stays])
    for each in (network, pruned):
        for block in each.blocks:
            block.norm1, block.norm2 = nn.Identity(), nn.Identity()
    torch.testing.assert_close(pruned(pixels(2)), network(pixels(2)))


def test_where_all_channels_stay_only_relative_positions_go() -> None:
    network = encoder()
    pruned = prune_encoder(network, Kept())
    for name, value in network.state_dict().items():
        assert torch.equal(pruned.state_dict()[name], torch.zeros_like(value) if ".rel_pos_" in name else value), name


def test_the_published_order_of_norms_can_be_had() -> None:
    """12 of 96 channels: CPython keeps so few numbers by their remainder of 32; half of them it keeps in order."""
    network = build_sam(dataclasses.replace(TEACHER, embed_dim=96), frame(PREPROCESS)).image_encoder
    assert isinstance(network, ImageEncoderViT)
    filled(network)
    for stays, order in (
        (torch.arange(0, 96, 8), [0, 32, 64, 8, 40, 72, 16, 48, 80, 24, 56, 88]),
        (torch.arange(0, 96, 2), list(range(0, 96, 2))),
    ):
        norms = prune_encoder(network, Kept(embedding=stays), mixed_norms=True).blocks[1]
        found = [int((network.blocks[1].norm1.weight == value).nonzero()) for value in norms.norm1.weight]
        assert sorted(found) == sorted(order)
        assert found == list(set(range(96)) - set(range(96)).difference(stays.tolist()))
        assert (found == stays.tolist()) == (order == stays.tolist())
        assert torch.equal(norms.mlp.lin1.weight, network.blocks[1].mlp.lin1.weight[:, stays])


def test_uneven_or_empty_choices_are_refused() -> None:
    uneven = tuple(torch.arange(4) for _ in range(3))
    with pytest.raises(OptionError, match="The same channels must stay in all 4 heads of block 0"):
        prune_encoder(encoder(), Kept(bottleneck=Bottleneck(uneven, uneven)))
    with pytest.raises(OptionError, match="Pruning leaves some layer without a channel"):
        prune_encoder(encoder(), Kept(embedding=torch.arange(0)))


# Gradients of many images


FACTS = {"weights_sha256": "0", "seed": "3"}


def gather(read, count: int, path: Path, facts: dict[str, str] = FACTS) -> dict[str, Tensor]:  # type: ignore[no-untyped-def]
    return gather_gradients(encoder(), read, count, Disturbance(0.01, 3), torch.device("cpu"), path, facts)


def test_gradients_are_summed_and_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slim_gradients, "_SAVE_EVERY", 2)
    images, asked = pixels(5), []

    def read(index: int) -> Tensor:
        asked.append(index)
        if index == 1:
            raise anysam.errors.ImageError("broken")
        return images[index]

    def cut(index: int) -> Tensor:
        if index == 3:
            raise KeyboardInterrupt
        return read(index)

    disturbance = Disturbance(0.01, 3)
    whole = summed_gradients(
        encoder(), images[[0, 2, 3, 4]], torch.stack([disturbance.draw((16, 4, 4), index) for index in (0, 2, 3, 4)])
    )
    path = tmp_path / "gradients.safetensors"
    with pytest.raises(KeyboardInterrupt):
        gather(cut, 5, path)
    asked.clear()
    found = gather(read, 5, path)
    assert asked == [2, 3, 4]  # 0 and 1 were in the file
    assert all(torch.equal(found[name], value) for name, value in whole.items())
    asked.clear()
    again = gather(read, 5, path)
    assert not asked and all(torch.equal(again[name], value) for name, value in whole.items())
    with pytest.raises(OptionError, match="seed was '3' and is '4'"):
        gather(read, 5, path, {**FACTS, "seed": "4"})


def test_gradients_of_no_image_are_an_error(tmp_path: Path) -> None:
    def read(index: int) -> Tensor:
        raise anysam.errors.ImageError("broken")

    for _ in range(2):
        with pytest.raises(OptionError, match="None of the first 3 images can be read"):
            gather(read, 3, tmp_path / "gradients.safetensors")


def test_processes_share_the_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes, one after the other here: the second one's sum is what both would have."""
    images, path = pixels(5), tmp_path / "gradients.safetensors"
    whole = gather(lambda index: images[index], 5, tmp_path / "whole.safetensors")
    monkeypatch.setattr(slim_gradients.processes, "meet", lambda device: None)
    monkeypatch.setattr(slim_gradients.processes, "everyone", lambda value: [value])
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    gather(lambda index: images[index], 5, path)
    assert not path.exists()
    monkeypatch.setenv("RANK", "0")
    shared = gather(lambda index: images[index], 5, path)
    assert [each.name for each in tmp_path.glob("gradients*")] == [path.name]
    for name, value in whole.items():
        torch.testing.assert_close(shared[name], value)


# Losses


def at(progress: float) -> Step:
    return Step(0, progress, 0, torch.device("cpu"), torch.Generator())


def make(stage: str, images: Entries, **changes: object) -> SlimSamTask:
    """A task of a stage without gradients of images: what stays is chosen by hand."""
    config = SlimSamConfig(stage=stage, **changes)  # type: ignore[arg-type]
    source, first = teacher(), None
    kept = Kept(embedding=torch.tensor([offset + 8 * head for head in range(4) for offset in (0, 3, 4, 6)]))
    source_pruned = slim_sam.slim(source, kept, False)
    if stage == "2":
        first = slim_sam.vit(source_pruned).requires_grad_(False)
        source_pruned = slim_sam.slim(source_pruned, bottleneck([1, 2, 5], list(range(0, 64, 2))), False)
    return SlimSamTask("slimsam", source_pruned, source, first, config, images, images)


def inner(network: ImageEncoderViT, image: Tensor) -> dict[str, list[Tensor]]:
    """What the published encoder returns beside its embeddings, with windows padded as there."""
    x = network.patch_embed(image) + network.pos_embed
    seen: dict[str, list[Tensor]] = {"windowed": [], "global": [], "hidden": [], "blocks": [x]}
    for index, block in enumerate(network.blocks):
        normed = block.norm1(x)
        padded = functional.pad(normed, (0, 0, 0, 2, 0, 2)) if index != 1 else normed  # 4 x 4 in windows of 3
        seen["global" if index == 1 else "windowed"].append(block.attn.qkv(padded))
        middle = x + block.attn(normed)
        hidden = functional.gelu(block.mlp.lin1(block.norm2(middle)))
        x = middle + block.mlp.lin2(hidden)
        seen["hidden"].append(hidden)
        seen["blocks"] += [x, middle]
    return seen


def naive_mse(ours: list[Tensor], theirs: list[Tensor]) -> Tensor:
    return functional.mse_loss(torch.cat(ours), torch.cat(theirs))


def test_the_loss_of_stage_1_is_the_published_one() -> None:
    images = Entries("none", [])
    for faults, terms in (("repaired", ["windowed", "global", "hidden"]), ("published", ["windowed", "hidden"])):
        task = make("1", images, faults=faults, align=0.3)
        batch, student, own_teacher = pixels(2), slim_sam.vit(task.network), slim_sam.vit(task.teacher)
        embeddings = functional.mse_loss(student(batch), own_teacher(batch))
        ours, theirs = inner(student, batch), inner(own_teacher, batch)
        expected = 0.7 * embeddings + 0.3 * sum(naive_mse(ours[name], theirs[name]) for name in terms)
        loss = task.loss(batch, at(0.499))
        torch.testing.assert_close(loss.total, 2 * expected)
        assert loss.count == 2
        assert sorted(loss.parts) == sorted(["embeddings", *terms])
        torch.testing.assert_close(task.loss(batch, at(0.5)).total, 2 * embeddings)
        loss.total.backward()
        assert all(parameter.grad is not None for parameter in student.parameters())
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in task.network.modules())


def test_the_loss_of_stage_2_is_the_published_one() -> None:
    task, batch = make("2", Entries("none", [])), pixels(2)
    student, own_teacher = slim_sam.vit(task.network), slim_sam.vit(task.teacher)
    assert task.step1 is not None
    ours, theirs = inner(student, batch)["blocks"], inner(task.step1, batch)["blocks"]
    errors = [functional.mse_loss(student(batch), each(batch)) for each in (own_teacher, task.step1)]
    for progress, weight in ((0.0, 10 / 11), (0.1, 8 / 11), (0.47, 1 / 11), (0.5, 0.0), (0.9, 0.0)):
        expected = (1 - weight) * errors[0] + weight * (errors[1] + naive_mse(ours, theirs))
        torch.testing.assert_close(task.loss(batch, at(progress)).total, 2 * expected)


def test_the_weight_of_stage_2_is_that_of_each_published_epoch() -> None:
    expected = [(11 - epoch - 1) / 11 if epoch < 11 else 0 for epoch in range(20)]
    assert [slim_sam.alignment(2500 * epoch / 50000) for epoch in range(20)] == expected
    assert [slim_sam.alignment((2500 * epoch + 2499) / 50000) for epoch in range(20)] == expected


def test_only_the_encoder_learns_and_the_rest_is_saved() -> None:
    task = make("1", Entries("none", []))
    learning = {id(parameter) for group in task.groups(0.0) for parameter in group.parameters}
    assert learning == {id(parameter) for parameter in task.network.image_encoder.parameters()}
    weights = task.weights(task.network)
    assert {name.split(".")[0] for name in weights} == {"image_encoder", "prompt_encoder", "mask_decoder"}
    own = task.teacher.mask_decoder.state_dict()
    assert all(torch.equal(weights[f"mask_decoder.{name}"], value) for name, value in own.items())


# Scores, names, and whole runs


def test_a_score_is_the_iou_with_the_masks_that_their_points_give(tmp_path: Path) -> None:
    network, photos = teacher(), crops(tmp_path / "crops", 2)
    model = anysam.Model("sam_vit_b", network, torch.device("cpu"), torch.float32, "0" * 64)
    entry = photos[0]
    point = (60.0, 70.0)
    mask = model.predict(model.encode(entry.path), anysam.Prompt(points=np.array([point])), multimask=False).masks[0]
    halves = [mask.copy(), mask.copy()]
    halves[1][: len(mask) // 2] = False  # as if the annotator had left a part out
    encoded = tuple(coco_mask.encode(np.asfortranarray(half, np.uint8))["counts"] for half in halves)
    areas = tuple(int(half.sum()) for half in halves)
    assert 0 < areas[1] < areas[0]
    masked = dataclasses.replace(entry, masks=encoded, areas=areas, points=(point, point))
    scores = slim_sam.score(network, network, Entries("one", [masked]))
    assert scores == {"iou": pytest.approx((1 + areas[1] / areas[0]) / 2)}
    scores = slim_sam.score(network, network, Entries("both", [masked, photos[1]]))
    assert list(scores) == ["iou", "cosine"] and scores["cosine"] == pytest.approx(1)
    assert slim_sam.score(teacher(1), network, photos)["cosine"] < 0.9


def test_the_name_is_that_of_the_catalogue_where_widths_fit() -> None:
    def named(changes: dict[str, object], size: str = "50") -> str:
        return slim_sam.variant_name(dataclasses.replace(SIZES[size], **changes))  # type: ignore[arg-type]

    assert [named({}, size) for size in ("77", "50")] == ["slimsam_77_uniform", "slimsam_50_uniform"]
    assert named({"attention_widths": (768,) * 12, "mlp_widths": (3072,) * 12}) == "slimsam_50"  # of stage 1
    assert named({"mlp_widths": tuple(range(100, 112))}, "77") == "slimsam_77"
    assert named({"embed_dim": 300}) == named({"image_size": 512}) == named({"window_size": 7}) == "slimsam"


@pytest.fixture
def row(monkeypatch: pytest.MonkeyPatch) -> None:
    """The catalogue's row for networks of any shape."""
    if "slimsam" in [each.name for each in catalogue.VARIANTS]:
        return
    facts = {"name": "slimsam", "size": "any", "parameters": None, "file": catalogue.WeightsFile("slimsam.safetensors")}
    rows = (*catalogue.VARIANTS, dataclasses.replace(catalogue.find_variant("slimsam_50"), **facts))
    for module in (catalogue, checkpoints, identification):
        monkeypatch.setattr(module, "VARIANTS", rows)


def loop(**changes: object) -> LoopConfig:
    given = {"steps": 40, "batch_size": 2, "accumulate": 1, "optimizer": "adam", "learning_rate": 2e-3}
    own = {"weight_decay": 0.0, "schedule": "constant", "validate_every": 0, "log_every": 1, "device": "cpu"}
    return LoopConfig(**{**given, **own, **changes})  # type: ignore[arg-type]


def losses(out: Path) -> list[float]:
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


@pytest.mark.usefixtures("row")
@pytest.mark.parametrize("scope", ["global", "local"])
def test_both_stages_bring_a_pruned_network_nearer_to_its_teacher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scope: str
) -> None:
    photos = crops(tmp_path / "crops", 16)
    learned, judged = Entries("crops", photos.entries[:12]), Entries("held out", photos.entries[12:])
    monkeypatch.setattr(slim_sam, "open_data", lambda config: (learned, judged))
    save_checkpoint(tmp_path / "sam.safetensors", teacher().state_dict(), {"variant": "slimsam"})
    config = SlimSamConfig(
        teacher=str(tmp_path / "sam.safetensors"), scope=scope, gradient_images=4, data=DataConfig(), loop=loop()
    )

    look = slim_sam.make_task(config, None)  # as for a dry run
    assert encoder_config(slim_sam.vit(look.network)).embed_dim == 16 and not (tmp_path / "first").exists()
    first = slim_sam.make_task(config, tmp_path / "first")
    assert encoder_config(slim_sam.vit(first.network)).embed_dim == 16
    before = first.validate(first.network)["cosine"]
    outcome = train(first, config.loop, tmp_path / "first")
    fallen = losses(tmp_path / "first")
    assert np.mean(fallen[15:20]) < 0.9 * np.mean(fallen[:5])  # of the first half's loss
    assert np.mean(fallen[35:]) < 0.9 * np.mean(fallen[20:25])  # of the second's
    assert outcome.scores["cosine"] > before + 0.05
    assert outcome.best is not None

    config = dataclasses.replace(config, stage="2", init=str(outcome.best))
    second = slim_sam.make_task(config, tmp_path / "second")
    widths = encoder_config(slim_sam.vit(second.network))
    assert (len(set(widths.mlp_widths)) == 1) == (scope == "local")
    assert 80 <= sum(widths.mlp_widths) <= 116 and sum(widths.attention_widths) <= 64
    before = second.validate(second.network)["cosine"]
    outcome = train(second, config.loop, tmp_path / "second")
    fallen = losses(tmp_path / "second")
    assert np.mean(fallen[35:]) < 0.5 * np.mean(fallen[:5])
    assert outcome.scores["cosine"] > before + 0.05

    model = anysam.load(outcome.last, device="cpu")
    loaded = model.network.state_dict()  # type: ignore[union-attr]
    assert model.variant == "slimsam"
    assert all(torch.equal(loaded[name], value) for name, value in second.network.state_dict().items())
    photo = PHOTOS / "tall.png"
    encoded = model.encode(photo)
    wanted = second.network.encode_image(slim_sam.prepare_image(anysam.read_image(photo), frame(PREPROCESS))[0])
    torch.testing.assert_close(encoded.features["image_embeddings"], wanted["image_embeddings"].detach())
    assert model.predict(encoded, anysam.Prompt(box=np.array([50, 60, 400, 500]))).masks.shape[1:] == (1100, 733)


@pytest.mark.usefixtures("row")
def test_options_that_do_not_fit_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slim_sam, "open_data", lambda config: (Entries("none", []),) * 2)
    for changes, message in (
        ({"ratio": 1.0}, "ratio must be at least 0 and below 1, got 1.0"),
        ({"stage": "2"}, "Stage 2 starts from the file that stage 1 wrote"),
        ({"init": "x.safetensors"}, "Stage 2 starts from the file that stage 1 wrote"),
        ({"teacher": "anysam_lite"}, "Only SAM itself .* is pruned, but anysam_lite is anysam_lite"),
    ):
        with pytest.raises(OptionError, match=message):
            slim_sam.make_task(SlimSamConfig(**changes), tmp_path)  # type: ignore[arg-type]
    for name, changed in (("one", TEACHER), ("other", dataclasses.replace(TEACHER, out_channels=8))):
        network = build_sam(changed, frame(PREPROCESS))
        save_checkpoint(tmp_path / f"{name}.safetensors", network.state_dict(), {"variant": "slimsam"})
    paths = {"teacher": str(tmp_path / "one.safetensors"), "init": str(tmp_path / "other.safetensors")}
    with pytest.raises(OptionError, match=r"must be of one form .* \(64, 16, 16\) and \(64, 16, 8\)"):
        slim_sam.make_task(SlimSamConfig(stage="2", **paths), tmp_path)


def test_the_shape_of_sam_is_what_is_read_from_it() -> None:
    expected = SlimVitConfig(32, (32,) * 3, (64,) * 3, 4, (1,), 64, 16, 3, 16)
    assert encoder_config(encoder()) == expected
