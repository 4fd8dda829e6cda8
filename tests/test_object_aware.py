"""MobileSAMv2's object-aware detector: its boxes against golden ones. Its network: test_yolov8.py."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from anysam.errors import UnknownModelError, WeightsError
from anysam.letterbox import Letterbox
from anysam.models import InstanceModel, SelectingModel
from anysam.models.object_aware import PREPROCESS, ObjectAware, build, build_from, build_like
from anysam.models.yolov8 import SCALES, YoloConfig, YoloV8

CASES = Path(__file__).parent / "parity" / "cases"
FORM = json.loads((CASES / "fastsam_functions" / "case.json").read_text())
INPUTS = np.load(CASES / "fastsam_functions" / "expected.npz")
EXPECTED = np.load(CASES / "mobilesamv2_object_aware" / "expected.npz")

TINY = YoloConfig(depth=0.33, width=0.125, max_channels=64, prototypes=False)


@pytest.fixture(scope="module")
def network() -> ObjectAware:
    return build_from(TINY, Letterbox(name="tiny", long_side=256, bgr=True)).eval()


@pytest.mark.parametrize("name", [name for name in EXPECTED if name.startswith("post/")])
def test_boxes_are_the_published_ones(network: ObjectAware, name: str) -> None:
    _, geometry, kind, _ = name.split("/")
    decoded = torch.from_numpy(INPUTS[f"post/{geometry}/{kind}/predictions"])
    found = network.instances({"decoded": decoded}, tuple(FORM["geometry"][geometry]["original_hw"]))
    np.testing.assert_array_equal(found.boxes, EXPECTED[name][:, :4])
    np.testing.assert_array_equal(found.scores, EXPECTED[name][:, 4])
    assert found.masks is None and found.low_res_logits is None


@torch.inference_mode()
def test_detector_has_boxes_only_and_takes_no_prompts(network: ObjectAware) -> None:
    assert isinstance(network, InstanceModel) and not isinstance(network, SelectingModel)
    assert PREPROCESS.bgr
    features = network.encode_image(torch.rand(1, 3, 128, 256, generator=torch.Generator().manual_seed(1)))
    assert {name: value.shape for name, value in features.items()} == {"decoded": (1, 37, 16 * 32 + 8 * 16 + 4 * 8)}
    found = network.instances(features, (50, 100), confidence=0.0, limit=7)
    assert found.boxes.shape == (7, 4)
    assert (found.boxes >= 0).all() and (found.boxes <= (100, 50, 100, 50)).all()


def test_nothing_found_is_no_instance(network: ObjectAware) -> None:
    found = network.instances({"decoded": torch.zeros(1, 37, 10)}, (50, 100))
    assert found.boxes.shape == (0, 4) and found.scores.shape == (0,)


def tensors(scale: str, **changes: object) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        return nn.ModuleDict({"model": YoloV8(YoloConfig(*SCALES[scale], **changes))}).state_dict()


def test_build_like_takes_every_scale_but_no_prototypes() -> None:
    with torch.device("meta"):
        assert build_like("x", tensors("l", reg_max=26, prototypes=False)).model["0"].conv.out_channels == 64
        assert build("x").model["22"].dfl.conv.in_channels == 26
    with pytest.raises(WeightsError, match="have a prototype branch, .*; load them as fastsam_s"):
        build_like("x", tensors("s"))
    for make in (build, lambda size: build_like(size, {})):
        with pytest.raises(UnknownModelError, match="'s'; its sizes are x"):
            make("s")
