"""EfficientSAM's stages: SAMI's masking and merging against naive ones, its targets, and both through the real loop."""

import copy
import dataclasses
import json
import math

import cv2
import numpy as np
import pytest
import torch
from torch.nn import functional

from anysam.catalogue import find_variant
from anysam.checkpoints import load_strictly
from anysam.errors import OptionError
from anysam.models import build
from anysam.models.efficient_sam import PREPROCESS, EfficientSamConfig, build_efficient_sam
from anysam.train import efficient_sam
from anysam.train.configs import efficient_sam as configs
from anysam.train.configs.data import DataConfig
from anysam.train.configs.loop import LoopConfig
from anysam.train.efficient_sam import MasksTask, SamiTask, feature_teacher, feature_width, make_task
from anysam.train.loop import train
from anysam.train.promptable import score_prompts
from anysam.train.sami import (
    CrossBlock,
    Decoding,
    SamiNetwork,
    as_input,
    at_side,
    in_place,
    middle_box,
    random_box,
    resized,
    sine_positions,
    start_as_mae,
)
from anysam.train.task import Step
from anysam.weights_files import read_metadata, read_state_dict
from test_train_promptable import Entries, entry_of, photographs, small_sam
from tiny_models import TINY, frame

STEP = Step(0, 0.0, 0, torch.device("cpu"), torch.Generator())
LOOP = LoopConfig(
    steps=30,
    batch_size=6,
    learning_rate=3e-3,
    warmup_steps=5,
    clip=1.0,
    log_every=1,
    validate_every=0,
    device="cpu",
    tensorboard=False,
)
SMALL = Decoding(depth=1, width=32, heads=2)


@pytest.fixture(scope="module")
def entries(tmp_path_factory):
    return photographs(tmp_path_factory.mktemp("photographs"), 14)


@pytest.fixture(scope="module")
def sam():
    return small_sam()


def tiny_student(seed=0):
    """With a table of 6 x 6 patches of 16 pixels: crops of 96."""
    torch.manual_seed(seed)
    shape = EfficientSamConfig(
        embed_dim=32, num_heads=2, depth=2, image_size=64, table_size=6, out_channels=64, decoder_mlp_dim=64
    )
    return build_efficient_sam(shape, frame(PREPROCESS))


def network_of(seed=0, decoding=SMALL):
    network = SamiNetwork(tiny_student(seed), 64, decoding)
    start_as_mae(network)
    return network


def sami_task(entries, sam, target="tokens", **options):
    config = configs.EfficientSamConfig(loop=LOOP, target=target, **options)
    learned, judged = type(entries)(entries[:12]), type(entries)(entries[12:])
    teacher = feature_teacher(copy.deepcopy(sam), target, 96, "sam_vit_b")
    return SamiTask("efficient_sam_vitt", network_of(), teacher, learned, judged, config, side=96)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def orders(count, patches=36):
    return torch.stack([torch.from_numpy(np.random.default_rng(i).permutation(patches)) for i in range(count)])


def losses_of(out):
    return [line["loss"] for line in map(json.loads, (out / "log.jsonl").read_text().splitlines()) if "loss" in line]


# Masking and merging


def test_tokens_return_to_their_places():
    order = orders(2, 10)
    seen, hidden = drawn(2, 3, 4), drawn(2, 7, 4, seed=1)
    found = in_place(seen, hidden, order)
    for b in range(2):
        for place in range(10):
            rank = order[b].tolist().index(place)
            expected = seen[b, rank] if rank < 3 else hidden[b, rank - 3]
            assert torch.equal(found[b, place], expected)


