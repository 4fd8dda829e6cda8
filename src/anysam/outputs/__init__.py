"""Masks in files: a writer for each format, a reader for each that keeps masks, and one table of them. No inference.

formats.py the table; writing.py and readers.py choose by it. pictures.py, label_map.py, coco.py, yolo.py, labelme.py,
geojson.py, arrays.py (.npz), sa1b.py and native.py (our JSON) are the formats; polygons.py, words.py, reading.py
and files.py are what several of them need; matching.py finds the masks of one image.

Every file is whole or absent (`anysam.atomic`). All failures of writing are OutputError; OptionError is for a wrong
argument or a file that cannot be read.
"""

from anysam.atomic import write_atomic
from anysam.outputs.coco import write_coco_json
from anysam.outputs.files import make_folder, output_stems
from anysam.outputs.formats import FORMATS, READABLE, ImageResult, Loss, check_formats
from anysam.outputs.label_map import label_map
from anysam.outputs.matching import choose_records, records_for_image
from anysam.outputs.native import result_to_dict, write_result_json
from anysam.outputs.pictures import draw_overlay, write_cutout_png, write_mask_png, write_overlay_png
from anysam.outputs.readers import guess_kind, read_masks
from anysam.outputs.writing import write_outputs, write_result

__all__ = [
    "FORMATS",
    "READABLE",
    "ImageResult",
    "Loss",
    "check_formats",
    "choose_records",
    "draw_overlay",
    "guess_kind",
    "label_map",
    "make_folder",
    "output_stems",
    "read_masks",
    "records_for_image",
    "result_to_dict",
    "write_atomic",
    "write_coco_json",
    "write_cutout_png",
    "write_mask_png",
    "write_outputs",
    "write_overlay_png",
    "write_result",
    "write_result_json",
]
