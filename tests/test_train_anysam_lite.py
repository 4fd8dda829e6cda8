"""The recipe of the built-in model on small made-up images: it learns, and its weights can ship."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

import anysam
from anysam.checkpoints import convert_checkpoint, read_state_dict
from anysam.datasets import Entries
from anysam.errors import OptionError, WeightsError
from anysam.models.anysam_lite import AnySamLite, EfficientNetLite
from anysam.models.anysam_lite_decoder import LiteConfig
from anysam.train.anysam_lite import DATASET_WEIGHTS, AnySamLiteTask, crop_size, make_task, open_sets
from anysam.train.configs.anysam_lite import AnySamLiteConfig
from anysam.train.configs.data import DataConfig
from anysam.train.configs.loop import LoopConfig
from anysam.train.imagenet_backbone import convert_imagenet_backbone
from anysam.train.learning import pixels_of
from anysam.train.loop import train
from anysam.train.losses import mask_iou
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


def recipe(data, steps):
    loop = LoopConfig(
        steps=steps,
        batch_size=4,
        learning_rate=2e-3,
        betas=(0.9, 0.98),
        warmup_steps=5,
        least_rate=0.01,
        clip=1.0,
        ema=0.9,
        log_every=25,
        validate_every=0,
        device="cpu",
    )
    return AnySamLiteConfig(
        backbone="lite0",
        long_side=128,
        crops=("64x64", "96x64"),
        masks_per_image=2,
        train_backbone_from=3,
        freeze_backbone_part=0.3,
        data=DataConfig(data=str(data), kind="collection"),
        loop=loop,
    )


def task_of(config):
    torch.manual_seed(0)
    return AnySamLiteTask(AnySamLite(LiteConfig(frame=config.long_side)), config, *open_sets(config))


@pytest.fixture(scope="module")
def finished_run(data, tmp_path_factory):
    """The folder of a run of 75 steps, the untrained network's scores and weights, and the run's outcome."""
    config, out = recipe(data, steps=75), tmp_path_factory.mktemp("run")
    task = task_of(config)
    start = {name: value.clone() for name, value in task.network.state_dict().items()}
    before = task.validate(task.network)
    return out, before, start, train(task, config.loop, out)


def test_the_loss_falls_and_boxes_beat_the_untrained_network(finished_run):
    out, before, _, outcome = finished_run
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    losses = [line["loss0"] for line in lines if "loss0" in line]
    assert len(losses) == 3 and losses[-1] < 0.8 * losses[0]
    assert outcome.scores["box"] > before["box"] + 0.2
    assert all(math.isfinite(value) for value in outcome.scores.values())


def test_frozen_stages_of_the_backbone_stay_and_the_others_learn(finished_run):
    out, _, start, outcome = finished_run
    state = read_state_dict(outcome.last)
    assert torch.equal(state["backbone.stem.weight"], start["backbone.stem.weight"])
    assert torch.equal(state["backbone.stages.2.0.project.weight"], start["backbone.stages.2.0.project.weight"])
    assert not torch.equal(state["backbone.stages.4.0.project.weight"], start["backbone.stages.4.0.project.weight"])


def test_the_backbone_rests_at_first_and_has_its_own_rate(data):
    task = task_of(recipe(data, steps=100))
    groups = task.groups(weight_decay=0.5)
    assert sorted((group.rate, group.weight_decay) for group in groups) == [(0.2, 0.0), (1.0, 0.0), (1.0, 0.5)]
    learning = {id(parameter) for group in groups for parameter in group.parameters}
    named = dict(task.network.named_parameters())
    assert id(named["backbone.stages.2.0.project.weight"]) not in learning
    assert len(learning) == sum(
        not n.startswith(("backbone.stem", "backbone.stages.0", "backbone.stages.1", "backbone.stages.2"))
        for n in named
    )


def test_data_sets_are_drawn_by_their_weights(data):
    sizes = {"coco_mini": 10, "cwfid": 30}
    sets = [Entries(name, list(range(size))) for name, size in sizes.items()]
    task = AnySamLiteTask(AnySamLite(LiteConfig()), recipe(data, 1), sets, [])
    drawn = np.concatenate([task.order(np.random.default_rng(seed)) for seed in range(100)])
    assert len(drawn) == 100 * 40 and set(drawn) == set(range(40))
    share = DATASET_WEIGHTS["coco_mini"] / (DATASET_WEIGHTS["coco_mini"] + DATASET_WEIGHTS["cwfid"])
    assert (drawn < 10).mean() == pytest.approx(share, abs=0.03)


@pytest.mark.parametrize("text", ["64", "64x", "64x65", "0x64", "-64x64", "axb"])
def test_a_crop_that_is_no_size_is_refused(text):
    with pytest.raises(OptionError, match="HEIGHTxWIDTH"):
        crop_size(text)


def test_a_run_goes_on_from_a_file_and_its_weights_ship_in_half_precision(finished_run, data, tmp_path):
    _, _, _, outcome = finished_run
    trained = read_state_dict(outcome.last)
    task = make_task(dataclasses.replace(recipe(data, 1), init=str(outcome.last)), tmp_path)
    assert all(torch.equal(value, trained[name]) for name, value in task.network.state_dict().items())
    with pytest.raises(WeightsError, match="lite2"):
        make_task(dataclasses.replace(recipe(data, 1), init=str(outcome.last), backbone="lite2"), tmp_path)
    assert anysam.load(outcome.last).network.backbone.channels == (24, 40, 112, 320)  # told by the file
    shipped = read_state_dict(convert_checkpoint([outcome.last], tmp_path / "half.safetensors", dtype="float16").path)
    assert all(value.dtype == torch.float16 for value in shipped.values())
    torch.testing.assert_close(
        shipped["neck.lateral16.weight"].float(), trained["neck.lateral16.weight"], rtol=1e-3, atol=1e-6
    )


@pytest.mark.parametrize(
    ("name", "channels"), [("lite0", (24, 40, 112, 320)), ("lite2", (24, 48, 120, 352))], ids=("lite0", "lite2")
)
def test_folded_batch_norms_compute_what_the_published_layers_compute(name, channels):
    """Every convolution and batch norm of the official layout, run unfolded by torch on its own."""
    torch.manual_seed(1)
    ours = EfficientNetLite(name)
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
    ours.load_state_dict(convert_imagenet_backbone(official, name), strict=True)
    pixels = torch.randn(1, 3, 64, 96)
    x = torch.nn.functional.pad(pixels, (0, 1, 0, 1))
    x = torch.nn.functional.conv2d(x, official["_conv_stem.weight"], stride=2)
    moments = (official["_bn0.running_mean"], official["_bn0.running_var"])
    x = torch.nn.functional.batch_norm(x, *moments, official["_bn0.weight"], official["_bn0.bias"], eps=1e-3)
    with torch.no_grad():
        torch.testing.assert_close(ours.stem(pixels), x, rtol=1e-4, atol=1e-4)
        sizes = [(16, 24), (8, 12), (4, 6), (2, 3)]
        assert [tuple(f.shape) for f in ours(pixels)] == [(1, c, *hw) for c, hw in zip(channels, sizes, strict=True)]


def test_the_iou_head_learns_alone_and_predicts_better(finished_run, data, tmp_path):
    _, _, _, outcome = finished_run
    config = dataclasses.replace(recipe(data, steps=30), learn="iou_head", init=str(outcome.last))
    config = dataclasses.replace(config, loop=dataclasses.replace(config.loop, log_every=1, ema=0.0))
    with pytest.raises(OptionError, match="--init"):
        make_task(dataclasses.replace(config, init=""), tmp_path)
    task = make_task(config, tmp_path)
    torch.nn.init.zeros_(task.network.decoder.iou_prediction_head.layers[-1].weight)  # it has to begin again
    before = {name: value.clone() for name, value in task.network.state_dict().items()}
    images = [task.read(i, np.random.default_rng(i)) for i in range(12)]
    start = iou_errors(task.network, images)
    train(task, config.loop, tmp_path / "run")
    changed = {name for name, value in task.network.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all(name.startswith("decoder.iou_prediction_head.") for name in changed)
    assert iou_errors(task.network, images) < 0.85 * start


@torch.no_grad()
def iou_errors(network, samples):
    """Mean absolute error of the predicted IoUs after a click, over crops."""
    errors = []
    for sample in samples:
        features = network.encode_image(pixels_of([sample], torch.device("cpu")))
        clicks = torch.from_numpy(sample.clicks)[:, None]
        logits, predicted = network.decoder(features, clicks, torch.ones(clicks.shape[:2], dtype=torch.long), None)
        errors.append((predicted - mask_iou(logits, torch.from_numpy(sample.masks))).abs().mean())
    return float(torch.stack(errors).mean())
