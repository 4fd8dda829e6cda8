"""Everything mode, stage by stage, ours and as published.

python benchmarks/everything.py --synthetic [--threads 2] [--cpu-time]      (what comes after the network)
python benchmarks/everything.py --synthetic --against FOLDER               (side by side with the published code)

--synthetic takes logits from no network: smooth masks of a made-up scene, tuned so that as many candidates pass the
filters as of real photographs (68 % by predicted IoU, 42 % after stability, some 60 at the end), because random weights
make unrealistic masks. Both codes get the same logits, and their records are compared. See README.md for the method.
"""

import argparse
import platform
import sys
import time
import types
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import cv2
import numpy as np
import torch
from published import import_published
from torch import Tensor

from anysam.automatic import candidates, grid_mode
from anysam.automatic.decoding import make_resize
from anysam.automatic.filters import stability_score
from anysam.automatic.grids import point_grid
from anysam.automatic.interface import PointMasks, Resize
from anysam.automatic.options import EverythingOptions
from anysam.encoded_image import EncodedImage
from anysam.preprocess import Preprocess
from anysam.results import MaskRecord

SIZE = (600, 800)  # height, width
FRAME = Preprocess(long_side=1024, pad_to=1024, name="segment-anything")
CELLS = 1024 // 4  # low-resolution logits along each side

# Chosen for the survival rates that the line above the table shows.
OBJECTS, STEEPNESS = 110, 2.1
PUBLISHED_OPTIONS = (
    *("points_per_side", "pred_iou_thresh", "stability_score_thresh", "stability_score_offset", "box_nms_thresh"),
    *("crop_nms_thresh", "crop_overlap_ratio", "crop_n_points_downscale_factor"),
)
STAGES = ("network", "upsampling", "boxes", "stability", "run lengths", "suppression", "the rest")


@dataclass
class Stopwatch:
    """Seconds of each stage. A stage inside another one is not counted for both."""

    now: Callable[[], float]
    seconds: dict[str, float] = field(default_factory=dict)
    running: list[str] = field(default_factory=list)
    since: float = 0.0

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self._switch()
        self.running.append(name)
        try:
            yield
        finally:
            self._switch()
            self.running.pop()

    def _switch(self) -> None:
        moment = self.now()
        if self.running:
            name = self.running[-1]
            self.seconds[name] = self.seconds.get(name, 0.0) + moment - self.since
        self.since = moment

    def after_network(self) -> float:
        """Seconds of all stages but the network's."""
        return sum(seconds for name, seconds in self.seconds.items() if name != "network")

    @contextmanager
    def patched(self, stages: dict[str, list[tuple[Any, str]]]) -> Iterator[None]:
        """While it lasts, functions (owner, name) are stages."""
        with ExitStack() as stack:
            for stage, functions in stages.items():
                for owner, name in functions:
                    stack.enter_context(patch.object(owner, name, self.timed(stage, getattr(owner, name))))
            yield

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, as a stage."""

        def run(*arguments: Any, **options: Any) -> Any:
            with self.stage(name):
                return function(*arguments, **options)

        return run


@dataclass(frozen=True, eq=False)
class Scene:
    """Objects of an image of `size` (H, W): distances (N, h, w) float32, cells to each one's border, positive inside;
    areas (N,); waves (M, h, w) that make one mask of an object differ from another.
    """

    size: tuple[int, int]
    distances: np.ndarray
    areas: np.ndarray
    waves: np.ndarray

    def logits(self, point: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Three masks (3, h, w) float32 and their predicted IoU (3,) at a point x y in pixels of the image."""
        generator = np.random.default_rng(np.round(point).astype(np.int64))
        x, y = (point / max(self.size) * CELLS).astype(int)
        around = np.flatnonzero(self.distances[:, y, x] > 0)
        around = around[np.argsort(self.areas[around])]
        if not len(around):
            around = np.argsort(-self.distances[:, y, x])[:1]
        chosen = around[np.linspace(0, len(around) - 1, 3).round().astype(int)]
        steepness = STEEPNESS * np.exp(generator.normal(0, 0.7, 3))[:, None, None]
        waves = self.waves[generator.integers(0, len(self.waves), 3)]
        logits = steepness * (self.distances[chosen] + 0.25 * waves) - 0.3
        ious = np.clip(0.925 + generator.normal(0, 0.095, 3), 0.2, 1.02)
        return np.clip(logits, -18, 14).astype(np.float32), ious.astype(np.float32)


