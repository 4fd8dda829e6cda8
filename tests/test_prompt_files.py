"""Files of boxes and points: which image gets what, and what is said of a file that is wrong."""

import json
from pathlib import Path

import numpy as np
import pytest

from anysam.commands.prompt_files import read_prompts, unknown_words
from anysam.errors import OptionError, PromptError

WIDTH, HEIGHT = 60, 40
SIZE = (HEIGHT, WIDTH)
A, B = Path("photos/a.png"), Path("photos/b.png")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(name, content):
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def read(name, content, images=(A,), kind="box"):
    return read_prompts(write(name, content), kind, list(images))


def pixels(found, image=A, size=SIZE):
    return found.images[image].in_pixels(size).tolist()


def refusal(name, content, images=(A,), kind="box"):
    with pytest.raises(OptionError) as error:
        read(name, content, images, kind)
    message = str(error.value)
    assert message.startswith(name) or name in message
    assert "\n" not in message and len(message) < 500
    return message


# CSV


@pytest.mark.parametrize(
    "text",
    [
        "a.png,1,2,30,20,cup,0.5\nb.png,5,5,9,9\n",
        "image,x0,y0,x1,y1,label,score\na.png,1,2,30,20,cup,0.5\nb.png,5,5,9,9,,\n",
        "file_name,x1,y1,x2,y2,label,score\na.png,1,2,30,20,cup,.5\nb.png,5,5,9,9\n",
        "score,label,xmin,ymin,xmax,ymax,Filename\n0.5,cup,1,2,30,20,a.png\n,,5,5,9,9,b.png\n",
        "a.png;1;2;30;20;cup;0.5\nb.png;5;5;9;9\n",
        "a.png\t1\t2\t30\t20\tcup\t0.5\nb.png\t5\t5\t9\t9\n",
        "\ufeffimage,x0,y0,x1,y1,label,score\r\na.png,1,2,30,20,cup,0.5\r\n\r\nb.png,5,5,9,9\r\n",
        '"a.png","1","2","30","20","cup","0.5"\n"photos/b.png",5,5,9,9',
        " a.png , 1, 2.0, 3e1, 20, cup, 0.5\n photos\\b.png, 5, 5, 9, 9",
    ],
    ids=["plain", "header", "x1x2", "any order", "semicolon", "tab", "bom crlf", "quoted", "spaces"],
)
def test_boxes_of_a_csv_file_in_its_many_forms(text):
    found = read("boxes.csv", text, (A, B))
    assert pixels(found) == [[1, 2, 30, 20]] and pixels(found, B) == [[5, 5, 9, 9]]
    assert (found.images[A].labels, found.images[A].scores) == (("cup",), (0.5,))
    assert (found.images[B].labels, found.images[B].scores) == ((None,), (None,))
    assert found.unknown == {} and unknown_words(found) is None


def test_a_csv_file_without_names_is_for_one_image():
    assert pixels(read("boxes.csv", "1,2,30,20\n4,5,6,7,cup\n")) == [[1, 2, 30, 20], [4, 5, 6, 7]]
    assert pixels(read("boxes.csv", "x0,y0,x1,y1\n1,2,30,20\n")) == [[1, 2, 30, 20]]
    assert "does not say of which image" in refusal("boxes.csv", "1,2,30,20\n", (A, B))


def test_points_of_a_csv_file():
    found = read("points.csv", "image,x,y,label\na.png,3,4,cup\nb.png,5,6,\na.png,7.5,8\n", (A, B), "point")
    assert pixels(found) == [[3, 4], [7.5, 8]] and pixels(found, B) == [[5, 6]]
    assert found.images[A].labels == ("cup", None)
    assert pixels(read("points.csv", "3,4\n5,6,spoon\n", kind="point")) == [[3, 4], [5, 6]]
    assert pixels(read("points.txt", "a.png,3,4\n", kind="point")) == [[3, 4]]


def test_images_are_told_by_as_much_of_their_path_as_is_given(folder):
    first, second = Path("x/cat.png"), Path("y/cat.png")
    text = f"x/cat.png,1,1,2,2\n{folder}/y/cat.png,3,3,4,4\n"
    found = read("boxes.csv", text, (first, second))
    assert (pixels(found, first), pixels(found, second)) == ([[1, 1, 2, 2]], [[3, 3, 4, 4]])
    message = refusal("boxes.csv", "x/cat.png,1,1,2,2\ncat.png,3,3,4,4\n", (first, second))
    assert "line 2" in message and "x/cat.png or y/cat.png" in message


