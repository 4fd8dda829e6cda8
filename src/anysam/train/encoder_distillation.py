"""What recipes share that teach an image encoder another one's embeddings: teachers, errors, hooks and a score.

A teacher is a frozen network that runs along, or the folder of embeddings that `anysam embed` made with it. The steps
of a recipe are

    example = read_example(entry, network.preprocess, teacher)       in a worker process
    batch = collate(examples)
    wanted = teacher.embeddings(batch, pixels)                       (B, D, h, w) float32, without gradient
    errors = embedding_errors(learned, wanted, valid)                (B,)
    scores = agreement(network, teacher, dataset)                    masks of both for the same points
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from anysam.checkpoints import load_model
from anysam.datasets import ImageDataset, ImageEntry
from anysam.embeddings import EmbeddingCache
from anysam.errors import ImageError, OptionError, WeightsError
from anysam.models import PromptableModel, build
from anysam.models.sam import Sam
from anysam.models.sam_decoder import FOREGROUND, PADDING, MaskDecoder, PromptEncoder
from anysam.preprocess import Preprocess, prepare_image
from anysam.train.processes import rank, shard, world
from anysam.train.promptable import encoding_parts, valid_area, valid_cells
from anysam.weights_files import read_state_dict

KEY = "image_embeddings"


@dataclass(frozen=True, eq=False)
class EmbeddingExample:
    """An image as student and teacher see it.

    pixels: (3, H, W) float32, the student's. theirs: (3, H', W') float32, the teacher's, where it runs along and sees
    other pixels. stored: (D, h, w) float16, the teacher's embeddings, where they are kept. input_size: (height, width)
    of the image in the student's input frame. name: the image's, within its data set.
    """

    pixels: Tensor
    theirs: Tensor | None
    stored: Tensor | None
    input_size: tuple[int, int]
    name: str


@dataclass(frozen=True, eq=False)
class EmbeddingBatch:
    """B examples. pixels: (B, 3, H, W). theirs: (B, 3, H', W') or None. stored: (B, D, h, w) float16 or None."""

    pixels: Tensor
    theirs: Tensor | None
    stored: Tensor | None
    input_sizes: list[tuple[int, int]]


class Teacher:
    """Where the wanted embeddings come from: a frozen network, or a folder of what one gave.

    preprocess: of the network. network: a PromptableModel whose encode_image is used; it is put in eval mode and loses
    its gradients. cache: embeddings by the images' names. One of both must be given.
    """

    def __init__(
        self, preprocess: Preprocess, network: nn.Module | None = None, cache: EmbeddingCache | None = None
    ) -> None:
        if (network is None) == (cache is None):
            raise ValueError("a teacher is a network or a cache")
        self.preprocess = preprocess
        self.network = None if network is None else network.eval().requires_grad_(False)
        self.cache = cache
        self.kept: dict[int, Tensor] = {}  # see `keep`
        self._device: torch.device | None = None
        self._spread, self._keeps = False, False  # over several processes; validation's embeddings

    def knows(self, name: str) -> bool:
        """Whether there are embeddings of this image."""
        return self.cache is None or name in self.cache

    @torch.no_grad()
    def embeddings(self, batch: EmbeddingBatch, pixels: Tensor) -> Tensor:
        """The teacher's embeddings (B, D, h, w) float32 on the device of `pixels`, the student's (B, 3, H, W)."""
        if self.cache is not None:
            assert batch.stored is not None
            return batch.stored.to(pixels.device, torch.float32)
        theirs = pixels if batch.theirs is None else batch.theirs.to(pixels.device)
        return self.on(pixels.device).encode_image(theirs)[KEY].float()

    def on(self, device: torch.device) -> PromptableModel:
        """The network on a device. Large encoders are spread over the GPUs of all processes."""
        assert self.network is not None
        if self._device != device:
            self.network.to(device)
            spread = [shard(self.network.get_submodule(name)) for name in encoding_parts(self.network)]
            self._spread, self._device = any(spread), device
        return cast(PromptableModel, self.network)

    def keep(self, dataset: ImageDataset, student: Preprocess, device: torch.device) -> None:
        """Compute the embeddings of a validation set once, for the first process, on the CPU: `kept`, by number.

        A network that is spread over processes computes in all of them together, but only the first one validates.
        To be called by all, for example in Task.prepare; does nothing for any other teacher, or again.
        """
        if self.cache is not None or world() == 1 or self._keeps:
            return
        self.on(device)
        self._keeps = True
        if not self._spread:
            return
        for index in range(len(dataset)):
            try:
                batch = collate([read_example(dataset[index], student, self)])
            except ImageError:
                continue
            wanted = self.embeddings(batch, batch.pixels.to(device))
            if rank() == 0:
                self.kept[index] = wanted.cpu()

    def embeddings_to_judge(self, index: int, batch: EmbeddingBatch, pixels: Tensor) -> Tensor:
        """As `embeddings`, of image `index` of the validation set alone: what was kept, if the network is spread.

        Raises ImageError for an image that could not be read when the others were kept.
        """
        if not self._spread:
            return self.embeddings(batch, pixels)
        if index not in self.kept:
            raise ImageError(f"Image {index} of the validation set could not be read at first.")
        return self.kept[index].to(pixels.device)


def read_example(entry: ImageEntry, preprocess: Preprocess, teacher: Teacher) -> EmbeddingExample:
    """An entry for a student of this preprocess; not augmented.

    Raises ImageError for a broken image, or one whose embeddings the teacher should have stored and has not.
    """
    if not teacher.knows(entry.name):
        raise ImageError(f"{entry.name} has no stored embedding; make it with `anysam embed`, into the same folder.")
    image = entry.read_image()
    pixels, input_size = prepare_image(image, preprocess)
    theirs = None
    if teacher.cache is None and _sight(teacher.preprocess) != _sight(preprocess):
        theirs = prepare_image(image, teacher.preprocess)[0][0]
    stored = None if teacher.cache is None else teacher.cache[entry.name][KEY]
    return EmbeddingExample(pixels[0], theirs, stored, input_size, entry.name)


def collate(examples: Sequence[EmbeddingExample]) -> EmbeddingBatch:
    """At least one example, all of one student and teacher, as a batch."""

    def stacked(parts: list[Tensor | None]) -> Tensor | None:
        there = [part for part in parts if part is not None]
        return torch.stack(there) if there else None

    return EmbeddingBatch(
        torch.stack([example.pixels for example in examples]),
        stacked([example.theirs for example in examples]),
        stacked([example.stored for example in examples]),
        [example.input_size for example in examples],
    )


def _sight(preprocess: Preprocess) -> tuple[object, ...]:
    """All that decides which pixels a network sees."""
    p = preprocess
    side = p.image_side or p.long_side
    return side, p.pad_to, p.pad_multiple, p.mean, p.std, p.keep_aspect, p.antialias, p.bgr, p.pad_colour


def embedding_errors(learned: Tensor, wanted: Tensor, valid: Tensor | None = None) -> Tensor:
    """Squared errors of embeddings (B, D, h, w), averaged over channels and cells of each image: (B,) float32.

    valid: (B, h, w), how much each cell counts, 0 to 1; None counts all. Raises OptionError where the two have other
    shapes: what a cell means would differ, so nothing is resized.
    """
    if learned.shape != wanted.shape:
        raise OptionError(
            f"The student's embeddings are {tuple(learned.shape[1:])} (channels, rows, columns), the teacher's "
            f"{tuple(wanted.shape[1:])}; nothing is resized: take a teacher with the same grid, such as sam_vit_h."
        )
    errors = (learned.float() - wanted.float()).square().mean(dim=1)  # (B, h, w)
    if valid is None:
        return errors.mean(dim=(1, 2))
    weights = valid.to(errors)
    return (errors * weights).sum(dim=(1, 2)) / weights.sum(dim=(1, 2)).clamp(min=1e-6)


def valid_embedding_cells(preprocess: Preprocess, batch: EmbeddingBatch, size: tuple[int, int]) -> Tensor:
    """Which cells of embeddings of `size` (h, w) hold image, by more than a half, and not padding: (B, h, w) bool."""
    return torch.stack([valid_area(preprocess, each, size) > 0.5 for each in batch.input_sizes])


@contextmanager
def observed(network: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Keeps the outputs of the named submodules while the context lasts: name -> its last output, a tensor."""
    seen: dict[str, Tensor] = {}

    def keeper(name: str):  # type: ignore[no-untyped-def]
        def keep(module: nn.Module, inputs: object, output: Tensor) -> None:
            seen[name] = output

        return keep

    handles = [network.get_submodule(name).register_forward_hook(keeper(name)) for name in names]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients; every module's mode is as before afterwards."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training


