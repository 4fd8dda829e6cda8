"""The COCO-style reader, against pycocotools' own reader."""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from anysam.datasets import read_coco_folder, read_collection, read_dataset


def write_folder(folder, masks_by_image, split="train"):
    """masks_by_image: file name -> list of (mask, iscrowd)."""
    (folder / "images").mkdir(parents=True)
    images, annotations = [], []
    for number, (name, masks) in enumerate(masks_by_image.items(), start=1):
        height, width = masks[0][0].shape if masks else (10, 12)
        Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(folder / "images" / name)
        images.append({"id": number, "file_name": name, "height": height, "width": width, "split": split})
        for mask, crowd in masks:
            rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": 1,
                    "area": float(mask.sum()),
                    "iscrowd": crowd,
                    "segmentation": {"size": [height, width], "counts": rle["counts"].decode()},
                }
            )
    document = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    (folder / "annotations.json").write_text(json.dumps(document))


@pytest.fixture
def blobs():
    rng = np.random.default_rng(5)
    return [rng.random((20, 33)) > 0.5 for _ in range(3)]


def test_masks_and_areas_equal_pycocotools(tmp_path, blobs):
    folder = tmp_path / "set"
    write_folder(folder, {"a.png": [(blobs[0], 0), (blobs[1], 0)]})
    (entry,) = read_coco_folder(folder, "train")
    reference = COCO(folder / "annotations.json")
    for i, annotation in enumerate(reference.loadAnns(reference.getAnnIds(imgIds=1))):
        assert np.array_equal(entry.decode(i), reference.annToMask(annotation))
        assert entry.areas[i] == annotation["area"]
    assert entry.size == (20, 33) and entry.path == folder / "images" / "a.png" and entry.dataset == "set"


def test_crowds_other_splits_and_images_without_masks_are_left_out(tmp_path, blobs):
    write_folder(
        tmp_path / "set", {"a.png": [(blobs[0], 0), (blobs[1], 1)], "crowd.png": [(blobs[2], 1)], "none.png": []}
    )
    entries = read_coco_folder(tmp_path / "set", "train")
    assert [(e.path.name, len(e.masks)) for e in entries] == [("a.png", 1)]
    assert read_coco_folder(tmp_path / "set", "val") == []


def test_a_collection_is_keyed_by_folder_and_an_empty_one_is_an_error(tmp_path, blobs):
    write_folder(tmp_path / "one", {"a.png": [(blobs[0], 0)]})
    write_folder(tmp_path / "two", {"b.png": [(blobs[1], 0)]})
    assert {name: len(own) for name, own in read_collection(tmp_path, "train").items()} == {"one": 1, "two": 1}
    assert list(read_collection(tmp_path, "train", ["two"])) == ["two"]
    with pytest.raises(FileNotFoundError, match=r"annotations\.json"):
        read_collection(tmp_path / "one" / "images", "train")


def test_images_of_one_name_in_two_folders_of_a_collection_are_told_apart(tmp_path, blobs):
    write_folder(tmp_path / "one", {"a.png": [(blobs[0], 0)]})
    write_folder(tmp_path / "two", {"a.png": [(blobs[1], 0)]})
    assert [entry.name for entry in read_dataset(tmp_path)] == ["one/a.png", "two/a.png"]
    assert [entry.name for entry in read_dataset(tmp_path / "two")] == ["a.png"]
