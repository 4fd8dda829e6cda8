"""Files: what is in them, that they are whole or absent, and what is said when they cannot be written."""

import contextlib
import errno
import io
import itertools
import json
import os
import resource
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from anysam.errors import OptionError, OutputError
from anysam.outputs import (
    FORMATS,
    ImageResult,
    draw_overlay,
    make_folder,
    output_stems,
    pictures,
    write_atomic,
    write_coco_json,
    write_cutout_png,
    write_mask_png,
    write_outputs,
)
from anysam.prompts import Prompt
from anysam.results import MaskRecord

# pycocotools itself is not yet silent under NumPy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SIZE = (90, 120)  # H, W


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(60, 200, (*SIZE, 3), dtype=np.uint8)


def ellipse(x: float, y: float, a: float, b: float) -> np.ndarray:
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    return ((columns - x) / a) ** 2 + ((rows - y) / b) ** 2 < 1


def two_records() -> list[MaskRecord]:
    return [
        MaskRecord.from_mask(ellipse(40, 40, 30, 20), 0.9, Prompt(points=[[40, 40], [5, 5]], labels=[1, 0])),
        MaskRecord.from_mask(ellipse(90, 60, 20, 25), 0.8, Prompt(box=[65, 30, 115, 88]), label="cat"),
    ]


def writes(data: bytes):
    def write(file) -> None:
        file.write(data)

    return write


def test_a_written_file_replaces_the_old_one_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    write_atomic(path, writes(b"new"))
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_new_files_have_the_mode_that_open_gives(tmp_path):
    write_atomic(tmp_path / "a", writes(b""))
    (tmp_path / "b").touch()
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_a_full_disk_keeps_the_old_file_and_removes_the_temporary_one(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"old")

    def fill(file) -> None:
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OutputError, match=r"a\.png cannot be written: the disk is full"):
        write_atomic(path, fill)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.png"]


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, ZeroDivisionError])
def test_an_interruption_passes_through_and_leaves_no_temporary_file(tmp_path, interruption):
    def stop(file) -> None:
        file.write(b"half")
        raise interruption

    with pytest.raises(interruption):
        write_atomic(tmp_path / "a.png", stop)
    assert os.listdir(tmp_path) == []


def test_a_file_the_system_refuses_to_grow_is_an_output_error(image, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.raises(OutputError, match="a_overlay.png cannot be written"):
            write_outputs("a.jpg", image, two_records(), tmp_path, ["overlay"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path) == []


def test_unwritable_places_are_named(tmp_path):
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(OutputError, match="file cannot be written: a file of that name is in the way"):
        make_folder(file)
    with pytest.raises(OutputError, match="a part of its path is a file"):
        make_folder(file / "deeper")
    with pytest.raises(OutputError, match="its folder does not exist"):
        write_atomic(tmp_path / "none" / "a.png", writes(b""))
    with pytest.raises(OutputError, match="the name is too long"):
        write_atomic(tmp_path / ("x" * 300), writes(b""))
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="a folder of that name is in the way"):
        write_atomic(tmp_path / "folder", writes(b""))
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_a_read_only_folder_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # the superuser may write anywhere
    with pytest.raises(OutputError, match="is not writable"):
        make_folder(tmp_path)


def test_mask_png_is_0_and_255(tmp_path):
    mask = ellipse(40, 40, 30, 20)
    write_mask_png(tmp_path / "m.png", mask)
    picture = Image.open(tmp_path / "m.png")
    assert picture.mode == "L"
    np.testing.assert_array_equal(np.asarray(picture), np.where(mask, 255, 0))


def test_cutout_is_cropped_and_keeps_nothing_of_the_background(image, tmp_path):
    mask = ellipse(40, 40, 30, 20)
    write_cutout_png(tmp_path / "c.png", image, mask)
    rows, columns = np.nonzero(mask)
    crop = slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1)
    rgba = np.asarray(Image.open(tmp_path / "c.png"))
    np.testing.assert_array_equal(rgba[:, :, 3], np.where(mask[crop], 255, 0))
    np.testing.assert_array_equal(rgba[mask[crop]][:, :3], image[mask])
    assert (rgba[~mask[crop]] == 0).all()


def test_cutout_of_nothing_is_transparent_and_of_full_size(image, tmp_path):
    write_cutout_png(tmp_path / "c.png", image, np.zeros(SIZE, dtype=bool))
    rgba = np.asarray(Image.open(tmp_path / "c.png"))
    assert rgba.shape == (*SIZE, 4)
    assert (rgba == 0).all()


