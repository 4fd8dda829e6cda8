"""The recipe of the built-in model on small made-up images: it learns, it resumes, it can be packaged."""

import json
import math

import numpy as np
import pytest
import torch
import torch.multiprocessing
from PIL import Image
from torch import distributed

from anysam.checkpoints import read_metadata, read_state_dict
from anysam.datasets import read_collection
from anysam.models.anysam_lite import EfficientNetLite0, build
from anysam.train.anysam_lite import CHECKPOINT, LOG, Run, agreed, set_rate, share_gradients, train
from anysam.train.imagenet_backbone import convert_imagenet_backbone
from anysam.train.learning import validate
from anysam.train.package import package
from anysam.train.recipe import Recipe
from test_datasets import write_folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Twelve images with two discs each; the same images serve for validation."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:96, :128]
    for split in ("train", "val"):
        masks, images = {}, {}
        for i in range(12):
            image = np.full((96, 128, 3), 60, np.uint8)
            own = []
            for colour in ((220, 60, 40), (40, 90, 220)):
                cy, cx, r = rng.uniform(25, 70), rng.uniform(25, 100), rng.uniform(12, 24)
                disc = (y - cy) ** 2 + (x - cx) ** 2 < r**2
                image[disc] = colour
                own = [(m & ~disc, crowd) for m, crowd in own] + [(disc, 0)]
            masks[f"{i}.png"], images[f"{i}.png"] = own, image
        write_folder(root / split / "discs", masks, split)
        for name, image in images.items():
            Image.fromarray(image).save(root / split / "discs" / "images" / name)
    (root / "both").mkdir()
    (root / "both" / "train").symlink_to(root / "train" / "discs")
    (root / "both" / "val").symlink_to(root / "val" / "discs")
    return root / "both"


def recipe(data, out, steps):
    return Recipe(
        data=str(data),
        out=str(out),
        steps=steps,
        long_side=128,
        shapes=((64, 64),),
        final_shapes=((96, 64),),
        masks_per_step=8,
        max_images=4,
        warmup_steps=5,
        learning_rate=2e-3,
        ema=0.9,
        workers=0,
    )


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    return EfficientNetLite0().state_dict()


def read_log(folder):
    return [json.loads(line) for line in (folder / LOG).read_text().splitlines()]


