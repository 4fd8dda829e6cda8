"""Files of encoded images: exact or rounded, and nothing that is not what was saved. See also test_predictor."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import anysam
from anysam import EncodedImage, predictor
from anysam.encoded_image import _digest
from anysam.errors import ImageError, OptionError


def encoded(**features: torch.Tensor) -> EncodedImage:
    values = torch.randn(1, 8, 4, 5, generator=torch.Generator().manual_seed(0))
    return EncodedImage({"image_embeddings": values, **features}, (40, 50), (51, 64), "sam_vit_b", "frame", "0" * 64)


def test_it_has_one_class_under_three_names():
    assert anysam.EncodedImage is predictor.EncodedImage is EncodedImage


def test_compact_is_numpys_rounding_to_float16_in_the_former_dtype(tmp_path):
    given = encoded(finer=torch.tensor([[1 / 3, -2e-8, 65504.0, 1e-7]], dtype=torch.float32))
    given.save(tmp_path / "a", compact=True)
    read, rounded = EncodedImage.load(tmp_path / "a"), given.rounded()
    for name, value in given.features.items():
        expected = value.numpy().astype(np.float16).astype(np.float32)
        for found in (read.features[name], rounded.features[name]):
            assert found.dtype == torch.float32 and np.array_equal(found.numpy(), expected)


def test_bfloat16_comes_back_as_bfloat16_and_unchanged(tmp_path):
    given = encoded()
    values = given.features["image_embeddings"].bfloat16()  # float16 has three more bits of fraction
    dataclasses.replace(given, features={"image_embeddings": values}).save(tmp_path / "a", compact=True)
    read = EncodedImage.load(tmp_path / "a").features["image_embeddings"]
    assert read.dtype == torch.bfloat16 and torch.equal(read, values)


@pytest.mark.parametrize("value", [65520.0, -1e9, float("inf"), float("nan")])
def test_only_a_tensor_that_float16_cannot_hold_stays_exact(value, tmp_path):
    large = torch.tensor([[value, 1 / 3]])
    given = encoded(large=large, counts=torch.arange(70_000, 70_003)[None])
    given.save(tmp_path / "a", compact=True)
    for result in (EncodedImage.load(tmp_path / "a"), given.rounded()):
        assert np.array_equal(result.features["large"].numpy(), large.numpy(), equal_nan=True)
        assert result.features["counts"].tolist() == [[70_000, 70_001, 70_002]]
        assert not torch.equal(result.features["image_embeddings"], given.features["image_embeddings"])


def test_compact_takes_two_bytes_a_value(tmp_path):
    given = encoded(finer=torch.ones(1, 100, 100))
    sizes = []
    for compact in (False, True):
        given.save(tmp_path / "a", compact)
        sizes.append((tmp_path / "a").stat().st_size)
    assert sizes[0] - sizes[1] == 2 * (10_000 + 160)


def test_a_change_of_any_byte_is_noticed(tmp_path):
    path = tmp_path / "a"
    encoded().save(path, key="k" * 64)
    whole = path.read_bytes()
    places = {*range(0, len(whole), 5), *(whole.index(text) + 2 for text in (b"[40, 50]", b"[51, 64]", b"float32"))}
    for place in places:
        changed = bytearray(whole)
        changed[place] ^= 1  # digits stay digits
        path.write_bytes(changed)
        with pytest.raises(ImageError, match="encode the image again"):
            EncodedImage.load(path)
    path.write_bytes(whole)
    assert EncodedImage.load(path).original_size == (40, 50)


def test_what_was_read_does_not_follow_the_file(tmp_path):
    given = encoded(more=torch.ones(1, 50_000))
    given.save(tmp_path / "a")
    read = EncodedImage.load(tmp_path / "a")
    with open(tmp_path / "a", "r+b") as file:  # the same file, not a new one under its name
        file.write(bytes((tmp_path / "a").stat().st_size))
    assert all(torch.equal(read.features[name], value) for name, value in given.features.items())


def test_a_large_file_of_weights_is_refused_by_its_header(tmp_path):
    save_file({"weight": torch.zeros(10)}, tmp_path / "a", {"format": "pt"})
    with open(tmp_path / "a", "r+b") as file:
        file.truncate(1 << 20)  # too long for what the header says: seen only by who reads on
    with pytest.raises(ImageError, match="its format is 'pt'"):
        EncodedImage.load(tmp_path / "a")


def test_a_key_must_be_the_one_it_was_saved_with(tmp_path):
    encoded().save(tmp_path / "a", key="first")
    assert EncodedImage.load(tmp_path / "a", key="first").variant == "sam_vit_b"
    assert EncodedImage.load(tmp_path / "a").variant == "sam_vit_b"
    with pytest.raises(ImageError, match="key 'first', expected 'second'"):
        EncodedImage.load(tmp_path / "a", key="second")


def forged(path: Path, features: dict[str, torch.Tensor], **changes: str) -> None:
    """A file whose digest is right, with other contents than `save` would write."""
    facts = {"format": "anysam-encoded-image-2", "original_size": "[40, 50]", "input_size": "[51, 64]"}
    facts |= {"variant": "sam_vit_b", "preprocess": "frame", "weights_sha256": "0" * 64, "dtypes": "{}", **changes}
    save_file(features, path, facts | {"digest": _digest(features, facts)})


@pytest.mark.parametrize("fact", ["original_size", "input_size", "dtypes"])
@pytest.mark.parametrize(
    "text", ["[" * 100_000, "[1, 2, 3]", "[true, true]", "[0, 1]", "null", "[1" + "0" * 5000 + ", 2]", "{", ""]
)
def test_facts_that_make_no_sense_are_damage(fact, text, tmp_path):
    features = {"image_embeddings": torch.zeros(1, 8, 4, 5)}
    forged(tmp_path / "a", features)
    assert EncodedImage.load(tmp_path / "a").input_size == (51, 64)
    if fact == "dtypes" and text.startswith("[") and len(text) < 20:
        return  # names nothing that is there
    forged(tmp_path / "a", features, **{fact: text})
    with pytest.raises(ImageError, match="damaged encoded image"):
        EncodedImage.load(tmp_path / "a")


def test_a_missing_fact_is_damage(tmp_path):
    features = {"image_embeddings": torch.zeros(1, 8, 4, 5)}
    facts = {"format": "anysam-encoded-image-2", "original_size": json.dumps([40, 50])}
    save_file(features, tmp_path / "a", facts | {"digest": _digest(features, facts)})
    with pytest.raises(ImageError, match="damaged encoded image .KeyError"):
        EncodedImage.load(tmp_path / "a")


@pytest.mark.parametrize("shape", [(), (0, 8, 4, 5), (2, 8, 4, 5)])
def test_features_must_be_of_one_image(shape, tmp_path):
    forged(tmp_path / "a", {"image_embeddings": torch.zeros(shape)})
    with pytest.raises(ImageError, match="features of one image"):
        EncodedImage.load(tmp_path / "a")


def test_a_file_of_an_earlier_format_says_so(tmp_path):
    forged(tmp_path / "a", {"image_embeddings": torch.zeros(1, 8, 4, 5)}, format="anysam-encoded-image-1")
    with pytest.raises(ImageError, match="its format is 'anysam-encoded-image-1', expected 'anysam-encoded-image-2'"):
        EncodedImage.load(tmp_path / "a")


@pytest.mark.parametrize("path", [3, None, b"photo", ["photo"]])
def test_what_is_no_path_is_an_option_error(path):
    with pytest.raises(OptionError, match=f"read from a path, got {type(path).__name__}"):
        EncodedImage.load(path)
    with pytest.raises(OptionError, match="saved to a path"):
        encoded().save(path)


@pytest.mark.parametrize("path", ["", "a\0b"])
def test_a_path_that_cannot_be_is_an_option_error_when_saved_to(path):
    with pytest.raises(OptionError, match="saved to a path"):
        encoded().save(path)


def test_the_meta_device_cannot_be_loaded_onto(tmp_path):
    encoded().save(tmp_path / "a")
    with pytest.raises(OptionError, match="'meta' cannot be used"):
        EncodedImage.load(tmp_path / "a", device="meta")