def test_overlay_tints_and_outlines_masks_and_leaves_the_rest(image):
    before = image.copy()
    mask = ellipse(40, 40, 30, 20)
    overlay = draw_overlay(image, [MaskRecord.from_mask(mask, 0.9)])
    np.testing.assert_array_equal(image, before)
    np.testing.assert_array_equal(overlay[~mask], image[~mask])
    assert (overlay[mask] != image[mask]).any(axis=1).all()
    row = overlay[40, 10:70]  # the chord through the middle: x 11 to 69
    assert (row[1:3] == row[1]).all()
    assert (row[3] != row[1]).any()  # the outline is two pixels wide


def test_overlay_gives_records_different_colours_and_draws_small_masks_on_top(image):
    small, large = ellipse(60, 45, 8, 8), ellipse(60, 45, 50, 40)
    records = [MaskRecord.from_mask(small, 0.9), MaskRecord.from_mask(large, 0.8)]
    overlay = draw_overlay(image, records)
    assert (overlay[45, 53] == draw_overlay(image, records[:1])[45, 53]).all()  # the outline of the small one
    edge = draw_overlay(image, records)[45, 11]
    assert (edge != overlay[45, 53]).any()


def test_overlay_draws_points_and_box_where_they_are(image):
    prompt = Prompt(points=[[30, 20], [90, 70]], labels=[1, 0], box=[50, 10, 110, 60])
    overlay = draw_overlay(image, [], [prompt])
    assert overlay[18, 32].tolist() == [22, 163, 74]  # beside the + in its green disc
    assert overlay[72, 92].tolist() == [220, 38, 38]
    assert overlay[35, 50].min() > 220  # white, smoothed; the photograph ends at 199
    np.testing.assert_array_equal(overlay[30:50, 60:80], image[30:50, 60:80])  # the box is not filled


def test_overlay_takes_the_prompts_of_the_records_by_default(image):
    records = two_records()
    prompts = [Prompt.from_dict(record.prompt) for record in records]
    np.testing.assert_array_equal(draw_overlay(image, records), draw_overlay(image, records, prompts))
    assert (draw_overlay(image, records) != draw_overlay(image, records, [])).any()


def test_overlay_draws_every_kind_of_prompt_even_far_outside_and_on_one_pixel(image):
    prompts = [
        Prompt(box=[-1e9, -1e9, 1e9, 30]),
        Prompt(polygon=[[1, 1], [20, 1], [20, 20]]),
        Prompt(scribble=[[50, 50], [70, 70]], scribble_negative=[[5, 80]]),
    ]
    for prompt in prompts:
        assert (draw_overlay(image, [], [prompt]) != image).any()
    single = MaskRecord.from_mask(np.ones((1, 1), dtype=bool), 0.5, Prompt(points=[[0, 0]]))
    assert draw_overlay(np.zeros((1, 1, 3), dtype=np.uint8), [single]).shape == (1, 1, 3)


def test_masks_of_another_size_are_refused(image, tmp_path):
    record = MaskRecord.from_mask(np.ones((3, 4), dtype=bool), 0.5)
    with pytest.raises(OptionError, match="differ in size"):
        draw_overlay(image, [record])
    with pytest.raises(OptionError, match="differ in size"):
        write_cutout_png(tmp_path / "c.png", image, record.to_mask())


def test_coco_file_is_read_by_pycocotools(tmp_path):
    records = two_records()
    other = (MaskRecord.from_mask(np.ones((4, 5), dtype=bool), 0.7),)
    path = tmp_path / "all.coco.json"
    write_coco_json(path, [ImageResult("a.jpg", SIZE, tuple(records)), ImageResult("b.jpg", (4, 5), other)])
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(path))
    assert [(i["file_name"], i["height"], i["width"]) for i in coco.dataset["images"]] == [
        ("a.jpg", 90, 120),
        ("b.jpg", 4, 5),
    ]
    first, second = coco.loadAnns(coco.getAnnIds(imgIds=1))
    np.testing.assert_array_equal(coco.annToMask(first).astype(bool), ellipse(40, 40, 30, 20))
    x, y, width, height = second["bbox"]
    rows, columns = np.nonzero(ellipse(90, 60, 20, 25))
    assert (x, y, width, height) == (columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1)
    assert second["area"] == len(rows)
    assert second["score"] == 0.8
    assert [c["name"] for c in coco.loadCats([first["category_id"], second["category_id"]])] == ["object", "cat"]
    assert len(coco.getAnnIds()) == 3


