"""SAM-Lightening's layer-wise distillation: weights over time, layers, and a tiny pair through the real loop."""

import dataclasses
import json

import pytest
import torch
from torch.nn import functional

from anysam.catalogue import find_variant
from anysam.checkpoints import load_strictly
from anysam.errors import OptionError
from anysam.train import encoder_distillation, sam_lightening
from anysam.train.configs.data import DataConfig
from anysam.train.configs.loop import LoopConfig
from anysam.train.configs.sam_lightening import SamLighteningConfig
from anysam.train.encoder_distillation import Teacher, agreement, initialise
from anysam.train.loop import train
from anysam.train.mobile_sam import prepared
from anysam.train.sam_lightening import (
    SamLighteningTask,
    layer_weights,
    learner,
    make_task,
    normalised,
    paired_blocks,
    variant_of,
)
from anysam.train.task import Step
from anysam.weights_files import read_metadata, read_state_dict
from test_train_promptable import photographs, small_sam, with_small_decoder
from tiny_models import TINY

LOOP = LoopConfig(
    steps=40,
    batch_size=8,
    learning_rate=1e-2,
    warmup_steps=5,
    clip=1.0,
    log_every=1,
    validate_every=0,
    device="cpu",
    tensorboard=False,
)


@pytest.fixture(scope="module")
def entries(tmp_path_factory):
    return photographs(tmp_path_factory.mktemp("photographs"), 28)


@pytest.fixture(scope="module")
def sam():
    return small_sam()


def tiny_student(seed=0):
    torch.manual_seed(seed)
    network = with_small_decoder(TINY["sam_lightening"][1]())
    initialise(network)
    return network


def task_of(entries, sam, **options):
    student = learner(prepared(tiny_student(), sam.prompt_encoder, sam.mask_decoder), sam.image_encoder, 0)
    learned, judged = type(entries)(entries[:24]), type(entries)(entries[24:])
    config = SamLighteningConfig(loop=LOOP, val_points=3, **options)
    return SamLighteningTask(student, Teacher(sam.preprocess, sam), learned, judged, config)


def step_at(progress):
    return Step(0, progress, 0, torch.device("cpu"), torch.Generator())


def batch_of(task, *indices):
    return task.collate([task.read(index, None) for index in indices])


def test_the_weight_moves_from_the_first_layer_to_the_embeddings():
    assert layer_weights(3, 0.0, 0.6, 0.5) == [1, 0, 0, 0]
    # a third of the way from block 0 to block 1 and half of it from there on: 0.5 ** 0.5 behind, a half before
    assert layer_weights(2, 0.15, 0.6, 0.5) == pytest.approx([x / (0.5**0.5 + 0.5) for x in (0.5**0.5, 0.5, 0)])
    # at the front 1, half of it for each layer that has been passed
    assert layer_weights(2, 0.3, 0.6, 0.5) == pytest.approx([1 / 3, 2 / 3, 0])
    assert layer_weights(3, 0.6, 0.6, 0.5) == pytest.approx([1 / 15, 2 / 15, 4 / 15, 8 / 15])
    assert layer_weights(3, 0.99, 0.6, 0.5) == layer_weights(3, 0.6, 0.6, 0.5)
    assert layer_weights(3, 0.6, 0.6, 0.0) == [0, 0, 0, 1]
    assert layer_weights(3, 0.0, 0.0, 0.0) == [0, 0, 0, 1]  # no layers at all: plain distillation
    for tick in range(20):
        assert sum(layer_weights(6, tick / 20, 0.6, 0.5)) == pytest.approx(1)


def test_blocks_learn_those_at_the_same_part_of_the_depth():
    assert paired_blocks(6, 12) == [1, 3, 5, 7, 9, 11]  # sam_vit_b: global blocks 2 and 5 learn global ones, 5 and 11
    assert paired_blocks(6, 32) == [4, 10, 15, 20, 26, 31]
    assert paired_blocks(9, 12)[-1] == 11 and len(set(paired_blocks(9, 12))) == 9
    assert paired_blocks(4, 2) == [0, 0, 1, 1]


