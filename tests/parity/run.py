"""Compare this package's numbers with stored ones: `run.py --cases DIR --inputs DIR [--only NAME] [--known-only]`.

Every folder of --cases that holds a case.json is one case. Its name up to "__" is the variant. The variant's published
state_dict is filled with deterministic stand-in weights (weights.py), saved as a checkpoint, and loaded by
`anysam.load`; then the public API runs on the images of --inputs and each stored array is compared with ours. One line
per array: largest and mean absolute difference in units of the stored array's standard deviation. One summary line at
the end. Exit status 1 if anything differs by more than its tolerance or a required array was not compared.
"""

import argparse
import dataclasses
import json
import math
import re
import sys
import tempfile
import traceback
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from weights import filled_state_dict, filled_tensor, thin

import anysam
from anysam.catalogue import VARIANTS
from anysam.preprocess import upscale_logits

MAX_TOLERANCE, MEAN_TOLERANCE = 1e-3, 1e-4
# A case may state that its own float32 numbers are further from float64 than that; we get twice its distance, because
# ours may lie on the other side.
NOISE_FACTOR = 2.0
AREA_TOLERANCE, AREA_PIXELS = 1e-3, 20

# Arrays that are only there to find a first difference with.
INTERMEDIATE = re.compile(r"^image_pe$|/(debug|encoder)/|/(sparse|dense)_embeddings$")


@dataclasses.dataclass(frozen=True)
class Case:
    """A case folder, read. expected: name -> stored array. images, facts, arrays: as in case.json."""

    folder: Path
    variant: str
    kind: str
    images: dict[str, Any]
    facts: dict[str, Any]
    arrays: dict[str, Any]
    expected: dict[str, np.ndarray]

    def required(self) -> list[str]:
        """Names that must be compared: an image's input and embedding, and whatever belongs to a prompt."""
        names = [name for name in {**self.arrays, **self.expected} if not INTERMEDIATE.search(name)]
        names = [name for name in names if "INFORMATIVE" not in self.arrays.get(name, {}).get("meaning", "")]
        return [n for n in names if n.count("/") >= 2 or n.endswith(("/input", "/image_embeddings"))]


@dataclasses.dataclass
class Report:
    """Counts for the summary line; prints as it goes."""

    cases: int = 0
    compared: int = 0
    failures: int = 0
    worst: float = 0.0

    def line(self, passed: bool, case: str, text: str) -> None:
        self.failures += not passed
        print(f"{'ok  ' if passed else 'FAIL'} {case} {text}", flush=True)

    def summary(self) -> str:
        return (
            f"parity: {self.cases} cases, {self.compared} arrays compared, {self.failures} failures, "
            f"largest difference {self.worst:.1e} of the reference's standard deviation"
        )


