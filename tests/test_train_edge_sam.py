"""EdgeSAM's two stages on a tiny pair and photographs through the real loop; its sampling and losses by hand."""

import copy
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from anysam.errors import ImageError, OptionError
from anysam.models import Decoded
from anysam.models.layers import fuse
from anysam.train import edge_sam
from anysam.train.configs.edge_sam import EdgeSamConfig, stage1_loop, stage2_loop
from anysam.train.configs.loop import LoopConfig
from anysam.train.edge_sam import (
    EdgeSamTask,
    Teacher,
    TeacherDecoder,
    check_warmup,
    disagreements,
    make_task,
    prepared,
    read_objects,
)
from anysam.train.loop import train
from anysam.train.promptable import IGNORED
from anysam.train.settings import read_config
from anysam.train.task import Step
from anysam.weights_files import read_state_dict
from test_train_promptable import photographs, with_small_decoder
from tiny_models import TINY, filled

RECIPES = Path(__file__).parents[1] / "examples" / "recipes"
STEP = Step(0, 0.0, 0, torch.device("cpu"), torch.Generator())


@pytest.fixture(scope="module")
def entries(tmp_path_factory):
    return photographs(tmp_path_factory.mktemp("photographs"), 3)


def tiny_teacher():
    network = filled(with_small_decoder(TINY["sam"][1]())).eval()
    return Teacher(network.preprocess, network), TeacherDecoder(network.prompt_encoder, network.mask_decoder)


def tiny_student(seed=0):
    torch.manual_seed(seed)
    return with_small_decoder(TINY["edge_sam"][1]())


def config_of(stage, steps=18, **options):
    loop = LoopConfig(
        steps=steps, batch_size=3, learning_rate=5e-3, log_every=1, validate_every=0, device="cpu", tensorboard=False
    )
    return EdgeSamConfig(stage=stage, objects=2, least_disagreement=2, loop=loop, **options)


def task_of(entries, stage, student=None, **options):
    teacher, decoder = tiny_teacher()
    student = prepared(tiny_student() if student is None else student, decoder, teacher.preprocess, stage)
    return EdgeSamTask(student, teacher, decoder, entries, entries, config_of(stage, **options))


