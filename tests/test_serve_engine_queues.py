import asyncio
import io
import queue
import threading
from contextlib import aclosing, contextmanager

import numpy as np
import pytest
import torch
from PIL import Image

import anysam
from anysam import EmbeddingStore, EverythingOptions, Prompt
from anysam.describe.interface import Words
from anysam.errors import ImageError, OptionError, PromptError
from anysam.masks import encode_rle
from anysam.results import MaskRecord
from anysam.serve.engine import EngineSettings, open_engine
from anysam.serve.engine_types import NotEnabled, Overloaded, Progress, UnknownImage
from anysam.serve.lanes import Lane
from held_model import Gate, held_model
from stand_in_text import COLOURS, ColourScorer

CLICK = Prompt(points=[[20, 15]])


def picture(seed=0, size=(48, 64)):
    """The bytes of a PNG of `size` (H, W)."""
    noise = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    smooth = Image.fromarray(noise).resize((4, 4)).resize((size[1], size[0]), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    smooth.save(file, "PNG")
    return file.getvalue()


@contextmanager
def opened(model, *, threads=1, store=None, describer=None, image_text=None, **settings):
    engine = open_engine(
        model, EngineSettings(threads=threads, **settings), store=store, describer=describer, image_text=image_text
    )
    try:
        yield engine
    finally:
        if hasattr(model.network, "encoding"):
            model.network.encoding.open()
            model.network.decoding.open()
        engine.close()


async def ready(engine, data):
    """The id of an image that has been encoded."""
    state = await engine.add_image(data)
    state = await engine.wait(state.image_id, 60)
    assert state.state == "ready", state
    return state.image_id


async def begun(coroutine):
    """A task that has run as far as it can."""
    task = asyncio.create_task(coroutine)
    for _ in range(5):
        await asyncio.sleep(0)
    return task


async def arrived(gate):
    await asyncio.to_thread(gate.arrived)


def expected(model, data, prompts, multimask=None):
    """(segmentations, predicted IoUs) of each prompt asked alone."""
    encoded = model.encode(data).rounded()
    found = [model.predict(encoded, prompt, multimask) for prompt in prompts]
    assert all(each.masks.any() for each in found)
    return [([encode_rle(mask) for mask in each.masks], each.iou_predictions.tolist(), each.best) for each in found]


def given(answers):
    return [
        ([record.segmentation for record in each.masks], [record.predicted_iou for record in each.masks], each.best)
        for each in answers
    ]


def clicks(count):
    return [Prompt(points=[[5 + 7 * i % 50, 4 + 5 * i % 40]]) for i in range(count)]


def same(answers, wanted):
    """Masks exactly, scores up to the rounding of larger products."""
    assert [(masks, best) for masks, _, best in given(answers)] == [(masks, best) for masks, _, best in wanted]
    for (_, ious, _), (_, other, _) in zip(given(answers), wanted, strict=True):
        np.testing.assert_allclose(ious, other, atol=1e-5)


# --- encoding ---------------------------------------------------------------------------------------------------------


def test_images_are_encoded_in_the_order_of_their_arrival():
    async def run():
        model, network = held_model()
        network.encoding.close()
        with opened(model) as engine:
            states = [await engine.add_image(picture(i, (16 * (i + 1), 64))) for i in range(3)]
            await arrived(network.encoding)
            now = [engine.image_state(state.image_id) for state in states]
            assert [(state.state, state.queue_position) for state in now] == [
                ("encoding", None),
                ("queued", 0),
                ("queued", 1),
            ]
            assert engine.stats().queued_encodes == 2 and engine.stats().running_encodes == 1
            assert (await engine.wait(states[2].image_id, 0.01)).state == "queued"
            network.encoding.open()
            for state in states:
                assert (await engine.wait(state.image_id, 60)).state == "ready"
            assert network.encoded == [(32, 64), (32, 64), (64, 64)]
            assert [state.size for state in states] == [(16, 64), (32, 64), (48, 64)]

    asyncio.run(run())


def test_a_full_queue_refuses_and_loses_nothing_it_accepted():
    async def run():
        model, network = held_model()
        network.encoding.close()
        with opened(model, max_queue=2) as engine:
            accepted = [await engine.add_image(picture(0))]
            await arrived(network.encoding)
            accepted += [await engine.add_image(picture(i)) for i in (1, 2)]
            with pytest.raises(Overloaded) as refusal:
                await engine.add_image(picture(3))
            assert refusal.value.retry_after >= 1
            assert engine.stats().rejected_total == 1 and engine.stats().images == 3
            network.encoding.open()
            assert [(await engine.wait(state.image_id, 60)).state for state in accepted] == ["ready"] * 3

    asyncio.run(run())


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("secret"), ImageError("It is damaged.")])
def test_an_image_that_fails_harms_no_other(error):
    async def run():
        model, network = held_model()
        network.encoding.error = error
        with opened(model) as engine:
            bad, good = [await engine.add_image(picture(i)) for i in (0, 1)]
            state = await engine.wait(bad.image_id, 60)
            assert state.state == "failed" and state.error and "secret" not in state.error
            with pytest.raises(ImageError, match=state.error.split(";")[0].split("(")[0]):
                await engine.predict(bad.image_id, [CLICK], None, False)
            assert (await engine.wait(good.image_id, 60)).state == "ready"
            assert engine.stats().failed_encodes_total == 1 and engine.stats().encodes_total == 1

    asyncio.run(run())


