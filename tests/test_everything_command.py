"""`anysam everything`: what it asks of a model, what it writes and says, and how it goes on after an interruption.

Most tests run against a stand-in model whose masks are known in advance; the last ones use the built-in one.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from anysam import __version__, cli, outputs, predictor
from anysam.automatic.options import EverythingOptions
from anysam.automatic.presets import PRESETS, preset
from anysam.commands import everything_options, image_runs, reports
from anysam.commands.options import FORMATS
from anysam.commands.progress import duration, work_progress
from anysam.encoded_image import EncodedImage
from anysam.errors import ImageError, OptionError, OutputError
from anysam.results import MaskRecord, Prediction

WIDTH, HEIGHT = 60, 40


class StandIn:
    """A model that finds squares, as many as the image's first pixel is red; it keeps what it was asked."""

    weights_sha256, device, dtype, network = "0" * 64, torch.device("cpu"), torch.float32, None

    def __init__(self, variant="anysam_lite"):
        self.variant = variant
        self.asked, self.images = [], []
        self.before = lambda number: None

    def everything(self, image, options=None, detector=None, progress=None, store=None):
        self.before(len(self.asked))
        self.images.append(image)
        image = image if isinstance(image, np.ndarray) else image.read(0, 0, *image.size[::-1])
        self.asked.append((options, detector))
        progress(0.5)
        records = []
        for i in range(int(image[0, 0, 0])):
            mask = np.zeros(image.shape[:2], dtype=bool)
            mask[i : i + 10, i : i + 10] = True
            records.append(MaskRecord.from_mask(mask, 0.9))
        progress(1.0)
        return records

    def encode(self, image):
        return EncodedImage({}, image.shape[:2], image.shape[:2], self.variant, "", self.weights_sha256)

    def predict(self, encoded, prompts, multimask=None):
        answers = []
        for prompt in prompts:
            mask = np.zeros(encoded.original_size, dtype=bool)
            x0, y0, x1, y1 = (
                prompt.box if prompt.box is not None else np.tile(prompt.points[0], 2) + [-2, -2, 2, 2]
            ).astype(int)
            mask[max(y0, 0) : y1, max(x0, 0) : x1] = True
            answers.append(Prediction(mask[None], np.array([0.8], np.float32), np.zeros((1, 4, 4), np.float32)))
        return answers