def agreement(network: Sam, teacher: Teacher, dataset: ImageDataset, side: int = 4) -> dict[str, float]:
    """How near a student is to its teacher, averaged over images; those that cannot be read are left out.

    "miou": IoU of the masks that the network's own decoder makes of both embeddings for the same points, a grid of
    side x side over the image: the measure of MobileSAM's paper (section 4.1), which takes random points and does not
    say which of a point's masks; here it is the one of clear prompts, at low resolution. "cosine": of the embeddings,
    averaged over all cells. "mse": as embedding_errors. Without any image there are no scores.
    """
    ious: list[float] = []
    cosines: list[float] = []
    errors: list[float] = []
    device = next(network.parameters()).device
    with evaluating(network):
        for index in range(len(dataset)):
            try:
                batch = collate([read_example(dataset[index], network.preprocess, teacher)])
                pixels = batch.pixels.to(device)
                wanted = teacher.embeddings_to_judge(index, batch, pixels)
            except ImageError:
                continue
            learned = network.encode_image(pixels)[KEY]
            errors.append(embedding_errors(learned, wanted).item())
            cosines.append(functional.cosine_similarity(learned.float(), wanted, dim=1).mean().item())
            own = _mask_ious(network, learned, wanted, batch.input_sizes[0], side)
            ious += [float(np.mean(own))] if own else []
    if not errors:
        return {}
    return {
        "miou": float(np.mean(ious)) if ious else 0.0,
        "cosine": float(np.mean(cosines)),
        "mse": float(np.mean(errors)),
    }


