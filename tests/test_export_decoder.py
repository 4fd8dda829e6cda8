"""An exported decoder says what PyTorch says, is certified honestly, and is the same file every time."""

import contextlib
import dataclasses
import hashlib
import io
import json
import re
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper

import anysam
from anysam.cli import main
from anysam.errors import ExportError, OptionError
from anysam.export.certificate import certify, onnx_inputs, sample_photographs
from anysam.export.decoder import DecoderFile, DecoderOptions, export_decoder
from anysam.export.graphs import FAMILIES
from tiny_models import TINY, tiny_model


@pytest.fixture(scope="module")
def model():
    return anysam.load(device="cpu")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The path that `anysam export decoder --half --json` wrote to, and what it printed."""
    path, printed = tmp_path_factory.mktemp("written") / "d.onnx", io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert main(["export", "decoder", "--half", "-o", str(path), "--json"]) == 0
    return path, printed.getvalue()


@pytest.fixture(scope="module")
def exported(written):
    path, _ = written
    return DecoderFile(path.read_bytes(), json.loads(path.with_suffix(".json").read_text()))


@pytest.fixture
def uncertified(monkeypatch):
    """What the certificate says, in place of measuring it."""
    measured = {"max_logit_difference": 0.0, "max_iou_difference": 0.0}
    monkeypatch.setattr("anysam.export.decoder.certify", lambda *given: measured)
    return measured


def session(data):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def test_the_built_in_decoder_answers_as_pytorch_does_on_other_photographs(model, exported):
    running = session(exported.data)
    for name in ("coffee.png", "astronaut.png"):
        encoded = model.encode(f"examples/images/{name}")
        points = torch.tensor([[[200.0, 150.0], [30.0, 40.0], [0.0, 0.0]]])
        labels = torch.tensor([[1, 0, -1]])
        found, ious = running.run(None, onnx_inputs(running, encoded, points, labels, None))
        for multimask, chosen in ((False, exported.info["single"]), (True, exported.info["several"])):
            wanted = model.network.decode(encoded.features, points, labels, None, multimask)
            np.testing.assert_allclose(found[:, chosen], wanted.low_res_logits, atol=1e-4)
            np.testing.assert_allclose(ious[:, chosen], wanted.iou_predictions, atol=1e-5)
        again, _ = running.run(None, onnx_inputs(running, encoded, points, labels, torch.from_numpy(found[:, :1])))
        wanted = model.network.decode(encoded.features, points, labels, torch.from_numpy(found[:, :1]), False)
        np.testing.assert_allclose(again[:, :1], wanted.low_res_logits, atol=1e-4)
        assert np.abs(again[:, :1] - found[:, :1]).max() > 0.1  # the mask was heard


def test_half_is_half_as_large_and_loses_nothing_of_the_built_in_model(model, exported, uncertified):
    data = export_decoder(model).data
    assert len(exported.data) < 0.6 * len(data)
    encoded = model.encode("examples/images/coffee.png")
    points, labels = torch.tensor([[[200.0, 150.0], [0.0, 0.0]]]), torch.tensor([[1, -1]])
    whole, half = session(data), session(exported.data)
    inputs = onnx_inputs(whole, encoded, points, labels, None)
    for wanted, found in zip(whole.run(None, inputs), half.run(None, inputs), strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_half_of_weights_that_are_not_float16_is_refused():
    with pytest.raises(ExportError, match="export without half"):
        export_decoder(tiny_model("mobile_sam"), DecoderOptions(half=True))


def test_without_has_mask_the_mask_logits_do_not_count(model, exported):
    running = session(exported.data)
    encoded = model.encode("examples/images/coffee.png")
    points, labels = torch.tensor([[[200.0, 150.0], [0.0, 0.0]]]), torch.tensor([[1, -1]])
    plain = onnx_inputs(running, encoded, points, labels, None)
    noise = np.random.default_rng(0).normal(0, 6, plain["mask_logits"].shape).astype(np.float32)
    silent = running.run(None, plain | {"mask_logits": noise})
    heard = running.run(None, plain | {"mask_logits": noise, "has_mask": np.ones(1, np.float32)})
    np.testing.assert_array_equal(silent[0], running.run(None, plain)[0])
    assert np.abs(silent[0] - heard[0]).max() > 0.1


def test_the_same_weights_give_the_same_file(model, exported, uncertified):
    again = export_decoder(model, DecoderOptions(half=True))
    assert again.data == exported.data and again.info["sha256"] == exported.info["sha256"]


def test_the_description_says_what_the_file_takes(exported):
    info, running = exported.info, session(exported.data)
    assert [each.name for each in running.get_inputs()] == [
        *info["features"],
        *("points", "labels", "mask_logits", "has_mask"),
    ]
    assert info["bytes"] == len(exported.data) and info["variant"] == "anysam_lite"
    assert info["frame"]["long_side"] == 640 and info["frame"]["pad_multiple"] == 32
    assert json.loads(json.dumps(info)) == info


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_with_a_decoder_of_sam_s_kind_can_be_exported(family):
    tiny = tiny_model(family)
    info = export_decoder(tiny, DecoderOptions(tolerance=1e-3)).info
    assert info["certificate"]["max_logit_difference"] <= 1e-3 and info["certificate"]["inputs"] == 36


@pytest.mark.parametrize("family", sorted(set(TINY) - set(FAMILIES)))
def test_other_families_are_refused_by_name(family):
    with pytest.raises(ExportError, match=tiny_model(family).variant):
        export_decoder(tiny_model(family))


def test_a_file_with_another_weight_is_not_certified(model, exported):
    changed = onnx.load_from_string(exported.data)
    (weight,) = (each for each in changed.graph.initializer if each.name == "decoder.content.bias_half")
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) + np.float16(0.5), weight.name))
    encodings = [model.encode(sample_photographs(640)[0])]
    assert certify(exported.data, model, encodings)["max_logit_difference"] < 1e-4
    assert certify(changed.SerializeToString(), model, encodings)["max_logit_difference"] > 1e-2


def test_more_difference_than_allowed_is_refused():
    with pytest.raises(ExportError, match=r"differs from PyTorch by .* in a logit, more than 1e-12"):
        export_decoder(tiny_model("mobile_sam"), DecoderOptions(tolerance=1e-12))


@pytest.mark.parametrize("difference", [0.5, float("nan")])
def test_predicted_iou_that_differ_are_refused_too(uncertified, difference):
    uncertified["max_iou_difference"] = difference
    with pytest.raises(ExportError, match="in a predicted IoU"):
        export_decoder(tiny_model("mobile_sam"))


def test_wrong_options_and_other_precisions_are_refused(model):
    for wrong in ({"tolerance": 0}, {"opset": 12}, {"half": 1}):
        with pytest.raises(OptionError):
            DecoderOptions(**wrong)
    with pytest.raises(ExportError, match="float32"):
        export_decoder(dataclasses.replace(model, dtype=torch.bfloat16))


def test_the_latest_opset_that_is_offered_works():
    file = export_decoder(tiny_model("anysam_lite"), DecoderOptions(opset=20))
    assert {each.version for each in onnx.load_from_string(file.data).opset_import if not each.domain} == {20}


def test_the_command_writes_the_file_and_its_description(written, exported):
    _, printed = written
    assert json.loads(printed) == exported.info
    assert exported.info["sha256"] == hashlib.sha256(exported.data).hexdigest()
    certificate = exported.info["certificate"]
    assert certificate["half"] and certificate["inputs"] == 36 and 0 < certificate["max_logit_difference"] < 1e-4


def test_the_command_refuses_what_it_cannot_write(tmp_path, capsys):
    assert main(["export", "decoder", "-o", str(tmp_path / "d.bin")]) == 2
    assert "must end in .onnx" in capsys.readouterr().err
    assert main(["export"]) == 0 and "decoder" in capsys.readouterr().out
    assert main(["export", "encoder"]) == 2


def test_the_command_loads_no_model_that_it_cannot_export_or_write(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("anysam.predictor.load", None)
    (tmp_path / "b.json").mkdir()
    for words, said in (
        (["--model", "efficient_sam_vitt"], "efficient_sam_vitt cannot be exported"),
        (["-o", str(tmp_path / "missing" / "a.onnx")], "a.onnx cannot be written"),
        (["-o", str(tmp_path / "b.onnx")], "b.json cannot be written"),
    ):
        assert main(["export", "decoder", *words]) == 2
        assert said in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["b.json"]


def test_the_documented_example_runs(tmp_path, exported, monkeypatch):
    (code,) = re.findall(r"^```python\n(.*?)^```", Path("docs/export.md").read_text(), re.DOTALL | re.MULTILINE)
    (tmp_path / "anysam_lite_decoder.onnx").write_bytes(exported.data)
    names = {}
    exec(compile(code.replace('"anysam_lite_', f'"{tmp_path}/anysam_lite_'), "docs/export.md", "exec"), names)
    wanted = anysam.load().predict(names["encoded"], anysam.Prompt(points=[[300, 200]]))
    logits = wanted.low_res_logits[wanted.best]
    assert names["mask"].any() and ((logits > 0) != names["mask"]).sum() <= 2
