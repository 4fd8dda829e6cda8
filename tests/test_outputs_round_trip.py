"""What is written can be read: every format against the masks it was made of, and against other readers of it."""

import base64
import contextlib
import dataclasses
import io
import json
import tracemalloc
import warnings
import zipfile

import cv2
import numpy as np
import pytest
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from anysam.errors import OptionError
from anysam.masks import mask_iou
from anysam.outputs import ImageResult, Loss, label_map, make_folder, read_masks, write_coco_json, write_result
from anysam.outputs.formats import TABLE, formats_table
from anysam.outputs.polygons import INSET, fill_rings, joined_ring, record_outlines
from anysam.outputs.yolo import read_yolo
from anysam.results import MaskRecord

# pycocotools itself is not yet silent under NumPy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SIZE = (150, 200)
ROWS, COLUMNS = np.mgrid[: SIZE[0], : SIZE[1]]


def disc(x, y, radius):
    return (COLUMNS - x) ** 2 + (ROWS - y) ** 2 < radius**2


def masks():
    """A disc; a ring; two rings and an island in a hole; a comb to the border; one pixel; and corners that touch."""
    pixel = np.zeros(SIZE, dtype=bool)
    pixel[149, 199] = True
    corners = np.zeros(SIZE, dtype=bool)
    corners[20:30, 150:160] = corners[30:40, 160:170] = True
    nested = disc(60, 75, 40) & ~disc(60, 75, 30) | disc(60, 75, 10) | disc(150, 75, 30) & ~disc(140, 75, 8)
    comb = (ROWS >= 130) & ((COLUMNS // 4 % 2 == 0) | (ROWS >= 145))
    return [disc(40, 30, 25), disc(110, 40, 30) & ~disc(115, 45, 12), nested, comb, pixel, corners]


def result(found=None):
    records = [
        MaskRecord.from_mask(mask, 0.5 + i / 20, label=("cat", None)[i % 2]) for i, mask in enumerate(found or masks())
    ]
    return ImageResult("photo.jpg", SIZE, tuple(records))


def written(kind, folder, image=None):
    losses: list[Loss] = []
    paths = write_result(kind, folder, "photo", image or result(), losses)
    return paths, losses


def sizes(stem):
    return SIZE


@pytest.mark.parametrize("row", [row for row in TABLE if row.reads], ids=lambda row: row.name)
def test_every_mask_comes_back_exactly(row, tmp_path):
    image = result()
    if not row.overlap:  # without the masks that others cover
        image = result([masks()[i] for i in (2, 3, 5)])
    paths, losses = written(row.name, tmp_path, image)
    (read,) = read_masks(tmp_path, row.name, sizes)
    assert read.size == SIZE
    assert len(read.records) == len(image.records)
    for ours, record in zip(image.records, read.records, strict=True):
        assert np.array_equal(record.to_mask(), ours.to_mask())
        assert record.area == ours.area and record.box == ours.box
        assert record.predicted_iou == (pytest.approx(ours.predicted_iou) if row.scores else 1.0)
        assert record.label == (ours.label if row.labels else None)
    labelled = sum(ours.label is not None for ours in image.records)
    assert losses == ([] if row.labels else [Loss(row.name, "labels of masks", labelled)])
    assert all(path.exists() for path in paths)


@pytest.mark.parametrize(
    "kind", ["coco", "coco-polygons", "yolo", "labelme", "labels", "geojson", "npz", "sa1b", "json"]
)
def test_the_format_is_told_by_the_file_itself(kind, tmp_path):
    (path, *_), _ = written(kind, tmp_path)
    (read,) = read_masks(path, None, sizes)
    assert len(read.records) >= 5
    (read,) = read_masks(tmp_path, None, sizes)
    assert len(read.records) >= 5


@pytest.mark.parametrize("kind", [row.name for row in TABLE if row.reads and row.name != "png"])  # no mask, no PNG
def test_an_image_without_masks_is_written_and_read(kind, tmp_path):
    written(kind, tmp_path, ImageResult("photo.jpg", SIZE, ()))
    (read,) = read_masks(tmp_path, kind, sizes)
    assert read.records == () and read.size == SIZE


@pytest.mark.parametrize("kind", ["coco-polygons", "yolo", "labelme", "geojson", "labels"])
def test_masks_without_a_pixel_are_counted_where_they_have_no_place(kind, tmp_path):
    image = result([np.zeros(SIZE, dtype=bool), disc(40, 30, 25), np.zeros(SIZE, dtype=bool)])
    _, losses = written(kind, tmp_path, image)
    assert Loss(kind, "masks without a pixel", 2) in losses
    assert "2 lost" in str(losses[-1])


def test_random_masks_survive_every_polygon_format(tmp_path):
    generator = np.random.default_rng(0)
    for _ in range(8):
        noise = cv2.GaussianBlur(generator.standard_normal(SIZE), (0, 0), generator.uniform(1, 8))
        image = result([noise > generator.uniform(0, 0.5) * noise.std()])
        for kind in ("coco-polygons", "yolo", "labelme", "geojson"):
            (path, *_), _ = written(kind, tmp_path, image)
            (read,) = read_masks(path, kind, sizes)
            assert np.array_equal(read.records[0].to_mask(), image.records[0].to_mask()), kind


def smooth_masks():
    return [
        disc(70, 75, 60),
        disc(70, 75, 60) & ~disc(60, 70, 25),
        disc(50, 60, 45) | disc(150, 90, 40),
    ]  # the last of two parts


def test_polygons_are_read_by_pycocotools(tmp_path):
    path = tmp_path / "a.json"
    write_coco_json(path, [result(smooth_masks())], polygons=True)
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pycocotools is not yet silent under NumPy 2
        coco = COCO(str(path))
        found = [coco.annToMask(row).astype(bool) for row in coco.loadAnns(coco.getAnnIds())]
    for ours, theirs in zip(smooth_masks(), found, strict=True):
        assert mask_iou(ours, theirs) >= 0.99


def test_yolo_labels_are_read_by_rounding_down_and_filling(tmp_path):
    """As loaders of them do. OpenCV draws the outline, too, and the seams between the parts."""
    (path, _), _ = written("yolo", tmp_path, result(smooth_masks()))
    for line, mask in zip(path.read_text().splitlines(), smooth_masks(), strict=True):
        ring = np.array(line.split()[1:], dtype=float).reshape(-1, 2) * SIZE[::-1]
        canvas = cv2.fillPoly(np.zeros(SIZE, dtype=np.uint8), [ring.astype(np.int32)], 1)
        assert mask_iou(canvas > 0, mask) >= 0.998


def test_rings_of_noise_are_filled_by_all_rules(tmp_path):
    """Thousands of holes and parts: by pycocotools, by OpenCV, and back by our own."""
    noise = cv2.GaussianBlur(np.random.default_rng(0).standard_normal((400, 500)), (0, 0), 4)
    record = MaskRecord.from_mask(noise > 0.2 * noise.std(), 1.0)
    outlines = record_outlines(record)
    assert len(outlines) > 50 and sum(len(each.holes) for each in outlines) > 10
    for inset in (0.0, INSET):
        ring = joined_ring(outlines, inset)
        assert fill_rings([ring], record.size) == record.segmentation
        theirs = coco_mask.decode(coco_mask.frPyObjects([ring.reshape(-1).tolist()], *record.size))[..., 0]
        assert np.array_equal(theirs, record.to_mask())
    canvas = cv2.fillPoly(np.zeros(record.size, dtype=np.uint8), [ring.astype(np.int32)], 1)
    assert mask_iou(canvas > 0, record.to_mask()) >= 0.98  # the seams between the parts are drawn


def test_a_hole_is_reached_through_the_mask_and_touches_nothing_else():
    """So that loaders that draw the ring have the mask to the pixel: two holes under one edge, one below another."""
    mask = np.zeros((30, 40), dtype=bool)
    mask[2:28, 3:37] = True
    mask[8:12, 6:10] = mask[8:12, 20:24] = mask[18:22, 7:9] = False
    (outline,) = record_outlines(MaskRecord.from_mask(mask, 1.0))
    assert len(outline.holes) == 3
    ring = joined_ring([outline], INSET)
    canvas = cv2.fillPoly(np.zeros(mask.shape, dtype=np.uint8), [ring.astype(np.int32)], 1)
    assert np.array_equal(canvas > 0, mask)


def test_labelme_makes_the_masks_themselves_of_polygons(tmp_path):
    """It draws polygons with Pillow, outline and all."""
    (path,), _ = written("labelme", tmp_path, result([disc(70, 75, 60)]))
    (shape,) = json.loads(path.read_text())["shapes"]
    canvas = Image.new("L", SIZE[::-1])
    ImageDraw.Draw(canvas).polygon([tuple(point) for point in shape["points"]], outline=1, fill=1)
    assert np.array_equal(np.array(canvas) > 0, disc(70, 75, 60))


def test_labelme_shapes_by_its_own_rules(tmp_path):
    """A polygon by Pillow, a mask pasted between two pixels that both count."""
    (path,), _ = written("labelme", tmp_path, result(smooth_masks()))
    document = json.loads(path.read_text())
    kinds = [(shape["shape_type"], shape["group_id"]) for shape in document["shapes"]]
    assert kinds == [("polygon", None), ("mask", None), ("polygon", 2), ("polygon", 2)] or kinds[2:] == [
        ("polygon", None)
    ]
    shape = document["shapes"][1]
    (x0, y0), (x1, y1) = np.array(shape["points"], dtype=int)
    whole = np.zeros(SIZE, dtype=bool)
    whole[y0 : y1 + 1, x0 : x1 + 1] = np.array(Image.open(io.BytesIO(base64.b64decode(shape["mask"]))))
    assert np.array_equal(whole, smooth_masks()[1])


def test_geojson_of_a_map_has_its_coordinates(tmp_path):
    square = np.zeros(SIZE, dtype=bool)
    square[10:30, 20:60] = True
    square[15:20, 30:40] = False
    transform = (0.5, 0.0, 500_000.0, 0.0, -0.5, 4_000_000.0)
    image = ImageResult("map.tif", SIZE, result([square]).records, "EPSG:32633", transform)
    (path,), _ = written("geojson", tmp_path, image)
    document = json.loads(path.read_text())
    assert document["crs"]["properties"]["name"] == "urn:ogc:def:crs:EPSG::32633"
    outer, hole = document["features"][0]["geometry"]["coordinates"]
    assert outer[0] == outer[-1]
    assert {tuple(point) for point in outer} == {
        (500_010.0, 3_999_995.0),
        (500_030.0, 3_999_995.0),
        (500_030.0, 3_999_985.0),
        (500_010.0, 3_999_985.0),
    }

    def signed_area(ring):
        x, y = np.array(ring).T
        return float(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1]) / 2)

    assert signed_area(outer) == 200.0 and signed_area(hole) == -12.5  # counter-clockwise, and against it
    (read,) = read_masks(path)
    assert np.array_equal(read.records[0].to_mask(), square)
    assert (read.crs, read.transform) == ("urn:ogc:def:crs:EPSG::32633", transform)