def test_what_is_no_image_is_refused_at_once():
    async def run():
        with opened(held_model()[0], max_pixels=64 * 48) as engine:
            for data in (b"", b"no image", picture(size=(49, 64))):
                with pytest.raises(ImageError):
                    await engine.add_image(data)
            assert engine.stats().images == 0
            assert await ready(engine, picture())

    asyncio.run(run())


def test_a_removed_image_is_unknown_and_its_queued_work_fails():
    async def run():
        model, network = held_model()
        network.encoding.close()
        with opened(model) as engine:
            first, second = [await engine.add_image(picture(i)) for i in (0, 1)]
            await arrived(network.encoding)
            asking = await begun(engine.predict(second.image_id, [CLICK], None, False))
            engine.remove(second.image_id)
            with pytest.raises(UnknownImage):
                await asking
            with pytest.raises(UnknownImage):
                engine.image_state(second.image_id)
            network.encoding.open()
            assert (await engine.wait(first.image_id, 60)).state == "ready"
            assert len(network.encoded) == 1

    asyncio.run(run())


# --- what is kept -----------------------------------------------------------------------------------------------------


def test_memory_stays_within_its_bound_and_encodings_are_made_again():
    async def run():
        model, network = held_model()
        with opened(model) as engine:
            one = await ready(engine, picture(0))
            size = engine.stats().memory_bytes
            first = given(await engine.predict(one, [CLICK], None, False))
        network.encoded.clear()
        with opened(model, memory_bytes=2 * size) as engine:
            ids = [await ready(engine, picture(i)) for i in range(4)]
            assert engine.stats().memory_bytes <= 2 * size
            assert engine.stats().images == 4
            assert len(network.encoded) == 4
            assert given(await engine.predict(ids[0], [CLICK], None, False)) == first
            assert len(network.encoded) == 5
            assert engine.image_state(ids[0]).state == "ready"
            assert engine.stats().memory_bytes <= 2 * size

    asyncio.run(run())


def test_with_a_store_what_left_memory_is_read_back(tmp_path):
    async def run():
        model, network = held_model()
        store = EmbeddingStore(tmp_path)
        with opened(model, store=store, memory_bytes=40_000) as engine:
            ids = [await ready(engine, picture(i)) for i in range(4)]
            assert engine.stats().cache_misses == 4
            answers = [await engine.predict(image_id, [CLICK], None, False) for image_id in ids]
            stats = engine.stats()
            assert len(network.encoded) == 4 and stats.cache_hits >= 3
        for i, answer in enumerate(answers):
            same(answer, expected(model, picture(i), [CLICK]))

    asyncio.run(run())