def make_scene(size: tuple[int, int] = SIZE) -> Scene:
    """Rounded, wavy objects of all sizes, small ones many; and soft waves that make every mask another."""
    generator = np.random.default_rng(1)
    y, x = np.mgrid[:CELLS, :CELLS].astype(np.float32)
    height, width = (side * CELLS / max(size) for side in size)
    distances = []
    for i in range(OBJECTS):
        radius = 5.0 * 18 ** ((OBJECTS - i) / OBJECTS) if i else 120
        centre = generator.uniform((0, 0), (width, height))
        angle = np.arctan2(y - centre[1], x - centre[0])
        shape = 1 + 0.2 * np.sin(generator.integers(2, 6) * angle + generator.uniform(0, 6))
        inside = np.hypot(x - centre[0], (y - centre[1]) * generator.uniform(0.7, 1.6)) < radius * shape
        out = cv2.distanceTransform((~inside).astype(np.uint8), cv2.DIST_L2, 5)
        within = cv2.distanceTransform(inside.astype(np.uint8), cv2.DIST_L2, 5)
        distances.append(cv2.GaussianBlur(np.where(inside, within - 0.5, 0.5 - out), (0, 0), 1.5))
    waves = [
        cv2.resize(
            generator.standard_normal((12, 12)).astype(np.float32), (CELLS, CELLS), interpolation=cv2.INTER_CUBIC
        )
        for _ in range(24)
    ]
    stacked = np.stack(distances).astype(np.float32)
    return Scene(size, stacked, (stacked > 0).sum(axis=(1, 2)), np.stack(waves))


