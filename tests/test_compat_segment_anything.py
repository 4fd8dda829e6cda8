"""Programs written for the published package: the usual flows, against the golden cases and a naive second way."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import anysam
from anysam.compat.segment_anything import (
    ResizeLongestSide,
    Sam,
    SamAutomaticMaskGenerator,
    SamPredictor,
    generator,
    sam_model_registry,
)
from anysam.masks import encode_rle
from anysam.models import sam_decoder

PARITY = Path(__file__).parent / "parity"
sys.path.insert(0, str(PARITY))

from amg import LabelModel  # noqa: E402
from weights import filled_state_dict, thin  # noqa: E402

CASES = {"mobile_sam": ("vit_t", "tall"), "sam_vit_b": ("vit_b", "wide")}


class Golden:
    """A published model with stand-in weights, read from a checkpoint, one image of its case, and what is expected."""

    def __init__(self, name: str, folder: Path) -> None:
        case = PARITY / "cases" / name
        kind, self.image_name = CASES[name]
        path = folder / f"{name}.pth"
        state_dict = filled_state_dict(case / "manifest.json")
        torch.save({key: torch.from_numpy(value) for key, value in state_dict.items()}, path)
        self.sam = sam_model_registry[kind](checkpoint=str(path))
        self.form = json.loads((case / "case.json").read_text())
        self.expected = np.load(case / "expected.npz")
        entry = self.form["images"][self.image_name]
        self.prompts = entry["prompts"]
        self.image = np.array(Image.open(PARITY / "inputs" / entry["file"]).convert("RGB"))

    def check(self, name: str, ours) -> None:
        key = f"{self.image_name}/{name}"
        std = self.form["arrays"][key]["std"] or np.abs(self.expected[key]).max()  # the std of one number is 0
        ours = thin(np.asarray(ours, dtype=np.float32)) if self.form["arrays"][key]["thinned"] else np.asarray(ours)
        difference = np.abs(ours.reshape(-1) - self.expected[key].reshape(-1)) / std
        assert difference.max() <= 1e-3 and difference.mean() <= 1e-4, (key, difference.max())


@pytest.fixture(scope="module", params=sorted(CASES))
def golden(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Golden:
    return Golden(request.param, tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def predictor(golden: Golden) -> SamPredictor:
    made = SamPredictor(golden.sam)
    made.set_image(golden.image)
    return made


def arguments(entry: dict) -> dict:
    points, labels, box = entry["points"], entry["labels"], entry["box"]
    return {
        "point_coords": np.array(points) if points else None,
        "point_labels": np.array(labels) if labels else None,
        "box": None if box is None else np.array(box),
    }


def test_embedding_is_the_published_one(golden: Golden, predictor: SamPredictor) -> None:
    golden.check("image_embeddings", predictor.get_image_embedding())


def test_predict_gives_the_published_numbers_for_each_kind_of_prompt(golden: Golden, predictor: SamPredictor) -> None:
    best: dict[str, np.ndarray] = {}
    single = {name: form for name, form in golden.prompts.items() if form["prompts"] and len(form["prompts"]) == 1}
    assert len(single) >= 2
    for name, form in single.items():
        earlier = None if form["mask_from"] is None else best[form["mask_from"]]
        prompt = arguments(form["prompts"][0])
        masks, scores, logits = predictor.predict(
            **prompt, mask_input=earlier, multimask_output=form["multimask"], return_logits=False
        )
        golden.check(f"{name}/low_res_logits", logits)
        golden.check(f"{name}/iou_predictions", scores)
        areas = golden.expected[f"{golden.image_name}/{name}/mask_areas"].reshape(-1)
        assert masks.dtype == bool and masks.shape[1:] == golden.image.shape[:2]
        assert np.abs(masks.sum(axis=(1, 2)) - areas).max() <= 20
        full, _, _ = predictor.predict(
            **prompt, mask_input=earlier, multimask_output=form["multimask"], return_logits=True
        )
        assert np.array_equal(full > 0, masks)
        best[name] = logits[[scores.argmax()]]


def test_batched_boxes_through_predict_torch(golden: Golden, predictor: SamPredictor) -> None:
    name = "batch_boxes" if "batch_boxes" in golden.prompts else "box"
    boxes = torch.tensor([entry["box"] for entry in golden.prompts[name]["prompts"]])
    transformed = predictor.transform.apply_boxes_torch(boxes, golden.image.shape[:2])
    masks, scores, logits = predictor.predict_torch(None, None, transformed, multimask_output=False)
    assert masks.shape == (len(boxes), 1, *golden.image.shape[:2])
    golden.check(f"{name}/low_res_logits", logits)
    golden.check(f"{name}/iou_predictions", scores)


def test_the_module_called_with_batched_input(golden: Golden, predictor: SamPredictor) -> None:
    resize = ResizeLongestSide(golden.sam.image_encoder.img_size)
    image = torch.as_tensor(resize.apply_image(golden.image)).permute(2, 0, 1).contiguous()
    box = torch.tensor(golden.prompts["box"]["prompts"][0]["box"])
    record = {
        "image": image,
        "boxes": resize.apply_boxes_torch(box, golden.image.shape[:2]),
        "original_size": golden.image.shape[:2],
    }
    (output,) = golden.sam([record], multimask_output=False)
    golden.check("box/low_res_logits", output["low_res_logits"])
    golden.check("box/iou_predictions", output["iou_predictions"])
    assert torch.equal(
        output["masks"][0], torch.as_tensor(predictor.predict(box=box.numpy(), multimask_output=False)[0])
    )


def test_published_keys_of_the_state_dict() -> None:
    manifest = json.loads((PARITY / "cases" / "sam_vit_b" / "manifest.json").read_text())
    assert {key: list(value.shape) for key, value in sam_model_registry["vit_b"]().state_dict().items()} == {
        key: shape for key, (shape, _) in manifest["tensors"].items()
    }


def test_images_and_coordinates_are_resized_as_published() -> None:
    folder = PARITY / "cases" / "amg_functions"
    form = json.loads((folder / "data.json").read_text())["resize_longest_side"]
    arrays = np.load(folder / "data.npz")
    for entry in form["shapes"]:
        found = ResizeLongestSide.get_preprocess_shape(*entry["old_hw"], entry["target"])
        assert list(found) == entry["new_hw"]
    for entry in form["images"]:
        resize = ResizeLongestSide(entry["target"])
        assert np.array_equal(resize.apply_image(arrays[entry["arrays"] + "/in"]), arrays[entry["arrays"] + "/out"])
        floats = torch.as_tensor(arrays[entry["arrays"] + "/in"]).permute(2, 0, 1)[None].float()
        expected = torch.as_tensor(arrays[entry["arrays"] + "/out_torch"]).reshape(
            resize.apply_image_torch(floats).shape
        )
        assert torch.allclose(resize.apply_image_torch(floats), expected, atol=1e-3)


def tiny_sam() -> Sam:
    from tiny_models import tiny_model

    model = tiny_model("sam")
    return Sam(model.network, "sam_vit_b", "tiny")


def photograph() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)


def test_bgr_images_are_turned() -> None:
    predictor, other = SamPredictor(tiny_sam()), SamPredictor(tiny_sam())
    predictor.set_image(photograph())
    other.set_image(np.ascontiguousarray(photograph()[..., ::-1]), image_format="BGR")
    assert torch.equal(other.get_image_embedding(), predictor.get_image_embedding())


def test_what_needs_an_image_says_so() -> None:
    predictor = SamPredictor(tiny_sam())
    with pytest.raises(anysam.AnySamError, match="set_image"):
        predictor.predict(point_coords=np.array([[1, 1]]), point_labels=np.array([1]))
    predictor.set_image(np.zeros((20, 30, 3), np.uint8))
    predictor.reset_image()
    with pytest.raises(anysam.AnySamError, match="set_image"):
        predictor.get_image_embedding()


def test_wrong_arguments_are_named() -> None:
    predictor = SamPredictor(tiny_sam())
    with pytest.raises(anysam.AnySamError, match="RGBA"):
        predictor.set_image(np.zeros((20, 30, 3), np.uint8), image_format="RGBA")
    with pytest.raises(anysam.AnySamError, match="uint8"):
        predictor.set_image(np.zeros((20, 30, 3), np.float32))
    with pytest.raises(anysam.AnySamError, match="longest side"):
        predictor.set_torch_image(torch.zeros(1, 3, 20, 30), (20, 30))
    predictor.set_image(np.zeros((20, 30, 3), np.uint8))
    with pytest.raises(anysam.AnySamError, match="point_labels"):
        predictor.predict(point_coords=np.array([[1, 1]]))
    with pytest.raises(anysam.AnySamError, match="sam_model_registry"):
        SamPredictor(torch.nn.Identity())  # type: ignore[arg-type]


def test_moving_the_module_moves_every_part_once() -> None:
    sam = tiny_sam()
    assert sum(p.numel() for p in sam.parameters()) == sum(p.numel() for p in sam.network.parameters())
    sam.double()
    assert isinstance(sam.network.mask_decoder, sam_decoder.MaskDecoder)
    assert {p.dtype for p in sam.network.parameters()} == {torch.float64}


END_TO_END = json.loads((PARITY / "cases" / "amg_end_to_end" / "case.json").read_text())


@pytest.mark.parametrize("name", sorted(END_TO_END["configurations"]))
def test_generator_gives_the_published_records(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = PARITY / "cases" / "amg_end_to_end"
    expected = json.loads((folder / "records.json").read_text())[name]
    image = np.array(Image.open(folder / "labels.png"))
    monkeypatch.setattr(generator, "Model", lambda *arguments: LabelModel(END_TO_END))
    options = dict(END_TO_END["configurations"][name]["arguments"])
    if isinstance(options.get("point_grids"), str):
        options["point_grids"] = [np.array(json.loads(options["point_grids"]))]
    mode = {"defaults_16": "binary_mask", "point_grids": "coco_rle"}.get(name, "uncompressed_rle")
    found = SamAutomaticMaskGenerator(tiny_sam(), **options, output_mode=mode).generate(image)
    assert len(found) == len(expected) > 5
    for ours, record in zip(found, expected, strict=True):
        if mode == "binary_mask":
            assert ours["segmentation"].dtype == bool
            assert encode_rle(ours["segmentation"]) == record["segmentation_coco_rle"]
        else:
            key = "segmentation" if mode == "uncompressed_rle" else "segmentation_coco_rle"
            assert ours["segmentation"] == record[key]
        assert ours["area"] == record["area"]
        for key in ("bbox", "point_coords", "crop_box", "predicted_iou", "stability_score"):
            assert np.array_equal(ours[key], record[key], equal_nan=True), key
        assert ours.keys() == record.keys() - {"segmentation_coco_rle"}


def test_generator_runs_a_whole_network() -> None:
    torch.manual_seed(0)
    sam = tiny_sam()
    made = SamAutomaticMaskGenerator(sam, points_per_side=4, pred_iou_thresh=0.0, stability_score_thresh=0.0)
    records = made.generate(photograph())
    assert records
    predictor = SamPredictor(sam)
    predictor.set_image(photograph())
    for record in records:
        masks, scores, _ = predictor.predict(np.array(record["point_coords"]), np.array([1]))
        same = [i for i in range(3) if np.array_equal(masks[i], record["segmentation"])]
        assert any(scores[i] == pytest.approx(record["predicted_iou"], abs=1e-5) for i in same)


def test_generator_names_an_unknown_output_mode() -> None:
    with pytest.raises(anysam.AnySamError, match="polygons"):
        SamAutomaticMaskGenerator(tiny_sam(), output_mode="polygons")
