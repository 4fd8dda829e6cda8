"""What every kind of parity case needs: reading a case, filling a model with stand-in weights, comparing, reporting."""

import dataclasses
import json
import math
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from weights import filled_state_dict, thin

import anysam
from anysam.models import Decoded

MAX_TOLERANCE, MEAN_TOLERANCE = 1e-3, 1e-4
# A case may state that its own float32 numbers are further from float64 than that; we get twice its distance, because
# ours may lie on the other side.
NOISE_FACTOR = 2.0
ILL_CONDITIONED = 5e-2  # of the standard deviation: what the cases' README grants EdgeSAM on tall.png
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
        meanings = {name: self.arrays.get(name, {}).get("meaning", "") for name in names}
        names = [n for n in names if "INFORMATIVE" not in meanings[n] and not meanings[n].startswith("input")]
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
        self.multimask_default = network.multimask_default
        self.float32_parts = network.float32_parts
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
    ) -> Decoded:
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


def load_filled(case: Case, gain: bool = False, dtype: str = "float32") -> Any:
    """The case's variant with its stand-in weights, through a checkpoint file and the package's loader.

    gain: stronger weights, as cases with arrays named gain/... were computed with.
    """
    state_dict = filled_state_dict(case.folder / "manifest.json", gain=gain)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{case.variant}.pth"
        torch.save({key: torch.from_numpy(value) for key, value in state_dict.items()}, path)
        del state_dict
        return anysam.load(path, variant=case.variant, device="cpu", dtype=dtype)


def compare(case: Case, name: str, ours: np.ndarray, report: Report) -> None:
    """Compare one array and print its line."""
    expected = case.expected[name]
    report.compared += 1
    if expected.size == 0:
        report.line(ours.size == 0, case.folder.name, f"{name}: {ours.size} values, expected none")
        return
    leaf = name.rsplit("/", 1)[-1]
    if leaf.endswith("areas"):
        compare_areas(case, name, ours, expected, report)
    elif leaf.endswith("packed"):
        compare_packed(case, name, ours, expected, report)
    else:
        compare_floats(case, name, ours, expected, report)


def compare_areas(case: Case, name: str, ours: np.ndarray, expected: np.ndarray, report: Report) -> None:
    if ours.size != expected.size:
        report.line(False, case.folder.name, f"{name}: {ours.size} areas, expected {expected.size}")
        return
    difference = np.abs(ours.ravel() - expected.ravel())
    allowed = np.maximum(AREA_PIXELS + stated_flips(case, name), AREA_TOLERANCE * expected.ravel())
    passed = bool((difference <= allowed).all())
    text = f"{name}: max {difference.max()} mean {difference.mean():.1f} pixels of areas up to {expected.max()}"
    report.line(passed, case.folder.name, text)


def compare_packed(case: Case, name: str, ours: np.ndarray, expected: np.ndarray, report: Report) -> None:
    if ours.size != expected.size:
        report.line(False, case.folder.name, f"{name}: {ours.size} bytes, expected {expected.size}")
        return
    area = int(np.unpackbits(expected).sum())
    differing = int(np.unpackbits(ours.ravel() ^ expected.ravel()).sum())
    passed = differing <= max(AREA_PIXELS + stated_flips(case, name), AREA_TOLERANCE * area)
    report.line(passed, case.folder.name, f"{name}: {differing} pixels differ, of {area}")


def compare_floats(case: Case, name: str, ours: np.ndarray, expected: np.ndarray, report: Report) -> None:
    facts = case.arrays.get(name, {})
    shape = tuple(facts.get("shape", facts.get("full_shape", expected.shape)))
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
    if isinstance(noise := image_noise(case, image, leaf), dict):
        few = leaf == "iou_predictions"  # of three numbers the mean may be as far off as the largest
        stated.append((noise["max_abs_diff"], noise["max_abs_diff" if few else "mean_abs_diff"]))
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
    noise, std = image_noise(case, image, "image_embeddings"), case.arrays.get(name, {}).get("std", 0.0)
    if noise and (leaf == "scores" or INTERMEDIATE.search(name)):
        # Arrays without a stated noise of their own: of few numbers the mean may be as far off as the largest, and on
        # an image whose embedding is ill-conditioned everything may be off by ILL_CONDITIONED.
        ill = noise["max_abs_diff"] > MAX_TOLERANCE
        allowed = (ILL_CONDITIONED if ill else MAX_TOLERANCE) * std / NOISE_FACTOR
        stated.append((allowed, allowed))
    plain = name.replace("/bf16/", "/")
    if plain != name and plain in case.expected:  # half precision is as far from float32 as it was for the authors
        difference = np.abs(case.expected[name] - case.expected[plain])
        stated.append((float(difference.max()), float(max(difference.mean(), difference.max() / 2))))
    return max(largest for largest, _ in stated), max(mean for _, mean in stated)


def image_noise(case: Case, image: str, leaf: str) -> Any:
    """What facts named float32_noise* state of one leaf of one image; None if they state nothing."""
    for key, fact in case.facts.items():
        if key.startswith("float32_noise") and isinstance(fact, dict) and fact.get("image") == image:
            return fact.get(leaf)
    return None


def stated_flips(case: Case, name: str) -> float:
    """Pixels of the original image that may change sides by the float32 noise that case.json states for the image.

    Stated is how many low-resolution cells do, in all masks of a prompt; all of them may lie in one mask.
    """
    image = name.split("/")[0]
    cells = image_noise(case, image, "low_res_pixels_whose_sign_differs") or 0
    if not cells or image not in case.images:
        return 0.0
    side = case.arrays[f"{image}/point/low_res_logits"]["shape"][-1]
    return NOISE_FACTOR * cells * (max(case.images[image]["size_wh"]) / side) ** 2


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