def _mask_ious(network: Sam, learned: Tensor, wanted: Tensor, input_size: tuple[int, int], side: int) -> list[float]:
    """IoU of the masks of both embeddings (1, D, h, w) for each point of a grid; without points of no mask at all."""
    height, width = input_size
    ticks = (torch.arange(side) + 0.5) / side
    y, x = torch.meshgrid(ticks * height - 0.5, ticks * width - 0.5, indexing="ij")
    points = torch.stack([x.flatten(), y.flatten()], dim=1).to(learned.device)  # (P, 2)
    points = torch.stack([points, torch.zeros_like(points)], dim=1)  # (P, 2, 2)
    labels = torch.tensor([FOREGROUND, PADDING], device=learned.device).expand(len(points), 2)
    rows, columns = valid_cells(network.preprocess, input_size)
    ours, theirs = (
        network.decode({KEY: each}, points, labels, None, False).low_res_logits[:, 0, :rows, :columns] > 0
        for each in (learned.float(), wanted)
    )
    union = (ours | theirs).flatten(1).sum(dim=1)  # (P,)
    shared = (ours & theirs).flatten(1).sum(dim=1)
    there = union > 0
    return (shared[there] / union[there]).tolist()


def open_teacher(name_or_path: str, embeddings: str, student: Preprocess) -> tuple[Teacher, Sam]:
    """A teacher of the catalogue or a file, with its embeddings from a folder if one is given, and its whole network.

    student: the frame of who learns. Raises OptionError if the folder is of other weights, or the teacher sees images
    in another way; and what loading raises.
    """
    network, row, sha256 = load_model(name_or_path)
    decoder_of(network, row.name)
    preprocess = cast(PromptableModel, network).preprocess
    require_same_view(student, preprocess)
    if not embeddings:
        return Teacher(preprocess, network), cast(Sam, network)
    cache = EmbeddingCache(embeddings)
    if cache.facts.get("weights_sha256") != sha256:
        raise OptionError(
            f"The embeddings in {embeddings} are not of {name_or_path} with these weights; make them again with "
            "`anysam embed`, or give the teacher that they are of."
        )
    return Teacher(preprocess, cache=cache), cast(Sam, network)


