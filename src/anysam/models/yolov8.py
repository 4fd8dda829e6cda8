"""YOLOv8-seg: boxes, scores and mask coefficients at every cell of three grids, and prototype masks to combine.

The network of FastSAM and of MobileSAMv2's object-aware detector. Written from a description in words of the networks
that those publish (CASIA-IVA-Lab/FastSAM@b4ed20c, ChaoningZhang/MobileSAM@34bbbfd) and their golden numbers, not from
their code, which is AGPL-3.0. Parameter names are the official ones, so the tensors of published files load unchanged.

What is unusual here:
- A side of a box is a distribution over `reg_max` whole distances, in cells; its expectation is the distance. The
  distances are kept as a constant parameter, `dfl.conv.weight`, because published files hold it.
- Batch norms have eps 1e-3. It is in no tensor.
- The prototype branch runs a 3x3 convolution on the result of a 2x2 transposed one, nothing in between. `Proto.fused`
  makes one 2x2 convolution of the two, on the grid before the enlargement: 0.4 times the arithmetic.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from anysam.errors import WeightsError
from anysam.models.layers import fuse_conv_bn
from anysam.models.winograd import faster

STRIDES = (8, 16, 32)
MAX_CANDIDATES = 30_000  # anchors that enter the suppression, by score; published
CLASS_OFFSET = 7680.0  # pixels between the classes' boxes, so that they do not suppress each other; published
_BLOCK = 256  # candidates that are compared with each other at once
SNAP = 20.0  # letterbox pixels from its border within which a box's side moves onto it; published


@dataclass(frozen=True)
class YoloConfig:
    """The shape of a network.

    depth, width, max_channels: factors of the published scales. reg_max: distances per side of a box. classes: kinds of
    object. coefficients: prototype masks that are combined. prototypes: whether the network makes them.
    """

    depth: float
    width: float
    max_channels: int
    reg_max: int = 16
    classes: int = 1
    coefficients: int = 32
    prototypes: bool = True

    def __post_init__(self) -> None:
        if not (self.depth > 0 and self.width > 0):
            raise ValueError(f"depth and width must be positive, got {self.depth} and {self.width}")
        if min(self.max_channels, self.reg_max, self.classes, self.coefficients) < 1:
            raise ValueError(f"max_channels, reg_max, classes and coefficients must be positive, got {self}")

    def channels(self, count: int) -> int:
        """What `count` channels of the unscaled network are here."""
        return math.ceil(min(count, self.max_channels) * self.width / 8) * 8

    def repeats(self, count: int) -> int:
        """What `count` repeated blocks of the unscaled network are here."""
        return max(round(count * self.depth), 1)


# Depth, width and the largest number of channels before scaling.
SCALES = {
    "n": (0.33, 0.25, 1024),
    "s": (0.33, 0.50, 1024),
    "m": (0.67, 0.75, 768),
    "l": (1.00, 1.00, 512),
    "x": (1.00, 1.25, 512),
}


def read_config(state_dict: Mapping[str, Tensor]) -> tuple[str, YoloConfig]:
    """The scale, a key of SCALES, and the configuration that the tensors of a state_dict have.

    Raises WeightsError when a tensor that says so is missing or no scale fits.
    """
    shapes = {key: tuple(value.shape) for key, value in state_dict.items()}
    try:
        first, last = shapes["model.0.conv.weight"][0], shapes["model.7.conv.weight"][0]
        reg_max = shapes["model.22.dfl.conv.weight"][1]
        classes = shapes["model.22.cv3.0.2.weight"][0]
        coefficients = shapes["model.22.cv4.0.2.weight"][0]
    except (KeyError, IndexError) as error:
        raise WeightsError(
            f"These are no tensors of a YOLOv8 segmentation network: {error} is missing or malformed; "
            "expected are names such as model.0.conv.weight and model.22.dfl.conv.weight."
        ) from error
    blocks = len({key.split(".")[3] for key in shapes if key.startswith("model.4.m.")})
    for name, (depth, width, most) in SCALES.items():
        prototypes = "model.22.proto.cv1.conv.weight" in shapes
        config = YoloConfig(depth, width, most, reg_max, classes, coefficients, prototypes)
        if (first, last, blocks) == (config.channels(64), config.channels(1024), config.repeats(6)):
            return name, config
    raise WeightsError(
        f"No YOLOv8 scale ({', '.join(SCALES)}) has {first} channels in the first layer, {last} in the eighth and "
        f"{blocks} blocks in the fifth, as this file does."
    )


class Conv(nn.Module):
    """Convolution, batch norm, SiLU."""

    def __init__(self, cin: int, cout: int, kernel: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(cin, cout, kernel, stride, padding=kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(cout, eps=1e-3, momentum=0.03)

    def forward(self, x: Tensor) -> Tensor:
        return functional.silu(self.bn(self.conv(x)))

    def fused(self) -> nn.Module:
        """The norm in the convolution, this by Winograd where it pays, the activation in place."""
        return nn.Sequential(faster(fuse_conv_bn(self.conv, self.bn)), nn.SiLU(inplace=True))


class Bottleneck(nn.Module):
    """Two 3x3 convolutions, with or without a shortcut."""

    def __init__(self, channels: int, shortcut: bool) -> None:
        super().__init__()
        self.cv1 = Conv(channels, channels, 3)
        self.cv2 = Conv(channels, channels, 3)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = self.cv2(self.cv1(x))
        return x + y if self.shortcut else y


class C2f(nn.Module):
    """Half of the channels go through a chain of bottlenecks; every link of the chain is kept and joined."""

    def __init__(self, cin: int, cout: int, repeats: int, shortcut: bool) -> None:
        super().__init__()
        hidden = cout // 2
        self.cv1 = Conv(cin, 2 * hidden)
        self.cv2 = Conv((2 + repeats) * hidden, cout)
        self.m = nn.ModuleList(Bottleneck(hidden, shortcut) for _ in range(repeats))

    def forward(self, x: Tensor) -> Tensor:
        links = list(self.cv1(x).chunk(2, dim=1))
        for block in self.m:
            links.append(block(links[-1]))
        return self.cv2(torch.cat(links, dim=1))


class SPPF(nn.Module):
    """Three chained 5x5 maximum pools, joined with what went in."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.cv1 = Conv(channels, channels // 2)
        self.cv2 = Conv(channels // 2 * 4, channels)

    def forward(self, x: Tensor) -> Tensor:
        links = [self.cv1(x)]
        for _ in range(3):
            links.append(functional.max_pool2d(links[-1], kernel_size=5, stride=1, padding=2))
        return self.cv2(torch.cat(links, dim=1))


class DFL(nn.Module):
    """Distributions over distances -> their expectations, in cells."""

    def __init__(self, reg_max: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(reg_max, 1, kernel_size=1, bias=False)
        self.conv.weight = nn.Parameter(torch.arange(float(reg_max))[None, :, None, None], requires_grad=False)

    def forward(self, logits: Tensor) -> Tensor:
        """(B, 4 reg_max, A) -> (B, 4, A) float32: half precision would move the sides of large boxes by pixels."""
        bins = logits.float().unflatten(1, (4, -1)).softmax(dim=2)  # (B, 4, reg_max, A)
        return (bins * self.conv.weight.float()[0, :, 0]).sum(dim=2)  # (B, 4, A)


class Proto(nn.Module):
    """Features of stride 8 -> prototype masks of stride 4."""

    def __init__(self, cin: int, hidden: int, cout: int) -> None:
        super().__init__()
        self.cv1 = Conv(cin, hidden, 3)
        self.upsample = nn.ConvTranspose2d(hidden, hidden, kernel_size=2, stride=2)
        self.cv2 = Conv(hidden, hidden, 3)
        self.cv3 = Conv(hidden, cout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, h, w) -> (B, coefficients, 2h, 2w)."""
        return self.cv3(self.cv2(self.upsample(self.cv1(x))))

    def fused(self) -> nn.Module:
        """The transposed convolution and the 3x3 one after it as one; see FusedProto."""
        return FusedProto(self)


class FusedProto(nn.Module):
    """A Proto whose enlargement and 3x3 convolution are one 2x2 convolution, equal in inference.

    An enlarged pixel has its 3x3 neighbourhood in 2x2 cells of the grid before, so each of a cell's four pixels is
    a 2x2 convolution of its own of that grid. The border differs: the 3x3 convolution sees zeros beyond it, also where
    the transposed one would have put its bias, so there the bias of what is missing is taken off.
    """

    def __init__(self, proto: Proto) -> None:
        super().__init__()
        self.cv1, self.cv3 = proto.cv1.fused(), proto.cv3.fused()
        conv = fuse_conv_bn(proto.cv2.conv, proto.cv2.bn)
        up, outer = (
            proto.upsample.weight.detach().double(),
            conv.weight.detach().double(),
        )  # (in, mid, 2, 2), (out, mid, 3, 3)
        joined = up.new_zeros(2, 2, outer.shape[0], up.shape[0], 2, 2)  # (pixel y, x, out, in, cell y, x)
        for y, x in np.ndindex(2, 2):
            for dy, dx in np.ndindex(3, 3):
                row, column = y + dy - 1, x + dx - 1  # -1..2: of the enlarged pixel, seen from the cell
                cell_y, cell_x = row // 2 + 1 - y, column // 2 + 1 - x
                joined[y, x, :, :, cell_y, cell_x] += outer[:, :, dy, dx] @ up[:, :, row % 2, column % 2].T
        inner = cast(Tensor, proto.upsample.bias).detach().double()  # (mid,)
        taps = torch.einsum("omyx,m->oyx", outer, inner)  # the bias that each tap brings
        bias = cast(Tensor, conv.bias).detach().double() + taps.sum(dim=(1, 2))  # (out,)
        dtype = conv.weight.dtype
        self.weight = nn.Parameter(joined.flatten(0, 2).to(dtype).contiguous(memory_format=torch.channels_last))
        self.bias = nn.Parameter(bias.repeat(4).to(dtype))  # (4 out,)
        self.taps = nn.Parameter(taps.to(dtype))  # (out, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, h, w) -> (B, coefficients, 2h, 2w)."""
        x = self.cv1(x)
        height, width = x.shape[-2:]
        phases = functional.conv2d(x, self.weight, self.bias, padding=1)  # (B, 4 out, h + 1, w + 1)
        parts = []
        for i, phase in enumerate(phases.chunk(4, dim=1)):
            y, x_ = divmod(i, 2)
            part = phase[:, :, y : y + height, x_ : x_ + width].clone(memory_format=torch.channels_last)
            self._take_border_bias(part, y, x_)
            parts.append(self.cv3(functional.silu(part, inplace=True)))  # (B, coefficients, h, w)
        stacked = torch.stack(parts, dim=2).flatten(1, 2)  # (B, coefficients * 4, h, w)
        return functional.pixel_shuffle(stacked, 2)  # (B, coefficients, 2h, 2w)

    def _take_border_bias(self, part: Tensor, y: int, x: int) -> None:
        """Subtract, in place, the bias of the taps beyond the border from the pixels of one phase (y, x)."""
        row, column = (0, -1)[y], (0, -1)[x]  # the row and the column of this phase that lie on the border
        beyond_y, beyond_x = 2 * y, 2 * x  # the taps that reach over it
        part[:, :, row] -= self.taps[:, beyond_y].sum(dim=1)[:, None]
        part[:, :, :, column] -= self.taps[:, :, beyond_x].sum(dim=1)[:, None]
        part[:, :, row, column] += self.taps[:, beyond_y, beyond_x]


class Raw(NamedTuple):
    """What the head says, before decoding; what a loss would take.

    levels: for strides 8, 16, 32 the maps (B, 4 reg_max + classes, h, w): per side (left, top, right, bottom) logits of
    the distances, then class logits. coefficients: (B, 32, A), anchors of the three levels in turn, row by row.
    prototypes: (B, 32, H/4, W/4), or None where the network makes none.
    """

    levels: tuple[Tensor, Tensor, Tensor]
    coefficients: Tensor
    prototypes: Tensor | None


class Segment(nn.Module):
    """The head: three branches (boxes, classes, mask coefficients) at each of three strides, and the prototypes."""

    def __init__(self, config: YoloConfig, channels: tuple[int, int, int]) -> None:
        super().__init__()
        sides, first = 4 * config.reg_max, channels[0]
        box, kind, mask = max(16, first // 4, sides), max(first, config.classes), max(first // 4, config.coefficients)
        self.cv2 = nn.ModuleList(_branch(cin, box, sides) for cin in channels)
        self.cv3 = nn.ModuleList(_branch(cin, kind, config.classes) for cin in channels)
        self.dfl = DFL(config.reg_max)
        if config.prototypes:
            self.proto = Proto(first, config.channels(256), config.coefficients)
        self.cv4 = nn.ModuleList(_branch(cin, mask, config.coefficients) for cin in channels)

    def forward(self, fine: Tensor, middle: Tensor, coarse: Tensor) -> Raw:
        features = (fine, middle, coarse)
        levels = [torch.cat((box(x), kind(x)), 1) for x, box, kind in zip(features, self.cv2, self.cv3, strict=True)]
        coefficients = [branch(x).flatten(2) for x, branch in zip(features, self.cv4, strict=True)]  # each (B, 32, hw)
        prototypes = self.proto(fine) if hasattr(self, "proto") else None
        return Raw((levels[0], levels[1], levels[2]), torch.cat(coefficients, dim=2), prototypes)

    def decode(self, raw: Raw) -> Tensor:
        """(B, 4 + classes + 32, A) float32: centre x y, width, height in letterbox pixels; scores; coefficients."""
        sides = 4 * self.dfl.conv.in_channels
        flat = torch.cat([level.flatten(2) for level in raw.levels], dim=2)  # (B, 4 reg_max + classes, A)
        shapes = [(level.shape[2], level.shape[3]) for level in raw.levels]
        centres, strides = anchor_grid(shapes, flat.device)  # (2, A), (A,)
        left_top, right_bottom = self.dfl(flat[:, :sides]).chunk(2, dim=1)  # each (B, 2, A)
        low, high = centres - left_top, centres + right_bottom
        boxes = torch.cat(((low + high) / 2, high - low), dim=1) * strides  # (B, 4, A)
        return torch.cat((boxes, flat[:, sides:].float().sigmoid(), raw.coefficients.float()), dim=1)


def _branch(cin: int, hidden: int, cout: int) -> nn.Sequential:
    return nn.Sequential(Conv(cin, hidden, 3), Conv(hidden, hidden, 3), nn.Conv2d(hidden, cout, kernel_size=1))


def anchor_grid(shapes: list[tuple[int, int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Grids (h, w) -> centres (2, A), x y, in cells of their own grid, and strides (A,) of all cells, grid by grid."""
    centres, strides = [], []
    for (height, width), stride in zip(shapes, STRIDES, strict=True):
        y, x = torch.meshgrid(
            torch.arange(height, device=device) + 0.5, torch.arange(width, device=device) + 0.5, indexing="ij"
        )
        centres.append(torch.stack((x.flatten(), y.flatten())))  # (2, h * w)
        strides.append(torch.full((height * width,), float(stride), device=device))
    return torch.cat(centres, dim=1), torch.cat(strides)


class YoloV8(nn.ModuleDict):
    """The layers under their official numbers; those left out (enlarging, joining) have no parameters."""

    def __init__(self, config: YoloConfig) -> None:
        c, n = config.channels, config.repeats
        super().__init__(
            {
                "0": Conv(3, c(64), 3, stride=2),
                "1": Conv(c(64), c(128), 3, stride=2),
                "2": C2f(c(128), c(128), n(3), shortcut=True),
                "3": Conv(c(128), c(256), 3, stride=2),
                "4": C2f(c(256), c(256), n(6), shortcut=True),
                "5": Conv(c(256), c(512), 3, stride=2),
                "6": C2f(c(512), c(512), n(6), shortcut=True),
                "7": Conv(c(512), c(1024), 3, stride=2),
                "8": C2f(c(1024), c(1024), n(3), shortcut=True),
                "9": SPPF(c(1024)),
                "12": C2f(c(1024) + c(512), c(512), n(3), shortcut=False),
                "15": C2f(c(512) + c(256), c(256), n(3), shortcut=False),
                "16": Conv(c(256), c(256), 3, stride=2),
                "18": C2f(c(256) + c(512), c(512), n(3), shortcut=False),
                "19": Conv(c(512), c(512), 3, stride=2),
                "21": C2f(c(512) + c(1024), c(1024), n(3), shortcut=False),
                "22": Segment(config, (c(256), c(512), c(1024))),
            }
        )

    def forward(self, pixels: Tensor) -> Raw:
        """Letterboxed pixels (B, 3, H, W) in 0..1, H and W multiples of 32."""
        # channels last in memory: the convolutions of a CPU want it so
        x = self["2"](self["1"](self["0"](pixels.contiguous(memory_format=torch.channels_last))))
        fine = self["4"](self["3"](x))  # stride 8
        middle = self["6"](self["5"](fine))  # stride 16
        coarse = self["9"](self["8"](self["7"](middle)))  # stride 32
        middle = self["12"](torch.cat((_enlarge(coarse), middle), dim=1))
        fine = self["15"](torch.cat((_enlarge(middle), fine), dim=1))
        middle = self["18"](torch.cat((self["16"](fine), middle), dim=1))
        coarse = self["21"](torch.cat((self["19"](middle), coarse), dim=1))
        return self["22"](fine, middle, coarse)

    def predict(self, pixels: Tensor) -> dict[str, Tensor]:
        """Pixels (B, 3, H, W) -> "decoded" (B, 4 + classes + 32, A), see `Segment.decode`, and "prototypes" if any."""
        raw: Raw = self(pixels)
        features = {"decoded": cast(Segment, self["22"]).decode(raw)}
        return features if raw.prototypes is None else features | {"prototypes": raw.prototypes}


def _enlarge(x: Tensor) -> Tensor:
    """Each cell becomes 2 x 2 equal ones."""
    return functional.interpolate(x, scale_factor=2.0, mode="nearest")


@dataclass(frozen=True, eq=False)
class Instances:
    """The N objects found in one image, best first.

    boxes: (N, 4) float32 xyxy, original pixels. scores: (N,) float32, 0 to 1.
    masks: (N, H, W) bool at the image's size, false outside the boxes; None from a detector.
    low_res_logits: (N, h, w) float32 on the prototypes' grid over the letterbox, > 0 where the mask is; or None.
    """

    boxes: np.ndarray
    scores: np.ndarray
    masks: np.ndarray | None = None
    low_res_logits: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Detections:
    """What is left of the anchors of one image, by falling score.

    boxes: (N, 4) float32 xyxy, letterbox pixels. scores: (N,) float32. classes: (N,) int64.
    coefficients: (N, 32) float32.
    """

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    coefficients: np.ndarray

    def take(self, index: np.ndarray) -> "Detections":
        """The rows of an index (M,) or of a bool mask (N,)."""
        return Detections(self.boxes[index], self.scores[index], self.classes[index], self.coefficients[index])


def find_candidates(decoded: np.ndarray, classes: int, confidence: float) -> Detections:
    """Anchors of one image, decoded (4 + classes + 32, A), whose best class scores more than `confidence`.

    At most MAX_CANDIDATES, by falling score, equal ones in the order of the anchors. A score that is no number is none.
    """
    scores = decoded[4 : 4 + classes].max(axis=0)  # (A,)
    chosen = np.flatnonzero(scores > np.float32(confidence))
    chosen = chosen[np.argsort(-scores[chosen], kind="stable")[:MAX_CANDIDATES]]
    columns = decoded[:, chosen]  # (4 + classes + 32, N)
    centre, half = columns[:2].T, columns[2:4].T / 2  # each (N, 2)
    return Detections(
        boxes=np.concatenate((centre - half, centre + half), axis=1),
        scores=scores[chosen],
        classes=columns[4 : 4 + classes].argmax(axis=0),
        coefficients=columns[4 + classes :].T,
    )


def suppress(detections: Detections, nms_iou: float, limit: int, across_classes: bool = False) -> Detections:
    """Greedy suppression: by falling score, a box stays unless its IoU with one that stayed is above nms_iou.

    Stops when `limit` stay. Boxes of different classes do not meet unless across_classes. Works on blocks of
    candidates, each against those that stayed, then within itself, so that memory does not grow with their square.
    """
    boxes = detections.boxes
    if not across_classes:
        boxes = boxes + detections.classes[:, None].astype(np.float32) * np.float32(CLASS_OFFSET)
    # The threshold as a float64 makes the comparison one: 0.9 is not 0.9 in float32.
    threshold = np.float64(nms_iou)
    kept = np.zeros(0, dtype=np.int64)
    for start in range(0, len(boxes), _BLOCK):
        if len(kept) == limit:
            break
        block = np.arange(start, min(start + _BLOCK, len(boxes)))
        block = block[~(pairwise_iou(boxes[kept], boxes[block]) > threshold).any(axis=0)]
        meets = pairwise_iou(boxes[block], boxes[block]) > threshold
        stays = np.ones(len(block), dtype=np.bool_)
        for i in range(len(block)):
            if stays[i]:
                stays[i + 1 :] &= ~meets[i, i + 1 :]
        kept = np.concatenate((kept, block[stays]))[:limit]
    return detections.take(kept)


def pairwise_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU (N, M) float32 of boxes (N, 4) and (M, 4), xyxy; not a number for two without area.

    In float32 and in this order of operations, because suppression compares it with a threshold.
    """
    a, b = a[:, None], b[None]  # (N, 1, 4), (1, M, 4)
    width = np.minimum(a[..., 2], b[..., 2]) - np.maximum(a[..., 0], b[..., 0])
    height = np.minimum(a[..., 3], b[..., 3]) - np.maximum(a[..., 1], b[..., 1])
    overlap = np.maximum(width, 0) * np.maximum(height, 0)  # (N, M)
    areas = [(boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1]) for boxes in (a, b)]
    with np.errstate(divide="ignore", invalid="ignore"):
        return overlap / (areas[0] + areas[1] - overlap)


def snap_to_border(boxes: np.ndarray, padded_size: tuple[int, int]) -> np.ndarray:
    """Boxes (N, 4) with every side that is less than SNAP pixels from the letterbox's border moved onto it; a copy.

    Padding counts as part of the letterbox, as published.
    """
    height, width = padded_size
    x0, y0, x1, y1 = boxes.T
    snapped = [
        np.where(x0 < SNAP, 0, x0),
        np.where(y0 < SNAP, 0, y0),
        np.where(x1 > width - SNAP, width, x1),
        np.where(y1 > height - SNAP, height, y1),
    ]
    return np.stack(snapped, axis=1).astype(np.float32)  # (N, 4)


def detect(
    decoded: Tensor, padded_size: tuple[int, int], classes: int, confidence: float, nms_iou: float, limit: int
) -> Detections:
    """One image's features "decoded" (1, 4 + classes + 32, A) -> its objects, boxes snapped to the letterbox's border.

    Runs on the CPU: a few thousand candidates, one after the other.
    """
    found = find_candidates(decoded[0].float().cpu().numpy(), classes, confidence)
    found = suppress(found, nms_iou, limit)
    return Detections(snap_to_border(found.boxes, padded_size), found.scores, found.classes, found.coefficients)