def test_in_a_label_map_the_smaller_mask_is_on_top_and_what_is_hidden_is_counted(tmp_path):
    small, large = np.zeros(SIZE, dtype=bool), np.zeros(SIZE, dtype=bool)
    small[5:10, 5:10], large[:20, :20] = True, True
    labels, hidden = label_map(result([small, large]).records, SIZE)
    assert labels.dtype == np.uint8 and labels[7, 7] == 1 and labels[0, 0] == 2 and labels[30, 30] == 0
    assert hidden == 25
    _, losses = written("labels", tmp_path, result([small, large]))
    assert Loss("labels", "pixels of masks under smaller masks", 25) in losses


def test_a_label_map_of_many_masks_has_16_bits(tmp_path):
    found = []
    for i in range(300):
        mask = np.zeros(SIZE, dtype=bool)
        mask[i // 20 * 10 + 1, i % 20 * 10 + 1] = True
        found.append(mask)
    (path,), _ = written("labels", tmp_path, result(found))
    assert np.array(Image.open(path)).max() == 300
    (read,) = read_masks(path)
    assert [record.box for record in read.records] == [MaskRecord.from_mask(mask, 1.0).box for mask in found]


def test_stability_points_and_crops_survive_in_sa1b(tmp_path):
    record = MaskRecord.from_mask(disc(40, 30, 25), 0.9)
    record = MaskRecord(
        **{
            **vars(record),
            "stability_score": 0.97,
            "crop_box": (10.0, 5.0, 110.0, 95.0),
            "prompt": {"points": [[40.5, 30.0]], "labels": [1]},
        }
    )
    (path,), _ = written("sa1b", tmp_path, ImageResult("photo.jpg", SIZE, (record,)))
    document = json.loads(path.read_text())
    assert document["image"] == {"image_id": 0, "width": 200, "height": 150, "file_name": "photo.jpg"}
    assert document["annotations"][0]["bbox"] == [16.0, 6.0, 48.0, 48.0]  # to the last pixel
    assert document["annotations"][0]["crop_box"] == [10.0, 5.0, 100.0, 90.0]
    (read,) = read_masks(path)
    assert read.records[0].stability_score == 0.97
    assert read.records[0].crop_box == record.crop_box and read.records[0].prompt["points"] == [[40.5, 30.0]]


def test_filling_is_the_even_odd_rule_at_pixel_centres():
    ring = np.array([[1.2, 0.4], [7.9, 2.5], [4.0, 6.6]])
    found = MaskRecord.from_dict(
        {"segmentation": fill_rings([ring], (8, 9)), "area": 0, "box": [0, 0, 0, 0], "predicted_iou": 1}
    ).to_mask()
    a, b, c = ring
    for y in range(8):
        for x in range(9):
            p = np.array([x + 0.5, y + 0.5])
            sides = [np.cross(np.append(t - s, 0), np.append(p - s, 0))[2] > 0 for s, t in ((a, b), (b, c), (c, a))]
            assert found[y, x] == (len(set(sides)) == 1)


COCO_5 = b'{"images": [{"id": 1, "height": 5, "width": 5}], "annotations": [%s]}'
OURS = b'{"image": "a.jpg", "size": [2, 2], "masks": [{"segmentation": {"size": [2, 2], "counts": [4]}, %s}]}'
HOSTILE = {
    "category is a list": ("a.json", b'{"images": [], "annotations": [], "categories": [{"id": [1], "name": "a"}]}'),
    "name is a list": ("a.json", b'{"images": [], "annotations": [], "categories": [{"id": 1, "name": ["a"]}]}'),
    "score of infinity": ("a.json", COCO_5 % b'{"image_id": 1, "segmentation": [], "score": 1e999}'),
    "file name with a NUL": (
        "a.json",
        b'{"images": [{"id": 1, "height": 5, "width": 5, "file_name": "a\\u0000b.jpg"}], "annotations": []}',
    ),
    "file name is a surrogate": (
        "a.json",
        b'{"images": [{"id": 1, "height": 5, "width": 5, "file_name": "\\ud800.jpg"}], "annotations": []}',
    ),
    "label is a list": ("a.json", OURS % b'"predicted_iou": 1, "label": ["cat"]'),
    "label of a book": ("a.json", OURS % (b'"predicted_iou": 1, "label": "' + b"x" * 200_000 + b'"')),
    "prompt is a number": ("a.json", OURS % b'"predicted_iou": 1, "prompt": 5'),
    "prompt at infinity": ("a.json", OURS % b'"predicted_iou": 1, "prompt": {"points": [[1e999, 1]], "labels": [1]}'),
    "crop without an end": ("a.json", OURS % b'"predicted_iou": 1, "crop_box": [0, 0, 1e999, 1]'),
    "labelme mask far away": (
        "a.json",
        b'{"imageHeight": 5, "imageWidth": 5, "shapes": [{"shape_type": "mask", "points": [[1, 1e30], [2, 1e30]], '
        b'"mask": "AAAA"}]}',
    ),
    "geojson far away": (
        "a.geojson",
        b'{"type": "FeatureCollection", "anysam": {"size": [5, 5], "transform": [1, 0, 0, 0, 1, 0]}, "features": '
        b'[{"geometry": {"type": "Polygon", "coordinates": [[[0, 1e299], [1e299, 0], [0, 5], [0, 0]]]}}]}',
    ),
    "yolo far away": ("a.txt", b"0 1e300 1e300 0 0 1 1\n"),
    "not json": ("a.json", b"{"),
    "a number": ("a.json", b"5"),
    "another document": ("a.json", b'{"hello": 1}'),
    "nested": ("a.json", b"[" * 100_000),
    "NaN": ("a.json", b'{"images": [{"id": 1, "height": NaN, "width": 5}], "annotations": []}'),
    "huge size": ("a.json", b'{"images": [{"id": 1, "height": 999999999, "width": 999999999}], "annotations": []}'),
    "negative size": ("a.json", b'{"images": [{"id": 1, "height": -5, "width": 5}], "annotations": []}'),
    "no image": ("a.json", b'{"images": [], "annotations": [{"image_id": 3}]}'),
    "list of numbers": ("a.json", b'{"images": [1], "annotations": []}'),
    "id is a list": ("a.json", b'{"images": [{"id": [1], "height": 5, "width": 5}], "annotations": []}'),
    "other mask size": (
        "a.json",
        b'{"images": [{"id": 1, "height": 5, "width": 5}], "annotations": [{"image_id": 1, "segmentation": '
        b'{"size": [4, 4], "counts": [16]}}]}',
    ),
    "runs too long": (
        "a.json",
        b'{"images": [{"id": 1, "height": 5, "width": 5}], "annotations": [{"image_id": 1, "segmentation": '
        b'{"size": [5, 5], "counts": [1e400]}}]}',
    ),
    "odd polygon": (
        "a.json",
        b'{"images": [{"id": 1, "height": 5, "width": 5}], "annotations": [{"image_id": 1, "segmentation": '
        b"[[1, 2, 3, 4, 5]]}]}",
    ),
    "text polygon": (
        "a.json",
        b'{"images": [{"id": 1, "height": 5, "width": 5}], "annotations": [{"image_id": 1, "segmentation": '
        b'[["a", 2, 3, 4, 5, 6]]}]}',
    ),
    "labelme circle": (
        "a.json",
        b'{"imageHeight": 5, "imageWidth": 5, "shapes": [{"shape_type": "circle", "points": [[1, 1], [2, 2]]}]}',
    ),
    "labelme mask": (
        "a.json",
        b'{"imageHeight": 5, "imageWidth": 5, "shapes": [{"shape_type": "mask", "points": [[1, 1], [2, 2]], '
        b'"mask": "AAAA"}]}',
    ),
    "geojson point": (
        "a.geojson",
        b'{"type": "FeatureCollection", "anysam": {"size": [5, 5], "transform": [1, 0, 0, 0, 1, 0]}, "features": '
        b'[{"geometry": {"type": "Point", "coordinates": [1, 2]}}]}',
    ),
    "geojson of another": ("a.geojson", b'{"type": "FeatureCollection", "features": []}'),
    "flat transform": (
        "a.geojson",
        b'{"type": "FeatureCollection", "anysam": {"size": [5, 5], "transform": [1, 0, 0, 1, 0, 0]}, "features": []}',
    ),
    "yolo words": ("a.txt", b"0 0.1 0.2 hello 0.3 0.3 0.4\n"),
    "yolo box": ("a.txt", b"0 0.5 0.5 0.2 0.2\n"),
    "yolo nan": ("a.txt", b"0 nan 0.2 0.3 0.3 0.3 0.4\n"),
    "yolo bytes": ("a.txt", b"\xff\xfe\x00"),
    "npz text": ("a.npz", b"hello"),
    "png text": ("a.png", b"hello"),
}


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_damaged_and_hostile_files_are_refused(name, tmp_path):
    file_name, data = HOSTILE[name]
    (tmp_path / file_name).write_bytes(data)
    with pytest.raises(OptionError, match=file_name.replace(".", r"\.")):
        read_masks(tmp_path / file_name, None, sizes)


def test_a_short_polygon_takes_no_memory_for_a_large_image(tmp_path):
    """Neither that of the image, 18 gigapixels, nor that of an outline that crosses all columns again and again."""
    image = {"id": 1, "height": 100_000, "width": 178_000}
    square = {"image_id": 1, "segmentation": [[5, 5, 99_000, 5, 99_000, 99_000, 5, 99_000]]}
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"images": [image], "annotations": [square]}))
    tracemalloc.start()
    (read,) = read_masks(path)
    assert read.records[0].area == 98_995**2 and read.records[0].box == (5, 5, 99_000, 99_000)
    zigzag = [[0, i, 178_000, i + 1] for i in range(500)]
    path.write_text(json.dumps({"images": [image], "annotations": [{**square, "segmentation": [sum(zigzag, [])]}]}))
    with pytest.raises(OptionError, match=r"a\.json: annotation 1: the outline .* simplify"):
        read_masks(path)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 50e6


