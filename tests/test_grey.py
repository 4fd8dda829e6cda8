"""Grey PNGs as Pillow reads them, and JSON that is written piece by piece."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from anysam.errors import OutputError
from anysam.outputs.files import write_json
from anysam.outputs.grey import grey_png
from anysam.outputs.pictures import cut_out


@pytest.mark.parametrize("size", [(1, 1), (255, 3), (256, 17), (700, 33)])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize(("dtype", "mode"), [(np.bool_, "L"), (np.uint8, "L"), (np.uint16, "I;16")])
def test_a_grey_png_has_the_pixels_it_was_made_of(size, order, dtype, mode):
    values = np.random.default_rng(0).integers(0, 2 if dtype is np.bool_ else np.iinfo(dtype).max + 1, size)
    pixels = np.asarray(np.repeat(values, 2, axis=1).astype(dtype), order=order)
    image = Image.open(io.BytesIO(b"".join(grey_png(pixels))))
    assert image.mode == mode
    expected = pixels.astype(np.uint8) * 255 if dtype is np.bool_ else pixels
    assert np.array_equal(np.asarray(image), expected)


def test_a_cut_out_keeps_nothing_of_the_background():
    image = np.random.default_rng(0).integers(1, 256, (9, 14, 3), dtype=np.uint8)
    mask = np.random.default_rng(1).random((9, 14)) < 0.5
    found = np.asarray(cut_out(image[2:, 3:], mask[2:, 3:]))
    inside = mask[2:, 3:]
    assert np.array_equal(found[inside][:, :3], image[2:, 3:][inside]) and (found[inside][:, 3] == 255).all()
    assert not found[~inside].any()


@pytest.mark.parametrize("rows", [[], [{"a": 1}], [{"a": 0.1, "é": [None, True]}, [], "x"]])
def test_json_written_by_pieces_is_json_written_whole(tmp_path, rows):
    document = {"first": {"a": [1.5]}, "rows": rows, "last": "é"}
    write_json(tmp_path / "a.json", document | {"rows": iter(rows)})
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == json.dumps(document, ensure_ascii=False)


def test_json_that_fails_in_the_middle_leaves_no_file(tmp_path):
    with pytest.raises(OutputError, match="no finite number"):
        write_json(tmp_path / "a.json", {"rows": iter([1.0, float("nan")])})
    assert list(tmp_path.iterdir()) == []