class SceneModel:
    """Answers as a model does, from a scene."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene

    def encode(self, image: np.ndarray) -> EncodedImage:
        size = image.shape[0], image.shape[1]
        return EncodedImage({}, size, FRAME.input_size(size), "scene", repr(FRAME), "")

    def resize(self, encoded: EncodedImage) -> Resize:
        return make_resize(FRAME, encoded, torch.device("cpu"))

    def decode_points(self, encoded: EncodedImage, points: np.ndarray, least_iou: float) -> PointMasks:
        rows, columns = (min(CELLS, -(-side // FRAME.low_res_stride) + 1) for side in encoded.input_size)
        scores = np.zeros((len(points), 3), dtype=np.float32)
        masks = []
        for i, point in enumerate(points):
            logits, scores[i] = self.scene.logits(point)
            masks.append(logits[scores[i] > least_iou, :rows, :columns])
        kept = np.flatnonzero(scores > least_iou)
        return PointMasks(torch.from_numpy(np.concatenate(masks)), torch.from_numpy(kept), torch.from_numpy(scores))

    def answers(self, points: np.ndarray) -> tuple[Tensor, Tensor]:
        """Logits (P, 3, h, w) and predicted IoUs (P, 3)."""
        parts = [self.scene.logits(point) for point in points]
        return torch.from_numpy(np.stack([part[0] for part in parts])), torch.from_numpy(
            np.stack([p[1] for p in parts])
        )


def run_ours(model: SceneModel, watch: Stopwatch, options: EverythingOptions) -> list[MaskRecord]:
    """All records by our pipeline, its stages timed."""
    stages = {
        "network": [(model, "decode_points")],
        "boxes": [(candidates, "find_extents"), (candidates, "near_crop_edge")],
        "stability": [(candidates, "stability_scores")],
        "upsampling": [(candidates, "region_spans")],
        "run lengths": [(candidates, "spans_to_runs"), (candidates, "write_rle")],
        "suppression": [(candidates, "greedy_nms")],
    }
    with watch.patched(stages), watch.stage("the rest"):
        return grid_mode.grid_records(model, np.zeros((*SIZE, 3), dtype=np.uint8), options, None)


def run_theirs(model: SceneModel, watch: Stopwatch, options: EverythingOptions, folder: str) -> list[dict[str, Any]]:
    """All records by the published pipeline, its stages timed."""
    package = import_published(folder)
    generating = sys.modules[f"{package.__name__}.automatic_mask_generator"]
    sam_class = sys.modules[f"{package.__name__}.modeling"].Sam
    transform = sys.modules[f"{package.__name__}.utils.transforms"].ResizeLongestSide(FRAME.long_side)
    sam = types.SimpleNamespace(image_encoder=types.SimpleNamespace(img_size=FRAME.long_side), mask_threshold=0.0)

    def predict_torch(points: Tensor, *arguments: object, **named: object) -> tuple[Tensor, Tensor, Tensor]:
        with watch.stage("network"):
            # Back to pixels of the image, by which the scene knows its points.
            input_size = FRAME.input_size(SIZE)
            scale = np.array([SIZE[1] / input_size[1], SIZE[0] / input_size[0]])
            logits, ious = model.answers(points[:, 0].numpy() * scale)
        with watch.stage("upsampling"):
            full = sam_class.postprocess_masks(sam, logits, FRAME.input_size(SIZE), SIZE)
        return full, ious, logits

    with patch.object(generating, "SamPredictor", lambda sam: None):
        names = (*PUBLISHED_OPTIONS, "crop_n_layers", "min_mask_region_area")
        arguments = {name: getattr(options, name) for name in names}
        generator = generating.SamAutomaticMaskGenerator(sam, output_mode="coco_rle", **arguments)
    nothing = lambda *arguments: None  # noqa: E731
    generator.predictor = types.SimpleNamespace(
        set_image=nothing,
        reset_image=nothing,
        transform=transform,
        device="cpu",
        model=sam,
        predict_torch=predict_torch,
    )
    stages = {
        "boxes": [(generating, "batched_mask_to_box"), (generating, "is_box_near_crop_edge")],
        "stability": [(generating, "calculate_stability_score")],
        "run lengths": [(generating, "mask_to_rle_pytorch"), (generating, "coco_encode_rle")],
        "suppression": [(generating, "batched_nms")],
    }
    with watch.patched(stages), watch.stage("the rest"):
        return generator.generate(np.zeros((*SIZE, 3), dtype=np.uint8))


def differences(ours: list[MaskRecord], theirs: list[dict[str, Any]]) -> int:
    """Records that are not equal in every value, or are missing on one side."""
    count = abs(len(ours) - len(theirs))
    for record, other in zip(ours, theirs, strict=False):
        x0, y0, x1, y1 = record.box
        box = [x0, y0, x1 - x0 - 1, y1 - y0 - 1]
        count += not (
            record.segmentation == other["segmentation"]
            and record.area == other["area"]
            and box == other["bbox"]
            and record.predicted_iou == other["predicted_iou"]
            and record.stability_score == other["stability_score"]
            and np.allclose(record.prompt["points"], other["point_coords"])  # type: ignore[index]
        )
    return count


def print_survival(model: SceneModel, options: EverythingOptions) -> None:
    """How many candidates pass which filter, beside what is known of photographs."""
    points = point_grid(options.points_per_side or 32) * [SIZE[1], SIZE[0]]
    encoded = model.encode(np.zeros((*SIZE, 3), dtype=np.uint8))
    exact = model.resize(encoded).exact
    passed = stable = 0
    for start in range(0, len(points), 16):
        answer = model.decode_points(encoded, points[start : start + 16], options.pred_iou_thresh)
        passed += len(answer.candidates)
        if passed:
            scores = stability_score(exact(answer.low_res_logits).numpy(), 0.0, options.stability_score_offset)
            stable += int((scores >= np.float32(options.stability_score_thresh)).sum())
    total = 3 * len(points)
    print(f"{total} candidates, {passed / total:.0%} pass the predicted IoU, {stable / total:.0%} the stability too")


def print_synthetic(arguments: argparse.Namespace) -> int:
    """The table of stages; the number of records that differ."""
    now = time.process_time if arguments.cpu_time else time.perf_counter
    model, options = SceneModel(make_scene()), EverythingOptions()
    print_survival(model, options)
    watches: dict[str, Stopwatch] = {}
    records = {}
    runs: dict[str, Callable[[Stopwatch], list]] = {"ours": lambda watch: run_ours(model, watch, options)}
    if arguments.against:
        runs["published"] = lambda watch: run_theirs(model, watch, options, arguments.against)
    for name, run in runs.items():
        repeats = arguments.repeats if name == "ours" else 1
        tries = []
        for _ in range(repeats):
            watch = Stopwatch(now)
            records[name] = run(watch)
            tries.append(watch)
        watches[name] = sorted(tries, key=lambda watch: watch.after_network())[len(tries) // 2]
    print(f"{len(records['ours'])} masks at the end\n")
    columns = [name for name in ("published", "ours") if name in watches]
    print(f"| stage | {' | '.join(columns)} | ratio |\n|{' --- |' * (len(columns) + 2)}")
    rows = {stage: [watches[name].seconds.get(stage, 0.0) for name in columns] for stage in STAGES[1:]}
    rows["after the network"] = [watches[name].after_network() for name in columns]
    for stage, seconds in rows.items():
        ratio = f"{seconds[0] / max(seconds[-1], 1e-9):.1f}" if len(seconds) > 1 else "-"
        print(f"| {stage} | {' | '.join(f'{value:.3f}' for value in seconds)} | {ratio} |")
    if "published" not in records:
        return 0
    different = differences(records["ours"], records["published"])
    print(f"\n{different} of {len(records['published'])} records differ")
    return different


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--synthetic", action="store_true", help="logits of a made-up scene instead of a network's")
    parser.add_argument("--against", metavar="FOLDER", help="a checkout of facebookresearch/segment-anything")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3, help="of ours; the published code runs once")
    parser.add_argument("--cpu-time", action="store_true", help="CPU seconds of the process, if others use the machine")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    kind = "CPU seconds" if arguments.cpu_time else "wall seconds"
    print(f"{platform.machine()}, {arguments.threads} threads, torch {torch.__version__}, {SIZE[1]}x{SIZE[0]}, {kind}")
    with torch.inference_mode():
        return 1 if print_synthetic(arguments) else 0


if __name__ == "__main__":
    sys.exit(main())