def test_rows_of_other_images_are_reported_and_images_without_rows_have_none():
    found = read("boxes.csv", "a.png,1,1,2,2\nz.png,1,1,2,2\nz.png,1,1,3,3\nother/a.png,1,1,2,2\n", (A, B))
    assert found.unknown == {"z.png": 2, "other/a.png": 1}
    assert "3 boxes not used" in unknown_words(found) and "z.png, other/a.png" in unknown_words(found)
    assert pixels(found, B) == [] and found.images[B].in_pixels(SIZE).shape == (0, 4)
    assert "no box for any of the images: z.png" in refusal("boxes.csv", "z.png,1,1,2,2\n")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["is empty"]),
        ("\ufeff\r\n \r\n", ["is empty"]),
        ("image,x0,y0,x1,y1\n", ["no box for any"]),
        ("a.png,1,2,3\n", ["line 1", "4 values", "image,x0,y0,x1,y1[,label[,score]]"]),
        ("a.png,1,2,30,20\na.png,1,2,x,20\n", ["line 2", "x1 must be a finite number", "'x'"]),
        ("a.png,1,2,30,20\na.png,1,2,,20\n", ["line 2", "finite number"]),
        ("a.png,1,2,30,20\n\n\na.png,1,2,nan,20\n", ["line 4", "'nan'"]),
        ("a.png,1,2,inf,20\n", ["line 1", "'inf'"]),
        ("a.png,1,2,1e999,20\n", ["line 1", "1e999"]),
        ("a.png,1,2,1_0,20\n", ["1_0"]),
        ("a.png,30,2,1,20\n", ["line 1", "x1 > x0", "30,2,1,20"]),
        ("a.png,1,2,1,20\n", ["line 1", "x1 > x0"]),
        ("a.png,1,2,30,20,cup,7\n", ["line 1", "score", "7"]),
        ("a.png,1,2,30,20,cup,high\n", ["line 1", "score", "high"]),
        ("a.png,1,2,30,20,cup,0.5,1\n", ["line 1", "8 values"]),
        ("x0,y0,x1,y1\n1,2,30,20,cup\n", ["line 2", "5 values"]),
        ("a.png,1,2,30,20\na.png,1,2\n", ["line 2", "3 values"]),
        (",1,2,30,20\n", ["line 1"]),
        ("a.png,1,2,30,20\n,1,2,30,20\n", ["line 2", "names no image"]),
        ("image,x,y,w,h\na.png,1,2,30,20\n", ["line 1", "image,x,y,w,h", "accepted are rows of"]),
        ("image,file,x0,y0,x1,y1\n", ["line 1", "accepted are rows of"]),
        ("x0,y0,x1,y1,x0\n", ["line 1", "accepted are rows of"]),
        ('a.png,1,2,30,20\n"a.png,1,2,30,20\n', ["is not CSV"]),
        ("a.png,1,2,30," + "9" * 200_000 + "\n", ["is not CSV", "field larger"]),
        ("a.png,1,2,30," + "9" * 5000 + "\n", ["line 1", "finite"]),
        (b"a.png,1,2,30,20\n\xff\xfe\n", ["not UTF-8"]),
        ("a.png,1,2,30,20\n".encode("utf-16"), ["not UTF-8"]),
    ],
)
def test_a_malformed_csv_file_is_refused_with_the_line(text, words):
    message = refusal("boxes.csv", text)
    assert all(word in message for word in words), message


def test_a_table_of_points_is_no_table_of_boxes():
    assert "accepted are rows of image,x0,y0" in refusal("boxes.csv", "image,x,y\na.png,1,2\n")
    assert "accepted are rows of image,x,y" in refusal("points.csv", "a.png,1,2,3,4\n", kind="point")


# COCO


def coco(**changes):
    document = {
        "images": [
            {"id": 7, "file_name": "photos/a.png", "width": WIDTH, "height": HEIGHT},
            {"id": 8, "file_name": "b.png"},
        ],
        "annotations": [
            {"id": 1, "image_id": 8, "bbox": [5, 5, 4, 4], "category_id": 3, "iscrowd": 0},
            {"id": 2, "image_id": 7, "bbox": [1, 2, 29, 18], "category_id": 4, "score": 0.5},
        ],
        "categories": [{"id": 3, "name": "spoon"}, {"id": 4, "name": "cup"}],
    }
    return json.dumps({**document, **changes})