def test_the_image_unused_for_longest_goes_when_there_are_too_many():
    async def run():
        with opened(held_model()[0], max_images=2) as engine:
            first, second = [await ready(engine, picture(i)) for i in (0, 1)]
            engine.image_state(first)  # a use
            third = await ready(engine, picture(2))
            assert [engine.image_state(each).state for each in (first, third)] == ["ready"] * 2
            with pytest.raises(UnknownImage):
                await engine.predict(second, [CLICK], None, False)

    asyncio.run(run())


def test_an_image_being_worked_on_is_not_evicted():
    async def run():
        model, network = held_model()
        with opened(model, max_images=1) as engine:
            used = await ready(engine, picture(0))
            network.decoding.close()
            asking = await begun(engine.predict(used, [CLICK], None, False))
            await arrived(network.decoding)
            with pytest.raises(Overloaded):
                await engine.add_image(picture(1))
            network.decoding.open()
            assert len(await asking) == 1
            assert await ready(engine, picture(1))
            with pytest.raises(UnknownImage):
                engine.image_state(used)

    asyncio.run(run())


def test_the_embedding_is_a_file_that_the_library_reads(tmp_path):
    async def run():
        model, _ = held_model()
        with opened(model) as engine:
            image_id = await ready(engine, picture())
            files = [await engine.embedding(image_id) for _ in range(2)]
        assert files[0].etag == files[1].etag
        (tmp_path / "file").write_bytes(files[0].data)
        encoded = anysam.EncodedImage.load(tmp_path / "file")
        own = model.encode(picture()).rounded()
        assert files[0].original_size == (48, 64) and files[0].input_size == own.input_size
        for name, value in own.features.items():
            assert bool((encoded.features[name] == value).all())

    asyncio.run(run())


# --- prompts ----------------------------------------------------------------------------------------------------------


def test_clicks_that_wait_for_one_image_are_decoded_together_and_answered_as_alone():
    async def run():
        model, network = held_model()
        with opened(model) as engine:
            image_id = await ready(engine, picture())
            network.decoding.close()
            asking = [await begun(engine.predict(image_id, [CLICK], None, False))]
            await arrived(network.decoding)
            prompts = [*clicks(4), Prompt(box=[5, 5, 40, 30])]
            asking += [await begun(engine.predict(image_id, [prompt], None, False)) for prompt in prompts]
            network.decoding.open()
            answers = [(await task)[0] for task in asking]
            assert network.decoded == [1, 4, 1]  # the box is of another form
            assert engine.stats().predicts_total == 6
        same(answers, expected(model, picture(), [CLICK, *prompts]))

    asyncio.run(run())


def test_answers_keep_the_order_of_prompts_and_their_logits():
    async def run():
        model, _ = held_model()
        prompts = [*clicks(11), Prompt(box=[5, 5, 40, 30]), Prompt(points=[[9, 9], [30, 30]], labels=[1, 0])]
        with opened(model, threads=2) as engine:
            image_id = await ready(engine, picture())
            for multimask in (None, True, False):
                answers = await engine.predict(image_id, prompts, multimask, True)
                same(answers, expected(model, picture(), prompts, multimask))
            encoded = model.encode(picture()).rounded()
            alone = model.predict(encoded, prompts[3], False).low_res_logits
            np.testing.assert_allclose(answers[3].low_res_logits, alone, atol=1e-4)
            assert await engine.predict(image_id, [], None, False) == []

    asyncio.run(run())


def test_a_click_has_its_turn_between_the_parts_of_a_long_request():
    async def run():
        model, network = held_model()
        with opened(model) as engine:
            long, short = [await ready(engine, picture(i)) for i in (0, 1)]
            network.decoding.close()
            first = await begun(engine.predict(long, clicks(24), None, False))
            await arrived(network.decoding)
            second = await begun(engine.predict(short, [CLICK], None, False))
            network.decoding.open()
            assert len(await first) == 24 and len(await second) == 1
            assert network.decoded == [8, 8, 1, 8] or network.decoded == [8, 1, 8, 8]

    asyncio.run(run())


