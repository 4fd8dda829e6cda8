"""A model's decoder as ONNX, for browsers and other runtimes: made, compared with PyTorch, described.

    file = export_decoder(anysam.load(), DecoderOptions(half=True))
    Path("decoder.onnx").write_bytes(file.data)

The file takes what `Model.encode` keeps of an image and prompts in the model's input frame; docs/export.md has them.
"""

import hashlib
import importlib.util
import io
import warnings
from dataclasses import dataclass
from typing import Any, cast

import torch

from anysam.catalogue import find_variant
from anysam.encoded_image import EncodedImage
from anysam.errors import ExportError, MissingExtraError, OptionError
from anysam.export.certificate import certify, sample_photographs
from anysam.export.graphs import SEVERAL, SINGLE, LiteGraph, SamGraph, make_graph, sample_inputs
from anysam.models import PromptableModel
from anysam.predictor import Model

FORMAT = "anysam-decoder-1"
_PROMPT_INPUTS = ("points", "labels", "mask_logits", "has_mask")
_OUTPUTS = ("low_res_logits", "iou_predictions")


@dataclass(frozen=True)
class DecoderOptions:
    """How a decoder is exported.

    half: weights are stored as float16 and widened when the file is loaded: half the size, and without loss where they
    were float16 to begin with, as the built-in model's are; other weights are rounded, which may change more than is
    accepted. tolerance: the greatest difference from PyTorch that is accepted in a logit or a predicted IoU. opset: of
    ONNX, 17 to 20. Raises OptionError.
    """

    half: bool = False
    tolerance: float = 1e-3
    opset: int = 17

    def __post_init__(self) -> None:
        tolerance: object = self.tolerance
        if not isinstance(self.half, bool):
            raise OptionError(f"half must be True or False, got {self.half!r}.")
        if isinstance(tolerance, bool) or not isinstance(tolerance, (int, float)) or not tolerance > 0:
            raise OptionError(f"tolerance must be a number above 0, got {self.tolerance!r}.")
        if isinstance(self.opset, bool) or not isinstance(self.opset, int) or not 17 <= self.opset <= 20:
            raise OptionError(f"opset must be 17 to 20, got {self.opset!r}.")


@dataclass(frozen=True, eq=False)
class DecoderFile:
    """data: the bytes of an ONNX file. info: what is in it, in JSON form."""

    data: bytes
    info: dict[str, Any]


def export_decoder(model: Model, options: DecoderOptions | None = None) -> DecoderFile:
    """The decoder of a promptable model, compared with PyTorch in onnxruntime before it is returned.

    Raises ExportError for a model whose decoder is of another kind, and for a file that differs from PyTorch by more
    than the tolerance; MissingExtraError without onnx and onnxruntime.
    """
    options = DecoderOptions() if options is None else options
    _need_packages()
    graph = decoder_graph(model)
    network = cast(PromptableModel, model.network)
    encodings = [model.encode(each) for each in sample_photographs(network.preprocess.long_side)]
    data = _trace(graph, encodings[0], network, options.opset)
    if options.half:
        data = _halve(data)
    certificate = certify(data, model, encodings)
    for name, what in (("max_logit_difference", "a logit"), ("max_iou_difference", "a predicted IoU")):
        if not certificate[name] <= options.tolerance:
            raise ExportError(
                f"The exported decoder of {model.variant} differs from PyTorch by {certificate[name]:g} in {what}, "
                f"more than {options.tolerance:g}; {_remedy(options)}."
            )
    return DecoderFile(
        data, _describe(model, network, graph, data, certificate | {"opset": options.opset, "half": options.half})
    )


def decoder_graph(model: Model) -> LiteGraph | SamGraph:
    """What is exported of a model. Raises ExportError for a decoder of another kind, or not on the CPU in float32."""
    if not isinstance(model.network, PromptableModel):
        raise ExportError(f"{model.variant} finds objects by itself and has no decoder that prompts go to.")
    if model.device.type != "cpu" or model.dtype != torch.float32:
        raise ExportError(
            f"A decoder is exported from a model on the CPU in float32, got {model.device} and {model.dtype}; "
            "load it with device='cpu' and dtype='float32'."
        )
    return make_graph(model.network, model.variant)