class Recorder:
    """Stands before a network, passes everything on, and keeps what went in and came out of its parts."""

    def __init__(self, network: nn.Module, arrays: list[str]) -> None:
        self.network = network
        self.preprocess = network.preprocess
        self.seen: dict[str, list[Tensor]] = {}
        for leaf in sorted({name.split("/", 1)[-1] for name in arrays}):
            if match := re.fullmatch(r"debug/block_(\d+)", leaf):
                self._keep_output(leaf, f"image_encoder.blocks.{int(match[1])}")
            elif match := re.fullmatch(r"(?:debug|encoder)/([\w.]+)", leaf):
                self._keep_output(leaf, f"image_encoder.{match[1]}")
        if hasattr(network, "prompt_encoder") and hasattr(network, "mask_decoder"):
            network.prompt_encoder.register_forward_hook(self._keep_prompt)
            network.mask_decoder.register_forward_pre_hook(self._keep_position_code)

    def encode_image(self, pixels: Tensor) -> dict[str, Tensor]:
        self.seen = {"input": [pixels]}
        return self.network.encode_image(pixels)

    def decode(
        self, features: dict[str, Tensor], points: Tensor, labels: Tensor, mask_logits: Tensor | None, multimask: bool
    ) -> tuple[Tensor, Tensor]:
        return self.network.decode(features, points, labels, mask_logits, multimask)

    def _keep_output(self, leaf: str, path: str) -> None:
        try:
            module = self.network.get_submodule(path)
        except AttributeError:
            return
        module.register_forward_hook(lambda module, inputs, output: self.seen.setdefault(leaf, []).append(output))

    def _keep_prompt(self, module: nn.Module, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
        self.seen.setdefault("sparse_embeddings", []).append(output[0])
        self.seen.setdefault("dense_embeddings", []).append(output[1])

    def _keep_position_code(self, module: nn.Module, inputs: tuple) -> None:
        self.seen["image_pe"] = [inputs[1]]


Arrays = Iterator[tuple[str, np.ndarray]]


def run_promptable(case: Case, inputs: Path, report: Report) -> Arrays:
    """Our arrays of a model that takes prompts, by name. Problems that stop an image are reported."""
    model = load_filled(case)
    recorder = Recorder(model.network, list(case.expected))
    model = dataclasses.replace(model, network=recorder)
    groups = dict.fromkeys(name.split("/")[0] for name in case.expected if "/" in name)
    for image in groups:
        if image not in case.images:
            yield from run_synthetic(case, model, recorder, image, report)
            continue
        path = inputs / case.images[image]["file"]
        if not path.is_file():
            report.line(False, case.folder.name, f"{image}: the image {path.name} is not among the inputs")
            continue
        encoded = model.encode(path)
        if encoded.original_size != tuple(reversed(case.images[image]["size_wh"])):
            report.line(
                False, case.folder.name, f"{image}: {path.name} is {encoded.original_size}, not the case's size"
            )
        for leaf, tensors in recorder.seen.items():
            yield f"{image}/{leaf}", torch.cat(tensors).numpy()
        yield f"{image}/image_embeddings", encoded.features["image_embeddings"].numpy()
        yield from run_prompts(model, recorder, encoded, image, case.images[image]["prompts"])


def run_synthetic(case: Case, model: Any, recorder: Recorder, image: str, report: Report) -> Arrays:
    """Prompts on standard normal numbers in the place of an image's embedding, to test a decoder alone.

    Which prompts and which image size is not said; they are those of the image that has all prompts named here.
    """
    name = f"{image}/image_embeddings"
    used = {n.split("/")[1] for n in case.expected if n.startswith(f"{image}/") and n.count("/") >= 2}
    packed = [len(case.expected[n]) for n in case.expected if re.fullmatch(rf"{image}/[^/]+/best_mask_packed", n)]
    for entry in case.images.values():
        width, height = entry["size_wh"]
        if used <= set(entry["prompts"]) and all(size == -(-width * height // 8) for size in packed):
            break
    else:
        report.line(False, case.folder.name, f"{image}: no image of the case has the prompts {', '.join(sorted(used))}")
        return
    if name not in case.arrays:
        report.line(False, case.folder.name, f"{image}: neither an image of the case nor an embedding of its own")
        return
    shape = case.arrays[name]["shape"]
    # filled_tensor divides a weight by the root of its fan-in; times that root, the numbers are standard normal.
    embedding = filled_tensor(name, shape) * np.float32(math.sqrt(math.prod(shape[1:])))
    encoded = anysam.EncodedImage(
        features={"image_embeddings": torch.from_numpy(embedding)},
        original_size=(height, width),
        input_size=model.network.preprocess.input_size((height, width)),
        variant=model.variant,
        preprocess=repr(model.network.preprocess),
        weights_sha256=model.weights_sha256,
    )
    yield name, embedding
    # Not only those used: a prompt may begin with another one's mask.
    yield from run_prompts(model, recorder, encoded, image, entry["prompts"])


def run_prompts(model: Any, recorder: Recorder, encoded: Any, image: str, prompts: dict[str, Any]) -> Arrays:
    """Our arrays of one image's prompts, each entry of a batch one Prompt, all in one call."""
    results: dict[str, list[anysam.Prediction]] = {}
    for name, form in prompts.items():
        if form["prompts"] is None:
            continue
        earlier = results[form["mask_from"]] if form["mask_from"] else [None] * len(form["prompts"])
        batch = [make_prompt(entry, mask) for entry, mask in zip(form["prompts"], earlier, strict=True)]
        recorder.seen = {}
        results[name] = model.predict(encoded, batch, multimask=form["multimask"])
        prefix = f"{image}/{name}"
        for leaf in ("sparse_embeddings", "dense_embeddings"):
            if leaf in recorder.seen:
                yield f"{prefix}/{leaf}", torch.cat(recorder.seen[leaf]).numpy()
        if "image_pe" in recorder.seen:
            yield "image_pe", recorder.seen["image_pe"][0].numpy()
        yield from prediction_arrays(model, encoded, prefix, results[name], form.get("as_published") or {})


def make_prompt(entry: dict[str, Any], earlier: anysam.Prediction | None) -> anysam.Prompt:
    return anysam.Prompt(
        points=entry["points"] or None,
        labels=entry["labels"] or None,
        box=entry["box"],
        low_res_logits=None if earlier is None else earlier.low_res_logits[earlier.best],
    )


def prediction_arrays(
    model: Any, encoded: Any, prefix: str, predictions: list[anysam.Prediction], published: dict[str, Any]
) -> Arrays:
    low_res = np.stack([p.low_res_logits for p in predictions])  # (P, C, h, w)
    masks = np.stack([p.masks for p in predictions])  # (P, C, H, W)
    best = published.get("best_mask_index", predictions[0].best)
    full = upscale_logits(
        torch.from_numpy(low_res), model.network.preprocess, encoded.input_size, encoded.original_size
    )  # (P, C, H, W)
    yield f"{prefix}/low_res_logits", low_res
    yield f"{prefix}/full_res_logits", full.numpy()
    yield f"{prefix}/iou_predictions", np.stack([p.iou_predictions for p in predictions])  # (P, C)
    yield f"{prefix}/mask_areas", masks.sum(axis=(2, 3))  # (P, C)
    yield f"{prefix}/best_mask_packed", np.packbits(masks[0, best])


def load_filled(case: Case) -> Any:
    """The case's variant with its stand-in weights, through a checkpoint file and the package's loader."""
    state_dict = filled_state_dict(case.folder / "manifest.json")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{case.variant}.pth"
        torch.save({key: torch.from_numpy(value) for key, value in state_dict.items()}, path)
        del state_dict
        return anysam.load(path, variant=case.variant, device="cpu", dtype="float32")


# How each kind of case is run. A family's special cases (encoders alone, detectors) join here.
KINDS: dict[str, Callable[[Case, Path, Report], Arrays]] = {"promptable": run_promptable}


def compare(case: Case, name: str, ours: np.ndarray, report: Report) -> None:
    """Compare one array and print its line."""
    expected = case.expected[name]
    report.compared += 1
    leaf = name.rsplit("/", 1)[-1]
    if leaf == "mask_areas":
        compare_areas(case, name, ours, expected, report)
    elif leaf == "best_mask_packed":
        compare_packed(case, name, ours, expected, report)
    else:
        compare_floats(case, name, ours, expected, report)


def compare_areas(case: Case, name: str, ours: np.ndarray, expected: np.ndarray, report: Report) -> None:
    if ours.size != expected.size:
        report.line(False, case.folder.name, f"{name}: {ours.size} areas, expected {expected.size}")
        return
    difference = np.abs(ours.ravel() - expected.ravel())
    passed = bool((difference <= np.maximum(AREA_PIXELS, AREA_TOLERANCE * expected.ravel())).all())
    text = f"{name}: max {difference.max()} mean {difference.mean():.1f} pixels of areas up to {expected.max()}"
    report.line(passed, case.folder.name, text)


def compare_packed(case: Case, name: str, ours: np.ndarray, expected: np.ndarray, report: Report) -> None:
    if ours.size != expected.size:
        report.line(False, case.folder.name, f"{name}: {ours.size} bytes, expected {expected.size}")
        return
    area = int(np.unpackbits(expected).sum())
    differing = int(np.unpackbits(ours.ravel() ^ expected.ravel()).sum())
    passed = differing <= max(AREA_PIXELS, AREA_TOLERANCE * area)
    report.line(passed, case.folder.name, f"{name}: {differing} pixels differ, of {area}")


def compare_floats(case: Case, name: str, ours: np.ndarray, expected: np.ndarray, report: Report) -> None:
    facts = case.arrays.get(name, {})
    shape = tuple(facts.get("shape", expected.shape))
    if math.prod(ours.shape) != math.prod(shape):
        try:
            ours = np.broadcast_to(ours, shape)  # what is equal for all prompts is kept once
        except ValueError:
            report.line(False, case.folder.name, f"{name}: our shape is {ours.shape}, expected {shape}")
            return
    ours = thin(ours) if facts.get("thinned") else np.asarray(ours, dtype=np.float32).ravel()
    expected = expected.ravel()
    # The std of one number is 0: then its own size is the yardstick.
    scale = facts.get("std") or float(np.abs(expected).max()) or 1.0
    difference = np.abs(ours.astype(np.float64) - expected) / scale
    largest, mean = float(difference.max()), float(difference.mean())
    noise_max, noise_mean = stated_noise(case, name)
    max_tolerance = max(MAX_TOLERANCE, NOISE_FACTOR * noise_max / scale)
    mean_tolerance = max(MEAN_TOLERANCE, NOISE_FACTOR * noise_mean / scale)
    passed = largest <= max_tolerance and mean <= mean_tolerance
    report.worst = max(report.worst, largest)
    text = f"{name}: max {largest:.1e} mean {mean:.1e} of std (tolerance {max_tolerance:.0e}, {mean_tolerance:.0e})"
    report.line(passed, case.folder.name, text)


def stated_noise(case: Case, name: str) -> tuple[float, float]:
    """The float32 noise (largest, mean, absolute) that case.json states for an array; zeros where it states none.

    Two forms exist: facts named float32_noise* about one image, and one fact keyed by image/prompt.
    """
    image, _, rest = name.partition("/")
    leaf = rest.rsplit("/", 1)[-1]
    stated: list[tuple[float, float]] = [(0.0, 0.0)]
    for key, fact in case.facts.items():
        if key.startswith("float32_noise") and isinstance(fact, dict) and fact.get("image") == image:
            noise = fact.get(leaf)
            if isinstance(noise, dict):
                stated.append((noise["max_abs_diff"], noise["mean_abs_diff"]))
    table = case.facts.get("float32_noise")
    table = table if isinstance(table, dict) else {}
    if isinstance(table.get(name), dict):
        stated.append((table[name]["max"], table[name]["mean"]))
    prompt = table.get(name.rsplit("/", 1)[0])
    parts = [prompt[k] for k in ("decoder_only", "end_to_end") if k in prompt] if isinstance(prompt, dict) else []
    for part in parts:
        if leaf == "low_res_logits":
            stated.append((part["logits_max"], part["logits_mean"]))
        elif leaf == "iou_predictions":
            stated.append((part["iou_max"], part["iou_max"]))
    return max(largest for largest, _ in stated), max(mean for _, mean in stated)


def read_case(folder: Path) -> Case:
    form = json.loads((folder / "case.json").read_text())
    expected_path = folder / "expected.npz"
    expected = dict(np.load(expected_path)) if expected_path.is_file() else {}
    return Case(
        folder=folder,
        variant=folder.name.split("__")[0],
        kind=form.get("kind", "without a kind"),
        images=form.get("images", {}),
        facts=form.get("facts", {}),
        arrays=form.get("arrays", {}) if isinstance(form.get("arrays", {}), dict) else {},
        expected=expected,
    )


def run_case(case: Case, inputs: Path, report: Report) -> None:
    """Run one case of a known variant, compare, and report what was not compared."""
    report.cases += 1
    if case.kind not in KINDS:
        report.line(False, case.folder.name, f"cases of kind {case.kind!r} cannot be run; known are {', '.join(KINDS)}")
        return
    done: set[str] = set()
    try:
        for name, ours in KINDS[case.kind](case, inputs, report):
            if name in case.expected and name not in done:
                done.add(name)
                compare(case, name, ours, report)
    except Exception as error:  # counted as a failure; the other cases still have their say
        if not isinstance(error, anysam.AnySamError):
            traceback.print_exc()
        report.line(False, case.folder.name, f"stopped: {type(error).__name__}: {error}")
    required = case.required()
    if not required:
        report.line(False, case.folder.name, "the case requires no array at all")
    for name in required:
        if name not in done:
            report.line(False, case.folder.name, f"{name}: required, but not compared")
    skipped = [name for name in case.expected if name not in done and name not in required]
    if skipped:
        print(f"--   {case.folder.name} not compared, not required: {', '.join(skipped)}")


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare this package's numbers with stored reference numbers.")
    parser.add_argument("--cases", type=Path, required=True, help="folder of case folders")
    parser.add_argument("--inputs", type=Path, required=True, help="folder of the images that the cases name")
    parser.add_argument("--only", metavar="NAME", action="append", help="run this case folder only; may be repeated")
    parser.add_argument("--known-only", action="store_true", help="pass over variants that the catalogue does not have")
    options = parser.parse_args()
    folders = sorted(path.parent for path in options.cases.glob("*/case.json"))
    missing = sorted(set(options.only or []) - {folder.name for folder in folders})
    report = Report()
    for name in missing:
        report.line(False, name, f"there is no such case in {options.cases}")
    known = {variant.name for variant in VARIANTS}
    for folder in folders:
        if options.only and folder.name not in options.only:
            continue
        if folder.name.split("__")[0] not in known:
            print(f"{'--  ' if options.known_only else 'FAIL'} {folder.name} unknown variant")
            report.failures += not options.known_only
            continue
        try:
            case = read_case(folder)
        except (OSError, ValueError, AttributeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            report.line(False, folder.name, f"the case cannot be read: {error}")
            continue
        run_case(case, options.inputs, report)
    if not report.compared:
        report.line(False, "parity", "no array was compared")
    print(report.summary())
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
