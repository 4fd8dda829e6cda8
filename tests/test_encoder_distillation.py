"""What recipes share that teach image encoders: errors by hand, teachers that run or are stored, hooks, scores."""

import dataclasses

import numpy as np
import pytest
import torch

from anysam import Model
from anysam.catalogue import find_variant
from anysam.embeddings import EmbeddingCache, write_embeddings
from anysam.errors import ImageError, OptionError, WeightsError
from anysam.train import encoder_distillation
from anysam.train.encoder_distillation import (
    Teacher,
    agreement,
    collate,
    decoder_of,
    embedding_errors,
    evaluating,
    observed,
    open_teacher,
    read_example,
    require_same_view,
    require_stored,
    start_encoder,
    valid_embedding_cells,
)
from anysam.weights_files import save_checkpoint
from test_train_promptable import photographs, small_sam
from tiny_models import TINY, filled, tiny_model


@pytest.fixture(scope="module")
def entries(tmp_path_factory):
    return photographs(tmp_path_factory.mktemp("photographs"), 3)


@pytest.fixture(scope="module")
def sam():
    return small_sam()


def teacher_of(network):
    return Teacher(network.preprocess, network)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_errors_are_means_over_channels_and_the_cells_that_count():
    learned, wanted = drawn(2, 3, 4, 5), drawn(2, 3, 4, 5, seed=1)
    valid = torch.zeros(2, 4, 5, dtype=torch.bool)
    valid[0, :2, :3], valid[1, :, :4] = True, True
    for mask in (None, valid):
        found = embedding_errors(learned, wanted, mask)
        for b in range(2):
            squares = [
                float((learned[b, d, y, x] - wanted[b, d, y, x]) ** 2)
                for d in range(3)
                for y in range(4)
                for x in range(5)
                if mask is None or mask[b, y, x]
            ]
            assert float(found[b]) == pytest.approx(np.mean(squares), rel=1e-5)


def test_errors_of_other_grids_are_refused_not_resized():
    with pytest.raises(OptionError, match=r"\(3, 4, 4\).*\(3, 2, 2\).*nothing is resized"):
        embedding_errors(drawn(1, 3, 4, 4), drawn(1, 3, 2, 2))


def test_cells_without_image_are_known(entries, sam):
    batch = collate([read_example(entry, sam.preprocess, teacher_of(sam)) for entry in entries])
    valid = valid_embedding_cells(sam.preprocess, batch, (16, 16))
    assert valid.shape == (3, 16, 16)
    # 96 x 120 pixels become 51 x 64 of 64 x 64: 12.75 rows of 4 pixels
    assert valid[:, :13].all() and not valid[:, 13:].any()


def test_observed_keeps_outputs_while_it_lasts(sam):
    encoder = sam.image_encoder
    pixels = drawn(1, 3, 64, 64)
    with observed(encoder, ["patch_embed", "blocks.0", "blocks.1"]) as seen:
        out = encoder(pixels)
    x = encoder.patch_embed(pixels)
    assert torch.equal(seen["patch_embed"], x)
    first = encoder.blocks[0](x + encoder.pos_embed)
    assert torch.equal(seen["blocks.0"], first)
    assert torch.equal(encoder.neck(seen["blocks.1"].permute(0, 3, 1, 2)), out)
    kept = dict(seen)
    encoder(drawn(1, 3, 64, 64, seed=5))
    assert all(seen[name] is kept[name] for name in kept)
    with pytest.raises(RuntimeError), observed(encoder, ["blocks.0"]):
        raise RuntimeError
    assert not any(module._forward_hooks for module in encoder.modules())


def test_evaluating_leaves_every_module_in_its_mode():
    network = TINY["mobile_sam"][1]().train()
    network.image_encoder.neck.eval()
    before = [module.training for module in network.modules()]
    with evaluating(network):
        assert not any(module.training for module in network.modules()) and not torch.is_grad_enabled()
    assert [module.training for module in network.modules()] == before


def test_a_teacher_runs_frozen_and_stores_what_it_would_say(entries, tmp_path):
    network = small_sam().train().requires_grad_(True)
    model = Model("sam_vit_b", network, torch.device("cpu"), torch.float32, "0" * 64)
    live = teacher_of(network)
    assert not network.training and not any(parameter.requires_grad for parameter in network.parameters())
    write_embeddings(model, [(entry.name, entry.read_image) for entry in entries[:2]], tmp_path / "embeddings")
    stored = Teacher(network.preprocess, cache=EmbeddingCache(tmp_path / "embeddings"))
    found = []
    for teacher in (live, stored):
        batch = collate([read_example(entry, network.preprocess, teacher) for entry in entries[:2]])
        found.append(teacher.embeddings(batch, batch.pixels))
        assert found[-1].dtype == torch.float32 and not found[-1].requires_grad
    torch.testing.assert_close(found[1], found[0], atol=2e-3, rtol=1e-3)
    with pytest.raises(ImageError, match=f"{entries[2].name} has no stored embedding"):
        read_example(entries[2], network.preprocess, stored)
    require_stored(stored, entries)
    with pytest.raises(OptionError, match="None of the 1 images"):
        require_stored(stored, type(entries)(entries[2:]))
    require_stored(live, entries[2:])