def test_an_npz_of_false_sizes_takes_no_memory(tmp_path):
    (path,), _ = written("npz", tmp_path)
    arrays = dict(np.load(path))
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<i8", "fortran_order": False, "shape": (10**13,)})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            file = io.BytesIO()
            np.save(file, array)
            archive.writestr(f"{name}.npy", header.getvalue() if name == "runs" else file.getvalue())
    with pytest.raises(OptionError, match=r"runs is int64 \(10000000000000,\), which is not accepted"):
        read_masks(path)


def test_line_breaks_in_labels_do_not_shift_the_classes(tmp_path):
    records = [MaskRecord.from_mask(disc(40, 30, 25), 0.9, label=label) for label in ("a\nb", "c\u2028d", "e")]
    _, losses = written("yolo", tmp_path, ImageResult("photo.jpg", SIZE, tuple(records)))
    assert losses == [Loss("yolo", "line breaks and the like in names", 2)]
    (read,) = read_masks(tmp_path, "yolo", sizes)
    assert [record.label for record in read.records] == ["a b", "c d", "e"]


def test_stability_and_detection_scores_survive_in_coco(tmp_path):
    record = dataclasses.replace(MaskRecord.from_mask(disc(40, 30, 25), 0.9), stability_score=0.97, detection_score=0.5)
    unsure = dataclasses.replace(record, stability_score=float("nan"), detection_score=None)
    (path,), _ = written("coco", tmp_path, ImageResult("photo.jpg", SIZE, (record, unsure)))
    assert "stability_score" not in json.loads(path.read_text())["annotations"][1]  # JSON has no NaN
    (read,) = read_masks(path)
    assert [(each.stability_score, each.detection_score) for each in read.records] == [(0.97, 0.5), (None, None)]