@pytest.fixture(scope="module")
def finished_run(data, backbone, tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    train(recipe(data, out, steps=75), backbone)
    return out


def test_the_loss_falls_and_boxes_beat_the_untrained_network(finished_run, data, backbone):
    lines = read_log(finished_run)
    losses = [line["loss0"] for line in lines if "loss0" in line]
    assert len(losses) == 3 and losses[-1] < 0.8 * losses[0]
    untrained = Run(recipe(data, finished_run, 1), backbone)
    before = validate(untrained.network, read_collection(data, "val"), untrained.recipe, 5, 4)
    assert lines[-1]["val"]["box"] > before["box"] + 0.2
    assert all(math.isfinite(v) for line in lines for v in line.get("val", line).values())


def test_a_finished_run_resumes_with_its_steps_and_weights(finished_run, data, backbone, tmp_path):
    (tmp_path / CHECKPOINT).write_bytes((finished_run / CHECKPOINT).read_bytes())
    before = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    run = Run(recipe(data, tmp_path, steps=80), backbone)
    run.restore(tmp_path / CHECKPOINT)
    assert run.step == 75
    for name, value in run.network.state_dict().items():
        assert torch.equal(value, before["network"][name])
    train(recipe(data, tmp_path, steps=80), backbone)
    after = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    assert after["step"] == 80
    assert not torch.equal(after["ema"]["neck.lateral16.weight"], before["ema"]["neck.lateral16.weight"])


def test_frozen_stages_of_the_backbone_stay_and_the_others_learn(finished_run, backbone):
    state = torch.load(finished_run / CHECKPOINT, weights_only=True)["network"]
    assert torch.equal(state["backbone.stem.weight"], backbone["stem.weight"])
    assert torch.equal(state["backbone.stages.2.0.project.weight"], backbone["stages.2.0.project.weight"])
    assert not torch.equal(state["backbone.stages.4.0.project.weight"], backbone["stages.4.0.project.weight"])


def test_the_rate_warms_up_and_follows_a_cosine(data, backbone, tmp_path):
    run = Run(recipe(data, tmp_path, steps=100), backbone)
    run.step = 0
    assert set_rate(run) == pytest.approx(2e-3 / 5, rel=1e-3)
    run.step = 50
    assert set_rate(run) == pytest.approx(2e-3 * (0.01 + 0.99 * 0.5))
    assert {group["lr"] for group in run.optimizer.param_groups} == {set_rate(run), set_rate(run) * 0.1}
    run.step = 100
    assert set_rate(run) == pytest.approx(2e-5)


def test_packaged_weights_are_the_average_in_float16_and_load_strictly(finished_run, tmp_path):
    target = tmp_path / "anysam_lite.safetensors"
    package(finished_run / CHECKPOINT, target)
    state, ema = read_state_dict(target), torch.load(finished_run / CHECKPOINT, weights_only=True)["ema"]
    assert all(value.dtype == torch.float16 for value in state.values())
    network = build("lite")
    network.load_state_dict(state, strict=True)
    for name, value in ema.items():
        torch.testing.assert_close(state[name].float(), value, rtol=1e-3, atol=1e-6)
    facts = read_metadata(target)
    assert facts["variant"] == "anysam_lite" and facts["steps"] == "75"


def test_folded_batch_norms_compute_what_the_published_layers_compute():
    """Every convolution and batch norm of the official layout, run unfolded by torch on its own."""
    torch.manual_seed(1)
    ours = EfficientNetLite0()
    official = {}

    def conv_and_norm(conv, norm, weight):
        official[f"{conv}.weight"] = torch.randn_like(weight) / weight[0].numel() ** 0.5
        for key in ("weight", "bias", "running_mean"):
            official[f"{norm}.{key}"] = torch.randn(weight.shape[0]) * 0.3 + (key == "weight")
        official[f"{norm}.running_var"] = torch.rand(weight.shape[0]) + 0.5

    conv_and_norm("_conv_stem", "_bn0", ours.stem.weight)
    for i, block in enumerate(block for stage in ours.stages for block in stage):
        if block.expand is not None:
            conv_and_norm(f"_blocks.{i}._expand_conv", f"_blocks.{i}._bn0", block.expand.weight)
        conv_and_norm(f"_blocks.{i}._depthwise_conv", f"_blocks.{i}._bn1", block.depthwise.weight)
        conv_and_norm(f"_blocks.{i}._project_conv", f"_blocks.{i}._bn2", block.project.weight)
    ours.load_state_dict(convert_imagenet_backbone(official), strict=True)
    pixels = torch.randn(1, 3, 64, 96)
    x = torch.nn.functional.pad(pixels, (0, 1, 0, 1))
    x = torch.nn.functional.conv2d(x, official["_conv_stem.weight"], stride=2)
    moments = (official["_bn0.running_mean"], official["_bn0.running_var"])
    x = torch.nn.functional.batch_norm(x, *moments, official["_bn0.weight"], official["_bn0.bias"], eps=1e-3)
    with torch.no_grad():
        torch.testing.assert_close(ours.stem(pixels), x, rtol=1e-4, atol=1e-4)
        assert [tuple(f.shape) for f in ours(pixels)] == [
            (1, 24, 16, 24),
            (1, 40, 8, 12),
            (1, 112, 4, 6),
            (1, 320, 2, 3),
        ]


def share_from(rank, folder):
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    parameters = [torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.zeros(2, 2))]
    parameters[0].grad = torch.tensor([1.0, 2.0, 3.0]) * (1 + 2 * rank)
    parameters[1].grad = torch.full((2, 2), float(rank))
    share_gradients(parameters)
    torch.save([p.grad for p in parameters] + [agreed(10.0 + rank)], f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_two_processes_share_the_mean_gradient_and_one_clock(tmp_path):
    torch.multiprocessing.spawn(share_from, (str(tmp_path),), nprocs=2)
    for rank in range(2):
        first, second, clock = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert first.tolist() == [2.0, 4.0, 6.0] and second.tolist() == [[0.5, 0.5], [0.5, 0.5]] and clock == 10.0