def test_the_loss_is_that_of_the_layers_by_hand(entries, sam):
    task = task_of(entries, sam)
    batch = batch_of(task, 0, 1)
    loss = task.loss(batch, step_at(0.45))
    student, weights = task.network.sam.image_encoder, layer_weights(2, 0.45, 0.6, 0.5)
    total = torch.zeros(())
    for image in batch.pixels:
        ours = student.patch_embed(image[None]) + student.pos_embed
        theirs = sam.image_encoder.patch_embed(image[None]) + sam.image_encoder.pos_embed
        for index, projection in enumerate(task.network.projections):
            ours, theirs = student.blocks[index](ours), sam.image_encoder.blocks[index](theirs)
            wanted = (theirs - theirs.mean(dim=-1, keepdim=True)) / theirs.std(dim=-1, correction=0, keepdim=True)
            total = total + weights[index] * (projection(ours) - wanted).square().mean()
        embeddings = student.neck(ours.permute(0, 3, 1, 2)) - sam.image_encoder.neck(theirs.permute(0, 3, 1, 2))
        total = total + weights[2] * embeddings.square().mean()
    assert loss.total.item() == pytest.approx(total.item(), rel=1e-4) and loss.count == 2
    assert set(loss.parts) == {"mse", "block0", "block1"}
    features = torch.randn(1, 2, 2, 5)
    assert torch.allclose(normalised(features).permute(0, 2, 3, 1), functional.layer_norm(features, (5,)))


def test_images_of_a_batch_do_not_mix(entries, sam):
    task = task_of(entries, sam)
    together = task.loss(batch_of(task, 0, 1, 2), step_at(0.5))
    alone = [task.loss(batch_of(task, index), step_at(0.5)).total.item() for index in range(3)]
    assert together.total.item() == pytest.approx(sum(alone), rel=1e-5)


def test_at_the_start_only_the_first_block_learns(entries, sam):
    task = task_of(entries, sam)
    task.loss(batch_of(task, 0), step_at(0.0)).total.backward()
    encoder = task.network.sam.image_encoder

    def learns(module):
        gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
        return any(bool(gradient.any()) for gradient in gradients)

    assert learns(encoder.blocks[0]) and learns(task.network.projections[0]) and learns(encoder.patch_embed)
    assert not learns(encoder.blocks[1]) and not learns(encoder.neck) and not learns(task.network.projections[1])


def test_the_student_comes_nearer_to_its_teacher(entries, sam, tmp_path):
    task = task_of(entries, sam)
    start = agreement(task.network.sam, task.teacher, task.judged, 3)
    outcome = train(task, LOOP, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    errors = [line["mse"] for line in lines if "mse" in line]
    assert len(errors) == 40 and sum(errors[-5:]) < 0.6 * sum(errors[:5])
    # of photographs that it did not learn from
    assert outcome.scores["miou"] > start["miou"] + 0.05
    assert outcome.scores["cosine"] > start["cosine"] + 0.3 and outcome.scores["mse"] < 0.7 * start["mse"]

    # the file is a whole SAM-Lightening, without projections
    assert read_metadata(outcome.last)["variant"] == "sam_lightening"
    saved, fresh = read_state_dict(outcome.last), with_small_decoder(TINY["sam_lightening"][1]())
    load_strictly(fresh, saved, "sam_lightening")
    assert agreement(fresh, task.teacher, task.judged, 3)["miou"] == pytest.approx(outcome.scores["miou"], abs=1e-3)
    theirs = sam.state_dict()
    for name, value in saved.items():
        assert name.startswith("image_encoder.") or torch.equal(value, theirs[name]), name


def test_the_recipe_makes_a_task_of_what_fits(entries, sam, tmp_path, monkeypatch):
    mobile = TINY["mobile_sam"][1]()
    found = {
        "sam": (sam, find_variant("sam_vit_b"), "1" * 64),
        "mobile": (mobile, find_variant("mobile_sam"), "2" * 64),
    }
    for module in (encoder_distillation, sam_lightening):
        monkeypatch.setattr(module, "load_model", lambda name: found[name])
    monkeypatch.setattr(sam_lightening, "started", lambda family, size, seed: tiny_student(seed))
    data = DataConfig(data=str(entries[0].path.parent), kind="images")
    config = SamLighteningConfig(teacher="sam", size="t_np", data=data)
    task = make_task(config, tmp_path)
    assert task.variant == "sam_lightening_t_np" and len(task.learned) + len(task.judged) == 28
    assert [tuple(each.weight.shape) for each in task.network.projections] == [(32, 32), (32, 32)]
    with pytest.raises(OptionError, match="not a SAM's ViT"):
        make_task(dataclasses.replace(config, teacher="mobile"), tmp_path)
    with pytest.raises(OptionError, match="layer-part and --passed must be in 0..1"):
        make_task(dataclasses.replace(config, passed=1.5), tmp_path)


def test_every_size_has_its_row():
    assert {variant_of(size) for size in ("t", "b")} == {"sam_lightening", "sam_lightening_vit_b"}
