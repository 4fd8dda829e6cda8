"""An exported decoder says what PyTorch says, is certified honestly, and is the same file every time."""

import dataclasses
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
from anysam.export.decoder import DecoderOptions, export_decoder
from tiny_models import TINY, tiny_model

EXPORTABLE = (
    *("anysam_lite", "sam", "mobile_sam", "mobile_sam_v2", "edge_sam", "slim_sam"),
    *("efficientvit_sam", "sam_lightening"),
)


@pytest.fixture(scope="module")
def model():
    return anysam.load(device="cpu")


@pytest.fixture(scope="module")
def exported(model):
    return export_decoder(model, DecoderOptions(half=True))


def session(data):
    return onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])


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


def test_half_is_half_as_large_and_loses_nothing_of_the_built_in_model(model, exported):
    whole = export_decoder(model)
    assert len(exported.data) < 0.6 * len(whole.data)
    assert (
        exported.info["certificate"]["max_logit_difference"] == whole.info["certificate"]["max_logit_difference"] < 1e-4
    )


def test_the_same_weights_give_the_same_file(model, exported):
    assert export_decoder(model, DecoderOptions(half=True)).data == exported.data


def test_the_description_says_what_the_file_takes(exported):
    info, running = exported.info, session(exported.data)
    assert [each.name for each in running.get_inputs()] == [
        *info["features"],
        *("points", "labels", "mask_logits", "has_mask"),
    ]
    assert info["bytes"] == len(exported.data) and info["variant"] == "anysam_lite"
    assert info["frame"]["long_side"] == 640 and info["frame"]["pad_multiple"] == 32
    assert json.loads(json.dumps(info)) == info


@pytest.mark.parametrize("family", EXPORTABLE)
def test_every_family_with_a_decoder_of_sam_s_kind_can_be_exported(family):
    tiny = tiny_model(family)
    info = export_decoder(tiny, DecoderOptions(tolerance=1e-3)).info
    assert info["certificate"]["max_logit_difference"] <= 1e-3 and info["certificate"]["inputs"] == 36


@pytest.mark.parametrize("family", sorted(set(TINY) - set(EXPORTABLE)))
def test_other_families_are_refused_by_name(family):
    with pytest.raises(ExportError, match=tiny_model(family).variant):
        export_decoder(tiny_model(family))


def test_a_file_with_another_weight_is_not_certified(model, exported):
    changed = onnx.load_from_string(exported.data)
    (weight,) = (each for each in changed.graph.initializer if each.name == "decoder.content.bias_half")
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) + np.float16(0.5), weight.name))
    encodings = [model.encode(each) for each in sample_photographs(640)]
    assert certify(exported.data, model, encodings)["max_logit_difference"] < 1e-4
    assert certify(changed.SerializeToString(), model, encodings)["max_logit_difference"] > 1e-2


def test_more_difference_than_allowed_is_refused(model):
    with pytest.raises(ExportError, match=r"differs from PyTorch"):
        export_decoder(model, DecoderOptions(tolerance=1e-12))
    for wrong in ({"tolerance": 0}, {"opset": 12}, {"half": 1}):
        with pytest.raises(OptionError):
            DecoderOptions(**wrong)
    with pytest.raises(ExportError, match="float32"):
        export_decoder(dataclasses.replace(model, dtype=torch.bfloat16))


def test_the_command_writes_the_file_and_its_description(tmp_path, capsys):
    path = tmp_path / "d.onnx"
    assert main(["export", "decoder", "--half", "-o", str(path), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / "d.json").read_text()) and printed["bytes"] == path.stat().st_size
    assert main(["export", "decoder", "-o", str(tmp_path / "d.bin")]) == 2
    assert main(["export"]) == 0 and "decoder" in capsys.readouterr().out
    assert main(["export", "encoder"]) == 2


def test_the_documented_example_runs(tmp_path, exported, monkeypatch):
    (code,) = re.findall(r"^```python\n(.*?)^```", Path("docs/export.md").read_text(), re.DOTALL | re.MULTILINE)
    (tmp_path / "anysam_lite_decoder.onnx").write_bytes(exported.data)
    names = {}
    exec(compile(code.replace('"anysam_lite_', f'"{tmp_path}/anysam_lite_'), "docs/export.md", "exec"), names)
    wanted = anysam.load().predict(names["encoded"], anysam.Prompt(points=[[300, 200]]))
    logits = wanted.low_res_logits[wanted.best]
    assert names["mask"].any() and ((logits > 0) != names["mask"]).sum() <= 2
