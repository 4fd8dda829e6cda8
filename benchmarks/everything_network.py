"""Everything mode with a whole network: ours, and side by side with the published code.

python benchmarks/everything_network.py [--variants anysam_lite mobile_sam] [--size 640x480] [--points 32]
python benchmarks/everything_network.py --variants mobile_sam --size 800x600 --against FOLDER

FOLDER is a checkout of ChaoningZhang/MobileSAM (for mobile_sam) or facebookresearch/segment-anything (for sam_vit_*).
A model whose weights are not on this machine has random ones, the same in both codes. Random weights make unrealistic
masks and scores, so that the last bias of the scores is moved up by one and --pred-iou-thresh put where 68 % of the
candidates pass, as of real photographs, and no mask is dropped for its stability; the time of the decoder does not
depend on values, that of the published run lengths does (they are longer than those of real masks). The stages that
come after the network are compared on realistic masks by `everything.py --synthetic`.
"""

import argparse
import platform
import sys
import time
from typing import Any

import numpy as np
import torch
from everything import Stopwatch
from PIL import Image
from published import import_published
from speed import PHOTO, open_model

from anysam import EverythingOptions, MaskRecord, Model, preset
from anysam.masks import mask_iou
from anysam.models.sam import Sam

STAGES = ("encoder", "decoder", "upsampling", "stability", "boxes", "run lengths", "suppression", "the rest")
PASSING = 0.68  # part of the candidates of photographs that pass the predicted IoU
SAMPLE = 6  # points along each side that the threshold is taken from


def photo(size: tuple[int, int]) -> np.ndarray:
    """The photograph at a size (width, height), RGB uint8 (H, W, 3)."""
    return np.array(Image.open(PHOTO).convert("RGB").resize(size, Image.Resampling.BICUBIC))


def options_for(model: Model, image: np.ndarray, points: int) -> EverythingOptions:
    """The family's own, or for random weights those that let as many candidates pass as photographs do."""
    own = preset("default", model.variant)
    if model.weights_sha256 != "random":
        return EverythingOptions(**{**vars(own), "points_per_side": points})
    with torch.inference_mode():
        model.network.mask_decoder.iou_prediction_head.layers[-1].bias += 1.0
    encoded = model.encode(image)
    cells = (np.stack(np.meshgrid(np.arange(SAMPLE), np.arange(SAMPLE)), -1).reshape(-1, 2) + 0.5) / SAMPLE
    scores = model.decode_points(encoded, cells * encoded.original_size[::-1], -np.inf).iou_predictions
    return EverythingOptions(
        points_per_side=points,
        pred_iou_thresh=float(torch.quantile(scores, 1 - PASSING)),
        stability_score_thresh=0.0,
    )


def run_ours(model: Model, image: np.ndarray, options: EverythingOptions) -> tuple[Stopwatch, list[MaskRecord]]:
    watch = Stopwatch(time.perf_counter)
    stages = {"encoder": [(Model, "encode")], "decoder": [(Model, "decode_points")]}
    with watch.patched(stages), watch.stage("the rest"):
        return watch, model.everything(image, options)


def run_theirs(
    model: Model, image: np.ndarray, options: EverythingOptions, folder: str
) -> tuple[Stopwatch, list[dict[str, Any]]]:
    """The published generator with our weights, in batches of 64 points, its default."""
    package = import_published(folder)
    size = "vit_t" if model.variant == "mobile_sam" else model.variant.removeprefix("sam_")
    sam = package.sam_model_registry[size]()
    sam.load_state_dict(unfused_state(model))
    sam.eval()
    generating = sys.modules[f"{package.__name__}.automatic_mask_generator"]
    names = ("points_per_side", "pred_iou_thresh", "stability_score_thresh", "box_nms_thresh")
    generator = generating.SamAutomaticMaskGenerator(sam, **{name: getattr(options, name) for name in names})
    watch = Stopwatch(time.perf_counter)
    stages = {
        "encoder": [(generator.predictor, "set_image")],
        "decoder": [(sam.mask_decoder, "forward"), (sam.prompt_encoder, "forward")],
        "upsampling": [(sam, "postprocess_masks")],
        "stability": [(generating, "calculate_stability_score")],
        "boxes": [(generating, "batched_mask_to_box"), (generating, "is_box_near_crop_edge")],
        "run lengths": [(generating, "mask_to_rle_pytorch")],
        "suppression": [(generating, "batched_nms")],
    }
    with watch.patched(stages), watch.stage("the rest"):
        return watch, generator.generate(image)


def unfused_state(model: Model) -> dict[str, torch.Tensor]:
    """The weights under the published keys: of the network before anything was fused, which has the same seed."""
    from anysam.catalogue import find_variant
    from anysam.models import build

    torch.manual_seed(0)
    variant = find_variant(model.variant)
    network = build(variant.family, variant.size)
    assert isinstance(network, Sam)
    with torch.inference_mode():
        network.mask_decoder.iou_prediction_head.layers[-1].bias += 1.0  # as options_for
    return network.state_dict()


def agreement(ours: list[MaskRecord], theirs: list[dict[str, Any]]) -> str:
    """How well the masks agree, each of theirs with the best of ours."""
    masks = [record.to_mask() for record in ours]
    best = [max((mask_iou(mask, other["segmentation"]) for mask in masks), default=0.0) for other in theirs]
    return f"{len(ours)} masks, published {len(theirs)}; mean IoU of the published with ours {np.mean(best or [1]):.5f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", default=["anysam_lite"], help="names of the catalogue")
    parser.add_argument("--size", default="640x480", help="width x height of the photograph")
    parser.add_argument("--points", type=int, default=32, help="points along each side")
    parser.add_argument("--against", metavar="FOLDER", help="a checkout of the published code")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    width, height = map(int, arguments.size.split("x"))
    image = photo((width, height))
    print(
        f"{platform.machine()}, {arguments.threads} threads, torch {torch.__version__}, {arguments.size}, wall seconds"
    )
    for name in arguments.variants:
        model = open_model(name)
        options = options_for(model, image, arguments.points)
        run_ours(model, image, EverythingOptions(**{**vars(options), "points_per_side": 4}))  # warm
        watch, records = run_ours(model, image, options)
        columns = {"ours": watch}
        note = f"{len(records)} masks"
        if arguments.against:
            columns["published"], theirs = run_theirs(model, image, options, arguments.against)
            note = agreement(records, theirs)
        print(f"\n{name}: {note}\n\n| stage | {' | '.join(columns)} | ratio |\n|{' --- |' * (len(columns) + 2)}")
        for stage in (*STAGES, "all"):
            spent = [sum(w.seconds.values()) if stage == "all" else w.seconds.get(stage, 0.0) for w in columns.values()]
            ratio = f"{spent[-1] / spent[0]:.1f}" if len(spent) > 1 and spent[0] else "-"
            print(f"| {stage} | {' | '.join(f'{each:.2f}' for each in spent)} | {ratio} |", flush=True)


if __name__ == "__main__":
    main()
