"""Reading images: every kind of file becomes the RGB that a viewer shows, every damage one sentence."""

import io
import os
import random
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from anysam.errors import ImageError
from anysam.images import MAX_PIXELS, find_images, read_image


@pytest.fixture
def photo() -> np.ndarray:
    """Smooth colours (24, 36, 3) with four different corners, so that every turn and flip shows."""
    y, x = np.mgrid[:24, :36]
    return np.stack([x * 7, y * 10, 255 - x * 3 - y * 4], axis=2).astype(np.uint8)


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def refusal(source: object, **arguments: int) -> str:
    with pytest.raises(ImageError) as caught:
        read_image(source, **arguments)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".")
    return message


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "PPM", "TGA"])
def test_lossless_files_come_back_exactly(photo, format, tmp_path):
    path = tmp_path / f"photo.{format.lower()}"
    path.write_bytes(encoded(Image.fromarray(photo), format))
    for source in (path, str(path), path.read_bytes(), Image.open(path)):
        image = read_image(source)
        assert image.dtype == np.uint8
        assert image.flags.c_contiguous
        np.testing.assert_array_equal(image, photo)


@pytest.mark.parametrize("format", ["JPEG", "WEBP", "GIF", "JPEG2000"])
def test_lossy_files_come_back_as_pillow_shows_them(photo, format):
    data = encoded(Image.fromarray(photo), format)
    np.testing.assert_array_equal(read_image(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(photo, format, orientation):
    # what each orientation says of the stored rows and columns, from the EXIF standard: where row 0 and column 0 are
    stored = {
        1: photo,
        2: photo[:, ::-1],
        3: photo[::-1, ::-1],
        4: photo[::-1],
        5: photo.transpose(1, 0, 2),
        6: photo.transpose(1, 0, 2)[::-1],
        7: photo.transpose(1, 0, 2)[::-1, ::-1],
        8: photo.transpose(1, 0, 2)[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100, "subsampling": 0} if format == "JPEG" else {}
    options |= {"lossless": True} if format == "WEBP" else {}
    data = encoded(Image.fromarray(np.ascontiguousarray(stored)), format, exif=exif, **options)
    image = read_image(data)
    assert image.shape == photo.shape
    assert np.abs(image.astype(int) - photo).max() <= (6 if format == "JPEG" else 0)


def test_damaged_exif_does_not_spoil_the_picture(photo):
    data = encoded(Image.fromarray(photo), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert read_image(data).shape == photo.shape


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_by_257(format):
    values = np.array([[0, 128, 129, 257], [32768, 65534, 65535, 51400]], dtype=np.uint16)
    image = read_image(encoded(Image.fromarray(values), format))
    np.testing.assert_array_equal(image, np.repeat(np.round(values / 257)[:, :, None], 3, axis=2))
    np.testing.assert_array_equal(read_image(values), image)


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_16_bit_colour_keeps_the_high_byte():
    row = b"\0" + np.array([0, 25600, 65535, 51400, 1, 255], dtype=">u2").tobytes()
    assert read_image(png(2, 1, 16, 2, row)).tolist() == [[[0, 100, 255], [200, 0, 0]]]


def test_transparency_is_laid_on_white(photo):
    alpha = np.zeros(photo.shape[:2], dtype=np.uint8)
    alpha[:, 10:] = 255
    alpha[:, 20:] = 51
    rgba = np.dstack([photo, alpha])
    expected = np.round(photo * (alpha / 255)[:, :, None] + 255 * (1 - alpha / 255)[:, :, None])
    for source in (encoded(Image.fromarray(rgba), "PNG"), Image.fromarray(rgba), rgba):
        image = read_image(source)
        assert np.abs(image - expected).max() <= 1
        np.testing.assert_array_equal(image[:, 10:20], photo[:, 10:20])
        assert (image[:, :10] == 255).all()


def test_grey_palette_and_keyed_transparency_are_laid_on_white():
    grey_alpha = Image.fromarray(np.array([[[10, 255], [10, 0]]], dtype=np.uint8), "LA")
    assert read_image(encoded(grey_alpha, "PNG")).tolist() == [[[10] * 3, [255] * 3]]
    palette = Image.new("P", (2, 1))
    palette.putpalette([9, 8, 7, 1, 2, 3])
    palette.putpixel((1, 0), 1)
    assert read_image(encoded(palette, "PNG")).tolist() == [[[9, 8, 7], [1, 2, 3]]]
    assert read_image(encoded(palette, "PNG", transparency=1)).tolist() == [[[9, 8, 7], [255, 255, 255]]]
    keyed = encoded(Image.fromarray(np.array([[[5, 6, 7], [0, 0, 9]]], dtype=np.uint8)), "PNG", transparency=(0, 0, 9))
    assert read_image(keyed).tolist() == [[[5, 6, 7], [255, 255, 255]]]


def test_grey_one_bit_and_cmyk_become_rgb(photo):
    grey = photo[:, :, 0]
    for source in (grey, grey[:, :, None], encoded(Image.fromarray(grey), "PNG")):
        np.testing.assert_array_equal(read_image(source), np.repeat(grey[:, :, None], 3, axis=2))
    bits = Image.fromarray(grey > 100)
    assert set(np.unique(read_image(encoded(bits, "PNG")))) == {0, 255}
    cmyk = encoded(Image.fromarray(photo).convert("CMYK"), "JPEG", quality=100, subsampling=0)
    assert np.abs(read_image(cmyk).astype(int) - photo).max() <= 8


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_frame_of_an_animation_is_taken(format):
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "blue", "lime")]
    options = {"lossless": True} if format == "WEBP" else {}
    data = encoded(frames[0], format, save_all=True, append_images=frames[1:], **options)
    assert Image.open(io.BytesIO(data)).n_frames == 3
    assert (read_image(data) == (255, 0, 0)).all()


def test_the_main_picture_of_a_phone_photo_with_two_is_taken(photo):
    second = Image.new("RGB", (9, 9), "red")
    data = encoded(Image.fromarray(photo), "MPO", save_all=True, append_images=[second], quality=100)
    assert read_image(data).shape == photo.shape


def test_one_pixel_is_an_image():
    assert read_image(encoded(Image.new("RGB", (1, 1), (1, 2, 3)), "PNG")).tolist() == [[[1, 2, 3]]]


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "JPEG2000"])
def test_cut_short_files_are_refused_by_name(format, tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), format)
    path = tmp_path / "cut.img"
    path.write_bytes(data[: len(data) * 2 // 3])
    assert "cut.img" in refusal(path)


def test_damaged_bytes_never_raise_anything_else():
    noise = np.random.default_rng(1).integers(0, 255, (24, 24, 3), dtype=np.uint8)
    generator = random.Random(0)
    refused = 0
    for format in ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "JPEG2000", "AVIF"):
        whole = encoded(Image.fromarray(noise), format)
        for _ in range(60):
            data = bytearray(whole)
            for _ in range(generator.randint(1, 8)):
                data[generator.randrange(min(len(data), 200))] = generator.randrange(256)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    read_image(bytes(data), max_pixels=1_000_000)
                except ImageError as error:
                    refused += 1
                    assert "\n" not in str(error)
    assert refused > 100


def test_missing_empty_foreign_and_unreadable_files_say_so(tmp_path):
    assert "no.png does not exist" in refusal(tmp_path / "no.png")
    assert "download it first" in refusal("https://example.org/cat.jpg")
    assert "is a folder" in refusal(tmp_path)
    empty = tmp_path / "empty.jpg"
    empty.touch()
    assert "empty.jpg is empty (0 bytes)" in refusal(empty)
    assert "is empty" in refusal(b"")
    text = tmp_path / "words.png"
    text.write_text("not a picture at all")
    message = refusal(text)
    assert "words.png is not an image" in message
    assert "JPEG, PNG" in message
    assert "cannot be read" in refusal("a\0b.png")
    assert "cannot be read" in refusal("x" * 300)
    assert "got int" in refusal(3)
    os.mkfifo(tmp_path / "pipe")
    assert "not a regular file" in refusal(tmp_path / "pipe")


def test_bombs_are_refused_from_the_header():
    huge = png(60000, 60000, 8, 2, b"")
    assert f"more than {MAX_PIXELS:,} pixels" in refusal(huge)
    assert f"at most {MAX_PIXELS:,} are accepted" in refusal(huge, max_pixels=10**10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nor is there a warning on the way
        assert "12000x12000 = 144,000,000 pixels, at most 1,000,000" in refusal(
            png(12000, 12000, 8, 2, b""), max_pixels=1_000_000
        )
    assert "10x10 = 100 pixels" in refusal(Image.new("RGB", (10, 10)), max_pixels=99)
    assert read_image(Image.new("RGB", (10, 10)), max_pixels=100).shape == (10, 10, 3)


def test_float_and_wide_integer_images_are_refused():
    assert "floating-point" in refusal(encoded(Image.fromarray(np.ones((2, 2), dtype=np.float32)), "TIFF"))
    assert "32-bit values from -1 to 70000" in refusal(Image.fromarray(np.array([[-1, 70000]], dtype=np.int32)))


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.full((4, 4, 3), 200.0), "values from 0 to 1, got 200 to 200; convert values of 0 to 255 by image.astype"),
        (np.full((4, 4, 3), np.nan), "values from 0 to 1, got nan"),
        (np.full((4, 4, 3), -0.1), "got -0.1 to -0.1"),
        (torch.zeros(3, 8, 3), "could have its channels first or last"),
        (torch.zeros(2, 8, 9), "got (2, 8, 9)"),
        (np.zeros((4, 4), dtype=bool), "got bool"),
        (np.zeros((4, 4, 2), dtype=np.uint8), r"got (4, 4, 2)"),
        (np.zeros((3, 8, 9), dtype=np.uint8), "bring the channels to the end"),
        (np.zeros((0, 4, 3), dtype=np.uint8), "got (0, 4, 3)"),
        (np.zeros(4, dtype=np.uint8), "got (4,)"),
        (np.zeros((1, 4, 4, 3), dtype=np.uint8), "got (1, 4, 4, 3)"),
    ],
)
def test_arrays_that_are_no_image_say_their_shape(array, words):
    assert words in refusal(array)


