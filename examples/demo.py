"""Segment a photograph by a point, by a box and altogether with the built-in model. Needs no network.

python examples/demo.py [--image FILE] [--out DIR]
"""

import argparse
import sys
import time
from pathlib import Path

import anysam
from anysam import MaskRecord, Prompt
from anysam.outputs import write_outputs

PHOTO = Path(__file__).parent / "images" / "astronaut.png"
PROMPTS = {
    "point 171,385": Prompt(points=[[171, 385]]),
    "box 108,14,302,200": Prompt(box=[108, 14, 302, 200]),
}


def main() -> None:
    """Encode the photograph once, answer two prompts and find everything, show what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", type=Path, default=PHOTO, help="another photograph of at least 302x385 pixels")
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="folder for the results")
    arguments = parser.parse_args()
    try:
        segment(arguments.image, arguments.out)
    except anysam.AnySamError as error:
        sys.exit(f"demo: {error}")


def segment(photo: Path, out: Path) -> None:
    """Print a table of what each prompt gave and write overlays, cut-outs and COCO JSON."""
    model = anysam.load()
    image = anysam.read_image(photo)  # (H, W, 3) uint8
    start = time.perf_counter()
    encoded = model.encode(image)
    print(f"{photo.name}, {image.shape[1]}x{image.shape[0]} pixels, by {model.variant} on {model.device}\n")
    print(f"{'prompt':<22}{'predicted IoU':>14}{'area (pixels)':>15}{'seconds':>9}")
    print(f"{'(encode the image)':<22}{'':>14}{'':>15}{time.perf_counter() - start:>9.2f}")

    records = []
    for name, prompt in PROMPTS.items():
        start = time.perf_counter()
        prediction = model.predict(encoded, prompt)
        seconds = time.perf_counter() - start
        best = prediction.best
        record = MaskRecord.from_mask(prediction.masks[best], prediction.iou_predictions[best], prompt)
        records.append(record)
        print(f"{name:<22}{record.predicted_iou:>14.2f}{record.area:>15,}{seconds:>9.2f}")

    start = time.perf_counter()
    everything = model.everything(encoded)
    found = f"{len(everything)} masks"
    print(f"{'(everything)':<22}{found:>14}{'':>15}{time.perf_counter() - start:>9.2f}")

    print("\nwritten:")
    paths = write_outputs(photo, image, records, out, ("overlay", "cutout", "coco"))
    for path in paths + write_outputs(photo, image, everything, out, ("overlay",), f"{photo.stem}_everything"):
        print(f"  {path}")


if __name__ == "__main__":
    main()
