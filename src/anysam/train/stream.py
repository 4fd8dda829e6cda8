"""Images and masks -> an endless stream of training batches."""

from collections.abc import Iterator

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from anysam.datasets import ImageEntry
from anysam.models.anysam_lite import AnySamLite
from anysam.train.augment import Sample, training_sample
from anysam.train.recipe import DATASET_WEIGHTS, Recipe


class Batches(IterableDataset[list[Sample]]):
    """Lists of samples of one shape. `final` (bool, shared memory) switches the worker to the recipe's final shapes.

    Data sets are drawn by DATASET_WEIGHTS (an unknown one counts as the mean of them), images evenly within each.
    """

    def __init__(self, recipe: Recipe, collection: dict[str, list[ImageEntry]], final: Tensor, seed: list[int]) -> None:
        super().__init__()
        self.recipe, self.final, self.seed = recipe, final, seed
        self.sets = [own for own in collection.values() if own]
        mean = sum(DATASET_WEIGHTS.values()) / len(DATASET_WEIGHTS)
        weights = np.asarray([DATASET_WEIGHTS.get(own[0].dataset, mean) for own in self.sets])
        self.shares = weights / weights.sum()

    def __iter__(self) -> Iterator[list[Sample]]:
        info = get_worker_info()
        cv2.setNumThreads(1)
        rng = np.random.default_rng([*self.seed, info.id if info else 0])
        while True:
            shapes = self.recipe.final_shapes if self.final.item() else self.recipe.shapes
            yield self._batch(shapes[rng.integers(len(shapes))], rng)

    def _batch(self, shape: tuple[int, int], rng: np.random.Generator) -> list[Sample]:
        recipe, samples = self.recipe, list[Sample]()
        # Images with few masks come in company, so that every step (and every process) has about the same work:
        # processes wait for the slowest.
        while len(samples) < recipe.max_images and (room := recipe.masks_per_step - sum(len(s.masks) for s in samples)):
            own = self.sets[rng.choice(len(self.sets), p=self.shares)]
            entry = own[rng.integers(len(own))]
            sample = training_sample(entry, shape, recipe.long_side, min(room, recipe.masks_per_image), rng)
            if sample is not None:
                samples.append(sample)
        return samples


def stream(batches: Batches, workers: int) -> Iterator[list[Sample]]:
    """The batches, prepared ahead by worker processes (none for 0)."""
    ahead = 4 if workers else None
    return iter(DataLoader(batches, batch_size=None, num_workers=workers, prefetch_factor=ahead))


def pixels_of(samples: list[Sample], device: str) -> Tensor:
    """Normalised images of one shape: (B, 3, H, W) float32."""
    batch = torch.from_numpy(np.stack([s.image for s in samples])).to(device).permute(0, 3, 1, 2)  # (B, 3, H, W)
    preprocess = AnySamLite.preprocess
    mean, std = (torch.tensor(v, device=device)[:, None, None] for v in (preprocess.mean, preprocess.std))
    return (batch - mean) / std