def test_too_many_waiting_clicks_are_refused():
    async def run():
        model, network = held_model()
        with opened(model, max_predicts_waiting=2) as engine:
            image_id = await ready(engine, picture())
            network.decoding.close()
            asking = [await begun(engine.predict(image_id, [CLICK], None, False))]
            await arrived(network.decoding)
            asking += [await begun(engine.predict(image_id, [CLICK], None, False)) for _ in range(2)]
            with pytest.raises(Overloaded) as refusal:
                await engine.predict(image_id, [CLICK], None, False)
            assert refusal.value.retry_after >= 1 and engine.stats().waiting_predicts == 2
            network.decoding.open()
            assert all([len(await task) == 1 for task in asking])

    asyncio.run(run())


def test_a_cancelled_click_is_never_decoded():
    async def run():
        model, network = held_model()
        with opened(model) as engine:
            image_id = await ready(engine, picture())
            network.decoding.close()
            first = await begun(engine.predict(image_id, [CLICK], None, False))
            await arrived(network.decoding)
            given_up, kept = [
                await begun(engine.predict(image_id, [CLICK], multimask, False)) for multimask in (True, False)
            ]
            given_up.cancel()
            with pytest.raises(asyncio.CancelledError):
                await given_up
            assert engine.stats().waiting_predicts == 1 and engine.stats().cancelled_total == 1
            network.decoding.open()
            assert len(await first) == len(await kept) == 1
            assert network.decoded == [1, 1]

    asyncio.run(run())


def test_giving_up_on_a_second_encoding_drops_it_but_not_the_first():
    async def run():
        model, network = held_model()
        with opened(model, memory_bytes=20_000) as engine:
            evicted = await ready(engine, picture(0))
            await ready(engine, picture(1))
            network.encoding.close()
            for _ in range(2):
                network.encoding.arrived()
            promised = [await engine.add_image(picture(2))]
            await arrived(network.encoding)
            promised.append(await engine.add_image(picture(3)))
            asking = [
                await begun(engine.predict(image_id, [CLICK], None, False))
                for image_id in (evicted, promised[1].image_id)
            ]
            assert engine.stats().queued_encodes == 2
            for task in asking:
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            assert engine.stats().queued_encodes == 1
            network.encoding.open()
            assert [(await engine.wait(each.image_id, 60)).state for each in promised] == ["ready", "ready"]
            assert len(network.encoded) == 4

    asyncio.run(run())


def test_one_bad_prompt_fails_its_own_request_only():
    async def run():
        model, network = held_model()
        with opened(model) as engine:
            image_id = await ready(engine, picture())
            network.decoding.close()
            asking = [await begun(engine.predict(image_id, [CLICK], None, False))]
            await arrived(network.decoding)
            outside = Prompt(points=[[500, 500]])
            bad = await begun(engine.predict(image_id, [CLICK, outside], None, False))
            asking.append(await begun(engine.predict(image_id, [CLICK], None, False)))
            network.decoding.open()
            assert [len(await task) for task in asking] == [1, 1]
            with pytest.raises(PromptError, match="Prompt 2 of 2"):
                await bad

    asyncio.run(run())


def test_an_error_while_decoding_together_is_tried_alone_and_the_thread_lives_on():
    async def run():
        model, network = held_model()
        with opened(model) as engine:
            image_id = await ready(engine, picture())
            network.decoding.error = RuntimeError("broken")
            with pytest.raises(RuntimeError, match="broken"):
                await engine.predict(image_id, clicks(2), None, False)
            await arrived(network.decoding)
            network.decoding.close()
            asking = [await begun(engine.predict(image_id, [CLICK], None, False))]
            await arrived(network.decoding)
            asking += [await begun(engine.predict(image_id, [click], None, False)) for click in clicks(3)]
            network.decoding.fail_at = 3  # all of them together
            network.decoding.open()
            assert [len(await task) for task in asking] == [1, 1, 1, 1]
            assert network.decoded == [1, 1, 1, 1]

    asyncio.run(run())