def require_same_view(student: Preprocess, teacher: Preprocess) -> None:
    """Raise OptionError unless equal cells of square embeddings show equal parts of an image to both."""
    for each in (student, teacher):
        if each.keep_aspect != student.keep_aspect or each.pad_to != each.long_side:
            raise OptionError(
                f"The student sees images as {student.name}, the teacher as {teacher.name}, whose cells show other "
                "parts of an image; take a teacher such as sam_vit_h, sam_vit_l or sam_vit_b."
            )


def decoder_of(network: nn.Module, name: str) -> tuple[PromptEncoder, MaskDecoder]:
    """SAM's own prompt encoder and mask decoder of a network. Raises OptionError if it has others."""
    prompts, masks = getattr(network, "prompt_encoder", None), getattr(network, "mask_decoder", None)
    if not isinstance(prompts, PromptEncoder) or not isinstance(masks, MaskDecoder):
        raise OptionError(f"{name} has no decoder of SAM's kind to take over; take sam_vit_h, sam_vit_l or sam_vit_b.")
    return prompts, masks


def require_stored(teacher: Teacher, dataset: ImageDataset) -> None:
    """Raise OptionError if the teacher has stored embeddings, but of no image of a data set."""
    for index in range(len(dataset)):
        try:
            if teacher.knows(dataset[index].name):
                return
        except ImageError:
            continue
    raise OptionError(
        f"None of the {len(dataset)} images of {dataset.name} has a stored embedding; run `anysam embed` on them with "
        "the same output folder, or let the teacher run along, without --embeddings."
    )


def start_encoder(encoder: nn.Module, path: str, may_lack: tuple[str, ...] = ()) -> None:
    """Weights of a file for an image encoder, in place: of a whole network (image_encoder. ...), or of its kind alone.

    may_lack: how names begin that the file may lack, or have in another shape; these tensors stay as they are. Other
    tensors of the file are not looked at. Raises WeightsError if it has not all that is needed.
    """
    prefix, own = "image_encoder.", encoder.state_dict()
    state = read_state_dict(path)
    if any(key.startswith(prefix) for key in state):
        state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    fitting = {key: value for key, value in state.items() if key in own and value.shape == own[key].shape}
    bad = [key for key in own if key not in fitting and not key.startswith(may_lack)]
    if bad:
        raise WeightsError(
            f"{path} does not fit this image encoder: {len(bad)} of {len(own)} tensors are missing or of another shape "
            f"(first: {bad[0]})."
        )
    encoder.load_state_dict({**own, **fitting})


def started(family: str, size: str, seed: int) -> nn.Module:
    """A network of the catalogue with the start values of training: linear layers normal (0.02), their biases 0, as in
    TinyViT and other transformers; position tables normal (0.02) too; the rest as torch builds it.

    The same for the same seed; torch's global generators are left as they were.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build(family, size)
        initialise(network)
    return network


def initialise(module: nn.Module) -> None:
    """See `started`; in place, with numbers of torch's global generator."""
    for child in module.modules():
        if isinstance(child, nn.Linear):
            nn.init.trunc_normal_(child.weight, std=0.02)
            if child.bias is not None:
                nn.init.zeros_(child.bias)
    for name, parameter in module.named_parameters():
        if name.rpartition(".")[2] == "pos_embed":
            nn.init.trunc_normal_(parameter, std=0.02)
