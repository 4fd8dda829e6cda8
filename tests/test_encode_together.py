"""Several images encoded at once: as one by one, in the library, in a store and in the server's queue."""

import asyncio

import numpy as np
import pytest
import torch

from anysam import EmbeddingStore
from anysam.errors import ImageError
from anysam.masks import decode_rle
from held_model import held_model
from test_serve_engine_queues import CLICK, arrived, expected, opened
from test_serve_engine_queues import picture as file_of
from tiny_models import TINY, tiny_model

SIZES = ((40, 50), (50, 40), (40, 50), (64, 64), (40, 50))


def picture(seed, size=(40, 50)):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


@pytest.mark.parametrize("family", TINY)
def test_images_of_several_sizes_are_encoded_as_one_by_one(family):
    model = tiny_model(family)
    images = [picture(i, size) for i, size in enumerate(SIZES)]
    together = model.encode_together(images)
    assert [each.original_size for each in together] == list(SIZES)
    for image, each in zip(images, together, strict=True):
        alone = model.encode(image)
        assert each.input_size == alone.input_size and each.features.keys() == alone.features.keys()
        for name, value in alone.features.items():
            torch.testing.assert_close(each.features[name], value, rtol=1e-4, atol=1e-5)
            assert each.features[name].is_contiguous()
            # An image that is kept must not keep the others of its batch.
            assert each.features[name].untyped_storage().nbytes() == value.numel() * value.element_size()


def test_no_images_give_none_and_a_bad_one_is_told():
    model = tiny_model("anysam_lite")
    assert model.encode_together([]) == []
    with pytest.raises(ImageError):
        model.encode_together([picture(0), b"no image"])


def test_a_store_encodes_only_what_it_has_not(tmp_path):
    model, network = held_model()
    store = EmbeddingStore(tmp_path)
    known = store.encode(model, picture(1))
    network.batches.clear()
    found = store.encode_together(model, [picture(0), picture(1), picture(2), picture(0)])
    assert network.batches == [2]
    for i, each in zip((0, 1, 2, 0), found, strict=True):
        again = store.encode(model, picture(i))
        assert all(torch.equal(each.features[name], value) for name, value in again.features.items())
    assert all(torch.equal(found[1].features[name], value) for name, value in known.features.items())
    assert network.batches == [2]


def queued(model, network, count, **settings):
    """Upload `count` images, the first of which is encoded alone: (states at the end, answers, statistics)."""

    async def run():
        network.encoding.close()
        with opened(model, **settings) as engine:
            states = [await engine.add_image(file_of(0))]
            await arrived(network.encoding)
            states += [await engine.add_image(file_of(i)) for i in range(1, count)]
            network.encoding.open()
            ended = [await engine.wait(state.image_id, 60) for state in states]
            good = [state.image_id for state in ended if state.state == "ready"]
            answers = [await engine.predict(image_id, [CLICK], None, False) for image_id in good]
            return [state.state for state in ended], answers, engine.stats()

    return asyncio.run(run())


def test_images_that_wait_are_encoded_together():
    model, network = held_model()
    states, answers, stats = queued(model, network, 6, encode_batch=3)
    assert states == ["ready"] * 6
    assert network.batches == [1, 3, 2]
    assert stats.encodes_total == 6 and stats.running_encodes == 0 and stats.queued_encodes == 0
    for i, answer in enumerate(answers):
        (wanted,) = expected(model, file_of(i), [CLICK])
        areas = [record.area for record in answer[0].masks]
        # Rounded to float16, a larger product's rounding may become a step.
        assert areas == pytest.approx([decode_rle(each).sum() for each in wanted[0]], abs=3)
        assert [record.predicted_iou for record in answer[0].masks] == pytest.approx(wanted[1], abs=1e-3)


def test_on_a_cpu_they_are_encoded_one_by_one_unless_told():
    model, network = held_model()
    queued(model, network, 4)
    assert network.batches == [1] * 4


def test_a_batch_that_fails_is_tried_one_by_one():
    model, network = held_model()
    network.encoding.fail_at = 3
    states, _, stats = queued(model, network, 4, encode_batch=3)
    assert states == ["ready"] * 4
    assert network.batches == [1, 1, 1, 1]
    assert stats.encodes_total == 4 and stats.failed_encodes_total == 0


def test_the_store_counts_each_image_of_a_batch(tmp_path):
    model, network = held_model()
    store = EmbeddingStore(tmp_path)
    store.encode(model, file_of(2))
    network.encoding.arrived()  # else the first image of the queue would seem to be there already
    network.batches.clear()
    states, _, stats = queued(model, network, 4, encode_batch=4, store=store)
    assert states == ["ready"] * 4
    assert network.batches == [1, 2]
    assert (stats.cache_hits, stats.cache_misses, stats.encodes_total) == (1, 3, 3)
