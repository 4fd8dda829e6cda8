"""The engine by itself: what many ask at once is answered as if each had asked alone, and nothing accepted is lost."""

import asyncio
import io
import threading

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load

import anysam
from anysam import Prompt
from anysam.automatic.presets import preset
from anysam.errors import ImageError, OptionError, PromptError
from anysam.serve.engine import EngineSettings, open_engine
from anysam.serve.engine_types import NotEnabled, Overloaded, Progress, UnknownImage
from anysam.store import EmbeddingStore
from plain_engine import photograph

PROMPTS = [
    Prompt(points=[[40, 30]]),
    Prompt(points=[[40, 30], [3, 3]], labels=[1, 0]),
    Prompt(box=[18, 8, 62, 52]),
    Prompt(scribble=[[35, 30], [45, 30]]),
    Prompt(mask=photograph()[..., 0] > 100),
]


@pytest.fixture(scope="module")
def model():
    return anysam.load(device="cpu")


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def run(model, scenario, store=None, **settings):
    """A scenario, an async function of an engine that is closed afterwards."""

    async def inside():
        engine = open_engine(model, EngineSettings(**settings), store=store)
        try:
            return await asyncio.wait_for(scenario(engine), 60)
        finally:
            engine.close()

    return asyncio.run(inside())


class Gate:
    """A model whose encodes wait until they are let through, and fail where the image is red."""

    def __init__(self, monkeypatch, model):
        self.open, self.begun = threading.Event(), threading.Semaphore(0)
        encode = type(model).encode

        def held(model, image):
            self.begun.release()
            assert self.open.wait(30)
            if tuple(image[0, 0]) == (255, 0, 0):
                raise RuntimeError("a secret of the image")
            return encode(model, image)

        monkeypatch.setattr(type(model), "encode", held)


def masks_of(answer):
    return np.stack([record.to_mask() for record in answer.masks])


@pytest.mark.parametrize("multimask", [None, True, False])
def test_answers_are_those_of_the_model(model, multimask):
    async def scenario(engine):
        state = await engine.add_image(png(photograph()))
        return await engine.predict(state.image_id, PROMPTS, multimask, True)

    encoded = model.encode(photograph()).rounded()
    for answer, wanted in zip(run(model, scenario), model.predict(encoded, PROMPTS, multimask), strict=True):
        np.testing.assert_array_equal(masks_of(answer), wanted.masks)
        np.testing.assert_allclose(answer.low_res_logits, wanted.low_res_logits, atol=1e-4)
        assert answer.best == wanted.best
        for record, mask in zip(answer.masks, wanted.masks, strict=True):
            own = anysam.MaskRecord.from_mask(mask, record.predicted_iou)
            assert (record.area, record.box, record.segmentation) == (own.area, own.box, own.segmentation)


def test_clicks_of_many_on_several_images_get_what_each_would_get_alone(model):
    pictures = [photograph(60, 80), np.roll(photograph(60, 80), 9, axis=1), photograph(75, 50)]
    points = [(10 + 7 * i, 8 + 5 * (i % 7)) for i in range(6)]

    async def scenario(engine):
        ids = [(await engine.add_image(png(each))).image_id for each in pictures]
        asked = [(image, point) for image in range(3) for point in points]
        calls = [engine.predict(ids[image], [Prompt(points=[point])], None, False) for image, point in asked]
        return asked, await asyncio.gather(*calls)

    asked, answers = run(model, scenario)
    encoded = [model.encode(each).rounded() for each in pictures]
    for (image, point), (answer,) in zip(asked, answers, strict=True):
        wanted = model.predict(encoded[image], Prompt(points=[point]))
        different = np.count_nonzero(masks_of(answer) != wanted.masks)
        assert different <= 3  # larger products of matrices round otherwise


def test_images_are_encoded_in_their_order_and_say_where_they_are(model, monkeypatch):
    gate = Gate(monkeypatch, model)

    async def scenario(engine):
        first = await engine.add_image(png(photograph()))
        await asyncio.to_thread(gate.begun.acquire)
        others = [await engine.add_image(png(photograph(40 + i, 50))) for i in range(2)]
        before = [engine.image_state(each.image_id) for each in (first, *others)]
        assert [each.state for each in before] == ["encoding", "queued", "queued"]
        assert [each.queue_position for each in before] == [None, 0, 1]
        assert (await engine.wait(first.image_id, 0.05)).state == "encoding"
        gate.open.set()
        return [(await engine.wait(each.image_id, 30)).state for each in (first, *others)]

    assert run(model, scenario) == ["ready"] * 3


def test_a_full_queue_refuses_and_what_was_accepted_is_done(model, monkeypatch):
    gate = Gate(monkeypatch, model)

    async def scenario(engine):
        accepted = [await engine.add_image(png(photograph()))]
        await asyncio.to_thread(gate.begun.acquire)
        accepted += [await engine.add_image(png(photograph(41, 50))) for _ in range(2)]
        with pytest.raises(Overloaded) as refused:
            await engine.add_image(png(photograph(42, 50)))
        assert refused.value.retry_after >= 1 and engine.stats().rejected_total == 1
        gate.open.set()
        return [(await engine.wait(each.image_id, 30)).state for each in accepted]

    assert run(model, scenario, max_queue=2) == ["ready"] * 3


