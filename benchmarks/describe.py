"""Seconds for describing 1, 10 and 100 masks of a photograph with Tokenize Anything, stage by stage.

python benchmarks/describe.py [--variant tap_vit_b] [--masks 1 10 100] [--threads 2] [--cpu-time]

Random weights where the real ones are not on this machine, and a random vocabulary of 2560 names: the work of the
network does not depend on the values, but for two things, which are worse here. No region of a random network is like
the mask that it was asked for, so that each mask is shown twice, and captions seldom end before their 38 tokens. Masks
are ellipses. Text is not decoded: the tokenizer is not part of this package.
"""

import argparse
import platform
import time
from collections.abc import Callable

import numpy as np
import torch
from speed import SIZE, open_model, photo

from anysam.describe.mask_prompts import show_mask
from anysam.describe.tap import TapDescriber
from anysam.describe.tap_words import Wording, write_words
from anysam.describe.vocabulary import Vocabulary
from anysam.models.tap_captions import caption_tokens
from anysam.results import MaskRecord

NAMES = 2560
COLUMNS = ("encode", "masks as prompts", "box and point", "point alone", "labels", "captions", "all")


def ellipses(count: int) -> list[MaskRecord]:
    """Masks of all sizes, anywhere in the photograph."""
    rng = np.random.default_rng(0)
    width, height = SIZE
    y, x = np.mgrid[:height, :width]
    records = []
    for _ in range(count):
        centre, radii = rng.uniform((0, 0), SIZE), rng.uniform(5, 150, 2)
        mask = ((x - centre[0]) / radii[0]) ** 2 + ((y - centre[1]) / radii[1]) ** 2 < 1
        records.append(MaskRecord.from_mask(mask, 0.9))
    return records


def random_vocabulary(width: int) -> Vocabulary:
    columns = np.random.default_rng(0).normal(size=(width, NAMES))
    columns *= 100 / np.linalg.norm(columns, axis=0)
    return Vocabulary(tuple(f"name {i}" for i in range(NAMES)), columns.astype(np.float32), "random")


@torch.inference_mode()
def measure(name: str, counts: list[int], now: Callable[[], float]) -> None:
    model, image = open_model(name), photo()
    wording = Wording(random_vocabulary(model.network.semantic_dim), None, None, None, 1)
    describer = TapDescriber(model, wording)
    describer.words(image, ellipses(1))  # not counted
    caption_tokens(model.network.text_decoder, torch.zeros(1, 256))  # nor what is made on the first use
    print(f"\n| masks | {' | '.join(f'{column} s' for column in COLUMNS)} |\n|" + " --- |" * (1 + len(COLUMNS)))
    for count in counts:
        records = ellipses(count)
        times = [now()]
        encoded = model.encode(image)
        times.append(now())
        shown = [show_mask(record) for record in records]
        times.append(now())
        lots = [shown[start : start + 8] for start in range(0, count, 8)]
        regions = [region for lot in lots for region in describer._ask(encoded, lot, with_box=True)]
        times.append(now())
        for lot in lots:
            describer._ask(encoded, lot, with_box=False)
        times.append(now())
        tokens, embeddings = (torch.stack(each) for each in list(zip(*regions, strict=True))[1:])
        write_words(model.network, wording, tokens, embeddings)
        times.append(now())
        captions = caption_tokens(model.network.text_decoder, tokens)
        times.append(now())
        seconds = [*np.diff(times), times[-1] - times[0]]
        words = sum(len(caption.tokens) for caption in captions) / count
        print(
            f"| {count} | {' | '.join(f'{each:.3f}' for each in seconds)} |  ({words:.1f} tokens a caption)", flush=True
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", default="tap_vit_b", help="a variant of Tokenize Anything")
    parser.add_argument("--masks", nargs="+", type=int, default=[1, 10, 100])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cpu-time", action="store_true", help="CPU seconds of the process, if others use the machine")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    kind = "CPU seconds" if arguments.cpu_time else "wall seconds"
    threads = f"{arguments.threads} thread{'s' if arguments.threads > 1 else ''}"
    print(
        f"{arguments.variant}, {platform.machine()}, {threads}, torch {torch.__version__}, {SIZE[0]}x{SIZE[1]}, {kind}"
    )
    measure(arguments.variant, arguments.masks, time.process_time if arguments.cpu_time else time.perf_counter)


if __name__ == "__main__":
    main()