def test_text_needs_a_model_for_texts_and_words_a_describer():
    async def run():
        with opened(held_model()[0]) as engine:
            image_id = await ready(engine, picture())
            with pytest.raises(NotEnabled):
                await engine.predict(image_id, [Prompt(text="a cat")], None, False)
            with pytest.raises(NotEnabled):
                await engine.describe(image_id, [CLICK])

    asyncio.run(run())


# --- closing ----------------------------------------------------------------------------------------------------------


def test_closing_ends_the_threads_and_fails_what_waits():
    async def run():
        model, network = held_model()
        engine = open_engine(model, EngineSettings(threads=1))
        assert engine.ready
        image_id = await ready(engine, picture(0))
        network.decoding.close()
        busy = await begun(engine.predict(image_id, [CLICK], None, False))
        await arrived(network.decoding)
        network.encoding.close()
        encoding = await engine.add_image(picture(1))
        await arrived(network.encoding)
        await arrived(network.encoding)
        queued = await engine.add_image(picture(2))
        waiting = [
            await begun(engine.predict(image_id, [CLICK], None, False)),
            await begun(engine.predict(queued.image_id, [CLICK], None, False)),
        ]
        closing = asyncio.create_task(asyncio.to_thread(engine.close))
        for task in waiting:
            with pytest.raises(Overloaded):
                await task
        network.encoding.open()
        network.decoding.open()
        assert len(await busy) == 1
        await closing
        assert not engine.ready
        assert encoding.image_id != queued.image_id
        for thread in threading.enumerate():
            if thread.name.startswith("anysam-"):
                thread.join(10)
                assert not thread.is_alive()
        for asked in (engine.add_image(picture(3)), engine.predict(image_id, [CLICK], None, False)):
            with pytest.raises(Overloaded):
                await asked

    asyncio.run(run())


def test_settings_are_checked():
    for name in ("max_queue", "memory_bytes", "threads", "image_ttl_s"):
        with pytest.raises(OptionError, match=name):
            EngineSettings(**{name: 0})


# --- tasks of seconds -------------------------------------------------------------------------------------------------

FEW = EverythingOptions(points_per_side=6, pred_iou_thresh=0.0, stability_score_thresh=0.0, points_per_batch=4)


def test_everything_tells_its_progress_and_gives_the_models_records():
    async def run():
        model, _ = held_model()
        with opened(model) as engine:
            image_id = await ready(engine, picture())
            items = [item async for item in engine.everything(image_id, FEW)]
            done = [item.done for item in items[:-1]]
            assert len(done) > 2 and done == sorted(done) and done[-1] <= 1
            wanted = model.everything(model.encode(picture()).rounded(), FEW)
            assert [record.to_dict() for record in items[-1]] == [record.to_dict() for record in wanted]
            assert any(record.area for record in wanted)
            assert engine.stats().everything_total == 1 and engine.stats().cancelled_total == 0
            crops = EverythingOptions(points_per_side=4, pred_iou_thresh=0.0, crop_n_layers=1)
            assert isinstance([item async for item in engine.everything(image_id, crops)][-1], tuple)

    asyncio.run(run())


def test_closing_the_iterator_stops_everything_mode_while_clicks_go_on():
    async def run():
        model, network = held_model()
        with opened(model, threads=2, max_long_waiting=1) as engine:
            image_id = await ready(engine, picture())
            async with aclosing(engine.everything(image_id, FEW)) as items:
                assert isinstance(await anext(items), Progress)
                network.decoding.close()
                second = await begun(anext(engine.everything(image_id, FEW)))
                with pytest.raises(Overloaded):
                    await anext(engine.everything(image_id, FEW))
                second.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await second
            network.decoding.open()
            assert len(await engine.predict(image_id, [CLICK], None, False)) == 1
            assert isinstance([item async for item in engine.everything(image_id, FEW)][-1], tuple)
            assert engine.stats().everything_total == 1
            assert engine.stats().cancelled_total == 2

    asyncio.run(run())