def test_all_formats_are_written_and_named(image, tmp_path):
    out = tmp_path / "new" / "out"
    paths = write_outputs("photos/cat.v2.jpg", image, two_records(), out, FORMATS)
    assert [path.name for path in paths] == [
        "cat.v2_mask_0.png",
        "cat.v2_mask_1.png",
        "cat.v2_overlay.png",
        "cat.v2_cutout_0.png",
        "cat.v2_cutout_1.png",
        "cat.v2.coco.json",
        "cat.v2.polygons.json",
        "cat.v2.txt",
        "cat.v2.names.txt",
        "cat.v2.labelme.json",
        "cat.v2_labels.png",
        "cat.v2.geojson",
        "cat.v2.npz",
        "cat.v2.sa1b.json",
        "cat.v2.json",
    ]
    assert sorted(os.listdir(out)) == sorted(path.name for path in paths)
    document = json.loads(paths[-1].read_text(encoding="utf-8"))
    assert document["image"] == "photos/cat.v2.jpg"
    assert document["size"] == [90, 120]
    assert [MaskRecord.from_dict(form) for form in document["masks"]] == two_records()


def test_only_the_formats_asked_for_are_written(image, tmp_path):
    assert write_outputs(Path("a.jpg"), image, two_records(), tmp_path, ["json"]) == [tmp_path / "a.json"]
    assert os.listdir(tmp_path) == ["a.json"]


def test_an_unknown_format_names_the_nearest_before_anything_is_written(image, tmp_path):
    with pytest.raises(OptionError, match="'ovrlay', accepted are png, overlay.*did you mean 'overlay'"):
        write_outputs("a.jpg", image, [], tmp_path / "out", ["png", "ovrlay"])
    assert not (tmp_path / "out").exists()


def test_file_names_that_are_not_utf8_do_not_stop_the_json(image, tmp_path):
    (path,) = write_outputs(os.fsdecode(b"caf\xe9.jpg"), image, two_records(), tmp_path, ["json"])
    assert json.loads(path.read_text(encoding="utf-8"))["image"] == os.fsdecode(b"caf\xe9.jpg")


def test_images_of_one_name_get_different_stems():
    assert output_stems(["a/cat.jpg", "b/cat.jpg", "dog.png", "c/Cat.png"]) == ["cat", "cat_2", "dog", "Cat_3"]
    assert output_stems(["cat.jpg", "cat.png", "cat_2.jpg"]) == ["cat", "cat_3", "cat_2"]
    assert output_stems([]) == []


@pytest.mark.parametrize("kind", ["coco", "polygons", "names", "labelme", "sa1b"])
def test_stems_never_collide_through_the_suffix_of_a_format(image, tmp_path, kind):
    stems = output_stems(["cat.jpg", f"cat.{kind}.jpg"])
    written = [write_outputs("x.jpg", image, two_records(), tmp_path, FORMATS, stem=stem) for stem in stems]
    names = [path for paths in written for path in paths]
    assert len(set(names)) == len(names) == 30


def test_neighbours_in_an_overlay_have_unlike_colours_and_one_tint_each():
    """Twelve stripes of which the eleventh, in the first's colour by turn, lies beside the first; and a mask below."""
    size = (60, 140)
    grey = np.full((*size, 3), 128, dtype=np.uint8)
    stripes = [np.zeros(size, dtype=bool) for _ in range(12)]
    places = [0, *range(2, 11), 1, 11]
    for place, stripe in zip(places, stripes, strict=True):
        stripe[10:50, 10 + 10 * place : 20 + 10 * place] = True
    records = [MaskRecord.from_mask(mask, 0.9) for mask in [*stripes, np.ones(size, dtype=bool)]]
    with_below, alone = draw_overlay(grey, records).astype(int), draw_overlay(grey, records[:12]).astype(int)
    for image in (with_below, alone):
        middles = [image[30, 15 + 10 * place] for place in range(12)]
        for left, right in itertools.pairwise(middles):
            assert np.abs(left - right).max() > 30
    tints = {tuple(int(128 * 0.58 + 0.42 * value + 0.5) for value in colour) for colour in pictures._COLOURS}
    assert {tuple(pixel) for pixel in with_below[30, 15:130:10].tolist()} <= tints  # nothing shines through


def test_points_of_a_grid_are_not_drawn_over_the_objects(image):
    (record, _) = two_records()
    bare = draw_overlay(image, [record], prompts=[])
    grid = MaskRecord(**{**vars(record), "crop_box": (0.0, 0.0, 120.0, 90.0)})
    np.testing.assert_array_equal(draw_overlay(image, [grid]), bare)
    assert not np.array_equal(draw_overlay(image, [record]), bare)