def test_a_teacher_with_another_frame_sees_its_own_pixels(entries, sam):
    network = tiny_model("efficientvit_sam").network
    require_same_view(sam.preprocess, network.preprocess)
    other = Teacher(dataclasses.replace(network.preprocess, mean=(0, 0, 0), std=(1, 1, 1)), network)
    batch = collate([read_example(entries[0], sam.preprocess, other)])
    assert batch.theirs is not None and batch.theirs.max() > 50 > batch.pixels.max()
    assert torch.equal(other.embeddings(batch, batch.pixels), network.encode_image(batch.theirs)["image_embeddings"])
    assert collate([read_example(entries[0], sam.preprocess, teacher_of(sam))]).theirs is None


def test_a_teacher_whose_cells_show_something_else_is_refused(sam):
    efficient = TINY["efficient_sam"][1]()
    with pytest.raises(OptionError, match="cells show other parts"):
        require_same_view(sam.preprocess, efficient.preprocess)
    with pytest.raises(OptionError, match="no decoder of SAM's kind"):
        decoder_of(efficient, "efficient_sam_vitt")


def test_agreement_is_full_with_oneself_and_less_with_another(entries, sam):
    same = agreement(sam, teacher_of(sam), entries)
    assert same == {"miou": 1.0, "cosine": pytest.approx(1, abs=1e-5), "mse": 0.0}
    assert next(iter(same)) == "miou"
    other = agreement(small_sam(7), teacher_of(sam), entries)
    assert other["miou"] < 0.95 and other["cosine"] < 0.9 and other["mse"] > 0.1


def test_agreement_leaves_out_what_cannot_be_read(entries, sam, tmp_path):
    broken = dataclasses.replace(entries[0], path=tmp_path / "missing.png")
    alone = agreement(sam, teacher_of(sam), entries[1:])
    assert agreement(sam, teacher_of(sam), [broken, *entries[1:]]) == alone
    assert agreement(sam, teacher_of(sam), [broken]) == {}


def test_an_encoder_starts_from_a_whole_network_or_from_its_own_kind(tmp_path):
    source, target = filled(TINY["mobile_sam"][1](), 3), TINY["mobile_sam"][1]()
    save_checkpoint(tmp_path / "whole.safetensors", source.state_dict(), {"variant": "mobile_sam"})
    start_encoder(target.image_encoder, str(tmp_path / "whole.safetensors"))
    for name, value in target.image_encoder.state_dict().items():
        assert torch.equal(value, source.image_encoder.state_dict()[name])

    # a classifier as TinyViT's are published: no neck, another number of classes
    classifier = {k: v for k, v in source.image_encoder.state_dict().items() if not k.startswith("neck.")}
    classifier["head.weight"], classifier["head.bias"] = torch.zeros(7, 64), torch.zeros(7)
    torch.save({"model": classifier}, tmp_path / "classifier.pth")
    fresh = TINY["mobile_sam"][1]()
    neck = {name: value.clone() for name, value in fresh.image_encoder.neck.state_dict().items()}
    start_encoder(fresh.image_encoder, str(tmp_path / "classifier.pth"), may_lack=("neck.", "head."))
    assert torch.equal(
        fresh.image_encoder.layers[1].blocks[0].mlp.fc1.weight, classifier["layers.1.blocks.0.mlp.fc1.weight"]
    )
    assert all(torch.equal(value, neck[name]) for name, value in fresh.image_encoder.neck.state_dict().items())
    with pytest.raises(WeightsError, match="does not fit this image encoder: .*neck"):
        start_encoder(fresh.image_encoder, str(tmp_path / "classifier.pth"), may_lack=("head.",))


def test_stored_embeddings_of_other_weights_are_refused(entries, sam, tmp_path, monkeypatch):
    variant = find_variant("sam_vit_b")
    monkeypatch.setattr(encoder_distillation, "load_model", lambda name: (sam, variant, name * 64))
    teacher, whole = open_teacher("1", "", sam.preprocess)
    assert teacher.network is whole is sam
    model = Model("sam_vit_b", sam, torch.device("cpu"), torch.float32, "1" * 64)
    write_embeddings(model, [(entries[0].name, entries[0].read_image)], tmp_path / "embeddings")
    teacher, whole = open_teacher("1", str(tmp_path / "embeddings"), sam.preprocess)
    assert teacher.network is None and whole is sam and teacher.knows(entries[0].name)
    with pytest.raises(OptionError, match="are not of 2 with these weights"):
        open_teacher("2", str(tmp_path / "embeddings"), sam.preprocess)
