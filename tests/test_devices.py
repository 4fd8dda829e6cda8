"""Names of devices and number formats: what there is, and one-line errors for the rest."""

import pytest
import torch

from anysam.devices import find_device, find_dtype
from anysam.errors import OptionError


def test_a_device_is_found_by_its_name_or_as_torch_has_it():
    assert find_device("cpu") == find_device(torch.device("cpu")) == torch.device("cpu")


@pytest.mark.parametrize(("there", "chosen"), [(False, "cpu"), (True, "cuda")])
def test_without_a_name_a_gpu_is_taken_if_there_is_one(there, chosen, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert find_device(None) == torch.device(chosen)


# meta has no values; the kinds after it are known to torch by name, and it imports modules or asserts to use them.
@pytest.mark.parametrize("device", ["meta", "hpu", "privateuseone", "xla", "vulkan", "gpu", "cuda:x", "cuda:99", ""])
def test_a_device_that_cannot_hold_values_is_named_in_one_line(device):
    with pytest.raises(OptionError, match=f"The device '{device}' cannot be used") as caught:
        find_device(device)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 250


@pytest.mark.parametrize("device", [3, True, 0.5, ["cpu"], b"cpu"])
def test_something_else_than_a_name_is_no_device(device):
    with pytest.raises(OptionError, match="A device is given by its name"):
        find_device(device)


@pytest.mark.parametrize("name", ["float32", "float16", "bfloat16"])
def test_a_dtype_is_found_by_its_name_or_as_torch_has_it(name):
    assert find_dtype(name) is find_dtype(getattr(torch, name)) is getattr(torch, name)


@pytest.mark.parametrize("dtype", ["float64", "Float32", "", torch.float64, torch.int8, None, 32, [], {}])
def test_other_dtypes_are_refused(dtype):
    with pytest.raises(OptionError, match="dtype must be one of float32, float16, bfloat16, got"):
        find_dtype(dtype)
