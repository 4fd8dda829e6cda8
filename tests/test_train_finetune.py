"""Fine-tuning: networks learn pieces of photographs through the real loop; what should rest, rests."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import anysam
from anysam.catalogue import find_variant
from anysam.checkpoints import load_model
from anysam.embeddings import write_embeddings
from anysam.errors import ImageError, OptionError
from anysam.models import Decoded
from anysam.preprocess import Preprocess
from anysam.train.configs.finetune import FinetuneConfig
from anysam.train.configs.loop import LoopConfig
from anysam.train.finetune import (
    Asker,
    FinetuneTask,
    KeptFeatures,
    augmented_example,
    check_prompts,
    correction_turns,
    learn_masks,
    open_cache,
    prepared,
    rests,
)
from anysam.train.loop import train
from anysam.train.promptable import read_example
from anysam.train.settings import read_config
from anysam.train.task import Step
from anysam.weights_files import read_state_dict
from test_train_promptable import Entries, entry_of, photographs, with_small_decoder
from tiny_models import TINY, filled

RECIPES = Path(__file__).parents[1] / "examples" / "recipes"
FAMILIES = [family for family in TINY if family not in ("fast_sam", "object_aware")]
LOOP = LoopConfig(steps=30, batch_size=2, learning_rate=2e-3, clip=1.0, log_every=1, device="cpu", tensorboard=False)
STEP = Step(0, 0.0, 0, torch.device("cpu"), torch.Generator())


@pytest.fixture(scope="module")
def entries(tmp_path_factory):
    return photographs(tmp_path_factory.mktemp("photographs"), 3)


def config_of(**options):
    return FinetuneConfig(**{"clicks": 1, "masks": 3, "loop": LOOP, **options})


def task_of(family, entries, config, keep=1 << 30):
    variant, make = TINY[family]
    network = with_small_decoder(make()) if family == "sam" else make()
    network = prepared(filled(network).eval(), config)
    features = KeptFeatures(keep) if rests(network) and not config.augment else None
    return FinetuneTask(variant, network, entries, entries, config, features)


def losses_of(out):
    return [line["loss"] for line in map(json.loads, (out / "log.jsonl").read_text().splitlines()) if "loss" in line]


def copies(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


def changed(network, before):
    return {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}


def batch_of(task, count=2):
    return [task.read(i, np.random.default_rng(i)) for i in range(count)]


def built_in():
    """The built-in model with its weights, in a small frame."""
    network = load_model("anysam_lite")[0].eval()
    network.preprocess = dataclasses.replace(network.preprocess, long_side=96, name="small")
    return network


@pytest.mark.parametrize(("what", "rate"), [("decoder", 1e-3), ("lora", 3e-3)])
def test_the_built_in_model_learns_pieces_of_photographs(what, rate, entries, tmp_path):
    loop = dataclasses.replace(LOOP, steps=5, batch_size=2, learning_rate=rate, validate_every=0)
    lora = {"lora_rank": 8, "lora_alpha": 16.0, "lora_targets": "all"}
    config = config_of(what=what, loop=loop, clicks=0, prompts="box", masks=4, val_masks=2, box_noise=0.0, **lora)
    two = Entries(entries[1:])  # with four masks each
    task = FinetuneTask("anysam_lite", prepared(built_in(), config), two, two, config, KeptFeatures(1 << 30))
    start, batch = task.validate(task.network), batch_of(task)
    before, weights = float(task.loss(batch, STEP).total.detach()), copies(task.network)
    outcome = train(task, loop, tmp_path)
    losses = losses_of(tmp_path)
    assert len(losses) == 5 and losses[-1] < 0.9 * losses[0]  # the same masks in every step
    assert float(task.loss(batch, STEP).total.detach()) < 0.9 * before
    assert anysam.load(outcome.best).variant == "anysam_lite"
    learned = built_in()
    learned.load_state_dict(read_state_dict(outcome.best))  # strict: an ordinary file, LoRA's too
    best = task.validate(learned)
    assert best["miou"] == pytest.approx(outcome.scores["miou"], abs=1e-3)
    after = changed(task.network, weights)
    if what == "decoder":
        assert best["box"] > start["box"] + 0.01 and all(name.startswith("decoder.") for name in after)
    else:
        assert all(name.endswith((".a", ".b")) for name in after)


def test_a_decoder_learns_without_the_prompt_encoder_and_words_never_learn():
    for family, what, expected in (
        ("sam", "decoder", {"mask_decoder"}),
        ("sam", "whole", {"image_encoder", "prompt_encoder", "mask_decoder"}),
        ("tap", "decoder", {"image_decoder"}),
        ("tap", "whole", {"image_encoder", "prompt_encoder", "image_decoder"}),
        ("anysam_lite", "decoder", {"decoder"}),
    ):
        network = prepared(TINY[family][1](), config_of(what=what))
        learning = {name.partition(".")[0] for name, each in network.named_parameters() if each.requires_grad}
        assert learning == expected


@pytest.mark.parametrize("what", ["whole", "lora"])
def test_only_what_should_learn_changes(what, entries, tmp_path):
    loop = dataclasses.replace(LOOP, steps=6, batch_size=3, learning_rate=3e-3, validate_every=0)
    task = task_of("sam", entries, config_of(what=what, loop=loop, clicks=1, masks=2, lora_alpha=32.0))
    before, batch = copies(task.network), batch_of(task, 3)
    start = float(task.loss(batch, STEP).total.detach())
    train(task, loop, tmp_path)
    assert float(task.loss(batch, STEP).total.detach()) < 0.9 * start
    after = changed(task.network, before)
    parts = {name.partition(".")[0] for name in after}
    if what == "lora":
        assert parts == {"image_encoder", "mask_decoder"} and all(name.endswith((".a", ".b")) for name in after)
    else:
        assert parts == {"image_encoder", "prompt_encoder", "mask_decoder"}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_gets_gradients_that_lower_the_loss(family, entries):
    task = task_of(family, entries, config_of(what="whole", masks=2))
    batch = batch_of(task)
    task.prepare(STEP)
    first = task.loss(batch, STEP)
    first.total.backward()
    assert first.count == sum(len(example.masks) for example in batch)
    encoder = [
        p for n, p in task.network.named_parameters() if not n.startswith(("mask_", "prompt_", "decoder", "image_dec"))
    ]
    assert any(p.grad is not None and p.grad.any() for p in encoder)
    norm = torch.nn.utils.clip_grad_norm_(task.network.parameters(), 1.0)
    assert np.isfinite(float(norm))
    with torch.no_grad():
        for parameter in task.network.parameters():
            if parameter.grad is not None:
                parameter -= 1e-4 * parameter.grad
        assert float(task.loss(batch, STEP).total) < float(first.total)


class Recorder:
    """A promptable network with fixed answers that remembers what it was asked."""

    preprocess = Preprocess(name="recorder", long_side=64, pad_to=64)

    def __init__(self, default, logits):
        self.multimask_default, self.logits, self.asked = default, logits, []

    def decode(self, features, points, labels, mask_logits, multimask):
        self.asked.append((points, labels, mask_logits, multimask))
        count = 3 if multimask else 1
        offsets = torch.arange(count, dtype=torch.float32)[None, :, None, None] * 0.5  # tells the masks apart
        logits = (self.logits + offsets).expand(len(points), count, 16, 16)
        return Decoded(logits, torch.tensor([[0.2, 0.9, 0.4][:count]]).expand(len(points), count))


def asked_of(example, default="single_point", takes_mask=True, **options):
    logits = torch.full((16, 16), -3.0)
    logits[:4, :4] = 3.0
    network = Recorder(default, logits)
    learn_masks(Asker(network, takes_mask, False), {"image_embeddings": torch.zeros(1)}, example, config_of(**options))
    return network.asked


def test_rounds_bring_clicks_on_errors_and_the_last_answer(entries):
    example = read_example(entries[0], Recorder.preprocess, 3, np.random.default_rng(0))
    asked = asked_of(example, prompts="point", clicks=8, repeats=2)
    assert len(asked) == 11  # one first prompt, eight clicks, two repeats
    grown = [points.shape[1] for points, *_ in asked]
    assert grown[0] == 2 and grown[-1] == 10 and grown[-2] == 10  # the last round is a repeat
    assert sorted(np.diff(grown).tolist()) == [0, 0] + [1] * 8
    assert [multimask for *_, multimask in asked] == [True] + [False] * 10
    assert torch.equal(asked[0][0][:, 0], example.points) and asked[0][1].tolist() == [[1, -1]] * len(example.masks)
    rows, columns = example.valid
    for turn, (points, labels, mask, _) in enumerate(asked[1:], start=1):
        # Of three masks the one with the highest predicted IoU, whose logits are 0.5 higher.
        assert float(mask.max()) == 3.5 if turn == 1 else float(mask.max()) == 3.0
        if grown[turn] > grown[turn - 1]:
            predicted = torch.zeros(rows, columns, dtype=torch.bool)
            predicted[:4, :4] = True
            for point, label, target in zip(points[:, 0], labels[:, 0], example.masks, strict=True):
                x, y = (int(v // 4) for v in point)
                wanted = bool(target[y, x] > 0.5)
                assert y < rows and x < columns and bool(predicted[y, x]) != wanted and int(label) == wanted


@pytest.mark.parametrize(
    ("default", "expected"),
    [  # (several masks of a first point, a first box, points with clicks, a box with clicks)
        ("single_point", (True, False, False, False)),
        ("always", (True, True, True, True)),
        ("never", (True, False, True, False)),
    ],
)
def test_prompts_get_the_masks_that_predictions_have(default, expected, entries):
    example = read_example(entries[0], Recorder.preprocess, 3, np.random.default_rng(0))
    found = []
    for prompts in ("point", "box"):
        asked = asked_of(example, default, takes_mask=False, prompts=prompts)
        assert all(mask is None for _, _, mask, _ in asked)
        found.append([multimask for *_, multimask in asked])
    (first_point, later_point), (first_box, later_box) = found
    assert (first_point, first_box, later_point, later_box) == expected
    mixed = asked_of(example, default, prompts="both", clicks=0)
    by_flag = {multimask: labels[:, 0].tolist() for _, labels, _, multimask in mixed}
    assert sorted(sum(by_flag.values(), [])) == sorted(
        [1] * sum(v == 1 for o in by_flag.values() for v in o) + [2] * sum(v == 2 for o in by_flag.values() for v in o)
    )


def test_repeats_are_last_and_anywhere_between():
    seen = set()
    for seed in range(200):
        turns = correction_turns(8, 2, torch.Generator().manual_seed(seed))
        assert len(turns) == 10 and sum(turns) == 8 and not turns[-1]
        seen.add(turns[:-1].index(False))
    assert seen == set(range(9))
    assert correction_turns(2, 0, torch.Generator()) == [True, True] and correction_turns(0, 1, torch.Generator()) == [
        False
    ]


def test_the_loss_of_a_batch_is_the_sum_of_its_images(entries):
    task = task_of("sam", entries, config_of(what="whole", clicks=2, repeats=1))
    batch = batch_of(task, 3)
    whole = task.loss(batch, STEP)
    parts = [task.loss([example], STEP) for example in batch]
    assert float(whole.total) == pytest.approx(sum(float(part.total) for part in parts), rel=1e-4)
    assert whole.count == sum(part.count for part in parts)


def test_recomputed_gradients_are_the_same(entries):
    gradients = []
    for recompute in (False, True):
        task = task_of("sam", entries, config_of(what="whole", recompute=recompute, clicks=2))
        task.loss(batch_of(task), STEP).total.backward()
        gradients.append({n: p.grad.clone() for n, p in task.network.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], msg=name)


def test_half_precision_has_nearly_the_same_loss_and_gradients(entries):
    options = {"what": "lora", "lora_parts": "decoder", "lora_targets": "all", "clicks": 0, "prompts": "box"}
    found = []
    for enabled in (False, True):
        task = task_of("anysam_lite", entries, config_of(**options))
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = task.loss(batch_of(task), STEP)
        loss.total.backward()
        gradients = [p.grad.flatten() for p in task.network.parameters() if p.grad is not None]
        found.append((float(loss.total.detach()), torch.cat(gradients)))
    assert found[1][0] == pytest.approx(found[0][0], rel=0.1)
    assert float(torch.cosine_similarity(found[0][1], found[1][1], dim=0)) > 0.8


def test_features_of_a_resting_encoder_are_computed_once(entries):
    task = task_of("sam", entries, config_of())
    calls = []
    task.network.image_encoder.register_forward_hook(lambda *_: calls.append(1))
    first = [float(task.loss(batch_of(task), STEP).total) for _ in range(3)]
    assert len(calls) == 2 and len(set(first)) == 1
    assert task.read(0, np.random.default_rng(0)).pixels is None  # not even read again
    small = task_of("sam", entries, config_of(), keep=0)
    small.network.image_encoder.register_forward_hook(lambda *_: calls.append(1))
    again = [float(small.loss(batch_of(small), STEP).total) for _ in range(3)]
    assert again == first and len(calls) == 2 + 6  # what is kept changes no value


def test_features_may_come_from_a_cache(entries, tmp_path):
    task = task_of("sam", entries, config_of())
    expected = float(task.loss(batch_of(task), STEP).total)
    stored = {name: {key: value[0] for key, value in own.items()} for name, own in task.features.kept.items()}
    cached = dataclasses.replace(task, features=KeptFeatures(0, stored))
    task.network.image_encoder.register_forward_hook(lambda *_: pytest.fail("the encoder ran"))
    assert float(cached.loss(batch_of(cached), STEP).total) == expected


def test_stored_features_must_be_of_these_weights_and_all_that_the_decoder_takes(entries, tmp_path):
    lite, sam = anysam.load(), find_variant("sam_vit_b")
    images = [(entry.name, entry.read_image) for entry in entries[:1]]
    write_embeddings(lite, images, tmp_path / "coarse")
    write_embeddings(lite, images, tmp_path / "all", features=("image_embeddings", "skip8", "skip4"))
    row, sha256 = find_variant("anysam_lite"), lite.weights_sha256
    with pytest.raises(OptionError, match="embed --features image_embeddings,skip8,skip4"):
        open_cache(str(tmp_path / "coarse"), row, sha256)
    with pytest.raises(OptionError, match="not of sam_vit_b with these weights"):
        open_cache(str(tmp_path / "all"), sam, "0" * 64)
    features = KeptFeatures(0, open_cache(str(tmp_path / "all"), row, sha256))
    task = dataclasses.replace(task_of("anysam_lite", entries, config_of()), network=load_model("anysam_lite")[0])
    task.network.eval()
    told = dataclasses.replace(task, features=features)
    computed = dataclasses.replace(task, features=KeptFeatures(0))
    assert told.read(0, np.random.default_rng(0)).pixels is None
    losses = [float(each.loss(batch_of(each, 1), STEP).total) for each in (told, computed)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_an_encoder_that_learns_or_augmented_images_keep_no_features(entries):
    assert not rests(task_of("sam", entries, config_of(what="whole")).network)
    assert not rests(task_of("sam", entries, config_of(what="lora", lora_parts="encoder")).network)
    assert rests(task_of("sam", entries, config_of(what="lora", lora_parts="decoder")).network)
    assert task_of("sam", entries, config_of(augment=True)).features is None


def test_an_augmented_mask_stays_on_its_object(tmp_path):
    mask = np.zeros((90, 120), bool)
    mask[20:50, 15:70] = True
    Image.fromarray(np.where(mask, 230, 20).astype(np.uint8)).convert("RGB").save(tmp_path / "white.png")
    entry = entry_of(tmp_path / "white.png", [mask])
    boxes = set()
    for seed in range(20):
        example = augmented_example(entry, Recorder.preprocess, 2, np.random.default_rng(seed))
        if example is None:
            continue
        boxes.add(tuple(example.boxes[0].round().int().tolist()))
        height, width = example.input_size
        shown = example.pixels[0, :height, :width]
        bright = torch.nn.functional.adaptive_avg_pool2d(shown[None], (height // 4, width // 4))[0]
        own = example.masks[0, : height // 4, : width // 4]
        inside, outside = bright[own > 0.95], bright[own < 0.05]
        assert (inside.mean() - outside.mean()).abs() > 4 * (inside.std() + outside.std())
    assert len(boxes) > 10


def test_rounds_that_a_model_cannot_be_asked_are_refused():
    row = find_variant("efficient_sam_vitt")
    check_prompts(row, config_of(clicks=4))
    check_prompts(row, config_of(clicks=5, prompts="point"))
    with pytest.raises(OptionError, match="at most --clicks 4 here"):
        check_prompts(row, config_of(clicks=5))
    with pytest.raises(OptionError, match="takes no mask prompts"):
        check_prompts(row, config_of(repeats=1))
    with pytest.raises(OptionError, match="not fine-tuned by prompts"):
        check_prompts(find_variant("mobilesamv2_object_aware"), config_of())
    with pytest.raises(OptionError, match="at least 1"):
        check_prompts(find_variant("sam_vit_b"), config_of(masks=0))


def test_lora_where_there_is_no_attention_is_refused():
    with pytest.raises(OptionError, match="no attention in image_encoder"):
        prepared(TINY["edge_sam"][1](), config_of(what="lora", lora_parts="encoder"))


def test_an_adapter_is_saved_alone(entries):
    task = task_of("sam", entries, config_of(what="lora", save="adapter", lora_rank=2))
    saved = task.weights(task.network)
    assert saved and all(name.startswith("lora.") for name in saved)


def test_a_broken_image_is_the_loops_to_leave_out(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    task = task_of("sam", Entries([entry_of(tmp_path / "broken.png", [np.ones((8, 8), bool)])]), config_of())
    with pytest.raises(ImageError):
        task.read(0, np.random.default_rng(0))


@pytest.mark.parametrize(("name", "what"), [("finetune_decoder", "decoder"), ("finetune_lora", "lora")])
def test_recipe_files_are_read_and_can_be_asked(name, what):
    config = read_config(FinetuneConfig, RECIPES / f"{name}.toml", {})
    assert config.what == what and (what != "decoder" or config == FinetuneConfig())
    check_prompts(find_variant(config.model or "anysam_lite"), config)