def test_three_quarters_of_the_patches_are_hidden_and_not_looked_at():
    assert Decoding().visible(196) == 49
    network, pixels, order = network_of(), drawn(2, 3, 96, 96), orders(2)
    assert network.visible == 9
    changed = pixels.clone()
    for b in range(2):
        for place in order[b, 9:].tolist():
            y, x = divmod(place, 6)
            changed[b, :, 16 * y : 16 * y + 16, 16 * x : 16 * x + 16] = 100.0
    assert torch.equal(network(pixels, order), network(changed, order))
    y, x = divmod(int(order[0, 8]), 6)
    changed[0, :, 16 * y : 16 * y + 16, 16 * x : 16 * x + 16] = 100.0
    again = network(changed, order)
    assert not torch.equal(again[0], network(pixels, order)[0]) and torch.equal(again[1], network(pixels, order)[1])


def test_the_network_is_a_naive_one_patch_by_patch():
    network, pixels, order = network_of(), drawn(1, 3, 96, 96), orders(1)
    encoder, kept = network.sam.image_encoder, order[0, :9].tolist()
    tokens = [network.cls_token[0, 0] + encoder.pos_embed[0, 0]]
    for place in kept:
        y, x = divmod(place, 6)
        patch = pixels[0, :, 16 * y : 16 * y + 16, 16 * x : 16 * x + 16]
        value = (encoder.patch_embed.proj.weight * patch).sum(dim=(1, 2, 3)) + encoder.patch_embed.proj.bias
        tokens.append(value + encoder.pos_embed[0, 1 + place])
    x = torch.stack(tokens)[None]
    for block in encoder.blocks:
        x = block(x)
    known = network.embed(network.norm(x))[0]  # the class token, then those of `kept`
    asked = known.clone()
    asked[1:] += network.positions[0, kept]
    unknown = torch.stack([network.mask_token[0, 0] + network.positions[0, place] for place in order[0, 9:].tolist()])
    for block in network.blocks:
        unknown = block(unknown[None], asked[None])[0]
    unknown = network.decoder_norm(unknown)
    found = network(pixels, order)[0]  # (D, 6, 6)
    for place in range(36):
        merged = known[1 + kept.index(place)] if place in kept else unknown[order[0, 9:].tolist().index(place)]
        torch.testing.assert_close(found[:, place // 6, place % 6], network.head(merged), rtol=1e-4, atol=1e-5)


def test_unknown_tokens_ask_the_known_ones_and_themselves():
    torch.manual_seed(0)
    block, unknown, known = CrossBlock(8, 2), drawn(1, 3, 8), drawn(1, 2, 8, seed=1)
    asking, both = block.norm1(unknown)[0], block.norm1(torch.cat([known, unknown], dim=1))[0]
    k, v = block.kv(both).chunk(2, dim=1)
    q, found = block.q(asking), torch.zeros(3, 8)
    for head in (slice(0, 4), slice(4, 8)):
        for row in range(3):
            weights = torch.stack([(q[row, head] * k[other, head]).sum() / math.sqrt(4) for other in range(5)]).softmax(
                0
            )
            found[row, head] = sum(weights[other] * v[other, head] for other in range(5))
    x = unknown[0] + block.proj(found)
    torch.testing.assert_close(block(unknown, known)[0], x + block.mlp(block.norm2(x)))


def test_positions_start_as_those_of_mae():
    table = sine_positions(6, 16)
    for y, x in ((0, 0), (2, 5), (5, 1)):
        expected = []
        for place in (x, y):
            angles = [place / 10000 ** (i / 4) for i in range(4)]
            expected += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
        assert table[6 * y + x].tolist() == pytest.approx(expected, abs=1e-6)
    network = network_of()
    assert torch.equal(network.sam.image_encoder.pos_embed[0, 1:], sine_positions(6, 32))
    assert not network.sam.image_encoder.pos_embed[0, 0].any()


def test_a_decoder_that_cannot_be_is_refused():
    for wrong in ({"mask_ratio": 1.0}, {"mask_ratio": 0.0}):
        with pytest.raises(OptionError, match="mask ratio must be between 0 and 1"):
            Decoding(**wrong)
    for wrong in ({"width": 30}, {"depth": 0}, {"heads": 0}):
        with pytest.raises(OptionError, match="multiple of 4 x its heads"):
            Decoding(**wrong)


# Crops and targets


def test_crops_have_the_wanted_area_and_lie_in_the_image():
    rng = np.random.default_rng(0)
    areas = []
    for _ in range(200):
        x0, y0, x1, y1 = random_box((300, 400), (0.2, 1.0), rng)
        assert 0 <= x0 < x1 <= 400 and 0 <= y0 < y1 <= 300
        areas.append((x1 - x0) * (y1 - y0) / 120000)
        assert 0.74 < (x1 - x0) / (y1 - y0) < 1.35
    assert min(areas) > 0.195 and max(areas) > 0.7 and 0.4 < np.mean(areas) < 0.65
    assert random_box((10, 1000), (0.9, 1.0), rng) == middle_box((10, 1000)) == (495, 0, 505, 10)


def test_a_crop_is_the_piece_flipped_and_normalised():
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    assert np.array_equal(resized(image, (10, 5, 40, 35), 30, False).permute(1, 2, 0), image[5:35, 10:40])
    assert np.array_equal(resized(image, (10, 5, 40, 35), 30, True).permute(1, 2, 0), image[5:35, 10:40][:, ::-1])
    crop = resized(image, (0, 0, 30, 30), 30, False)[None]
    expected = (crop[0, 1, 3, 4].item() / 255 - 0.456) / 0.224  # ImageNet's green
    assert as_input(crop, PREPROCESS)[0, 1, 3, 4].item() == pytest.approx(expected, rel=1e-5)
    bgr = dataclasses.replace(PREPROCESS, bgr=True, mean=(1, 2, 3), std=(1, 1, 1))
    assert as_input(crop, bgr)[0, 0, 3, 4].item() == crop[0, 2, 3, 4].item() - 1


def test_sam_sees_another_number_of_tokens_with_resized_tables(sam):
    encoder = sam.image_encoder
    pixels = drawn(1, 3, 64, 64)
    torch.testing.assert_close(at_side(encoder, 64)(pixels), encoder(pixels))
    twin = at_side(encoder, 96)
    assert twin(drawn(1, 3, 96, 96)).shape == (1, 64, 6, 6)
    table = functional.interpolate(encoder.pos_embed.permute(0, 3, 1, 2), (6, 6), mode="bicubic", align_corners=False)
    torch.testing.assert_close(twin.pos_embed.permute(0, 3, 1, 2), table)
    short, long = encoder.blocks[1].attn.rel_pos_h, twin.blocks[1].attn.rel_pos_h
    assert short.shape == (7, 16) and long.shape == (11, 16)
    torch.testing.assert_close(long[5], short[3])  # distance 0
    places = (np.arange(11) + 0.5) * 7 / 11 - 0.5
    expected = [np.interp(places, range(7), short[:, column]) for column in range(16)]
    np.testing.assert_allclose(long.detach().numpy(), np.stack(expected, axis=1), atol=1e-5)
    assert torch.equal(twin.blocks[0].attn.rel_pos_h, encoder.blocks[0].attn.rel_pos_h)  # a window stays a window
    with pytest.raises(OptionError, match="multiples of 16, got 100"):
        at_side(encoder, 100)


def test_targets_are_the_teachers_features_of_the_whole_crop(entries, sam):
    task = sami_task(entries, sam)
    crop = task.read(0, np.random.default_rng(3))
    assert crop.large is None and crop.pixels.shape == (3, 96, 96) and sorted(crop.order.tolist()) == list(range(36))
    wanted = task.teacher.features(crop.pixels[None], None, 6)
    torch.testing.assert_close(wanted, at_side(sam.image_encoder, 96)(as_input(crop.pixels[None], sam.preprocess)))

    pooled = sami_task(entries, sam, target="pooled")
    crop = pooled.read(0, np.random.default_rng(3))
    assert crop.large.shape == (3, 64, 64)
    features = sam.encode_image(as_input(crop.large[None], sam.preprocess))["image_embeddings"]  # (1, 64, 4, 4)
    assert torch.equal(
        pooled.teacher.features(crop.pixels[None], crop.large[None], 2), functional.avg_pool2d(features, 2)
    )


def test_the_loss_is_the_mean_over_all_tokens_seen_and_hidden(entries, sam):
    task = sami_task(entries, sam)
    batch = task.collate([task.read(index, np.random.default_rng(index)) for index in range(2)])
    loss = task.loss(batch, STEP)
    learned = task.network(as_input(batch.pixels, PREPROCESS), batch.order)
    wanted = task.teacher.features(batch.pixels, None, 6)
    per_token = ((learned - wanted) ** 2).sum(dim=1).flatten(1)  # (B, N), the norm of equation 1
    assert loss.total.item() == pytest.approx(per_token.mean(dim=1).sum().item() / 64, rel=1e-5) and loss.count == 2
    loss.total.backward()
    encoder = task.network.sam.image_encoder
    assert all(parameter.grad is not None for parameter in encoder.blocks.parameters())
    assert encoder.pos_embed.grad is not None and encoder.neck[0].weight.grad is None


# The recipe


def test_pretraining_finds_features_of_what_it_does_not_see(entries, sam, tmp_path):
    task = sami_task(entries, sam)
    start, before = task.validate(task.network), {k: v.clone() for k, v in task.network.sam.state_dict().items()}
    assert task.validate(task.network) == start  # the same patches are hidden each time
    outcome = train(task, LOOP, tmp_path)
    losses = losses_of(tmp_path)
    assert len(losses) == 30 and sum(losses[-5:]) < 0.8 * sum(losses[:5])
    # of photographs that it did not learn from
    assert outcome.scores["mse"] < 0.8 * start["mse"] and outcome.scores["cosine"] > start["cosine"] + 0.2

    assert read_metadata(outcome.last)["variant"] == "efficient_sam_vitt"
    saved, fresh = read_state_dict(outcome.last), tiny_student(5)
    load_strictly(fresh, saved, "efficient_sam_vitt")
    resting = ("prompt_encoder.", "mask_decoder.", "image_encoder.neck.")
    for name, value in saved.items():
        assert torch.equal(value, before[name]) == name.startswith(resting), name


def masks_task(entries, student, **options):
    config = configs.EfficientSamConfig(stage="finetune", masks=3, clicks=1, loop=LOOP, val_masks=2, **options)
    return MasksTask("efficient_sam_vitt", student.requires_grad_(True), entries[:4], entries[:4], config)


def bright_halves(entries):
    """Photographs whose brighter half, blurred, is one mask: what little networks learn in a few steps."""
    found = Entries()
    for entry in entries:
        grey = cv2.GaussianBlur(entry.read_image(), (0, 0), 6).mean(axis=2)
        found.append(entry_of(entry.path, [grey > np.median(grey)]))
    return found


def test_finetuning_makes_masks_of_prompts(entries, tmp_path):
    loop = dataclasses.replace(LOOP, steps=20, batch_size=4, learning_rate=8e-3)
    halves = bright_halves(entries[:8])
    task = dataclasses.replace(masks_task(entries, tiny_student()), learned=halves[:6], judged=halves[6:])
    start = score_prompts(task.network, task.variant, task.judged, 2)
    outcome = train(task, loop, tmp_path)
    losses = losses_of(tmp_path)
    assert len(losses) == 20 and sum(losses[-5:]) < 0.3 * sum(losses[:5])
    # of photographs that it did not learn from
    assert outcome.scores["box"] > start["box"] + 0.2 and outcome.scores["click"] > start["click"] + 0.2
    fresh = tiny_student(5)
    load_strictly(fresh, read_state_dict(outcome.last), "efficient_sam_vitt")
    assert score_prompts(fresh, task.variant, task.judged, 2)["miou"] == pytest.approx(outcome.scores["miou"], abs=1e-4)


def test_the_single_mask_and_the_three_learn_from_every_prompt(entries):
    task = masks_task(entries, tiny_student())
    loss = task.loss([task.read(0, np.random.default_rng(0))], STEP)
    loss.total.backward()
    decoder = task.network.mask_decoder
    assert decoder.output_hypernetworks_mlps[0].fc.weight.grad.any()
    assert any(mlp.fc.weight.grad.any() for mlp in decoder.output_hypernetworks_mlps[1:])
    assert task.network.image_encoder.pos_embed.grad.any() and loss.count == 3


def test_recomputing_gives_the_same_gradients(entries):
    gradients = []
    for recompute in (False, True):
        task = masks_task(entries, tiny_student(), recompute=recompute)
        task.loss([task.read(0, np.random.default_rng(0))], STEP).total.backward()
        gradients.append(task.network.image_encoder.neck[0].weight.grad)
    torch.testing.assert_close(gradients[1], gradients[0])


def test_the_recipe_makes_a_task_of_what_fits(entries, sam, tmp_path, monkeypatch):
    mobile, init = TINY["mobile_sam"][1](), tiny_student(9)
    found = {"sam": (sam, find_variant("sam_vit_b"), "1"), "mobile": (mobile, find_variant("mobile_sam"), "2")}
    found["init"] = (init, find_variant("efficient_sam_vitt"), "3")
    monkeypatch.setattr(efficient_sam, "load_model", lambda name, variant=None: found[name])
    monkeypatch.setattr(efficient_sam, "started", lambda family, size, seed: tiny_student(seed))
    data = DataConfig(data=str(entries[0].path.parent), kind="images")
    config = configs.EfficientSamConfig(teacher="sam", data=data, decoder_depth=1, decoder_width=32, decoder_heads=2)
    task = make_task(config, tmp_path)
    assert isinstance(task, SamiTask) and task.side == 96 and task.better == "lower"
    assert torch.equal(make_task(config, tmp_path).network.mask_token, task.network.mask_token)
    again = make_task(dataclasses.replace(config, init="init"), tmp_path)
    stem = "image_encoder.patch_embed.proj.weight"
    assert torch.equal(again.weights(again.network)[stem], init.state_dict()[stem])
    with pytest.raises(OptionError, match="use --target pooled"):
        make_task(dataclasses.replace(config, teacher="mobile"), tmp_path)
    assert make_task(dataclasses.replace(config, teacher="mobile", target="pooled"), tmp_path).teacher.large_side == 64
    with pytest.raises(OptionError, match="crop-scale must be"):
        make_task(dataclasses.replace(config, crop_scale=(0.5, 0.2)), tmp_path)

    second = dataclasses.replace(config, stage="finetune", init="init", loop=configs.finetune_loop())
    task = make_task(second, tmp_path)
    assert isinstance(task, MasksTask) and task.better == "higher"
    assert all(parameter.requires_grad for parameter in task.network.parameters())
    for wrong, words in (
        ({"init": ""}, "starts from the file"),
        ({"loop": configs.sami_loop()}, "another schedule"),
        ({"clicks": 5}, "at most --clicks 4"),
        ({"masks": 0}, "must be at least 1"),
    ):
        with pytest.raises(OptionError, match=words):
            make_task(dataclasses.replace(second, **wrong), tmp_path)


def test_the_real_sizes_are_the_catalogues():
    for size in ("vitt", "vits"):
        with torch.device("meta"):
            sam, teacher = build("efficient_sam", size), build("sam", "vit_b")
            network = SamiNetwork(sam, feature_width(teacher), Decoding())
            assert network(torch.zeros(1, 3, 224, 224), torch.zeros(1, 196, dtype=torch.int64)).shape == (
                1,
                256,
                14,
                14,
            )
        assert sum(p.numel() for p in sam.parameters()) == find_variant(f"efficient_sam_{size}").parameters