def losses_of(out):
    lines = map(json.loads, (out / "log.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


def copies(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


def changed(network, before):
    return {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}


def agreement(network, task):
    """Mean IoU of the student's masks with the teacher's, for the boxes of all examples."""
    network = copy.deepcopy(network).eval()
    ious = []
    with torch.no_grad():
        for i in range(len(task.learned)):
            example = task.read(i, np.random.default_rng(5))
            points, labels = example.boxes.unflatten(1, (2, 2)), torch.tensor([[2, 3]]).expand(len(example.boxes), -1)
            masks = []
            for model in (network, task.teacher.network):
                embeddings = model.image_encoder(example.image.pixels[None])
                sparse, dense = model.prompt_encoder(points, labels, None)
                masks.append(
                    model.mask_decoder(embeddings, model.prompt_encoder.dense_pe(), sparse, dense, False)[0] > 0
                )
            both, either = (masks[0] & masks[1]).flatten(1).sum(1), (masks[0] | masks[1]).flatten(1).sum(1)
            ious += (both / either.clamp(min=1)).tolist()
    return float(np.mean(ious))


def test_two_stages_bring_the_student_to_the_teacher(entries, tmp_path):
    first = task_of(entries, "1")
    before, start = copies(first.network), first.validate(first.network)
    apart = agreement(first.network, dataclasses.replace(first, config=config_of("2")))
    outcome = train(first, first.config.loop, tmp_path / "1")
    losses = losses_of(tmp_path / "1")
    assert np.mean(losses[-4:]) < 0.6 * np.mean(losses[:4])
    assert outcome.scores["mse"] < 0.7 * start["mse"] and first.better == "lower"
    assert {name.partition(".")[0] for name in changed(first.network, before)} == {"image_encoder"}

    student = tiny_student(seed=1)
    student.load_state_dict(read_state_dict(outcome.last))
    second = task_of(entries, "2", student)
    before, middle = copies(second.network), agreement(second.network, second)
    loop = dataclasses.replace(second.config.loop, learning_rate=2.5e-3)
    outcome = train(second, loop, tmp_path / "2")
    losses = losses_of(tmp_path / "2")
    assert np.mean(losses[-6:]) < 0.9 * np.mean(losses[:6])
    assert {name.partition(".")[0] for name in changed(second.network, before)} == {"image_encoder", "mask_decoder"}
    assert not any("iou_prediction_head" in name for name in changed(second.network, before))  # it has no loss
    best = tiny_student(seed=2)
    best.load_state_dict(read_state_dict(outcome.best))
    assert agreement(best, second) > max(apart, middle) + 0.05
    assert set(outcome.scores) == {"miou", "box", "click", "masks"} and second.better == "higher"


def test_the_saved_form_is_the_published_one_and_can_be_joined(entries):
    task = task_of(entries, "1")
    task.network.train()
    for _ in range(2):
        task.loss(task.collate([task.read(i, np.random.default_rng(0)) for i in range(3)]), STEP)  # statistics move
    saved = task.weights(task.network)
    fresh = tiny_student(seed=3)
    assert set(saved) == set(fresh.state_dict())
    fresh.load_state_dict(saved)
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = task.network.eval().encode_image(pixels)["image_embeddings"]
        joined = fuse(fresh.eval()).encode_image(pixels)["image_embeddings"]  # as anysam.load does
    torch.testing.assert_close(joined, expected, atol=1e-4, rtol=1e-3)


def test_new_points_lie_where_student_and_teacher_disagree():
    student, teacher = torch.full((4, 4, 8, 8), -1.0), torch.full((4, 4, 8, 8), -1.0)
    ious = torch.tensor([0.1, 0.2, 0.9, 0.3]).repeat(4, 1)  # token 2 is compared
    student[0, 2, 1, 3:6] = 1.0  # too much: x 3 to 5, y 1
    teacher[1, 2, 6, 0:4] = 1.0  # missing: x 0 to 3, y 6
    student[2, 2, 2, 2] = 1.0  # one cell only
    student[3, 0] = teacher[3, 1] = 1.0  # other tokens do not count
    teacher[0, 2, :, 7] = 1.0  # where there is no image
    valid = torch.ones(8, 8)
    valid[:, 7] = 0
    seen = [set(), set()]
    for seed in range(60):
        generator = torch.Generator().manual_seed(seed)
        points, labels = disagreements(student, Decoded(teacher, ious), valid, 4, 3, generator)
        assert labels.tolist() == [0, 1, IGNORED, IGNORED]
        assert points[2:].tolist() == [[0.0, 0.0], [0.0, 0.0]]
        for place in (0, 1):
            seen[place].add(tuple(points[place].tolist()))
    assert seen[0] == {(4.0 * x, 4.0) for x in (3, 4, 5)}  # a cell's corner, not its middle
    assert seen[1] == {(4.0 * x, 24.0) for x in (0, 1, 2, 3)}


def test_both_decode_the_same_prompts_and_the_second_round_has_one_point_more(entries, monkeypatch):
    asked = []
    decode = edge_sam.decode_tokens

    def watch(network, features, points, labels, tokens):
        asked.append((network, points, labels, tokens, torch.is_grad_enabled()))
        return decode(network, features, points, labels, tokens)

    monkeypatch.setattr(edge_sam, "decode_tokens", watch)
    task = task_of(entries, "2")
    example = task.read(0, np.random.default_rng(0))
    embeddings = torch.randn(1, 64, 4, 4)
    for as_box, tokens, labels in ((True, slice(0, 1), [2, 3]), (False, slice(0, 4), [1, -1])):
        asked.clear()
        task.object_losses(embeddings, embeddings, example, as_box)
        assert [network is task.decoder for network, *_ in asked] == [True, False, True, False]
        assert [enabled for *_, enabled in asked] == [False, True, False, True]
        for theirs, ours in (asked[:2], asked[2:]):
            assert (
                torch.equal(theirs[1], ours[1]) and torch.equal(theirs[2], ours[2]) and theirs[3] == ours[3] == tokens
            )
        assert asked[0][2].tolist() == [labels] * len(example.boxes)
        # The student has the teacher's decoder and, here, its embeddings: nothing differs.
        assert asked[2][2].tolist() == [[IGNORED, *labels]] * len(example.boxes)


def test_an_equal_student_has_the_loss_of_sure_masks_only(entries):
    task = task_of(entries, "2")
    example = task.read(0, np.random.default_rng(0))
    embeddings = torch.randn(1, 64, 4, 4, generator=torch.Generator().manual_seed(1))
    bce, dice = task.object_losses(embeddings, embeddings, example, True)
    other = torch.randn(1, 64, 4, 4, generator=torch.Generator().manual_seed(2))
    bce_other, dice_other = task.object_losses(other, embeddings, example, True)
    assert float(bce.sum()) < float(bce_other.sum()) and float(dice.sum()) < float(dice_other.sum())


def test_a_step_asks_by_boxes_or_by_points_and_sums_over_objects(entries):
    task = task_of(entries, "2")
    batch = [task.read(i, np.random.default_rng(i)) for i in range(2)]
    task.network.eval()  # batch norms would mix the images
    kinds = set()
    for index in range(12):
        step = dataclasses.replace(STEP, index=index)
        loss = task.loss(task.collate(batch), step)
        kinds |= {"box", "point"} & set(loss.parts)
        assert len({"box", "point"} & set(loss.parts)) == 1
    assert kinds == {"box", "point"}
    parts = [task.loss(task.collate([example]), step) for example in batch]
    assert float(loss.total) == pytest.approx(sum(float(part.total) for part in parts), rel=1e-4)
    assert loss.count == sum(part.count for part in parts) == sum(len(example.boxes) for example in batch)
    assert float(loss.total) == pytest.approx(loss.count * (5 * loss.parts["bce"] + 5 * loss.parts["dice"]), rel=1e-4)


def test_objects_are_the_annotations_and_too_many_are_drawn_with_replacement(entries):
    preprocess = tiny_student().preprocess
    scale = 64 / 120
    bare = dataclasses.replace(entries[0], points=(), boxes=())
    boxes, points = read_objects(bare, preprocess, 16, np.random.default_rng(0))
    assert len(boxes) == len(points) == len(bare.masks)
    for i, (x, y) in enumerate(points.numpy() / scale):
        assert bare.decode(i)[round(float(y) * (96 / 120) / (51 / 64)), round(float(x))]
    told = dataclasses.replace(
        bare,
        points=tuple((5.0 + i, 7.0) for i in range(len(bare.masks))),
        boxes=tuple((1.0, 2.0, 60.0 + i, 50.0) for i in range(len(bare.masks))),
    )
    boxes, points = read_objects(told, preprocess, 3, np.random.default_rng(1))
    assert boxes.shape == (3, 4)
    assert points[:, 1].numpy() == pytest.approx(7 * 51 / 96, abs=1e-4)  # 96 rows become 51
    assert boxes[:, 0].numpy() == pytest.approx(scale, abs=1e-4)
    drawn = [read_objects(told, preprocess, 3, np.random.default_rng(seed))[1][:, 0].tolist() for seed in range(40)]
    assert any(len(set(each)) < 3 for each in drawn)  # the same object twice
    assert len({x for each in drawn for x in each}) == len(bare.masks)
    assert read_objects(told, preprocess, 0, np.random.default_rng(1))[0].shape == (0, 4)


def test_stored_embeddings_take_the_encoders_place(entries):
    task = task_of(entries, "1")
    batch = task.collate([task.read(i, np.random.default_rng(i)) for i in range(2)])
    expected = float(task.loss(batch, STEP).total)
    wanted = task.teacher.embeddings(batch[0], batch[0].pixels)
    stored = {
        example.image.name: {"image_embeddings": each.half()} for example, each in zip(batch[1], wanted, strict=True)
    }
    cached = dataclasses.replace(task, teacher=Teacher(task.teacher.preprocess, cache=stored))
    again = cached.collate([cached.read(i, np.random.default_rng(i)) for i in range(2)])
    assert float(cached.loss(again, STEP).total) == pytest.approx(expected, rel=1e-2)
    assert cached.validate(cached.network)["mse"] > 0  # of the images that have embeddings
    with pytest.raises(ImageError, match="has no stored embedding"):
        cached.read(2, np.random.default_rng(0))


def test_padding_does_not_count_in_stage_1(entries):
    task = task_of(entries, "1")
    images, examples = task.collate([task.read(0, np.random.default_rng(0))])
    wanted = task.teacher.embeddings(images, images.pixels)
    spoiled = wanted.clone()
    spoiled[:, :, 3] += 100  # 96 of 120 rows are image: 51 of 64, so of 4 rows of cells the last is image by a sixth
    for embeddings, same in ((spoiled, True), (wanted + torch.eye(4), False)):
        other = dataclasses.replace(task, teacher=Fixed(embeddings))
        assert (
            float(other.loss((images, examples), STEP).total) == float(task.loss((images, examples), STEP).total)
        ) is same


class Fixed:
    """A teacher with one answer."""

    def __init__(self, embeddings):
        self.answer = embeddings

    def embeddings(self, batch, pixels):
        return self.answer


def test_rates_are_the_published_ones_for_their_batches():
    one, two = stage1_loop(), stage2_loop()
    for loop, rate, batch, least in ((one, 1e-1, 64, 5e-6), (two, 3.2e-3, 16, 3.2e-4)):
        assert loop.batch_size * loop.accumulate == batch
        assert loop.learning_rate == pytest.approx(rate * batch / 512)
        assert loop.learning_rate * loop.least_rate == pytest.approx(least * batch / 512)
    assert one.learning_rate * one.warmup_rate == pytest.approx(5e-7 * 64 / 512)


@pytest.mark.parametrize(("stage", "loop"), [("1", stage1_loop()), ("2", stage2_loop())])
def test_recipe_files_have_the_same_numbers_for_eight_processes(stage, loop):
    config = read_config(EdgeSamConfig, RECIPES / f"edge_sam_stage{stage}.toml", {})
    assert config.stage == stage
    free = {"accumulate": 1, "workers": 8, "save_every": 500, "validate_every": config.loop.validate_every}
    assert config.loop == dataclasses.replace(loop, **free)
    assert config == dataclasses.replace(EdgeSamConfig(), stage=stage, loop=config.loop, data=config.data)


def test_a_warm_up_as_long_as_the_run_is_refused():
    check_warmup(stage1_loop(), 110_000)  # 1 % of SA-1B: 17188 steps
    with pytest.raises(
        OptionError, match="8595 steps leaves nothing of the 157 steps of this run; give --warmup-steps 78"
    ):
        check_warmup(stage1_loop(), 1000)
    check_warmup(stage2_loop(), 10)


def test_contradictory_stages_and_teachers_are_refused(tmp_path):
    with pytest.raises(OptionError, match="starts from the file that stage 1 wrote"):
        make_task(EdgeSamConfig(stage="2", loop=stage2_loop()), tmp_path)
    with pytest.raises(OptionError, match="another schedule than stage 1"):
        make_task(EdgeSamConfig(stage="2", init="a.pth"), tmp_path)
    with pytest.raises(OptionError, match="no decoder of SAM's kind"):
        make_task(EdgeSamConfig(teacher="anysam_lite"), tmp_path)
    teacher, decoder = tiny_teacher()
    with pytest.raises(OptionError, match="in a frame of 128 pixels, the student's of 64"):
        prepared(tiny_student(), decoder, dataclasses.replace(teacher.preprocess, long_side=128, pad_to=128), "1")
