"""The whole detector: a picture, prompts and boxes to boxes, scores and masks (section 0)."""

from __future__ import annotations

from typing import TypedDict

import torch
from torch import Tensor, nn

from original_ref.detector.boxes import corners
from original_ref.detector.decoder import Decoder
from original_ref.detector.encoder import Encoder
from original_ref.detector.geometry import GeometryEncoder
from original_ref.detector.heads import Scoring, SegmentationHead
from original_ref.detector.neck import VisionBackbone
from original_ref.text_reference import PAD, TextReference


class Detections(TypedDict):
    """The result for n prompts.

    pred_logits: (n, Q, 1); the presence logit is not part of them.
    pred_boxes: (n, Q, 4), cx cy w h relative to the picture.
    pred_boxes_xyxy: (n, Q, 4), the same as x0 y0 x1 y1.
    pred_masks: (n, Q, 4 h, 4 w), logits.
    presence_logit_dec: (n, 1), whether the picture shows any such object.
    semantic_seg: (n, 1, 4 h, 4 w), logits.
    """

    pred_logits: Tensor
    pred_boxes: Tensor
    pred_boxes_xyxy: Tensor
    pred_masks: Tensor
    presence_logit_dec: Tensor
    semantic_seg: Tensor


class Prompt(nn.Module):
    """Text and geometry tokens, end to end; the padding of the text stays between them. It has no weights."""

    def forward(self, text: Tensor, text_mask: Tensor, geometry: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """(n, T, d) and (n, G, d) -> (n, T + G, d), and the masks likewise, True at padding."""
        return torch.cat((text, geometry), 1), torch.cat((text_mask, mask), 1)


class Backbone(nn.Module):
    """The two encoders; a level that the original's keys have."""

    def __init__(self, vision: VisionBackbone, language: TextReference) -> None:
        super().__init__()
        self.vision_backbone = vision
        self.language_backbone = language


class Transformer(nn.Module):
    """The DETR encoder and decoder; a level that the original's keys have."""

    def __init__(self, encoder: Encoder, decoder: Decoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder


class Detector(nn.Module):
    """The original's detector, in evaluation. ``image_size``: in pixels, of the square pictures that it takes."""

    def __init__(
        self,
        vision: VisionBackbone,
        language: TextReference,
        geometry: GeometryEncoder,
        encoder: Encoder,
        decoder: Decoder,
        scoring: Scoring,
        segmentation: SegmentationHead,
        image_size: int,
    ) -> None:
        super().__init__()
        self.image_size = image_size
        self.backbone = Backbone(vision, language)
        self.geometry_encoder = geometry
        self.prompt = Prompt()
        self.transformer = Transformer(encoder, decoder)
        self.dot_prod_scoring = scoring
        self.segmentation_head = segmentation

    def encode_image(self, image: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """The neck's maps of pictures (B, 3, S, S), finest first, and their position maps, for ``detect``.

        Raises ValueError if the pictures have another size than ``image_size``.
        """
        if image.shape[2:] != (self.image_size, self.image_size):
            raise ValueError(
                f"pictures of {image.shape[3]} x {image.shape[2]}, but the rotary tables are for "
                f"{self.image_size} x {self.image_size}: resize the pictures, or load with image_size"
            )
        maps, positions = self.backbone.vision_backbone(image)
        return maps, positions

    def encode_text(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Text tokens (n, T, d) of ids (n, T), and the mask (n, T) that later parts read: True at padding."""
        return self.backbone.language_backbone.features(input_ids), input_ids == PAD

    def detect(
        self,
        maps: list[Tensor],
        positions: list[Tensor],
        input_ids: Tensor,
        boxes: Tensor | None = None,
        box_labels: Tensor | None = None,
        box_mask: Tensor | None = None,
    ) -> Detections:
        """The result for prompts, given the maps and position maps of each prompt's picture (n, d, h, w)."""
        n, coarsest, device = len(input_ids), maps[-1], input_ids.device
        if boxes is None:
            boxes = coarsest.new_zeros(n, 0, 4)
        if box_labels is None:
            box_labels = torch.ones(boxes.shape[:2], dtype=torch.int64, device=device)
        if box_mask is None:
            box_mask = torch.zeros(boxes.shape[:2], dtype=torch.bool, device=device)
        where = positions[-1].expand(n, -1, -1, -1)
        text, text_mask = self.encode_text(input_ids)
        geometry, geometry_mask = self.geometry_encoder(boxes, box_labels, box_mask, coarsest, where)
        prompt, mask = self.prompt(text, text_mask, geometry, geometry_mask)
        flat, where = coarsest.flatten(2).mT, where.flatten(2).mT
        memory = self.transformer.encoder(flat, where, prompt, mask)
        decoder = self.transformer.decoder
        decoded = decoder(memory, where, prompt, mask, *coarsest.shape[-2:])
        logits = self.dot_prod_scoring(decoded.queries, prompt, mask)
        found = decoder.refined(decoded.queries, decoded.references)[-1]
        masks, semantic = self.segmentation_head(maps, memory, prompt, mask, decoded.queries[-1])
        return {
            "pred_logits": logits[-1],
            "pred_boxes": found,
            "pred_boxes_xyxy": corners(found),
            "pred_masks": masks,
            "presence_logit_dec": decoded.presence[-1],
            "semantic_seg": semantic,
        }

    def forward(
        self,
        image: Tensor,
        input_ids: Tensor,
        boxes: Tensor | None = None,
        box_labels: Tensor | None = None,
        box_mask: Tensor | None = None,
        image_ids: Tensor | None = None,
    ) -> Detections:
        """Find what prompts name.

        ``image``: (B, 3, S, S), normalised.
        ``input_ids``: (n, T), int64, padded with 0.
        ``boxes``: (n, K, 4), cx cy w h relative to the picture. None: no boxes.
        ``box_labels``: (n, K): 1 for a box around what is wanted, the default; 0 for what is not.
        ``box_mask``: (n, K), True at padding, which comes last. None: no padding.
        ``image_ids``: (n), the picture of each prompt. None: picture i for prompt i, or the one picture for all.

        Raises ValueError if the pictures have another size than ``image_size``.
        """
        maps, positions = self.encode_image(image)
        if image_ids is None:
            image_ids = torch.arange(len(input_ids), device=image.device) if len(image) > 1 else torch.zeros(
                len(input_ids), dtype=torch.int64, device=image.device
            )  # fmt: skip
        return self.detect([m[image_ids] for m in maps], positions, input_ids, boxes, box_labels, box_mask)
