"""The published `SamPredictor`: an image is set, then prompts are answered."""

import numpy as np
import torch
from torch import Tensor

from anysam.compat.segment_anything.sam import Sam
from anysam.compat.segment_anything.transforms import ResizeLongestSide
from anysam.errors import ImageError, OptionError, PromptError


class SamPredictor:
    """Holds a model and the encoding of one image, as published.

    Attributes: model, transform; of the image set: features (1, D, h, w), original_size and input_size (H, W),
    is_image_set.
    """

    features: Tensor | None
    original_size: tuple[int, ...]
    input_size: tuple[int, ...]
    is_image_set: bool

    def __init__(self, sam_model: Sam) -> None:
        if not isinstance(sam_model, Sam):
            raise OptionError(
                f"SamPredictor takes a model of sam_model_registry, got {type(sam_model).__name__}; "
                "a model of anysam.load has its own predict."
            )
        self.model = sam_model
        self.transform = ResizeLongestSide(sam_model.network.preprocess.long_side)
        self.reset_image()

    def set_image(self, image: np.ndarray, image_format: str = "RGB") -> None:
        """Encode an image, uint8 (H, W, 3), whose channels are RGB or BGR. Raises ImageError or OptionError."""
        if image_format not in ("RGB", "BGR"):
            raise OptionError(f"image_format must be RGB or BGR, got {image_format!r}.")
        if image_format != self.model.image_format and isinstance(image, np.ndarray):
            image = image[..., ::-1]
        resized = self.transform.apply_image(image)
        tensor = torch.as_tensor(resized, device=self.device).permute(2, 0, 1).contiguous()[None]  # (1, 3, h, w)
        self.set_torch_image(tensor, image.shape[:2])

    @torch.no_grad()
    def set_torch_image(self, transformed_image: Tensor, original_image_size: tuple[int, ...]) -> None:
        """Encode an image (1, 3, h, w), 0..255, that `transform` has resized from original_image_size (H, W)."""
        side, shape = self.transform.target_length, tuple(transformed_image.shape)
        if len(shape) != 4 or shape[:2] != (1, 3) or max(shape[2:]) != side:
            raise ImageError(f"The image must be (1, 3, h, w) with a longest side of {side}, got {shape}.")
        self.reset_image()
        self.features = self.model.image_encoder(self.model.preprocess(transformed_image))
        self.original_size = tuple(original_image_size)
        self.input_size = shape[2:]
        self.is_image_set = True

    def predict(
        self,
        point_coords: np.ndarray | None = None,
        point_labels: np.ndarray | None = None,
        box: np.ndarray | None = None,
        mask_input: np.ndarray | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Masks of one prompt on the image set.

        point_coords (N, 2), x y, image pixels, with point_labels (N,), 1 on the object and 0 not; box (4,) x0 y0 x1 y1;
        mask_input (1, 256, 256), low-resolution logits of an earlier prediction. Returns masks (C, H, W), bool or with
        return_logits float32, iou_predictions (C,) and low-resolution logits (C, 256, 256).
        """
        self._require_image()
        points = labels = boxes = masks = None
        if point_coords is not None:
            if point_labels is None or len(point_labels) != len(point_coords):
                raise PromptError("point_labels must have one label for each of point_coords.")
            points = self._tensor(self.transform.apply_coords(point_coords, self.original_size))[None]  # (1, N, 2)
            labels = torch.as_tensor(np.asarray(point_labels), dtype=torch.int64, device=self.device)[None]  # (1, N)
        if box is not None:
            boxes = self._tensor(self.transform.apply_boxes(box, self.original_size))  # (1, 4)
        if mask_input is not None:
            masks = self._tensor(mask_input)[None]  # (1, 1, 256, 256)
        answer = self.predict_torch(points, labels, boxes, masks, multimask_output, return_logits)
        found, iou_predictions, low_res_logits = (tensor[0].detach().cpu().numpy() for tensor in answer)
        return found, iou_predictions, low_res_logits

    @torch.no_grad()
    def predict_torch(
        self,
        point_coords: Tensor | None,
        point_labels: Tensor | None,
        boxes: Tensor | None = None,
        mask_input: Tensor | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Masks of P prompts on the image set; coordinates are in pixels of the resized image (see `transform`).

        point_coords (P, N, 2) with point_labels (P, N); boxes (P, 4); mask_input (P, 1, 256, 256). Returns masks
        (P, C, H, W), iou_predictions (P, C) and low-resolution logits (P, C, 256, 256).
        """
        self._require_image()
        if point_coords is not None and point_labels is None:
            raise PromptError("point_labels must be given with point_coords.")
        points = None if point_coords is None or point_labels is None else (point_coords, point_labels)
        sparse, dense = self.model.prompt_encoder(points=points, boxes=boxes, masks=mask_input)
        low_res_logits, iou_predictions = self.model.mask_decoder(
            image_embeddings=self.features,
            image_pe=self.model.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=multimask_output,
        )
        if return_logits:
            masks = self.model.postprocess_masks(low_res_logits, self.input_size, self.original_size)
        else:
            masks = self.model.binary_masks(low_res_logits, self.input_size, self.original_size)
        return masks, iou_predictions, low_res_logits

    def get_image_embedding(self) -> Tensor:
        """The image's embeddings (1, D, h, w)."""
        self._require_image()
        assert self.features is not None
        return self.features

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    def reset_image(self) -> None:
        """Forget the image."""
        self.is_image_set = False
        self.features = None
        self.original_size = ()
        self.input_size = ()

    def _require_image(self) -> None:
        if not self.is_image_set:
            raise OptionError("No image is set; call set_image first.")

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.as_tensor(np.asarray(array), dtype=torch.float32, device=self.device)
