"""Seconds to write captions, and to write the same by reading all again for every token.

python benchmarks/captions.py [--regions 1 64] [--threads 1 2] [--repeats 5] [--weights random gaussian] [--cpu-time]

The decoder has the published size. Its weights are PyTorch's random ones or normal ones of variance 1 / inputs, whose
blocks add more to what they read: their rounded copy guesses worse, because among the logits of random weights the best
two are close. Both ways take turns within one process, each repeat on other regions; the tokens are compared. Where a
caption has ended, reading all again goes on: the number of tokens is always --tokens. See README.md for the method.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from anysam.models.tap_captions import caption_tokens
from anysam.models.tap_text import BOS, EOS, TextConfig, TextDecoder

# Repeats of reading all again for many regions, which takes minutes.
MANY, REPEATS_OF_MANY = 8, 1


def random_decoder(weights: str) -> TextDecoder:
    """A decoder of the published size."""
    torch.manual_seed(0)
    decoder = TextDecoder(TextConfig()).eval().requires_grad_(False)
    if weights == "gaussian":
        for layer in decoder.modules():
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
    return decoder


@torch.inference_mode()
def read_all_again(decoder: TextDecoder, semantic_tokens: Tensor, count: int) -> list[list[int]]:
    """`count` tokens of each caption, up to its EOS, without keeping anything of what was read."""
    tokens = torch.full((len(semantic_tokens), 1), BOS)
    for _ in range(count):
        best = decoder(semantic_tokens, tokens)[:, -1].argmax(dim=-1, keepdim=True)  # (P, 1)
        tokens = torch.cat([tokens, best], dim=1)
    return [row[: row.index(EOS)] if EOS in row else row for row in tokens[:, 1:].tolist()]


def seconds(now: Callable[[], float], action: Callable[[], list[list[int]]]) -> tuple[float, list[list[int]]]:
    start = now()
    result = action()
    return now() - start, result


def measure(decoder: TextDecoder, regions: int, count: int, repeats: int, now: Callable[[], float]) -> str:
    """One row of the table."""
    naive, ours, same, total = [], [], 0, 0
    for repeat in range(repeats):
        generator = torch.Generator().manual_seed(repeat)
        semantic_tokens = torch.randn(regions, decoder.encoder.in_features, generator=generator)
        took, expected = seconds(now, lambda: read_all_again(decoder, semantic_tokens, count))  # noqa: B023
        naive.append(took)
        took, found = seconds(now, lambda: [c.tokens for c in caption_tokens(decoder, semantic_tokens, count)])  # noqa: B023
        ours.append(took)
        same += sum(a == b for a, b in zip(expected, found, strict=True))
        total += regions
    slow, fast = statistics.median(naive) / regions, statistics.median(ours) / regions
    return f"| {regions} | {slow:.3f} | {fast:.3f} | {slow / fast:.1f} | {same} of {total} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--regions", type=int, nargs="+", default=[1, 64], help="captions written at once")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--tokens", type=int, default=38, help="of each caption")
    parser.add_argument("--repeats", type=int, default=5, help=f"1 for more than {MANY} regions")
    parser.add_argument("--weights", nargs="+", choices=["random", "gaussian"], default=["random", "gaussian"])
    parser.add_argument("--cpu-time", action="store_true", help="of the process, where the machine is not idle")
    arguments = parser.parse_args()
    now = time.process_time if arguments.cpu_time else time.perf_counter
    print(
        f"{platform.machine()}, torch {torch.__version__}, numba {'there' if find_spec('numba') else 'missing'}, "
        f"{arguments.tokens} tokens, {'CPU' if arguments.cpu_time else 'wall'} seconds for each region\n"
    )
    for weights in arguments.weights:
        decoder = random_decoder(weights)
        caption_tokens(decoder, torch.zeros(1, decoder.encoder.in_features))  # compiles, and makes the rounded copy
        for threads in arguments.threads:
            torch.set_num_threads(threads)
            print(f"{weights} weights, {threads} threads\n\n| regions | all again | ours | ratio | same captions |")
            print("| --- | --- | --- | --- | --- |")
            for regions in arguments.regions:
                repeats = arguments.repeats if regions <= MANY else min(arguments.repeats, REPEATS_OF_MANY)
                print(measure(decoder, regions, arguments.tokens, repeats, now), flush=True)
            print()


if __name__ == "__main__":
    main()