@pytest.fixture
def model(monkeypatch):
    """The stand-in; `loads` are the names of what was loaded, `detectors` the detector among them."""
    stand_in = StandIn()
    stand_in.loads = []

    def load(name=None, *, variant=None, device=None, dtype="float32", progress=None, allow=None):
        stand_in.loads.append((name, device, dtype, allow))
        return stand_in if name in (None, stand_in.variant) else StandIn(name)

    monkeypatch.setattr(predictor, "load", load)
    return stand_in


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with photo.png, on which the stand-in finds two masks."""
    monkeypatch.chdir(tmp_path)
    save("photo.png", 2)
    return tmp_path


def save(name, count, size=(WIDTH, HEIGHT)):
    """An image on which the stand-in finds so many masks; different pixels for every name."""
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(str(name))).integers(0, 255, (size[1], size[0], 3), np.uint8)
    pixels[0, 0] = count
    pixels[0, 1] = list(str(name).encode()[-3:])
    Image.fromarray(pixels).save(name)


def run(capsys, *arguments):
    """(exit status, stdout, stderr)."""
    status = cli.main(["everything", *(str(argument) for argument in arguments)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def refused(capsys, *arguments):
    """stderr of a command line that is bad input: one line, nothing on stdout, exit status 2, no traceback."""
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (2, "")
    assert err.startswith("anysam: error: ") and err.endswith("\n") and err.count("\n") == 1
    return err


def files_in(path):
    return sorted(file.name for file in Path(path).iterdir() if file.name != ".anysam")


def contents(path):
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(Path(path).rglob("*")) if file.is_file()}


# Files


def test_all_masks_are_written_and_their_paths_printed(model, folder, capsys):
    status, out, err = run(capsys, "photo.png")
    assert status == 0 and out.splitlines() == ["out/photo_overlay.png", "out/photo.coco.json"]
    annotations = json.loads(Path("out/photo.coco.json").read_text())["annotations"]
    assert [each["bbox"] for each in annotations] == [[0, 0, 10, 10], [1, 1, 10, 10]]
    assert "photo.png: 2 masks (" in err
    assert model.loads == [(None, None, "float32", None)]


def test_every_format_of_the_help_is_written_in_the_order_of_the_outputs(model, folder, capsys):
    assert list(FORMATS) == list(outputs.FORMATS)
    status, out, _ = run(capsys, "photo.png", "--format", "json,png, cutout", "--out", "a/b")
    names = ["photo.json", "photo_cutout_0.png", "photo_cutout_1.png", "photo_mask_0.png", "photo_mask_1.png"]
    assert status == 0 and files_in("a/b") == names and sorted(Path(line).name for line in out.splitlines()) == names


def test_json_is_one_document_and_writes_no_files(model, folder, capsys):
    save("blank.png", 0)
    status, out, _ = run(capsys, "photo.png", "blank.png", "--json", "--points-per-side", "7")
    assert status == 0 and files_in(folder) == ["blank.png", "photo.png"]
    document = json.loads(out)
    assert document["anysam"] == __version__ and document["failed"] == document["skipped"] == []
    assert document["model"]["name"] == "anysam_lite" and document["detector"] is None
    assert document["options"]["points_per_side"] == 7
    photo, blank = document["images"]
    assert (photo["image"], photo["size"], photo["files"]) == ("photo.png", [HEIGHT, WIDTH], [])
    assert [mask["area"] for mask in photo["masks"]] == [100, 100] and blank["masks"] == []
    assert coco_mask.decode(photo["masks"][1]["segmentation"])[1:11, 1:11].all()
    assert set(photo["seconds"]) == {"read", "find"} and set(document["seconds"]) == {"load", "read", "find"}


def test_json_with_a_folder_writes_files_too(model, folder, capsys):
    _, out, _ = run(capsys, "photo.png", "--json", "--out", "here")
    document = json.loads(out)
    assert document["images"][0]["files"] == ["here/photo_overlay.png", "here/photo.coco.json"]
    assert all(map(os.path.isfile, document["images"][0]["files"])) and "write" in document["seconds"]


def test_what_a_format_cannot_hold_is_said_and_counted(model, folder, capsys):
    """The squares of the stand-in overlap, and a label map has one number for each pixel."""
    _, out, err = run(capsys, "photo.png", "--format", "labels,coco", "--json")
    (loss,) = json.loads(out)["images"][0]["losses"]
    assert loss["format"] == "labels" and loss["count"] > 0
    assert "s); labels cannot hold " in err and err.rstrip().endswith(f"{loss['count']} lost")


def test_an_image_without_masks_is_finished_and_a_hint_says_what_to_lower(model, folder, capsys):
    save("blank.png", 0)
    status, _, err = run(capsys, "blank.png", "--format", "png,coco", "--pred-iou-thresh", "0.77")
    assert status == 0 and files_in("out") == ["blank.coco.json"]
    assert json.loads(Path("out/blank.coco.json").read_text())["annotations"] == []
    assert "no mask found; lower --pred-iou-thresh (0.77) or --stability-score-thresh (" in err
    model.variant = "fastsam_s"
    _, _, err = run(capsys, "blank.png", "--model", "fastsam_s", "--min-area", "9")
    assert "no mask found; lower --confidence or --min-area (9)" in err


# What is asked


def options_of(model, capsys, *arguments):
    status, _, err = run(capsys, "photo.png", *arguments)
    assert status == 0, err
    return model.asked[-1][0]


def differences(options, base):
    return {name: value for name, value in vars(options).items() if value != getattr(base, name)}


def test_without_options_the_model_is_asked_as_its_authors_do(model, folder, capsys):
    assert differences(options_of(model, capsys), preset("default", "anysam_lite")) == {}
    model.variant = "efficientvit_sam_l0"
    found = options_of(model, capsys, "--model", "efficientvit_sam_l0")
    assert differences(found, preset("default", "efficientvit_sam_l0")) == {}


GRID = {
    "points_per_side": 5,
    "points_per_batch": 3,
    "pred_iou_thresh": 0.11,
    "stability_score_thresh": 0.22,
    "stability_score_offset": 0.33,
    "box_nms_thresh": 0.44,
    "crop_n_layers": 1,
    "crop_nms_thresh": 0.55,
    "crop_overlap_ratio": 0.66,
    "crop_n_points_downscale_factor": 2,
    "min_mask_region_area": 77,
}


@pytest.mark.parametrize(("name", "value"), GRID.items())
def test_every_published_parameter_has_an_option(model, folder, capsys, name, value):
    base = preset("default", "anysam_lite")
    assert differences(options_of(model, capsys, f"--{name.replace('_', '-')}", value), base) == {name: value}


def test_our_own_options_are_passed_on(model, folder, capsys):
    arguments = ["--min-area", 9, "--max-masks", 8, "--merge-duplicates", "0.7", "--tile", 512, "--overlap", 0.5]
    found = differences(options_of(model, capsys, *arguments, "--max-memory", "2G"), preset("default", "anysam_lite"))
    expected = {"min_area": 9, "max_masks": 8, "merge_duplicates": 0.7, "tile": 512, "tile_overlap": 0.5}
    assert found.pop("max_memory") in (2 * 10**9, 2 * 2**30) and found == expected
    assert options_of(model, capsys, "--merge-duplicates").merge_duplicates == everything_options.DUPLICATES
    assert options_of(model, capsys, "--panoptic").panoptic is True


def test_every_option_of_everything_mode_is_on_the_command_line():
    parser = cli.build_parser(next(each for each in cli.COMMANDS if each.name == "everything"))
    offered = {action.dest for action in parser._actions}
    assert set(EverythingOptions.__dataclass_fields__) - {"point_grids", "levels"} <= offered


@pytest.mark.parametrize("name", everything_options.PRESETS)
def test_a_preset_is_the_models_and_what_is_given_overrides_it(model, folder, capsys, name):
    base = preset(name, "anysam_lite")
    assert differences(options_of(model, capsys, "--preset", name), base) == {}
    found = options_of(model, capsys, "--preset", name, "--points-per-side", "5", "--pred-iou-thresh", "0.5")
    assert set(differences(found, base)) <= {"points_per_side", "pred_iou_thresh"}
    assert (found.points_per_side, found.pred_iou_thresh) == (5, 0.5)


def test_the_presets_of_the_command_are_those_of_the_library():
    assert everything_options.PRESETS == tuple(name for name in PRESETS if name != "default")


def test_panoptic_adds_the_label_map(model, folder, capsys):
    run(capsys, "photo.png", "--panoptic", "--format", "coco")
    assert len(files_in("out")) == 2 and any("label" in name for name in files_in("out"))


def test_mobilesamv2_is_asked_at_the_boxes_of_its_detector_unless_a_grid_is_meant(model, folder, capsys):
    model.variant = "mobilesamv2_tiny_vit"
    named = ("--model", "mobilesamv2_tiny_vit")

    def loaded(*arguments):
        model.loads.clear()
        options = options_of(model, capsys, *named, *arguments)
        detector = model.asked[-1][1]
        assert [name for name, *_ in model.loads[1:]] == ([detector.variant] if detector else [])
        return options, detector and detector.variant

    assert loaded()[1] == "mobilesamv2_object_aware"
    options, detector = loaded("--confidence", "0.5", "--nms-iou", "0.6")
    assert (options.confidence, options.nms_iou, detector) == (0.5, 0.6, "mobilesamv2_object_aware")
    assert loaded("--detector", "none")[1] is None
    assert loaded("--points-per-side", "8")[1] is None
    assert loaded("--preset", "fast")[1] is None
    assert loaded("--detector", "fastsam_s")[1] == "fastsam_s"
    assert (
        loaded("--preset", "dense")[0].confidence == preset("dense", "mobilesamv2_tiny_vit", detector=True).confidence
    )
    model.variant = "efficientvit_sam_l0"  # whose own preset is about a grid
    named = ("--model", "efficientvit_sam_l0")
    options, detector = loaded("--detector", "mobilesamv2_object_aware")
    assert detector == "mobilesamv2_object_aware" and differences(options, EverythingOptions()) == {}


def test_model_device_dtype_and_licences_are_passed_on(model, folder, capsys):
    model.variant = "sam_vit_b"
    options = ("--model", "sam_vit_b", "--device", "cpu", "--dtype", "bfloat16", "--allow", "apache-2.0,MIT")
    assert run(capsys, "photo.png", *options, "--detector", "fastsam_s")[0] == 0
    same = ("cpu", "bfloat16", "apache-2.0,MIT")
    assert model.loads == [("sam_vit_b", *same), ("fastsam_s", *same)]


# Maps and large images


def save_map(name, size=(WIDTH, HEIGHT), dtype=np.uint8):
    """A GeoTIFF of 10 metres a pixel, on which the stand-in finds masks."""
    rasterio = pytest.importorskip("rasterio", reason="rasterio is not installed: pip install 'anysam[geo]'")
    pixels = np.full((3, size[1], size[0]), 3, dtype)
    place = {"crs": "EPSG:32633", "transform": rasterio.transform.from_origin(500_000, 4_600_000, 10, 10)}
    shape = {"width": size[0], "height": size[1], "count": 3, "dtype": dtype, "compress": "deflate"}
    with rasterio.open(name, "w", driver="GTiff", **shape, **place) as dataset:
        dataset.write(pixels)


@pytest.mark.filterwarnings("ignore:Use `@` matmul:PendingDeprecationWarning")
@pytest.mark.parametrize("tile", [[], ["--tile", "64"]], ids=" ".join)
def test_masks_of_a_map_have_its_coordinates(model, folder, capsys, tile):
    save_map("map.tif")
    status, out, err = run(capsys, "map.tif", "--format", "geojson", *tile)
    assert (status, out) == (0, "out/map.geojson\n"), err
    document = json.loads(Path("out/map.geojson").read_text())
    assert "32633" in document["crs"]["properties"]["name"] and len(document["features"]) == 3
    corners = np.array(document["features"][1]["geometry"]["coordinates"][0])  # of pixels 1 to 11
    assert corners.min(axis=0).tolist() == [500_010, 4_599_890] and corners.max(axis=0).tolist() == [500_110, 4_599_990]


@pytest.mark.filterwarnings("ignore:Use `@` matmul:PendingDeprecationWarning")
def test_a_map_of_any_size_is_read_tile_by_tile_unless_it_is_drawn(model, folder, capsys, monkeypatch):
    save_map("map.tif")
    monkeypatch.setattr("anysam.images.MAX_PIXELS", 1000)  # fewer than the map has
    assert "give --tile 1024" in refused(capsys, "map.tif", "--format", "coco")
    assert "leave overlay and cutout out" in refused(capsys, "map.tif", "--tile", "64")
    assert "at most 2,000" in refused(capsys, "map.tif", "--tile", "64", "--format", "coco", "--max-pixels", "2000")
    assert run(capsys, "map.tif", "--tile", "64", "--format", "coco,labels")[0] == 0
    assert not isinstance(model.images[-1], np.ndarray)  # but a source of windows
    assert Image.open("out/map_labels.png").size == (WIDTH, HEIGHT)


def test_tiles_of_the_built_in_model_cover_the_image(folder, capsys, photograph):
    photograph.save("cup.png")
    arguments = ["cup.png", "--tile", "96", "--points-per-side", "6", "--format", "coco"]
    status, _, err = run(capsys, *arguments, "--pred-iou-thresh", "0.2", "--stability-score-thresh", "0")
    assert status == 0, err
    annotations = json.loads(Path("out/cup.coco.json").read_text())["annotations"]
    assert annotations and all(each["segmentation"]["size"] == [120, 160] for each in annotations)


# Given boxes and points


def test_a_mask_for_each_given_box_with_its_name_and_score(model, folder, capsys):
    save("other.png", 2)
    save("empty.png", 2)
    Path("boxes.csv").write_text(
        "image,x0,y0,x1,y1,label,score\nphoto.png,2,3,12,13,cup,0.5\nother.png,0,0,5,5\nphoto.png,1,1,2,2\nz.png,1,1,2,2\n"
    )
    status, out, err = run(capsys, "photo.png", "other.png", "empty.png", "--boxes", "boxes.csv", "--json")
    photo, other, empty = json.loads(out)["images"]
    assert status == 0 and model.asked == [] and empty["masks"] == []
    assert [(mask["box"], mask["label"], mask["detection_score"]) for mask in photo["masks"]] == [
        ([2, 3, 12, 13], "cup", 0.5),
        ([1, 1, 2, 2], None, None),
    ]
    assert [mask["prompt"] for mask in other["masks"]] == [{"box": [0, 0, 5, 5]}]
    assert "boxes.csv: 1 box not used, being for images that were not given: z.png." in err
    assert "empty.png: no mask, since boxes.csv has no box for it" in err


def test_a_mask_for_each_given_point(model, folder, capsys):
    Path("points.csv").write_text("30,20,cup\n10,10\n")
    _, out, _ = run(capsys, "photo.png", "--points", "points.csv", "--json", "--min-area", "1", "--max-masks", "5")
    masks = json.loads(out)["images"][0]["masks"]
    assert [(mask["box"], mask["label"]) for mask in masks] == [([28, 18, 32, 22], "cup"), ([8, 8, 12, 12], None)]


def test_given_masks_are_refined_like_others(model, folder, capsys):
    Path("boxes.csv").write_text("0,0,20,20\n30,10,35,15\n1,0,20,20\n")
    _, out, _ = run(capsys, "photo.png", "--boxes", "boxes.csv", "--json", "--min-area", "30", "--merge-duplicates")
    assert [mask["box"] for mask in json.loads(out)["images"][0]["masks"]] == [[0, 0, 20, 20]]


def test_boxes_outside_of_an_image_fail_that_image_only(model, folder, capsys):
    save("small.png", 1, (10, 10))
    Path("boxes.csv").write_text("photo.png,20,20,30,30\nsmall.png,20,20,30,30\n")
    status, out, err = run(capsys, "photo.png", "small.png", "--boxes", "boxes.csv", "--format", "coco")
    assert status == 1 and out.splitlines() == ["out/photo.coco.json"]
    assert "small.png: boxes.csv line 2: the box 20,20,30,30 lies outside of the image (10x10)." in err.splitlines()[-1]


def test_embeddings_are_kept_in_the_cache_and_used_by_the_next_run(folder, capsys, photograph):
    photograph.save("cup.png")
    Path("boxes.csv").write_text("46,4,110,93\n")
    arguments = ["cup.png", "--boxes", "boxes.csv", "--format", "coco", "--cache", "kept"]
    assert run(capsys, *arguments)[0] == 0
    (kept,) = Path("kept").glob("*.embedding")
    first = contents("out")
    photograph.save("again.bmp")  # the same pixels in another file
    assert run(capsys, "again.bmp", "--points-per-side", "2", "--cache", "kept", "--json")[0] == 0
    assert list(Path("kept").glob("*.embedding")) == [kept]
    assert run(capsys, *arguments)[0] == 0 and contents("out") == first
    assert "the settings have changed: cache false, was true" in run(capsys, *arguments[:-2], "--resume")[2]


# Bad input


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--points-per-side", "0"], ["--points-per-side", "at least 1", "0"]),
        (["--points-per-side", "many"], ["--points-per-side", "many"]),
        (["--pred-iou-thresh", "nan"], ["--pred-iou-thresh", "nan"]),
        (["--pred-iou-thresh", "2"], ["--pred-iou-thresh", "2.0"]),
        (["--stability-score-offset", "-1"], ["--stability-score-offset"]),
        (["--crop-n-layers", "-1"], ["--crop-n-layers"]),
        (["--crop-n-layers", "3", "--crop-n-points-downscale-factor", "9"], ["--points-per-side", "leaves no point"]),
        (["--min-area", "-1"], ["--min-area"]),
        (["--max-masks", "0"], ["--max-masks"]),
        (["--merge-duplicates", "1.5"], ["--merge-duplicates", "1.5"]),
        (["--merge-duplicates", "photo.png"], ["--merge-duplicates", "photo.png", "--merge-duplicates=0.9"]),
        (["--tile", "0"], ["--tile", "0"]),
        (["--tile", "512", "--overlap", "1"], ["--overlap", "1.0"]),
        (["--overlap", "0.5"], ["--overlap", "--tile"]),
        (["--max-memory", "much"], ["much"]),
        (["--max-memory", "0"], ["0"]),
        (["--confidence", "7"], ["--confidence", "7.0"]),
        (["--confidence", "0.5"], ["--confidence", "anysam_lite", "--detector"]),
        (["--detector", "none", "--nms-iou", "0.5"], ["--nms-iou", "--detector none"]),
        (["--detector", "fastsam_s", "--points-per-side", "9"], ["--points-per-side", "--detector"]),
        (["--detector", "fastsam_s", "--preset", "fast"], ["'fast'", "detector"]),
        (["--preset", "hole"], ["--preset", "whole"]),
        (["--boxes", "boxes.csv", "--points", "boxes.csv"], ["--boxes", "--points"]),
        (["--boxes", "boxes.csv", "--points-per-side", "9"], ["--points-per-side", "--boxes"]),
        (["--boxes", "boxes.csv", "--tile", "512"], ["--tile", "--boxes"]),
        (["--boxes", "boxes.csv", "--detector", "fastsam_s"], ["--detector", "--boxes"]),
        (["--points", "boxes.csv", "--preset", "fast"], ["--preset", "--points"]),
        (["--boxes", "gone.csv"], ["gone.csv does not exist"]),
        (["--boxes", "boxes.csv"], ["boxes.csv line 1", "x1 > x0"]),
        (["--cache-size", "1G"], ["--cache-size", "--cache"]),
        (["--cache", "photo.png/x"], ["photo.png/x"]),
        (["--format", "gif"], ["'gif'", "png"]),
        (["--format", ","], ["--format names no format"]),
        (["--max-pixels", "100"], ["photo.png", "100"]),
        (["--max-pixels", "0"], ["--max-pixels must be at least 1"]),
        (["--resume", "--json"], ["--resume", "--out"]),
        (["--allow", "apache"], ["unknown licence 'apache'"]),
        (["--out", "photo.png/x"], ["photo.png", "not a folder"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_options_are_refused_in_one_line(model, folder, capsys, options, words):
    Path("boxes.csv").write_text("9,9,1,1\n")
    message = refused(capsys, "photo.png", *options)
    assert all(word in message for word in words), message
    assert model.asked == []


def test_options_that_a_model_has_no_use_for_are_refused(model, folder, capsys):
    model.variant = "fastsam_s"
    for options, words in (
        (["--points-per-side", "9"], "--points-per-side has no effect with fastsam_s"),
        (["--detector", "mobilesamv2_object_aware"], "fastsam_s finds objects by itself"),
    ):
        assert words in refused(capsys, "photo.png", "--model", "fastsam_s", *options)


def test_a_bad_image_is_refused_before_a_model_is_loaded(model, folder, capsys):
    Path("bad.png").write_bytes(b"nothing")
    assert "bad.png is not an image" in refused(capsys, "bad.png")
    assert "gone.png does not exist" in refused(capsys, "gone.png", "--resume")
    assert model.loads == []


# Several images


@pytest.fixture
def several(folder):
    """photos/ with three good images, of which two have one stem, and a damaged one in between."""
    save("photos/a.png", 1)
    save("photos/b.png", 3)
    save("photos/x/a.png", 2)
    Path("photos/bad.png").write_bytes(b"nothing")
    return ["photos", "photos/x"]


def test_good_images_are_done_and_bad_ones_listed_at_the_end(model, several, capsys):
    status, out, err = run(capsys, *several, "--format", "coco")
    assert status == 1
    assert out.splitlines() == ["out/a.coco.json", "out/b.coco.json", "out/a_2.coco.json"]
    assert [line.split(": ")[0] for line in err.splitlines()[:4]] == [
        "[1/4] photos/a.png",
        "[2/4] photos/b.png",
        "[3/4] photos/bad.png",
        "[4/4] photos/x/a.png",
    ]
    assert "1 of 4 images failed:" in err and "photos/bad.png" in err.splitlines()[-1] and "Traceback" not in err
    assert len(model.loads) == 1


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried ..."),
    ],
)
def test_an_image_that_does_not_fit_in_memory_does_not_stop_the_others(model, several, capsys, error):
    def fail(number):
        model.before = lambda number: None
        raise error

    model.before = fail
    status, out, err = run(capsys, *several, "--format", "coco")
    assert status == 1 and out.splitlines() == ["out/b.coco.json", "out/a_2.coco.json"]
    assert "photos/a.png needs more memory than there is; give --tile or a smaller --max-memory" in err


def test_a_fault_stops_with_a_status_of_its_own_and_keeps_what_is_done(model, several, capsys):
    def fail(number):
        if number == 1:
            raise RuntimeError("shapes differ")

    model.before = fail
    status, out, err = run(capsys, *several, "--format", "coco")
    assert status == 70 and out.splitlines() == ["out/a.coco.json"]
    assert "1 of 4 images are done; the same command with --resume goes on." in err


def test_a_full_disk_stops_everything(model, several, capsys, monkeypatch):
    def full(*arguments):
        raise OutputError("out/a.coco.json cannot be written: the disk is full.") from OSError(28, "No space left")

    monkeypatch.setattr(outputs, "write_outputs", full)
    status, out, err = run(capsys, *several)
    assert (status, out) == (2, "") and len(model.asked) == 1 and "the disk is full" in err.splitlines()[-1]


def test_a_model_that_cannot_be_loaded_stops_everything(several, capsys, monkeypatch):
    def load(*arguments, **options):
        raise OptionError("no such device")

    monkeypatch.setattr(predictor, "load", load)
    assert "no such device" in refused(capsys, *several, "--device", "cuda:7")


def test_json_is_written_image_by_image_and_complete_after_ctrl_c(model, several, capsys):
    seen = []

    def look(number):
        seen.append(capsys.readouterr().out)
        if number == 2:
            raise KeyboardInterrupt

    model.before = look
    status, out, err = run(capsys, *several, "--json", "--out", "here")
    assert status == 130 and [text.count("photos/") for text in seen] == [0, 1, 1]
    document = json.loads("".join(seen) + out)
    assert [image["image"] for image in document["images"]] == ["photos/a.png", "photos/b.png"]
    assert [failure["image"] for failure in document["failed"]] == ["photos/bad.png"]
    assert "2 of 4 images are done; the same command with --resume goes on." in err
    assert err.splitlines()[-1] == "anysam: interrupted."


# Resume


def test_resume_after_ctrl_c_gives_what_an_uninterrupted_run_gives(model, several, capsys):
    status, whole, _ = run(capsys, *several, "--format", "png,json", "--out", "whole")
    assert status == 1

    def interrupt(number):
        if number == 5:  # the third of the second run
            raise KeyboardInterrupt

    model.before = interrupt
    status, first, err = run(capsys, *several, "--format", "png,json", "--out", "parts")
    assert status == 130 and "2 of 4 images are done" in err
    model.before = lambda number: None
    asked = len(model.asked)
    status, second, err = run(capsys, *several, "--format", "png,json", "--out", "parts", "--resume")
    assert status == 1 and len(model.asked) == asked + 1
    assert (first + second).replace("parts/", "whole/") == whole
    results = [
        {name: data for name, data in contents(out).items() if ".anysam" not in name} for out in ("whole", "parts")
    ]
    assert results[0] == results[1]
    assert "[1/4] photos/a.png: skipped, finished before" in err and "2 of 4 images were finished before." in err


def test_resume_does_again_what_is_not_whole_and_says_why(model, several, capsys):
    run(capsys, *several, "--format", "png")
    Path("out/b_mask_1.png").write_bytes(b"")
    save("photos/a.png", 2)
    model.asked.clear()
    status, out, err = run(capsys, *several, "--format", "png", "--resume")
    assert len(model.asked) == 2 and sorted(set(out.splitlines())) == sorted(out.splitlines())
    assert "photos/a.png: 2 masks" in err and ", again because the image has changed" in err
    assert ", again because b_mask_1.png is not what was written" in err
    assert Image.open("out/b_mask_1.png").size == (WIDTH, HEIGHT)
    assert files_in("out") == [
        f"{stem}_mask_{i}.png" for stem, count in (("a_2", 2), ("a", 2), ("b", 3)) for i in range(count)
    ]


def test_resume_with_other_settings_does_all_again_and_says_which(model, several, capsys):
    arguments = [*several, "--format", "coco"]
    run(capsys, *arguments)
    for changed, words in (
        (["--points-per-side", "9"], "points_per_side 9, was 16"),
        (["--points-per-side", "9", "--format", "coco,json"], 'formats ["coco", "json"], was ["coco"]'),
        (["--points-per-side", "9", "--dtype", "bfloat16", "--format", "coco,json"], None),
    ):
        model.asked.clear()
        model.dtype = torch.bfloat16 if "bfloat16" in changed else torch.float32
        _, _, err = run(capsys, *arguments, *changed, "--resume")
        assert len(model.asked) == 3 and err.count(words or 'dtype "bfloat16", was "float32"') == 3
    model.asked.clear()
    run(capsys, *arguments, *changed, "--resume", "--points-per-batch", "3", "--max-pixels", "1000000")
    assert model.asked == []  # these change no mask


def test_resume_with_other_boxes_does_only_the_images_whose_boxes_changed(model, several, capsys):
    Path("boxes.csv").write_text("photos/a.png,1,1,9,9\nb.png,1,1,9,9\n")
    run(capsys, *several, "--boxes", "boxes.csv", "--format", "coco")
    Path("boxes.csv").write_text("photos/a.png,1,1,9,9\nb.png,1,1,9,8\n")
    _, out, err = run(capsys, *several, "--boxes", "boxes.csv", "--format", "coco", "--resume")
    assert out.splitlines() == ["out/b.coco.json"] and err.count("finished before\n") == 2


def test_without_resume_everything_is_done_anew(model, several, capsys):
    first = run(capsys, *several, "--format", "coco")[1]
    assert run(capsys, *several, "--format", "coco")[1] == first and len(model.asked) == 6


def test_images_of_one_name_keep_their_files_when_the_list_changes(model, several, capsys):
    run(capsys, *several, "--format", "coco")
    _, out, _ = run(capsys, "photos/x/a.png", "--format", "coco", "--resume", "--json")
    assert json.loads(out)["skipped"] == ["photos/x/a.png"]
    save("earlier/a.png", 1)
    status, out, _ = run(capsys, "earlier", *several, "--format", "coco", "--resume")
    assert out.splitlines() == ["out/a_3.coco.json"]


def test_resume_of_a_finished_image_reads_no_pixels(model, folder, capsys, monkeypatch):
    run(capsys, "photo.png")
    monkeypatch.setattr("anysam.rasters.read_image", None)
    status, out, err = run(capsys, "photo.png", "--resume")
    assert (status, out) == (0, "") and "photo.png: skipped, finished before" in err


def test_nothing_of_the_finished_images_is_kept_in_memory(model, folder):
    report = reports.Report(False, 10_000)
    for i in range(100):
        report.add(Path(f"{i}.png"), reports.Result(np.zeros((1, 1, 3), np.uint8), [None] * 1000, {"read": 0.5}, ""))
    assert report.done == 100 and report._seconds == {"read": 50.0}
    assert not any(isinstance(value, list) and value for value in vars(report).values())


# Interrupts of a real process

_SLOW = """
import sys, time
sys.path.insert(0, sys.argv.pop(1))
from test_everything_command import StandIn
from anysam import cli, predictor
model = StandIn()
def wait(number):
    if number == 2:  # the first two images are done
        print("working", file=sys.stderr, flush=True)
        time.sleep(60)