def test_boxes_of_a_coco_file_are_x_y_width_height_with_names():
    found = read("instances.json", coco(), (A, B))
    assert pixels(found) == [[1, 2, 30, 20]] and pixels(found, B) == [[5, 5, 9, 9]]
    assert (found.images[A].labels, found.images[A].scores) == (("cup",), (0.5,))
    assert (found.images[B].labels, found.images[B].scores) == (("spoon",), (None,))


def test_coco_results_name_images_by_file_name_by_number_or_by_stem():
    images = (Path("val/000000000139.jpg"), Path("val/cat.jpg"), Path("val/dog.jpg"))
    rows = [
        {"image_id": 139, "bbox": [1, 2, 29, 18], "score": 0.25, "category_id": 62},
        {"image_id": 5, "file_name": "cat.jpg", "bbox": [0, 0, 4.5, 4]},
        {"image_id": "dog", "bbox": [0, 0, 3, 3], "category_id": 62},
        {"image_id": 140, "bbox": [0, 0, 3, 3]},
    ]
    found = read("results.json", json.dumps(rows), images)
    assert [pixels(found, image) for image in images] == [[[1, 2, 30, 20]], [[0, 0, 4.5, 4]], [[0, 0, 3, 3]]]
    assert found.images[images[0]].labels == ("62",) and found.images[images[0]].scores == (0.25,)
    assert found.unknown == {"140": 1}


def test_a_coco_file_of_images_of_another_size_is_refused_for_those():
    found = read("instances.json", coco(), (A, B))
    with pytest.raises(PromptError, match=r"annotation 1: .*60x40.*40x60"):
        found.images[A].in_pixels((WIDTH, HEIGHT))
    assert len(found.images[B].in_pixels((WIDTH, HEIGHT))) == 1  # its size is not in the file


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[]", ["no box for any"]),
        ("{}", ["must be a list of COCO results"]),
        ("[1]", ["entry 0", "object", "1"]),
        ("[{", ["is not JSON"]),
        ("[" * 100_000, ["is not JSON"]),
        ('[{"bbox": [1, 2, 3]}]', ["entry 0", "[x, y, width, height]"]),
        ('[{"bbox": "1,2,3,4"}]', ["entry 0", "[x, y, width, height]"]),
        ('[{"bbox": [1, 2, NaN, 4]}]', ["entry 0", "finite", "nan"]),
        ('[{"bbox": [1, 2, Infinity, 4]}]', ["entry 0", "finite", "inf"]),
        ('[{"bbox": [1, 2, 1e999, 4]}]', ["entry 0", "finite", "inf"]),
        ('[{"bbox": [1, 2, 1' + "0" * 400 + ", 4]}]", ["entry 0", "finite"]),
        ('[{"bbox": [1, 2, 1' + "0" * 9000 + ", 4]}]", ["is not JSON"]),
        ('[{"bbox": [1e308, 2, 1e308, 4]}]', ["entry 0", "x1 > x0"]),
        ('[{"bbox": [1, 2, true, 4]}]', ["entry 0", "True"]),
        ('[{"bbox": [1, 2, -3, 4]}]', ["entry 0", "x1 > x0"]),
        ('[{"bbox": [1, 2, 3, 0]}]', ["entry 0", "y1 > y0"]),
        ('[{"bbox": [1, 2, 3, 4], "score": 2}]', ["entry 0", "score", "2"]),
        ('[{"bbox": [1, 2, 3, 4], "score": "high"}]', ["entry 0", "score", "high"]),
        ('[{"bbox": [1, 2, 3, 4], "image_id": [1]}]', ["entry 0", "image_id", "[1]"]),
        ('[{"bbox": [1, 2, 3, 4], "file_name": 5}]', ["entry 0", "file_name", "5"]),
        (coco(images=[]), ["annotation 0", "image_id 8", "none of the file's images"]),
        (coco(images={}), ["images must be a list"]),
        (coco(images=[{"id": 7}, {"id": 7}]), ["images entry 1", "twice"]),
        (coco(images=[{"id": 7}, {"id": 8}]), ["annotation 0", "file_name"]),
        (coco(categories=[{"name": "cup"}]), ["categories entry 0", "id"]),
        (coco(annotations=[5]), ["annotation 0", "object"]),
        (b'[{"bbox": "\xff"}]', ["not UTF-8"]),
    ],
)
def test_a_malformed_coco_file_is_refused_with_the_entry(text, words):
    message = refusal("boxes.json", text)
    assert all(word in message for word in words), message


def test_points_are_not_read_from_json():
    assert "accepted for points is CSV" in refusal("points.json", "[]", kind="point")


# YOLO