def test_a_folder_goes_on_after_a_damaged_file_and_names_it(tmp_path):
    written("labelme", tmp_path)
    (tmp_path / "bad.json").write_bytes(b"{")
    failed = []
    for kind in (None, "labelme"):
        assert len(read_masks(tmp_path, kind, failed=failed)) == 1
    assert [file.name for file, _ in failed] == ["bad.json"] * 2
    with pytest.raises(OptionError, match=r"bad\.json"):
        read_masks(tmp_path, "labelme")


def test_names_with_dots_stay_whole(tmp_path):
    for name in ("cat.1", "cat.2"):
        for kind in ("png", "labels", "yolo"):
            write_result(kind, make_folder(tmp_path / kind), name, result([disc(40, 30, 25)]), [])
    for kind in ("png", "labels", "yolo"):
        assert [each.file_name for each in read_masks(tmp_path / kind, kind, sizes)] == ["cat.1", "cat.2"]


def test_an_npz_with_pickles_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", size=np.array([5, 5]), runs=np.array([{"a": 1}], dtype=object))
    with pytest.raises(OptionError, match="no .npz of masks"):
        read_masks(tmp_path / "a.npz")


def test_an_npz_whose_arrays_do_not_fit_is_refused(tmp_path):
    (path,), _ = written("npz", tmp_path)
    arrays = dict(np.load(path))
    arrays["run_counts"] = arrays["run_counts"][:-1]
    np.savez(tmp_path / "b.npz", **arrays)
    with pytest.raises(OptionError, match="do not belong together"):
        read_masks(tmp_path / "b.npz")


def test_a_colour_photograph_is_no_label_map(tmp_path):
    Image.fromarray(np.zeros((5, 5, 3), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(OptionError, match="colours"):
        read_masks(tmp_path / "a.png")


def test_a_folder_of_several_formats_asks_which(tmp_path):
    written("coco", tmp_path)
    written("npz", tmp_path)
    with pytest.raises(OptionError, match="coco, npz"):
        read_masks(tmp_path)
    assert len(read_masks(tmp_path, "npz")) == 1


def test_yolo_needs_the_size_and_the_names(tmp_path):
    (path, names), _ = written("yolo", tmp_path)
    with pytest.raises(OptionError, match="where the images are"):
        read_masks(path)
    assert names.read_text() == "cat\nobject\n"
    names.unlink()
    assert read_yolo(path, SIZE).records[0].label == "class_0"
    with pytest.raises(OptionError, match="no name for class 1"):
        read_yolo(path, SIZE, ["cat"])


def test_the_table_lists_every_format():
    table = formats_table()
    assert len(table.splitlines()) == len(TABLE) + 2
    assert "| `yolo` | `*.txt`, `*.names.txt` |" in table