def test_a_fault_in_one_image_is_its_own(model, monkeypatch, caplog):
    gate = Gate(monkeypatch, model)
    gate.open.set()
    red = np.zeros((40, 40, 3), dtype=np.uint8)
    red[..., 0] = 255

    async def scenario(engine):
        bad = await engine.add_image(png(red))
        good = await engine.add_image(png(photograph()))
        states = [await engine.wait(each.image_id, 30) for each in (bad, good)]
        with pytest.raises(ImageError):
            await engine.predict(bad.image_id, PROMPTS[:1], None, False)
        with pytest.raises(PromptError, match="Prompt 2 of 2"):
            await engine.predict(good.image_id, [PROMPTS[0], Prompt(points=[[800, 3]])], None, False)
        await engine.predict(good.image_id, PROMPTS[:1], None, False)
        return states

    bad, good = run(model, scenario)
    assert (bad.state, good.state) == ("failed", "ready") and "secret" not in bad.error
    assert "RuntimeError" in caplog.text and "secret" not in caplog.text


def test_what_leaves_memory_is_encoded_again_or_read_from_the_store(model, monkeypatch, tmp_path):
    encodes = []
    encode = type(model).encode
    monkeypatch.setattr(type(model), "encode", lambda model, image: encodes.append(1) or encode(model, image))
    bytes_each = sum(v.numel() * v.element_size() for v in encode(model, photograph()).features.values())

    async def scenario(engine):
        ids = [(await engine.add_image(png(photograph(60, 80 + i)))).image_id for i in range(3)]
        for each in ids:
            await engine.wait(each, 30)
        answers = [await engine.predict(each, PROMPTS[:1], None, False) for each in ids]
        assert engine.stats().memory_bytes <= most[0]
        return [masks_of(answer) for (answer,) in answers]

    most = [100 * bytes_each]
    wanted = run(model, scenario)
    most[0] = int(2.5 * bytes_each)
    small = {"memory_bytes": most[0]}
    encodes.clear()
    for found, mask in zip(run(model, scenario, **small), wanted, strict=True):
        np.testing.assert_array_equal(found, mask)
    assert len(encodes) > 3
    encodes.clear()
    for found, mask in zip(run(model, scenario, EmbeddingStore(tmp_path), **small), wanted, strict=True):
        np.testing.assert_array_equal(found, mask)
    assert len(encodes) == 3


def test_a_cancelled_request_takes_its_work_with_it(model):
    async def scenario(engine):
        state = await engine.add_image(png(photograph()))
        await engine.wait(state.image_id, 30)
        items = engine.everything(state.image_id, preset("default", "anysam_lite"))
        assert isinstance(await anext(items), Progress)
        await items.aclose()
        for _ in range(200):
            if not engine.stats().everything_running:
                break
            await asyncio.sleep(0.05)
        assert engine.stats().everything_running == 0 and engine.stats().cancelled_total == 1
        waiting = asyncio.create_task(engine.predict(state.image_id, PROMPTS * 20, None, False))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        return await engine.predict(state.image_id, PROMPTS[:1], None, False)

    assert run(model, scenario)[0].masks


def test_everything_is_the_model_s(model):
    options = preset("fast", "anysam_lite")

    async def scenario(engine):
        state = await engine.add_image(png(photograph()))
        return [item async for item in engine.everything(state.image_id, options)]

    *progress, records = run(model, scenario)
    wanted = model.everything(model.encode(photograph()).rounded(), options)
    assert [each.segmentation for each in records] == [each.segmentation for each in wanted]
    done = [each.done for each in progress]
    assert done == sorted(done) and done[0] == 0


def test_the_embedding_is_what_predictions_are_made_of(model):
    async def scenario(engine):
        state = await engine.add_image(png(photograph()))
        return await engine.embedding(state.image_id), await engine.embedding(state.image_id)

    file, again = run(model, scenario)
    features = load(file.data)
    for name, value in model.encode(photograph()).features.items():
        assert torch.equal(features[name], value.half())
    assert file.etag == again.etag and file.original_size == (60, 80)


def test_images_are_forgotten_when_nobody_asked_for_them_or_when_told(model):
    async def scenario(engine):
        old = await engine.add_image(png(photograph()))
        await engine.wait(old.image_id, 30)
        removed = await engine.add_image(png(photograph(50, 50)))
        engine.remove(removed.image_id)
        for image_id in (removed.image_id, "0" * 32):
            with pytest.raises(UnknownImage):
                engine.image_state(image_id)
        await asyncio.sleep(0.3)
        assert engine.stats().images == 0
        with pytest.raises(UnknownImage):
            await engine.predict(old.image_id, PROMPTS[:1], None, False)

    run(model, scenario, image_ttl_s=0.2)


def test_what_the_engine_has_no_model_for_is_said(model):
    async def scenario(engine):
        state = await engine.add_image(png(photograph()))
        with pytest.raises(NotEnabled):
            await engine.predict(state.image_id, [Prompt(text="a disc")], None, False)
        with pytest.raises(NotEnabled):
            await engine.describe(state.image_id, PROMPTS[:1])

    run(model, scenario)


def test_closing_ends_everything_that_waits(model, monkeypatch):
    gate = Gate(monkeypatch, model)

    async def scenario():
        engine = open_engine(model, EngineSettings())
        state = await engine.add_image(png(photograph()))
        await asyncio.to_thread(gate.begun.acquire)
        later = await engine.add_image(png(photograph(44, 44)))
        waiting = asyncio.create_task(engine.predict(later.image_id, PROMPTS[:1], None, False))
        await asyncio.sleep(0.05)
        gate.open.set()
        await asyncio.to_thread(engine.close)
        with pytest.raises((Overloaded, UnknownImage, ImageError)):
            await waiting
        assert not engine.ready and engine.image_state(state.image_id)

    asyncio.run(asyncio.wait_for(scenario(), 30))


@pytest.mark.parametrize("wrong", [{"max_queue": 0}, {"memory_bytes": -1}, {"threads": True}, {"image_ttl_s": 0}])
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(OptionError):
        EngineSettings(**wrong)
