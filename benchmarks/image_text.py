"""Seconds for each picture and each text of CLIP ViT-B/32, the default of text prompts and of names.

python benchmarks/image_text.py [--threads 1 2] [--batches 1 8 16 32] [--repeats 3] [--cpu-time]
python benchmarks/image_text.py --against-transformers   (the same pictures by that library's own processor and model)

The network has its real size (151 M parameters) and random weights, and its texts random tokens, as many as a word
usually has: time depends on neither. The variants take turns within one process, and the least of the repeats counts,
so that whatever else the machine does slows all of them. Needs the extra text.
"""

import argparse
import time
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from anysam.describe.clip import DEFAULT, ImageTextNetwork
from anysam.describe.clip_pictures import picture_rule, prepared
from anysam.describe.clip_texts import TextReader

PHOTO = Path(__file__).parents[1] / "examples" / "images" / "coffee.png"
CROP = (320, 240)  # width, height: of a mask that is looked at
PICTURES = 32
TEXTS = (1, 80)  # a prompt; the names of a small vocabulary
TEMPLATE = "a photo of a {}."
START, END = 49406, 49407


def open_model() -> ImageTextNetwork:
    """CLIP ViT-B/32 as its configuration describes it, with random weights."""
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    cpu = torch.device("cpu")
    reader = TextReader(
        lambda text: [zlib.crc32(word.encode()) % START for word in text.split()],
        (START,),
        END,
        END,
        frozenset(),
        77,
        False,
        DEFAULT,
    )
    module = CLIPModel(CLIPConfig()).eval().requires_grad_(False)
    return ImageTextNetwork(
        DEFAULT, "clip", None, None, "random", cpu, torch.float32, 16, print, module, reader, picture_rule({}, False),
        100.0, 0.0,
    )  # fmt: skip


def picture_tasks(
    model: ImageTextNetwork, pictures: list[np.ndarray], batches: list[int], compared: bool
) -> dict[str, Callable[[], object]]:
    """Ways to compare PICTURES pictures with a text that is kept already."""
    tasks: dict[str, Callable[[], object]] = {"preparing": lambda: [prepared(each, model._rule) for each in pictures]}
    for batch in batches:
        one = replace(model, batch=batch)
        one.similarities(pictures[:1], ["a cup"])
        tasks[f"batch {batch}"] = lambda one=one: one.similarities(pictures, ["a cup"])
    if compared:
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

        processor = CLIPImageProcessorPil()
        ids = torch.tensor([[START, 320, 1929, END]])

        def plain() -> None:
            for start in range(0, len(pictures), model.batch):
                chunk = pictures[start : start + model.batch]
                pixels = processor(chunk, return_tensors="pt", input_data_format="channels_last")["pixel_values"]
                with torch.inference_mode():
                    model._module(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels)

        tasks[f"transformers, batch {model.batch}"] = plain
    return tasks


def text_tasks(model: ImageTextNetwork) -> dict[str, tuple[int, Callable[[], object]]]:
    """Encoding lists of texts anew."""
    tasks = {}
    for count in TEXTS:
        texts = tuple(TEMPLATE.format(f"thing{number}") for number in range(count))
        tasks[f"{count} text{'s' if count > 1 else ''}"] = (count, lambda texts=texts: model._encode_texts(texts))
    return tasks


def least(tasks: dict[str, Callable[[], object]], repeats: int, clock: Callable[[], float]) -> dict[str, float]:
    """Seconds of each, in turns."""
    seconds = dict.fromkeys(tasks, float("inf"))
    for _ in range(repeats):
        for name, task in tasks.items():
            start = clock()
            task()
            seconds[name] = min(seconds[name], clock() - start)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 16, 32])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cpu-time", action="store_true", help="CPU seconds of all threads, for a busy machine")
    parser.add_argument("--against-transformers", action="store_true")
    options = parser.parse_args()
    clock = time.process_time if options.cpu_time else time.perf_counter
    model = open_model()
    picture = np.asarray(Image.open(PHOTO).convert("RGB").resize(CROP))
    pictures = [np.roll(picture, number, axis=1) for number in range(PICTURES)]
    print("| threads | what | s each |\n| --- | --- | --- |")
    for threads in options.threads:
        torch.set_num_threads(threads)
        asked = picture_tasks(model, pictures, options.batches, options.against_transformers)
        for name, seconds in least(asked, options.repeats, clock).items():
            print(f"| {threads} | a picture, {name} | {seconds / PICTURES:.4f} |", flush=True)
        texts = text_tasks(model)
        for name, seconds in least({name: task for name, (_, task) in texts.items()}, options.repeats, clock).items():
            print(f"| {threads} | a text of {name} | {seconds / texts[name][0]:.4f} |", flush=True)


if __name__ == "__main__":
    main()
