"""Which device and which number format a model runs with: resolved here and nowhere else."""

import torch

from anysam.errors import OptionError

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def find_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """The dtype of a name, or itself: float32, float16 or bfloat16. Raises OptionError for another."""
    found = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if found is None or found not in DTYPES.values():
        raise OptionError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}.")
    return found


def find_device(device: str | torch.device | None) -> torch.device:
    """The device of a name, or itself; None is a GPU if there is one. Raises OptionError for one that is not there."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not isinstance(device, (str, torch.device)):
        raise OptionError(f"A device is given by its name, such as cpu, cuda or cuda:0, got {device!r}.")
    try:
        found = torch.device(device)
        torch.empty(1, device=found).cpu()  # the meta device has no values
    except (RuntimeError, AssertionError, ImportError) as error:  # some kinds of device are modules of their own
        # PyTorch's own sentences here run over many lines; the first says what matters.
        reason = (str(error) or type(error).__name__).splitlines()[0]
        reason = reason if len(reason) <= 80 else f"{reason[:77]}..."
        raise OptionError(
            f"The device {device!r} cannot be used ({reason}); accepted are cpu, cuda, cuda:0, ..."
        ) from error
    return found