def test_views_are_made_contiguous(photo):
    flipped = read_image(photo[:, ::-1])
    assert flipped.flags.c_contiguous
    np.testing.assert_array_equal(flipped, photo[:, ::-1])


def test_folders_and_patterns_are_expanded_in_order(tmp_path):
    for name in ("b.JPG", "a.png", "notes.txt", ".hidden.png", "c.webp"):
        (tmp_path / name).touch()
    (tmp_path / "deeper.png").mkdir()
    (tmp_path / "deeper.png" / "d.png").touch()
    inside = [tmp_path / "a.png", tmp_path / "b.JPG", tmp_path / "c.webp"]
    assert find_images([tmp_path]) == inside
    assert find_images([tmp_path / "c.webp", str(tmp_path)]) == [inside[2], inside[0], inside[1]]
    assert find_images([str(tmp_path / "?.png"), "missing.png"]) == [inside[0], Path("missing.png")]
    assert find_images([tmp_path / "**" / "d.*"]) == [tmp_path / "deeper.png" / "d.png"]
    assert find_images([tmp_path / "notes.txt"]) == [tmp_path / "notes.txt"]


def test_folders_and_patterns_without_images_are_refused(tmp_path):
    with pytest.raises(ImageError, match="has no image"):
        find_images([tmp_path])
    with pytest.raises(ImageError, match="No file matches"):
        find_images([tmp_path / "*.png"])


def test_a_file_with_pattern_characters_in_its_name_is_itself(tmp_path):
    path = tmp_path / "photo[1].png"
    path.touch()
    assert find_images([path]) == [path]


def test_floating_point_images_of_unit_range_are_rounded_to_eight_bits(photo):
    for dtype in (np.float64, np.float32, np.float16):
        np.testing.assert_array_equal(read_image((photo / 255).astype(dtype)), photo)


def test_tensors_are_read_with_channels_first_or_last(photo):
    for tensor in (torch.from_numpy(photo), torch.from_numpy(photo).permute(2, 0, 1), torch.from_numpy(photo / 255)):
        np.testing.assert_array_equal(read_image(tensor), photo)
    coarse = read_image(torch.from_numpy(photo / 255).permute(2, 0, 1).to(torch.bfloat16).requires_grad_())
    assert np.abs(coarse.astype(int) - photo).max() <= 1
