"""Windows of images against the whole image, GeoTIFFs against rasterio's own reading of them."""

import struct
import subprocess
import sys
import warnings

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from anysam import rasters
from anysam.errors import ImageError, MissingExtraError
from anysam.images import read_image
from anysam.rasters import ArraySource, ImageSource, RasterSource, geo_facts, open_image

# of rasterio's own code, under the newest affine
pytestmark = pytest.mark.filterwarnings("ignore:Use `@` matmul:PendingDeprecationWarning")

WEST, NORTH = 500_000.0, 4_600_000.0


def noise(height=90, width=120, bands=3, dtype=np.uint8, seed=0):
    most = 255 if dtype == np.uint8 else 5000
    return np.random.default_rng(seed).integers(0, most, (height, width, bands)).astype(dtype)


def save_geotiff(path, pixels, **options):
    """Write pixels (H, W, bands), 10 metres each, by rasterio; options as for rasterio.open, None leaves one out."""
    rasterio = pytest.importorskip("rasterio", reason="rasterio is not installed: pip install 'anysam[geo]'")
    place = {"crs": "EPSG:32633", "transform": rasterio.transform.from_origin(WEST, NORTH, 10, 10)} | options
    shape = {"height": pixels.shape[0], "width": pixels.shape[1], "count": pixels.shape[2], "dtype": pixels.dtype}
    given = {name: value for name, value in place.items() if value is not None and name not in ("colormap", "kinds")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(path, "w", driver="GTiff", **shape, **given) as dataset:
            if "kinds" in options:
                dataset.colorinterp = [rasterio.enums.ColorInterp[kind] for kind in options["kinds"]]
            if "colormap" in options:
                dataset.write_colormap(1, options["colormap"])
            dataset.write(pixels.transpose(2, 0, 1))
    return path


def whole(source):
    height, width = source.size
    return source.read(0, 0, width, height)


def without_rasterio(monkeypatch):
    monkeypatch.setitem(sys.modules, "rasterio", None)


def test_rasterio_is_not_imported_unless_a_file_needs_it(tmp_path):
    Image.fromarray(noise()).save(tmp_path / "a.png")
    Image.fromarray(noise()).save(tmp_path / "a.tif")
    program = (
        "import sys\nfrom anysam.rasters import geo_facts, open_image\n"
        "for name in sys.argv[1:]:\n    open_image(name), geo_facts(name)\n"
        "print('rasterio' in sys.modules)"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "a.png"), str(tmp_path / "a.tif")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "False"


def test_a_window_of_an_array_is_its_slice():
    pixels = noise()
    source = ArraySource(pixels)
    assert isinstance(source, ImageSource)
    assert source.size == (90, 120)
    np.testing.assert_array_equal(source.read(3, 5, 50, 60), pixels[5:60, 3:50])


@pytest.mark.parametrize("window", [(-1, 0, 5, 5), (0, 0, 121, 5), (0, 0, 5, 91), (5, 5, 5, 9), (9, 5, 5, 9)])
def test_windows_outside_the_image_or_without_pixels_are_refused(window, tmp_path):
    for source in (ArraySource(noise()), open_image(save_geotiff(tmp_path / "a.tif", noise()))):
        with pytest.raises(ImageError, match="must lie in the image of 120x90"):
            source.read(*window)


def test_plain_files_are_decoded_as_everywhere(tmp_path):
    for name in ("a.png", "a.tif", "a.jpg"):
        Image.fromarray(noise()).save(tmp_path / name)
        source = open_image(tmp_path / name)
        assert isinstance(source, ArraySource)
        assert (source.crs, source.transform) == (None, None)
        np.testing.assert_array_equal(whole(source), read_image(tmp_path / name))


def test_files_that_are_no_image_get_the_same_errors_as_everywhere(tmp_path):
    (tmp_path / "text.tif").write_text("not a picture")
    (tmp_path / "stump.tif").write_bytes(b"II*\0\x08\0\0\0")
    for name, words in [("missing.tif", "does not exist"), ("text.tif", "not an image"), ("stump.tif", "stump.tif is")]:
        with pytest.raises(ImageError, match=words):
            open_image(tmp_path / name)
    with pytest.raises(ImageError, match="is a folder"):
        open_image(tmp_path)


@pytest.mark.parametrize("options", [{}, {"tiled": True, "blockxsize": 32, "blockysize": 16, "compress": "deflate"}])
def test_a_geotiff_is_read_by_windows_and_knows_its_place(tmp_path, options):
    pixels = noise()
    source = open_image(save_geotiff(tmp_path / "a.tif", pixels, **options))
    assert isinstance(source, RasterSource) and isinstance(source, ImageSource)
    assert source.size == (90, 120)
    assert source.crs == "EPSG:32633"
    assert source.transform == (10, 0, WEST, 0, -10, NORTH)
    for x0, y0, x1, y1 in [(0, 0, 120, 90), (31, 15, 33, 17), (119, 89, 120, 90), (0, 40, 120, 41)]:
        window = source.read(x0, y0, x1, y1)
        assert window.dtype == np.uint8 and window.flags.c_contiguous
        np.testing.assert_array_equal(window, pixels[y0:y1, x0:x1])
    source.close()


def test_a_plain_geotiff_needs_no_extra_and_looks_the_same(tmp_path, monkeypatch):
    for bands in (1, 3):
        path = save_geotiff(tmp_path / f"{bands}.tif", noise(bands=bands), photometric="RGB" if bands == 3 else None)
        with_extra = open_image(path)
        assert isinstance(with_extra, RasterSource)
        shown = whole(with_extra)
        with monkeypatch.context() as patch:
            without_rasterio(patch)
            source = open_image(path)
        assert isinstance(source, ArraySource)
        np.testing.assert_array_equal(whole(source), shown)
        assert (source.crs, source.transform) == (with_extra.crs, with_extra.transform)


def test_what_only_rasterio_reads_says_how_to_install_it(tmp_path, monkeypatch):
    deep = save_geotiff(tmp_path / "deep.tif", noise(dtype=np.uint16))
    with_nodata = save_geotiff(tmp_path / "nodata.tif", noise(), nodata=0)
    big = tmp_path / "big.tif"
    big.write_bytes(tiff_header(40_000, 30_000))
    without_rasterio(monkeypatch)
    for path in (deep, with_nodata, big):
        with pytest.raises(MissingExtraError, match=r"rasterio.*pip install 'anysam\[geo\]'"):
            open_image(path)


def tiff_header(width, height):
    """A TIFF that promises 8-bit grey pixels and has none."""
    tags = [(256, 4, width), (257, 4, height), (258, 3, 8), (259, 3, 1), (262, 3, 1), (273, 4, 200), (277, 3, 1)]
    tags += [(278, 4, height), (279, 4, 1)]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(200)


def test_more_pixels_than_are_decoded_whole_are_read_by_windows(tmp_path):
    path = save_geotiff(tmp_path / "a.tif", np.zeros((1, 1, 1), dtype=np.uint8), crs=None, transform=None)
    rasterio = pytest.importorskip("rasterio")
    square = noise(300, 300, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        shape = {"height": 20_000, "width": 20_000, "count": 1, "dtype": "uint8"}
        blocks = {"tiled": True, "sparse_ok": True, "compress": "deflate"}
        with rasterio.open(path, "w", driver="GTiff", **shape, **blocks) as dataset:
            dataset.write(square.transpose(2, 0, 1), window=((15_000, 15_300), (19_700, 20_000)))
    source = open_image(path)
    assert source.size == (20_000, 20_000)
    assert (source.crs, source.transform) == (None, None)
    np.testing.assert_array_equal(source.read(19_700, 15_000, 20_000, 15_300), np.repeat(square, 3, axis=2))
    with pytest.raises(ImageError, match="too large"):
        read_image(path)


def test_bands_named_red_green_and_blue_are_shown_in_that_order(tmp_path):
    pixels = noise(bands=5)
    kinds = ["undefined", "blue", "green", "red", "undefined"]
    source = open_image(save_geotiff(tmp_path / "a.tif", pixels, kinds=kinds, photometric="MINISBLACK"))
    np.testing.assert_array_equal(whole(source), pixels[:, :, [3, 2, 1]])
    unnamed = save_geotiff(tmp_path / "b.tif", pixels, photometric="MINISBLACK", kinds=["gray"] + ["undefined"] * 4)
    np.testing.assert_array_equal(whole(open_image(unnamed)), pixels[:, :, :3])
    two = open_image(save_geotiff(tmp_path / "c.tif", noise(bands=2), photometric="MINISBLACK"))
    np.testing.assert_array_equal(whole(two), np.repeat(noise(bands=2)[:, :, :1], 3, axis=2))


def test_a_palette_is_applied_and_white_is_zero_is_turned_round(tmp_path):
    values = noise(bands=1)
    colours = {value: (value, 255 - value, value // 2, 255) for value in range(256)}
    source = open_image(save_geotiff(tmp_path / "a.tif", values, colormap=colours))
    table = np.array([colours[value][:3] for value in range(256)], dtype=np.uint8)
    np.testing.assert_array_equal(whole(source), table[values[:, :, 0]])
    inverted = save_geotiff(tmp_path / "b.tif", values, photometric="MINISWHITE")
    np.testing.assert_array_equal(whole(open_image(inverted)), 255 - np.repeat(values, 3, axis=2))


def test_bits_and_nibbles_reach_from_black_to_white(tmp_path):
    for bits in (1, 4):
        most = 2**bits - 1
        values = noise(bands=1) % (most + 1)
        for photometric in ("MINISBLACK", "MINISWHITE"):
            path = save_geotiff(tmp_path / f"{bits}{photometric}.tif", values, nbits=bits, photometric=photometric)
            grey = values * (255 // most) if photometric == "MINISBLACK" else 255 - values * (255 // most)
            np.testing.assert_array_equal(whole(open_image(path)), np.repeat(grey, 3, axis=2))


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.float32])
def test_other_numbers_are_stretched_alike_in_every_window(tmp_path, dtype):
    pixels = noise(70, 130, 3, dtype)  # small enough for the sample to be the whole file, some pixels several times
    pixels[:, :, 1] //= 2
    source = open_image(save_geotiff(tmp_path / "a.tif", pixels))
    shown = whole(source)
    least, most = np.percentile(pixels, [2, 98])
    expected = np.clip((pixels - least) / (most - least), 0, 1) * 255
    assert np.abs(shown - expected).max() < 4  # the sample weighs the pixels a little differently
    np.testing.assert_array_equal(source.read(60, 10, 130, 70), shown[10:70, 60:130])


def test_pixels_without_data_are_black_and_not_part_of_the_stretch(tmp_path):
    plain = noise(dtype=np.float32, seed=3)
    for hole, options in [(-9999.0, {"nodata": -9999.0}), (np.nan, {"nodata": None})]:
        pixels = plain.copy()
        pixels[20:40, 30:60] = hole
        shown = whole(open_image(save_geotiff(tmp_path / "a.tif", pixels, **options)))
        assert (shown[20:40, 30:60] == 0).all()
        assert np.percentile(shown[50:], 50) == pytest.approx(127, abs=12)
    colours = noise(bands=4)
    colours[:, :, 3] = 255
    colours[:30, :, 3] = 0
    shown = whole(open_image(save_geotiff(tmp_path / "b.tif", colours, photometric="RGB", ALPHA="YES")))
    assert (shown[:30] == 0).all()
    np.testing.assert_array_equal(shown[30:], colours[30:, :, :3])


def test_flat_or_empty_rasters_are_shown_as_black(tmp_path):
    for value in (0, 7):
        pixels = np.full((40, 40, 1), value, dtype=np.uint16)
        assert (whole(open_image(save_geotiff(tmp_path / "a.tif", pixels, nodata=0))) == 0).all()


def test_a_damaged_block_is_an_error_that_names_the_file(tmp_path):
    path = save_geotiff(tmp_path / "a.tif", noise(200, 200), compress="deflate")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ImageError, match=r"a\.tif is damaged"):
        whole(open_image(path))


def test_files_beside_the_image_are_not_read(tmp_path):
    path = save_geotiff(tmp_path / "a.tif", noise())
    (tmp_path / "a.tif.aux.xml").write_text(
        "<PAMDataset><SRS>EPSG:4326</SRS><GeoTransform>1,1,0,1,0,1</GeoTransform></PAMDataset>"
    )
    (tmp_path / "a.tfw").write_text("1\n0\n0\n-1\n7\n7\n")
    assert open_image(path).crs == "EPSG:32633"
    assert open_image(path).transform == (10, 0, WEST, 0, -10, NORTH)


def test_other_drivers_are_out_of_reach(tmp_path, monkeypatch):
    pytest.importorskip("rasterio", reason="rasterio is not installed: pip install 'anysam[geo]'")
    virtual = tmp_path / "a.tif"
    target = save_geotiff(tmp_path / "target.tif", noise(bands=1))
    virtual.write_text(
        '<VRTDataset rasterXSize="120" rasterYSize="90"><VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
        f'<SourceFilename relativeToVRT="0">{target}</SourceFilename><SourceBand>1</SourceBand></SimpleSource>'
        "</VRTRasterBand></VRTDataset>"
    )
    with pytest.raises(ImageError, match="not an image"):
        open_image(virtual)
    with pytest.raises(ImageError, match="damaged"):
        rasters._open_raster(virtual, {})
    for address in (
        "/vsicurl/http://localhost/a.tif",
        "https://localhost/a.tif",
        f"zip://{target}",
        f"GTIFF_DIR:1:{target}",
    ):
        with pytest.raises(ImageError, match="does not exist"):
            open_image(address)


def test_place_and_system_are_read_from_the_tags_alone(tmp_path, monkeypatch):
    rasterio = pytest.importorskip("rasterio", reason="rasterio is not installed: pip install 'anysam[geo]'")
    turned = rasterio.Affine(8.0, 2.0, WEST, 1.0, -9.0, NORTH)
    cases = {
        "projected.tif": {},
        "degrees.tif": {"crs": "EPSG:4326", "transform": rasterio.transform.from_origin(11.5, 48.2, 1e-4, 2e-4)},
        "turned.tif": {"transform": turned},
        "point.tif": {"AREA_OR_POINT": "Point"},
        "bare.tif": {"crs": None},
        "big.tif": {"BIGTIFF": "YES"},
        "other_order.tif": {"ENDIANNESS": "BIG"},
    }
    for name, options in cases.items():
        path = save_geotiff(tmp_path / name, noise(), **options)
        with rasterio.open(path) as dataset:
            number = dataset.crs.to_epsg() if dataset.crs else None
            expected = (f"EPSG:{number}" if number else None), pytest.approx(tuple(dataset.transform)[:6], abs=1e-9)
        with monkeypatch.context() as patch:
            without_rasterio(patch)
            assert geo_facts(path) == expected, name


def test_a_system_without_a_number_is_read_through_rasterio(tmp_path, monkeypatch):
    pytest.importorskip("rasterio", reason="rasterio is not installed: pip install 'anysam[geo]'")
    own = "+proj=laea +lat_0=12.3 +lon_0=45.6 +datum=WGS84 +units=m"
    path = save_geotiff(tmp_path / "a.tif", noise(), crs=own)
    crs, transform = geo_facts(path)
    assert "Lambert" in crs
    assert transform == (10, 0, WEST, 0, -10, NORTH)
    without_rasterio(monkeypatch)
    assert geo_facts(path) == (None, (10, 0, WEST, 0, -10, NORTH))


def test_files_without_a_place_have_none(tmp_path):
    Image.fromarray(noise()).save(tmp_path / "a.png")
    Image.fromarray(noise()).save(tmp_path / "a.tif")
    (tmp_path / "stump.tif").write_bytes(b"II*\0\xff\xff\0\0")
    for name in ("a.png", "a.tif", "stump.tif"):
        assert geo_facts(tmp_path / name) == (None, None)
    with pytest.raises(ImageError, match="does not exist"):
        geo_facts(tmp_path / "missing.tif")


def test_damaged_geographic_tags_lose_the_place_but_not_the_image(tmp_path):
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[33550] = (float("nan"), 10.0, 0.0)
    tags[33922] = (0.0, 0.0)
    tags[34735] = (1, 1)
    for tag, kind in ((33550, 12), (33922, 12), (34735, 3)):
        tags.tagtype[tag] = kind
    Image.fromarray(noise()).save(tmp_path / "a.tif", tiffinfo=tags)
    assert geo_facts(tmp_path / "a.tif") == (None, None)
    np.testing.assert_array_equal(whole(open_image(tmp_path / "a.tif")), noise())
