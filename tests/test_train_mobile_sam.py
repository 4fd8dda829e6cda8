"""MobileSAM's distillation on a tiny pair and photographs through the real loop; what learns, and what must not."""

import dataclasses
import json

import pytest
import torch

from anysam import Model
from anysam.catalogue import find_variant
from anysam.checkpoints import load_strictly
from anysam.embeddings import EmbeddingCache, write_embeddings
from anysam.errors import OptionError, WeightsError
from anysam.models import build
from anysam.train import encoder_distillation, mobile_sam
from anysam.train.configs.data import DataConfig
from anysam.train.configs.loop import LoopConfig
from anysam.train.configs.mobile_sam import MobileSamConfig
from anysam.train.encoder_distillation import Teacher, agreement, initialise
from anysam.train.loop import train
from anysam.train.mobile_sam import MobileSamTask, make_task, prepared
from anysam.train.task import Step
from anysam.weights_files import read_metadata, read_state_dict, save_checkpoint
from test_train_promptable import photographs, small_sam, with_small_decoder
from tiny_models import TINY, filled

STEP = Step(0, 0.0, 0, torch.device("cpu"), torch.Generator())
LOOP = LoopConfig(
    steps=36,
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
    network = with_small_decoder(TINY["mobile_sam"][1]())
    initialise(network)
    return network


def task_of(entries, sam, teacher=None, student=None, **options):
    student = prepared(student or tiny_student(), sam.prompt_encoder, sam.mask_decoder)
    teacher = Teacher(sam.preprocess, sam) if teacher is None else teacher
    learned, judged = type(entries)(entries[:24]), type(entries)(entries[24:])
    config = MobileSamConfig(loop=LOOP, val_points=3, **options)
    return MobileSamTask(student, teacher, learned, judged, config)


def copies(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


def test_the_student_comes_nearer_to_its_teacher(entries, sam, tmp_path):
    task = task_of(entries, sam)
    before, start = copies(task.network), agreement(task.network, task.teacher, task.judged, 3)
    outcome = train(task, LOOP, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 36 and sum(losses[-5:]) < 0.5 * sum(losses[:5])
    # on photographs that it did not learn from
    assert outcome.scores["miou"] > start["miou"] + 0.05
    assert outcome.scores["cosine"] > start["cosine"] + 0.4 and outcome.scores["mse"] < 0.5 * start["mse"]

    # the file is a whole MobileSAM: a new encoder before the teacher's prompt encoder and decoder
    assert read_metadata(outcome.last)["variant"] == "mobile_sam"
    saved = read_state_dict(outcome.last)
    fresh = with_small_decoder(TINY["mobile_sam"][1]())
    load_strictly(fresh, saved, "mobile_sam")
    again = agreement(fresh, task.teacher, task.judged, 3)
    assert again == {name: pytest.approx(value, abs=1e-4) for name, value in outcome.scores.items()}
    theirs = sam.state_dict()
    for name, value in saved.items():
        if name.startswith(("prompt_encoder.", "mask_decoder.")):
            assert torch.equal(value, theirs[name]), name
        elif name.startswith(("image_encoder.head", "image_encoder.norm_head")):
            assert torch.equal(value, before[name]), name
        else:  # batch norms' statistics too
            assert not torch.equal(value, before[name]), name
    assert not any(parameter.requires_grad for parameter in sam.parameters())


def test_stored_embeddings_teach_the_same(entries, sam, tmp_path):
    model = Model("sam_vit_b", sam, torch.device("cpu"), torch.float32, "0" * 64)
    write_embeddings(model, [(entry.name, entry.read_image) for entry in entries[:3]], tmp_path)
    live, stored = task_of(entries, sam), task_of(entries, sam, Teacher(sam.preprocess, cache=EmbeddingCache(tmp_path)))
    losses = []
    for task in (live, stored):
        batch = task.collate([task.read(index, None) for index in range(3)])
        task.prepare(STEP)
        loss = task.loss(batch, STEP)
        loss.total.backward()
        gradient = task.network.image_encoder.neck[0].weight.grad
        losses.append((loss.total.item(), loss.count, gradient))
    assert losses[0][1] == losses[1][1] == 3
    assert losses[1][0] == pytest.approx(losses[0][0], rel=1e-3)
    torch.testing.assert_close(losses[1][2], losses[0][2], rtol=0.02, atol=1e-3)


def test_padding_can_be_left_out_of_the_error(entries, sam):
    task = task_of(entries, sam, ignore_padding=True)
    every, some = MobileSamConfig(), task.config
    assert not every.ignore_padding and some.ignore_padding
    task.network.eval()
    batch = task.collate([task.read(0, None)])
    learned = task.network.encode_image(batch.pixels)["image_embeddings"][0]  # (D, 4, 4)
    wanted = task.teacher.embeddings(batch, batch.pixels)[0]
    # 51 of 64 rows are image: 3 of 4 rows of cells, and a fifth of the last
    assert task.loss(batch, STEP).total.item() == pytest.approx(
        (learned - wanted)[:, :3].square().mean().item(), rel=1e-4
    )
    plain = dataclasses.replace(task, config=every).loss(batch, STEP)
    assert plain.total.item() == pytest.approx((learned - wanted).square().mean().item(), rel=1e-4)


def test_only_the_encoder_learns_and_of_it_not_the_classifier(sam):
    network = prepared(tiny_student(), sam.prompt_encoder, sam.mask_decoder)
    resting = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
    own = {name for name, _ in network.named_parameters()}
    expected = ("prompt_encoder.", "mask_decoder.", "image_encoder.norm_head.", "image_encoder.head.")
    assert resting == {name for name in own if name.startswith(expected)} and resting < own
    with pytest.raises(WeightsError, match="do not fit this mask decoder"):
        prepared(tiny_student(), sam.prompt_encoder, TINY["sam"][1]().mask_decoder)


def test_the_recipe_takes_teacher_decoder_and_data_from_files(entries, sam, tmp_path, monkeypatch):
    variant, other = find_variant("sam_vit_b"), filled(with_small_decoder(TINY["sam"][1]()), 5)
    found = {"teacher": (sam, variant, "1" * 64), "other": (other, variant, "2" * 64)}
    for module in (encoder_distillation, mobile_sam):
        monkeypatch.setattr(module, "load_model", lambda name: found[name])
    monkeypatch.setattr(mobile_sam, "started", lambda family, size, seed: tiny_student(seed))
    init = tiny_student(9)
    save_checkpoint(tmp_path / "init.safetensors", init.state_dict(), {"variant": "mobile_sam"})
    data = DataConfig(data=str(entries[0].path.parent), kind="images")
    config = MobileSamConfig(teacher="teacher", decoder="other", init=str(tmp_path / "init.safetensors"), data=data)
    task = make_task(config, tmp_path)
    assert len(task.learned) + len(task.judged) == 28 and task.teacher.network is sam
    state, decoder = task.network.state_dict(), other.state_dict()
    assert torch.equal(state["mask_decoder.iou_token.weight"], decoder["mask_decoder.iou_token.weight"])
    stem = "image_encoder.patch_embed.seq.0.c.weight"
    assert torch.equal(state[stem], init.state_dict()[stem])

    folder = tmp_path / "embeddings"
    model = Model("sam_vit_b", sam, torch.device("cpu"), torch.float32, "1" * 64)
    write_embeddings(model, [("elsewhere.png", entries[0].read_image)], folder)
    with pytest.raises(OptionError, match="images of .* has a stored embedding"):
        make_task(dataclasses.replace(config, embeddings=str(folder)), tmp_path)
    with pytest.raises(OptionError, match="val-points must be at least 1"):
        make_task(dataclasses.replace(config, val_points=0), tmp_path)


def test_the_real_size_is_the_catalogues():
    with torch.device("meta"):
        network, sam = build("mobile_sam", "tiny_vit"), build("sam", "vit_b")
        student = prepared(network, sam.prompt_encoder, sam.mask_decoder)
    task = MobileSamTask(student, None, [], [], MobileSamConfig())
    row = find_variant(task.variant)
    learning = sum(parameter.numel() for parameter in student.parameters() if parameter.requires_grad)
    assert sum(parameter.numel() for parameter in student.parameters()) == row.parameters
    assert {name: v.shape for name, v in task.weights(student).items()} == {
        name: v.shape for name, v in network.state_dict().items()
    }
    assert 5.7e6 < learning < 6.1e6  # table 3 of the paper: 5.78 million