model.before = wait
predictor.load = lambda *arguments, **options: model
sys.exit(cli.main(sys.argv[1:]))
"""


def test_ctrl_c_ends_the_process_with_130_and_leaves_whole_images_only(folder):
    for i in range(5):
        save(f"photos/{i}.png", 3)
    command = [sys.executable, "-c", _SLOW, str(Path(__file__).parent), "everything", "photos", "--format", "png"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        said = []
        while "working\n" not in said:  # the third image has begun
            said.append(process.stderr.readline())
            assert said[-1], said
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    expected = [f"{i}_mask_{j}.png" for i in range(2) for j in range(3)]
    assert files_in("out") == expected and out.splitlines() == [f"out/{name}" for name in expected]
    assert sorted(os.listdir("out/.anysam")) == ["0.json", "1.json"]
    assert err.splitlines() == [
        "2 of 5 images are done; the same command with --resume goes on.",
        "anysam: interrupted.",
    ]


def test_sigterm_is_like_ctrl_c(model, several, capsys):
    model.before = lambda number: signal.raise_signal(signal.SIGTERM) if number == 1 else None
    status, out, err = run(capsys, *several, "--format", "coco")
    assert status == 130 and out.splitlines() == ["out/a.coco.json"] == [f"out/{name}" for name in files_in("out")]
    assert "1 of 4 images are done; the same command with --resume goes on." in err
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_while_files_are_moved_waits_until_the_image_is_finished(
    model, several, capsys, monkeypatch, number
):
    move = os.replace

    def interrupted(source, target):
        if Path(target) == Path("out/b_mask_1.png"):
            signal.raise_signal(number)
        move(source, target)

    monkeypatch.setattr(os, "replace", interrupted)
    status, out, err = run(capsys, *several, "--format", "png")
    assert status == 130 and out.splitlines() == [f"out/{name}" for name in files_in("out")]
    assert files_in("out") == ["a_mask_0.png", "b_mask_0.png", "b_mask_1.png", "b_mask_2.png"]
    assert "2 of 4 images are done" in err and sorted(os.listdir("out/.anysam")) == ["a.json", "b.json"]


# Progress


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def told(count, happen, terminal=False):
    """What stderr gets while `happen(progress, clock)`."""
    import io

    from rich.console import Console

    text, clock = io.StringIO(), Clock()
    console = Console(file=text, force_terminal=terminal, width=100, highlight=False, color_system=None)
    with work_progress(count, "Finding masks", clock, console) as progress:
        happen(progress, clock)
    return text.getvalue()


def test_off_a_terminal_a_long_image_has_a_line_every_ten_seconds_at_most():
    def happen(progress, clock):
        progress.begin("a.png")
        for second in range(1, 41):
            clock.now = second
            progress.part(second / 40)
        progress.end("a.png: 3 masks")
        progress.begin("b.png")
        clock.now = 45
        progress.part(0.5)
        progress.end("b.png: 1 mask")

    assert told(3, happen).splitlines() == [
        "[1/3] a.png: 25% done, about 2 min left",
        "[1/3] a.png: 50% done, about 2 min left",
        "[1/3] a.png: 75% done, about 2 min left",
        "[1/3] a.png: 100% done, about 80 s left",
        "[1/3] a.png: 3 masks",
        "[2/3] b.png: 1 mask",
    ]


def test_skipped_images_do_not_count_in_the_remaining_time():
    def happen(progress, clock):
        progress.skip("a: skipped")
        progress.skip("b: skipped")
        clock.now = 1000
        progress.begin("c")
        clock.now = 1020
        progress.part(0.5)

    assert told(4, happen).splitlines()[-1] == "[3/4] c: 50% done, about 60 s left"  # 20 s for it, 40 s for the last


def test_one_image_has_a_bar_on_a_terminal_once_there_is_progress():
    def happen(progress, clock):
        progress.begin("a.png")
        clock.now = 30
        progress.part(0.25)
        progress.end("a.png: 3 masks")

    text = told(1, happen, terminal=True)
    assert (
        "Finding masks" in text and "25% about 90 s left" in text.replace("2 min", "90 s") and "a.png: 3 masks" in text
    )
    assert "Finding masks" not in told(1, lambda progress, clock: progress.end("a.png: failed"), terminal=True)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "1 s"), (1.4, "1 s"), (89, "89 s"), (90, "2 min"), (3600, "60 min"), (7200, "2 h"), (7800, "2 h 10 min")],
)
def test_durations_are_in_words(seconds, words):
    assert duration(seconds) == words


# Parts


def test_a_failure_of_the_only_image_is_raised_and_faults_are_not_swallowed():
    def fails(error):
        def work(number):
            raise error

        return work

    failed = []
    with pytest.raises(ImageError, match="bad"):
        image_runs.run_all([Path("a")], fails(ImageError("bad")), lambda *failure: failed.append(failure), "help")
    with pytest.raises(RuntimeError, match="shapes"):
        image_runs.run_all(
            [Path("a")] * 2, fails(RuntimeError("shapes")), lambda *failure: failed.append(failure), "help"
        )
    assert failed == []


def test_a_path_that_is_no_text_is_printed_as_its_bytes():
    program = "import os; from pathlib import Path; from anysam.commands.image_runs import print_paths; "
    program += "print_paths([Path('a'), Path(os.fsdecode(b'caf\\xe9')), Path('b')])"
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8", "PYTHONUTF8": "0"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, env=environment, check=True)
    assert done.stdout == b"a\ncaf\xe9\nb\n"


def test_the_help_names_the_real_defaults_and_needs_no_torch():
    program = (
        "import sys\nfrom anysam.cli import main\n"
        "try:\n    main(['everything', '--help'])\nexcept SystemExit:\n    pass\n"
        "print([name for name in ('torch', 'numpy', 'PIL', 'cv2', 'rich') if name in sys.modules], file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    defaults, listed = EverythingOptions(), done.stdout.split("\nthe grid:")[1].split("\nlarge images:")[0]
    for name in GRID:
        line = listed.split(f"--{name.replace('_', '-')} ")[1].split("\n  --")[0]
        value = getattr(defaults, name)
        assert f"({value})" in line or name in ("points_per_batch", "crop_overlap_ratio"), line
    assert f"{defaults.crop_overlap_ratio:.3f}" in done.stdout and f"default: {defaults.tile_overlap}" in done.stdout


# With the built-in model


@pytest.fixture(scope="module")
def photograph():
    image = Image.open(Path(__file__).parents[1] / "examples" / "images" / "coffee.png").convert("RGB")
    return image.resize((160, 120))


def test_the_built_in_model_finds_masks_and_resumes(folder, capsys, photograph):
    for name in "ab":
        photograph.save(f"{name}.png")
    arguments = ["a.png", "b.png", "--points-per-side", "4", "--format", "coco,png"]
    arguments += ["--pred-iou-thresh", "0.3", "--stability-score-thresh", "0.5"]
    status, out, err = run(capsys, *arguments)
    assert status == 0, err
    for name in "ab":
        annotations = json.loads(Path(f"out/{name}.coco.json").read_text())["annotations"]
        assert len(annotations) > 0 and all(each["segmentation"]["size"] == [120, 160] for each in annotations)
        for i, each in enumerate(annotations):
            mask = np.array(Image.open(f"out/{name}_mask_{i}.png")) > 0
            assert np.array_equal(coco_mask.decode(each["segmentation"]).astype(bool), mask)
    before = contents("out")
    assert run(capsys, *arguments, "--resume")[1] == "" and contents("out") == before


def test_the_built_in_model_masks_given_boxes(folder, capsys, photograph):
    photograph.save("cup.png")
    Path("boxes.txt").write_text("7 0.485 0.41 0.403 0.7425 0.9\n")  # the cup
    status, out, err = run(capsys, "cup.png", "--boxes", "boxes.txt", "--json")
    assert status == 0, err
    (mask,) = json.loads(out)["images"][0]["masks"]
    assert (mask["label"], mask["detection_score"]) == ("7", 0.9)
    pixels = coco_mask.decode(mask["segmentation"])
    assert pixels[30:54, 61:93].mean() > 0.9 and pixels[:, :26].mean() < 0.05  # inside of the cup, and the table