def loses_nothing_in_half(graph: LiteGraph | SamGraph) -> bool:
    """Whether every weight is a float16 number anyway, as those of the built-in model are."""
    return all(bool((weight.half().to(weight.dtype) == weight).all()) for weight in graph.state_dict().values())


def _remedy(options: DecoderOptions) -> str:
    if options.half:
        return "float16 changes it too much: export without half, or accept more by DecoderOptions(tolerance=...)"
    return "report this with the model's name, or accept more by DecoderOptions(tolerance=...)"


def _describe(
    model: Model, network: PromptableModel, graph: LiteGraph | SamGraph, data: bytes, certificate: dict[str, Any]
) -> dict[str, Any]:
    frame = network.preprocess
    return {
        "format": FORMAT,
        "variant": model.variant,
        "weights_sha256": model.weights_sha256,
        "sha256": hashlib.sha256(data).hexdigest(),
        "bytes": len(data),
        "features": list(graph.features),
        "has_mask_input": True,
        "mask_prompts": "mask" in find_variant(model.variant).prompts,
        "single": list(SINGLE),
        "several": list(SEVERAL),
        "multimask_default": network.multimask_default,
        "frame": {
            "long_side": frame.long_side,
            "pad_to": frame.pad_to,
            "pad_multiple": frame.pad_multiple,
            "low_res_stride": frame.low_res_stride,
            "keep_aspect": frame.keep_aspect,
            "uniform_prompt_scale": frame.uniform_prompt_scale,
            "mask_resize": frame.mask_resize,
        },
        "max_points": find_variant(model.variant).max_points,
        "certificate": certificate,
    }


def _trace(graph: LiteGraph | SamGraph, encoded: EncodedImage, network: PromptableModel, opset: int) -> bytes:
    """An ONNX file with sizes that may change: prompts P, tokens N, cells h and w where the model's do."""
    low_res_size = network.preprocess.low_res_size(encoded.input_size)
    features = {name: value.detach().clone() for name, value in encoded.features.items()}
    inputs = sample_inputs(graph, features, low_res_size)
    names = [*graph.features, *_PROMPT_INPUTS]
    changing: dict[str, dict[int, str]] = {
        "points": {0: "P", 1: "N"},
        "labels": {0: "P", 1: "N"},
        "mask_logits": {0: "P"},
        "low_res_logits": {0: "P"},
        "iou_predictions": {0: "P"},
    }
    if network.preprocess.pad_to is None:
        for name in (*graph.features, "mask_logits", "low_res_logits"):
            changing.setdefault(name, {}).update({2: f"{name}_h", 3: f"{name}_w"})
    buffer = io.BytesIO()
    # PyTorch's other exporter needs a further package. The certificate says whether either was right.
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            graph.eval(),
            inputs,
            buffer,  # type: ignore[arg-type]
            input_names=names,
            output_names=list(_OUTPUTS),
            dynamic_axes=changing,
            opset_version=opset,
            dynamo=False,
        )
    return buffer.getvalue()


def _halve(data: bytes) -> bytes:
    """The same graph with large float32 weights as float16 and a Cast behind each."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.load_from_string(data)
    weights, casts = [], []
    for each in model.graph.initializer:
        values = numpy_helper.to_array(each)
        if each.data_type != TensorProto.FLOAT or values.size < 64 or np.abs(values).max() > 65000:
            weights.append(each)
            continue
        name = f"{each.name}_half"
        weights.append(numpy_helper.from_array(values.astype(np.float16), name))
        casts.append(helper.make_node("Cast", [name], [each.name], f"widen_{each.name}", to=TensorProto.FLOAT))
    nodes = list(model.graph.node)
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.initializer.extend(weights)
    model.graph.node.extend([*casts, *nodes])
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString(deterministic=True))


def _need_packages() -> None:
    for name in ("onnx", "onnxruntime"):
        if importlib.util.find_spec(name) is None:
            raise MissingExtraError(f"Exporting needs {name}, which is not installed: pip install 'anysam[export]'")