class HeldDescriber:
    """Names every mask by its area, behind a gate."""

    names = ("thing",)

    def __init__(self):
        self.gate = Gate()

    def words(self, image, records, progress=None):
        self.gate.go_through()
        progress(0.5)
        return [Words(label=f"{record.area} px") for record in records]

    def facts(self):
        return {}


def test_masks_are_described_beside_the_clicks():
    async def run():
        model, _ = held_model()
        describer = HeldDescriber()
        with opened(model, describer=describer) as engine:
            image_id = await ready(engine, picture())
            describer.gate.close()
            asking = await begun(engine.describe(image_id, clicks(2)))
            await arrived(describer.gate)
            answers = await engine.predict(image_id, clicks(2), None, False)  # while that one waits
            describer.gate.open()
            described = await asking
            best = [answer.masks[answer.best] for answer in answers]
            assert [record.segmentation for record in described] == [record.segmentation for record in best]
            assert [record.label for record in described] == [f"{record.area} px" for record in best]
            assert await engine.describe(image_id, best) == described
            with pytest.raises(OptionError):
                await engine.describe(image_id, [CLICK, best[0]])

    asyncio.run(run())


def test_a_description_that_is_refused_or_given_up_is_counted_once():
    async def run():
        model, network = held_model()
        with opened(model, max_predicts_waiting=1, describer=HeldDescriber()) as engine:
            image_id = await ready(engine, picture())
            network.decoding.close()
            first = await begun(engine.predict(image_id, [CLICK], None, False))
            await arrived(network.decoding)
            waiting = await begun(engine.describe(image_id, [CLICK]))
            with pytest.raises(Overloaded):
                await engine.describe(image_id, [CLICK])
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            network.decoding.open()
            await first
            stats = engine.stats()
            assert (stats.rejected_total, stats.cancelled_total) == (1, 1)

    asyncio.run(run())


class Proposer:
    """Everything mode's masks, fixed: what a text chooses among."""

    def __init__(self, records):
        self.records = records
        self.stores = []

    def __call__(self, model, source, options, detector=None, encode=None, progress=None):
        self.stores.append(encode(source).original_size)
        progress(1.0)
        return self.records


def squares():
    """An image with a red and a blue square on grey, as a PNG, and the records of the two."""
    pixels = np.full((48, 64, 3), 128, dtype=np.uint8)
    pixels[5:25, 5:25], pixels[20:40, 35:60] = COLOURS["red"], COLOURS["blue"]
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    masks = [(pixels == COLOURS[name]).all(axis=2) for name in ("red", "blue")]
    return file.getvalue(), [MaskRecord.from_mask(mask, 0.9) for mask in masks]


def test_texts_and_clicks_are_answered_in_one_request(monkeypatch):
    async def run():
        model, network = held_model()
        data, (red, blue) = squares()
        propose = Proposer([red, blue])
        monkeypatch.setattr("anysam.predictor.find_everything", propose)
        with opened(model, image_text=ColourScorer()) as engine:
            image_id = await ready(engine, data)
            prompts = [Prompt(text="the blue box"), CLICK, Prompt(text="red"), Prompt(text="the blue box")]
            found = await engine.predict(image_id, prompts, None, False)
            assert [answer.masks[answer.best].segmentation for answer in (found[0], found[2], found[3])] == [
                blue.segmentation,
                red.segmentation,
                blue.segmentation,
            ]
            assert found[2].masks[0].label == "red" and len(found[1].masks) == 3
            assert propose.stores == [(48, 64)] and len(network.encoded) == 1
            propose.records = []
            nothing = (await engine.predict(image_id, [Prompt(text="red")], None, False))[0]
            assert nothing.masks == () and nothing.best is None

    asyncio.run(run())


def test_each_thread_computes_with_the_number_of_threads_it_was_given():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        seen = queue.SimpleQueue()

        def work(item):
            torch.ones(1 << 20).add_(1)  # large enough to be shared among threads
            seen.put((item, torch.get_num_threads()))

        for number in (1, 2):
            lane = Lane("test", lambda waiting: waiting.popleft(), work, 1, number)
            lane.put(number)
            assert seen.get(timeout=30) == (number, number)
            lane.close()
            assert lane.join(30)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