def test_boxes_of_yolo_text_are_parts_of_the_image():
    found = read("a.txt", "2 0.5 0.5 0.5 0.5\n\n0 0.25 0.25 0.1 0.2 0.75\r\n")
    expected = [[15, 10, 45, 30], [12, 6, 18, 14]]
    assert np.allclose(pixels(found), expected, atol=1e-12)
    assert (found.images[A].labels, found.images[A].scores) == (("2", "0"), (None, 0.75))
    assert pixels(found, size=(400, 600))[0] == [150, 100, 450, 300]


def test_a_folder_of_yolo_text_has_a_file_for_each_image():
    write("labels/a.txt", "1 0.5 0.5 0.5 0.5")
    write("labels/b.txt", "")
    write("labels/z.txt", "0 0.5 0.5 0.5 0.5\n" * 2)
    write("labels/classes.txt", "spoon\ncup\n")
    found = read_prompts(Path("labels"), "box", [A, B, Path("c.png")])
    assert [len(found.images[image].values) for image in (A, B, Path("c.png"))] == [1, 0, 0]
    assert found.images[A].labels == ("cup",)
    assert found.unknown == {"labels/z.txt": 2}


def test_one_yolo_file_is_for_the_image_of_its_name():
    found = read("b.txt", "1 0.5 0.5 0.5 0.5", (A, B))
    assert pixels(found, B) == [[15, 10, 45, 30]] and pixels(found) == []
    assert "none of the 2 images" in refusal("c.txt", "1 0.5 0.5 0.5 0.5", (A, B))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0.5 0.5 0.5 0.5\n", ["line 1", "4 values", "class cx cy w h"]),
        ("1 0.5 0.5 0.5 0.5\n0.5 0.5 0.5\n", ["line 2", "3 values", "class cx cy w h"]),
        ("1 0.1 0.1 0.9 0.1 0.9 0.9 0.5 0.5\n", ["line 1", "9 values", "outlines"]),
        ("1 320 240 100 100\n", ["line 1", "0 to 1", "320"]),
        ("1 0.5 0.5 -0.1 0.1\n", ["line 1", "0 to 1"]),
        ("1 0.5 0.5 0 0.1\n", ["line 1", "x1 > x0"]),
        ("1 0.5 nan 0.1 0.1\n", ["line 1", "finite"]),
        ("cup 0.5 0.5 0.1 0.1\n", ["line 1", "class", "cup"]),
        ("-1 0.5 0.5 0.1 0.1\n", ["line 1", "class", "-1"]),
        ("1" * 5000 + " 0.5 0.5 0.1 0.1\n", ["line 1", "class"]),
        ("1 0.5 0.5 0.1 0.1 3\n", ["line 1", "score"]),
    ],
)
def test_malformed_yolo_text_is_refused_with_the_line(text, words):
    message = refusal("boxes.txt", text)
    assert all(word in message for word in words), message


def test_an_empty_folder_a_missing_file_and_a_folder_of_points_are_refused(folder):
    (folder / "labels").mkdir()
    for path, kind, words in (
        ("labels", "box", "no text file"),
        ("gone.csv", "box", "does not exist"),
        ("labels", "point", "is a folder"),
        ("/dev/null", "box", "not a regular file"),
        ("nul\0.csv", "box", "does not exist"),
    ):
        with pytest.raises(OptionError, match=words):
            read_prompts(Path(path), kind, [A])


def test_a_file_too_large_to_read_is_refused_by_its_size(folder):
    with open("huge.csv", "wb") as file:
        file.truncate(3_000_000_000)  # takes no room on the disk
    with pytest.raises(OptionError, match="too large: 3,000,000,000 bytes"):
        read_prompts(Path("huge.csv"), "box", [A])


# Against the image


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ("60,0,70,10", "box"),
        ("0,40,10,50", "box"),
        ("-20,0,0,10", "box"),
        ("0,-20,10,-1", "box"),
        ("61,3", "point"),
        ("3,40.5", "point"),
        ("-1,3", "point"),
    ],
)
def test_what_lies_outside_of_the_image_is_refused_with_its_line(row, kind):
    inside = "1,1,2,2" if kind == "box" else "1,1"
    found = read("rows.csv", f"{inside}\n{row}\n", kind=kind)
    with pytest.raises(PromptError, match=rf"rows.csv line 2: the {kind} {row} lies outside of the image \(60x40\)"):
        found.images[A].in_pixels(SIZE)


def test_a_box_that_sticks_out_of_the_image_is_kept_as_it_is():
    assert pixels(read("boxes.csv", "-5,-5,20,20\n50,30,100,100\n")) == [[-5, -5, 20, 20], [50, 30, 100, 100]]
