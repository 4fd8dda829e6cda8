"""Folders of images and a COCO-style annotations.json that tells the split of each image; several below one root."""

import json
from collections.abc import Sequence
from pathlib import Path

from anysam.datasets.entries import ImageEntry


def read_coco_folder(folder: Path, split: str) -> list[ImageEntry]:
    """Images of one split ("train" or "val") of a folder with images/ and a COCO-style annotations.json.

    Crowd annotations are left out; images without masks too. Masks must be compressed RLE.
    """
    document = json.loads((folder / "annotations.json").read_text())
    masks: dict[int, list[tuple[bytes, int, int | None]]] = {}
    for annotation in document["annotations"]:
        if not annotation.get("iscrowd"):
            counts = annotation["segmentation"]["counts"].encode("ascii")
            own = (counts, int(annotation["area"]), annotation.get("annotator"))
            masks.setdefault(annotation["image_id"], []).append(own)
    entries = []
    for image in document["images"]:
        found = masks.get(image["id"], [])
        if image["split"] == split and found:
            annotators = [annotator for _, _, annotator in found if annotator is not None]
            entries.append(
                ImageEntry(
                    path=folder / "images" / image["file_name"],
                    dataset=folder.name,
                    name=image["file_name"],
                    size=(image["height"], image["width"]),
                    masks=tuple(counts for counts, _, _ in found),
                    areas=tuple(area for _, area, _ in found),
                    annotators=tuple(annotators) if len(annotators) == len(found) else (),
                )
            )
    return entries


def read_collection(root: Path, split: str, names: Sequence[str] = ()) -> dict[str, list[ImageEntry]]:
    """Every COCO-style folder below root (or only `names`) -> its entries of one split, by folder name.

    Raises FileNotFoundError when root holds no such folder.
    """
    folders = [root / name for name in names] or sorted(p.parent for p in root.glob("*/annotations.json"))
    if not folders:
        raise FileNotFoundError(f"{root} holds no folder with an annotations.json")
    return {folder.name: read_coco_folder(folder, split) for folder in folders}
