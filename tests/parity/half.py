"""How like their float32 twins masks in half precision are: `half.py [--dtype bfloat16] CASE ...`.

For each case the stand-in weights are loaded in float32 and in half precision, the image "wide" is encoded and every
prompt of the case predicted; printed are the least and the mean IoU of the masks of both.
"""

import argparse
from pathlib import Path

import numpy as np
from harness import Case, load_filled, read_case
from promptable import make_prompt

import anysam
from anysam.masks import mask_iou

HERE = Path(__file__).parent


def masks_of(case: Case, dtype: str) -> list[np.ndarray]:
    """The masks (H, W) of every prompt of the image "wide" that needs no earlier answer."""
    model = load_filled(case, dtype=dtype)
    encoded = model.encode(HERE / "inputs" / case.images["wide"]["file"])
    masks: list[np.ndarray] = []
    for form in case.images["wide"]["prompts"].values():
        if form["prompts"] is None or form["mask_from"] is not None:
            continue
        try:
            predictions = model.predict(
                encoded, [make_prompt(entry, None) for entry in form["prompts"]], form["multimask"]
            )
        except anysam.AnySamError:  # more points than the model takes
            continue
        masks += [mask for prediction in predictions for mask in prediction.masks]
    return masks


def overlaps(case: Case, dtype: str) -> np.ndarray:
    """IoU of each mask in `dtype` with its float32 twin."""
    pairs = zip(masks_of(case, dtype), masks_of(case, "float32"), strict=True)
    return np.array([mask_iou(ours, twin) for ours, twin in pairs])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", nargs="+", help="names of folders in cases/")
    parser.add_argument("--dtype", choices=["bfloat16", "float16"], default="bfloat16")
    options = parser.parse_args()
    for name in options.case:
        values = overlaps(read_case(HERE / "cases" / name), options.dtype)
        print(f"{name} {options.dtype}: {len(values)} masks, IoU least {values.min():.4f} mean {values.mean():.4f}")


if __name__ == "__main__":
    main()
