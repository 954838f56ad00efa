"""The whole detector of a ``packed`` folder. Module names are the layout's keys.

It was written independently of ``original_ref``, so that a comparison of the two proves something.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sam3lite_convert.convert.packed_config import PackedConfig
from sam3lite_convert.convert.prompts import tokenize
from sam3lite_convert.errors import CannotRun
from sam3lite_convert.packed_detector.boxes import corners
from sam3lite_convert.packed_detector.detr import DetrDecoder, DetrEncoder
from sam3lite_convert.packed_detector.geometry import GeometryEncoder
from sam3lite_convert.packed_detector.heads import DotProductScoring, MaskDecoder
from sam3lite_convert.packed_detector.outputs import PackedOutput
from sam3lite_convert.packed_detector.picture import Objects, PillowImage, find_objects, pixels_of, prepare_image
from sam3lite_convert.packed_detector.vision import EncodedImages, VisionEncoder
from sam3lite_convert.packed_encoder import ATTENTION, PackedTextEncoder, packed_folder
from sam3lite_convert.unforeseen import in_our_errors

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from sam3lite_convert.records.record import JsonValue


class PackedModel(nn.Module):
    """The detector.

    attention: ``eager`` or ``sdpa``, of the text encoder; eager gives its original's result to the bit. Everything
        else uses ``functional.scaled_dot_product_attention``, as the original does.
    image_size: side of the input in pixels; by default that of config.json.

    Raises CannotRun if the attention is not known or the size is not a multiple of the patch.
    """

    def __init__(self, config: PackedConfig, attention: str = "eager", image_size: int | None = None) -> None:
        super().__init__()
        size, patch = image_size or config.vit.image_size, config.vit.patch_size
        if attention not in ATTENTION:
            raise CannotRun(f"attention is {' or '.join(ATTENTION)}, not {attention!r}", "usage")
        if size < patch or size % patch:
            raise CannotRun(f"an image size of {size} is not a multiple of the patch, {patch} pixels", "usage")
        self.config = config
        self.image_size = size
        width = config.neck.fpn_hidden_size
        self.vision_encoder = VisionEncoder(config.vit, config.neck)
        self.text_encoder = PackedTextEncoder(config.text, attention)
        self.text_projection = nn.Linear(config.text.hidden_size, config.text.output_dim)
        self.geometry_encoder = GeometryEncoder(config.geometry)
        self.detr_encoder = DetrEncoder(config.encoder)
        self.detr_decoder = DetrDecoder(config.decoder)
        self.dot_product_scoring = DotProductScoring(width, config.decoder.intermediate_size)
        self.mask_decoder = MaskDecoder(config.mask)

    def forward(
        self,
        image: Tensor,
        input_ids: Tensor,
        boxes: Tensor | None = None,
        box_labels: Tensor | None = None,
        box_mask: Tensor | None = None,
        image_ids: Tensor | None = None,
    ) -> PackedOutput:
        """Images (B, 3, S, S), normalised, and n prompts; the other arguments are those of ``decode``."""
        return self.decode(self.encode_image(image), input_ids, boxes, box_labels, box_mask, image_ids)

    def encode_image(self, image: Tensor) -> EncodedImages:
        """What ``decode`` reads of the images (B, 3, S, S), for any number of prompts.

        Raises CannotRun if they have another size than the model.
        """
        wanted = (self.config.vit.num_channels, self.image_size, self.image_size)
        if image.shape[1:] != wanted:
            raise CannotRun(f"the image is {tuple(image.shape)}, not (batch, {', '.join(map(str, wanted))})", "usage")
        found: EncodedImages = self.vision_encoder(image)
        return found

    def decode(
        self,
        images: EncodedImages,
        input_ids: Tensor,
        boxes: Tensor | None = None,
        box_labels: Tensor | None = None,
        box_mask: Tensor | None = None,
        image_ids: Tensor | None = None,
    ) -> PackedOutput:
        """The outputs for n prompts.

        input_ids: (n, T), int64, padded with 0.
        boxes: (n, K, 4), cx, cy, w, h, relative to the image; None for none.
        box_labels: (n, K), 1 for a box around what is wanted, 0 for one around what is not; by default 1.
        box_mask: (n, K), True for padding, which comes behind the valid boxes; by default all are valid.
        image_ids: (n), which image each prompt belongs to; by default one a prompt, or the only one.

        Raises CannotRun if ``image_ids`` is not given and there are several images, but not one a prompt.
        """
        prompts, device = input_ids.size(0), input_ids.device
        if image_ids is None:
            image_ids = _one_each(prompts, len(images.position)).to(device)
        if boxes is None:
            boxes = images.position.new_zeros(prompts, 0, 4)
        if box_labels is None:
            box_labels = torch.ones(boxes.shape[:2], dtype=torch.int64, device=device)
        if box_mask is None:
            box_mask = torch.zeros(boxes.shape[:2], dtype=torch.bool, device=device)

        own = images.of(image_ids)
        features = own.maps[-1]
        tokens, _ = self.text_encoder(input_ids)
        text = self.text_projection(tokens)
        shapes, shape_padding = self.geometry_encoder(features, own.position, boxes, box_labels, box_mask)
        prompt = torch.cat([text, shapes], 1)
        padding = torch.cat([input_ids == 0, shape_padding], 1)

        position = own.position.flatten(2).transpose(-1, -2)
        memory = self.detr_encoder(features.flatten(2).transpose(-1, -2), position, prompt, padding)
        rows, columns = features.shape[2:]
        found = self.detr_decoder(memory, position, (rows, columns), prompt, padding)
        logits = self.dot_product_scoring(found.queries, prompt, padding)
        masks, semantic = self.mask_decoder(found.queries[-1], own.maps, memory, prompt, padding)
        return PackedOutput(logits[-1], found.boxes, corners(found.boxes), masks, found.presence, semantic)

    @torch.inference_mode()
    def segment(
        self,
        picture: Tensor | NDArray[np.uint8] | PillowImage,
        prompt: str | Tensor = "visual",
        threshold: float = 0.5,
        boxes: Tensor | None = None,
        box_labels: Tensor | None = None,
    ) -> Objects:
        """Everything in the picture that the prompt names.

        picture: RGB, a uint8 array (H, W, 3) or tensor (3, H, W), or an image of Pillow.
        prompt: a text, or its ids (T); the default is the original's text for boxes alone.
        threshold: a score has to be greater.
        boxes: (K, 4), cx, cy, w, h, relative to the picture.
        box_labels: (K), 1 for a box around what is wanted, 0 for one around what is not; by default 1.

        Raises CannotRun if the picture or the prompt has another form, or for a text without the extra ``prompts``.
        """
        if not isinstance(prompt, (str, Tensor)):
            said: str = f"a prompt is one text, or its ids as a tensor; this is of type {type(prompt).__name__}"  # type: ignore[unreachable]
            raise CannotRun(f"{said}. Call segment once for each prompt", "bad_prompt")
        pixels = pixels_of(picture)
        weight = self.text_projection.weight
        ids = tokenize([prompt], self.config.text.max_position_embeddings) if isinstance(prompt, str) else prompt[None]
        output = self(
            prepare_image(pixels, self.image_size).to(weight),
            ids.to(weight.device),
            None if boxes is None else boxes[None].to(weight),
            None if box_labels is None else box_labels[None].to(weight.device),
        )
        return find_objects(output, pixels.size(1), pixels.size(2), threshold)

    @classmethod
    @in_our_errors
    def from_pretrained(
        cls, folder: str | Path, attention: str = "eager", image_size: int | None = None
    ) -> PackedModel:
        """Load a folder in the packed layout that holds the whole detector.

        The model is in evaluation mode and has the dtype of the file. Raises CannotRun if the folder does not exist,
        has another layout or holds the text encoder alone, UnsoundPlan if config.json or the weights do not fit,
        Untrusted if a file is damaged.
        """
        from sam3lite_convert.convert.text_weights import folder_tensors

        found, config = packed_folder(folder)
        if not any(key.startswith("vision_encoder.") for key in found.tensors):
            message = f"{folder} holds the text encoder alone; PackedTextModel.from_pretrained loads it"
            raise CannotRun(message, "text_only")
        return cls.from_weights(config, dict(folder_tensors(found, found.tensors)), attention, image_size)

    @classmethod
    def from_weights(
        cls,
        config: Mapping[str, JsonValue],
        weights: Mapping[str, Tensor],
        attention: str = "eager",
        image_size: int | None = None,
    ) -> PackedModel:
        """A model with these weights (key -> tensor), which are not copied. ``config``: the content of config.json.

        Raises UnsoundPlan if they do not fit.
        """
        from sam3lite_convert.convert.text_weights import load_all

        with torch.device("meta"):
            model = cls(PackedConfig.from_dict(config), attention, image_size)
        load_all(model, weights, "the packed detector")
        return model.requires_grad_(False).eval()


def _one_each(prompts: int, images: int) -> Tensor:
    if images not in (1, prompts):
        raise CannotRun(f"{prompts} prompts and {images} images: image_ids has to say which belong together", "usage")
    return torch.arange(prompts) if images > 1 else torch.zeros(prompts, dtype=torch.int64)
