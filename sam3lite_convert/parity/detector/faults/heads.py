"""Faults of scoring, mask head and outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from original_ref import Detector
from original_ref.detector import Detections
from original_ref.detector.decoder import Decoded, Decoder
from original_ref.detector.heads import EncoderMap, MaskPredictor, PixelDecoder, PromptMLP, Scoring, SegmentationHead
from sam3lite_convert.parity.detector.faults.changes import (
    NOTHING,
    Change,
    DetectorFault,
    Need,
    computing,
    part,
    replacing,
    setting,
    together,
)
from sam3lite_convert.parity.detector.faults.parts import attention_faults, eps_faults, mlp_faults, norm_faults
from sam3lite_convert.parity.detector.faults.prompt import PADDED_TEXT

_SCORING, _MASKS = "dot_prod_scoring", "segmentation_head"


def head_faults() -> Iterator[DetectorFault]:
    """All of them, in the order of the rows."""
    yield from _scoring()
    yield from _attention()
    yield from _pixels()
    yield from _mask_heads()
    yield from _outputs()


def _scores(model: Detector) -> Scoring:
    return part(model, _SCORING, 0, Scoring)


def _head(model: Detector) -> SegmentationHead:
    return part(model, _MASKS, 0, SegmentationHead)


# ---- scoring


def _scoring() -> Iterator[DetectorFault]:
    row = "scoring.prompt_mlp"
    path = f"{_SCORING}.prompt_mlp"
    yield from eps_faults(row, "out_norm of the prompt's MLP", f"{path}.out_norm", "")
    yield from norm_faults(row, "out_norm of the prompt's MLP", f"{path}.out_norm")

    def residual(join: Callable[[PromptMLP, Tensor, Tensor], Tensor], activation: Callable[[Tensor], Tensor]
                 ) -> Callable[[Detector, int], Change]:  # fmt: skip
        def made(model: Detector, layer: int) -> Change:
            mlp = part(model, path, 0, PromptMLP)
            first, last = mlp.layers
            return computing(mlp, lambda x: join(mlp, x, last(activation(first(x)))))

        return made

    def usual(mlp: PromptMLP, x: Tensor, y: Tensor) -> Tensor:
        out: Tensor = mlp.out_norm(x + y)
        return out

    words = "the prompt's MLP lacks its residual connection"
    no_residual = residual(lambda mlp, x, y: mlp.out_norm(y), torch.relu)
    yield DetectorFault(f"{row}.no_residual", words, row, no_residual)
    words = "out_norm of the prompt's MLP comes before the addition; the original's comes after"
    yield DetectorFault(f"{row}.norm_first", words, row, residual(lambda mlp, x, y: x + mlp.out_norm(y), torch.relu))
    words = "the activation of the prompt's MLP is a GELU; the original's is a ReLU"
    yield DetectorFault(f"{row}.activation:gelu", words, row, residual(usual, functional.gelu))

    row = "scoring.prompt"

    def averaged(mean: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Detector, int], Change]:
        """``mean``: of the prompt's tokens behind their MLP and the mask, True at padding."""

        def made(model: Detector, layer: int) -> Change:
            own = _scores(model)

            def forward(queries: Tensor, prompt: Tensor, mask: Tensor) -> Tensor:
                fit = own.hs_proj(queries) @ own.prompt_proj(mean(own.prompt_mlp(prompt), mask))[:, :, None]
                out: Tensor = (fit * own.scale).clamp(-own.clamp, own.clamp)
                return out

            return computing(own, forward)

        return made

    def valid_mean(x: Tensor, mask: Tensor) -> Tensor:
        valid = (~mask).to(x.dtype)[..., None]
        return (x * valid).sum(1) / valid.sum(1).clamp(min=1)

    means: dict[str, tuple[str, Need, Callable[[Tensor, Tensor], Tensor]]] = {
        "mean_of_padding_too": (
            "the prompt's mean is over padding too", PADDED_TEXT, lambda x, mask: x.mean(1),
        ),
        "mean_over_length": (
            "the sum of the prompt's valid tokens is divided by the number of all", PADDED_TEXT,
            lambda x, mask: (x * (~mask).to(x.dtype)[..., None]).sum(1) / x.shape[1],
        ),
        "mean_inverted": ("the prompt's mean is over its padding", PADDED_TEXT, lambda x, mask: valid_mean(x, ~mask)),
        "sum": ("the prompt's valid tokens are summed, not averaged", NOTHING,
                lambda x, mask: (x * (~mask).to(x.dtype)[..., None]).sum(1)),
        "max": ("the prompt is the maximum of its valid tokens, not their mean", NOTHING,
                lambda x, mask: x.masked_fill(mask[..., None], -torch.inf).amax(1)),
        "first": ("the prompt is its first token, not the mean of valid ones", NOTHING, lambda x, mask: x[:, 0]),
        "last": ("the prompt is its last token (the class token), not the mean of valid ones", NOTHING,
                 lambda x, mask: x[torch.arange(len(x)), x.shape[1] - 1 - (~mask).flip(1).int().argmax(1)]),
    }  # fmt: skip
    for name, (words, need, mean) in means.items():
        yield DetectorFault(f"{row}.{name}", words, row, averaged(mean), need)
    for which, name, said in (("scoring.prompt", "prompt_proj", "prompt"), ("scoring.queries", "hs_proj", "queries")):

        def left_out(model: Detector, layer: int, name: str = name) -> Change:
            return computing(_scores(model).get_submodule(name), lambda x: x)

        def square(model: Detector, layer: int, name: str = name) -> bool:
            weight = _scores(model).get_parameter(f"{name}.weight")
            return weight.shape[0] == weight.shape[1]

        words = f"the projection of the {said} ({name}) is left out of scoring"
        yield DetectorFault(f"{which}.not_projected", words, which, left_out, applies=square)

    def swapped(model: Detector, layer: int) -> Change:
        own = _scores(model)
        one, other = dict(own.prompt_proj.named_parameters()), dict(own.hs_proj.named_parameters())
        return together(replacing(own.prompt_proj, other), replacing(own.hs_proj, one))

    words = "the projections of prompt and queries are exchanged in scoring"
    yield DetectorFault("scoring.prompt.exchanged", words, "scoring.prompt", swapped)

    def raw_queries(model: Detector, layer: int) -> Change:
        decoder, own = part(model, "transformer.decoder", 0, Decoder), _scores(model)
        compute = own.forward
        returned: list[Tensor] = []

        def forward(queries: Tensor, prompt: Tensor, mask: Tensor) -> Tensor:
            return compute(torch.stack(returned), prompt, mask)

        norm = decoder.norm.forward

        def noted(x: Tensor) -> Tensor:
            if len(returned) == len(decoder.layers):
                returned.clear()
            returned.append(x)
            return norm(x)

        return together(computing(decoder.norm, noted), computing(own, forward))

    words = "scoring reads the queries as the layers return them; the original's reads them normed"
    yield DetectorFault("scoring.queries.not_normed", words, "scoring.queries", raw_queries)

    row = "scoring.logits"

    def scored(change: Callable[[Scoring, Tensor], Tensor], **attributes: float) -> Callable[[Detector, int], Change]:
        def made(model: Detector, layer: int) -> Change:
            own = _scores(model)
            compute = own.forward
            held = setting(own, **attributes) if attributes else together()
            return together(computing(own, lambda *args: change(own, compute(*args))), held)

        return made

    words = "scores are not scaled by the root of their width"
    yield DetectorFault(f"{row}.no_scale", words, row, scored(lambda own, x: x, scale=1.0))
    loud = Need("a score beyond 12", lambda model, layer, inputs: True)
    words = "scores are not clamped; the original's are clamped to 12"
    yield DetectorFault(f"{row}.no_clamp", words, row, scored(lambda own, x: x, clamp=float("inf")), loud)
    words = "scores are clamped to 10; the original's are clamped to 12"
    yield DetectorFault(f"{row}.clamp_10", words, row, scored(lambda own, x: x, clamp=10.0), loud)

    def clamped_first(model: Detector, layer: int) -> Change:
        own = _scores(model)
        compute, scale = own.forward, own.scale

        def forward(*args: Tensor) -> Tensor:
            with setting(own, scale=1.0):
                out: Tensor = compute(*args) * scale
            return out

        return computing(own, forward)

    words = "scores are clamped before they are scaled; the original's after"
    yield DetectorFault(f"{row}.clamped_first", words, row, clamped_first, loud)
    words = "scores are probabilities; the original's are logits"
    yield DetectorFault(f"{row}.sigmoid", words, row, scored(lambda own, x: x.sigmoid()))

    def cosine(model: Detector, layer: int) -> Change:
        own = _scores(model)

        def forward(queries: Tensor, prompt: Tensor, mask: Tensor) -> Tensor:
            fit = functional.normalize(own.hs_proj(queries), dim=-1) @ functional.normalize(
                own.prompt_proj(valid_mean(own.prompt_mlp(prompt), mask)), dim=-1
            )[:, :, None]  # fmt: skip
            out: Tensor = fit
            return out

        return computing(own, forward)

    words = "scores are cosines; the original's are scaled dot products"
    yield DetectorFault(f"{row}.cosine", words, row, cosine)


# ---- masks


def _attention() -> Iterator[DetectorFault]:
    row = "masks.prompt_norm"
    yield from eps_faults(row, "the mask head's cross_attn_norm", f"{_MASKS}.cross_attn_norm", "")
    yield from norm_faults(row, "the mask head's cross_attn_norm", f"{_MASKS}.cross_attn_norm")

    Head = Callable[[SegmentationHead, list[Tensor], Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]

    def given(change: Head) -> Callable[[Detector, int], Change]:
        def made(model: Detector, layer: int) -> Change:
            head = _head(model)
            return computing(head, lambda *args: change(head, *args))

        return made

    def usual(
        head: SegmentationHead, maps: list[Tensor], memory: Tensor, prompt: Tensor, mask: Tensor | None,
        queries: Tensor, *, attended: Callable[[Tensor, Tensor], Tensor] = lambda memory, out: memory + out,
        normed: bool = True,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        *finer, coarsest = maps
        query = head.cross_attn_norm(memory)
        out = head.cross_attend_prompt(query if normed else memory, prompt, prompt, mask)
        cells = head.encoder_map(attended(memory, out), *coarsest.shape[-2:])
        pixels = head.pixel_decoder([*finer, cells])
        return head.mask_predictor(queries, head.instance_seg_head(pixels)), head.semantic_seg_head(pixels)

    words = "the mask head reads the neck's map in place of the memory"
    neck = given(lambda h, maps, memory, p, m, q: usual(h, maps, maps[-1].flatten(2).mT, p, m, q))
    yield DetectorFault(f"{row}.neck", words, row, neck)
    row = "masks.prompt_attention"
    yield from attention_faults(row, "the memory's attention to the prompt", f"{_MASKS}.cross_attend_prompt")
    words = "the memory's attention to the prompt does not mask padding"
    ignored = given(lambda h, maps, memory, p, m, q: usual(h, maps, memory, p, None, q))
    yield DetectorFault(f"{row}.mask_ignored", words, row, ignored, PADDED_TEXT)
    words = "the memory's attention to the prompt masks what is valid"
    inverted = given(lambda h, maps, memory, p, m, q: usual(h, maps, memory, p, ~m, q))
    yield DetectorFault(f"{row}.mask_inverted", words, row, inverted, PADDED_TEXT)
    words = "the memory attends to the prompt without its norm"
    plain = given(lambda h, maps, memory, p, m, q: usual(h, maps, memory, p, m, q, normed=False))
    yield DetectorFault(f"{row}.not_normed", words, row, plain)
    row = "masks.pixel_decoder"
    words = "the residual connection around the memory's attention to the prompt is left out"
    alone = given(lambda *args: usual(*args, attended=lambda memory, out: out))
    yield DetectorFault(f"{row}.no_residual", words, row, alone)
    words = "the memory's attention to the prompt is not added"
    without = given(lambda *args: usual(*args, attended=lambda memory, out: memory))
    yield DetectorFault(f"{row}.no_attention", words, row, without)
    words = "the residual connection around the memory's attention begins behind its norm"

    def from_norm(head: SegmentationHead, *args: object) -> tuple[Tensor, Tensor]:
        return usual(head, *args, attended=lambda memory, out: head.cross_attn_norm.forward(memory) + out)  # type: ignore[arg-type]

    yield DetectorFault(f"{row}.residual_behind_norm", words, row, given(from_norm))

    def with_neck(head: SegmentationHead, maps: list[Tensor], *args: Tensor) -> tuple[Tensor, Tensor]:
        return usual(head, maps, *args, attended=lambda memory, out: maps[-1].flatten(2).mT)

    words = "the pixel decoder starts from the neck's coarsest map; the original's from the memory"
    yield DetectorFault(f"{row}.from_neck", words, row, given(with_neck))


def _pixels() -> Iterator[DetectorFault]:
    row = "masks.pixel_decoder"
    path = f"{_MASKS}.pixel_decoder"

    def pixel_decoder(model: Detector) -> PixelDecoder:
        return part(model, path, 0, PixelDecoder)

    Stage = Callable[[PixelDecoder, int, Tensor, Tensor], Tensor]

    def staged(stage: Stage, order: Callable[[list[Tensor]], list[Tensor]] = lambda maps: maps[::-1],
               ) -> Callable[[Detector, int], Change]:  # fmt: skip
        """``stage``: of its number, the finer map and the result so far; ``order``: of the finer maps, finest first."""

        def made(model: Detector, layer: int) -> Change:
            own = pixel_decoder(model)

            def forward(maps: list[Tensor]) -> Tensor:
                *finer, y = maps
                for number, features in enumerate(order(finer)):
                    y = stage(own, number, features, y)
                return y

            return computing(own, forward)

        return made

    def up(own: PixelDecoder, features: Tensor, y: Tensor) -> Tensor:
        return functional.interpolate(y, features.shape[-2:], mode=own.upsampling)

    def with_modules(number_of: Callable[[int], int]) -> Stage:
        def stage(own: PixelDecoder, number: int, features: Tensor, y: Tensor) -> Tensor:
            n = number_of(number)
            out: Tensor = own.norms[n](own.conv_layers[n](features + up(own, features, y))).relu()
            return out

        return stage

    words = "the pixel decoder adds the finest map first; the original's goes from coarse to fine"
    yield DetectorFault(f"{row}.level_order", words, row, staged(with_modules(lambda n: n), lambda maps: maps))
    words = "the pixel decoder's two stages are exchanged (convolution and norm 1 before 0)"
    yield DetectorFault(f"{row}.stage_order", words, row, staged(with_modules(lambda n: 1 - n)))
    words = "the pixel decoder uses its stages 1 and 2; the original its stages 0 and 1"
    yield DetectorFault(
        f"{row}.stages_off_by_1", words, row, staged(with_modules(lambda n: n + 1)),
        applies=lambda model, layer: len(pixel_decoder(model).conv_layers) > 2,
    )  # fmt: skip
    words = "the pixel decoder uses one convolution and norm for both of its stages"
    yield DetectorFault(f"{row}.one_stage_twice", words, row, staged(with_modules(lambda n: 0)))

    stages: dict[str, tuple[str, Stage]] = {
        "added_after": (
            "the pixel decoder adds the finer map behind convolution and norm; the original adds before them",
            lambda own, n, f, y: f + own.norms[n](own.conv_layers[n](up(own, f, y))).relu(),
        ),
        "added_before_relu": (
            "the pixel decoder adds the finer map between norm and ReLU; the original adds before the convolution",
            lambda own, n, f, y: (f + own.norms[n](own.conv_layers[n](up(own, f, y)))).relu(),
        ),
        "up_after": (
            "the pixel decoder convolves before it enlarges the map; the original convolves the sum",
            lambda own, n, f, y: own.norms[n](f + up(own, f, own.conv_layers[n](y))).relu(),
        ),
        "no_finer": (
            "the pixel decoder does not add the neck's finer maps",
            lambda own, n, f, y: own.norms[n](own.conv_layers[n](up(own, f, y))).relu(),
        ),
        "relu_first": (
            "the pixel decoder's ReLU comes before its norm; the original's after",
            lambda own, n, f, y: own.norms[n](own.conv_layers[n](f + up(own, f, y)).relu()),
        ),
        "no_relu": (
            "the pixel decoder has no ReLU", lambda own, n, f, y: own.norms[n](own.conv_layers[n](f + up(own, f, y))),
        ),
        "gelu": (
            "the pixel decoder's activation is a GELU; the original's is a ReLU",
            lambda own, n, f, y: functional.gelu(own.norms[n](own.conv_layers[n](f + up(own, f, y)))),
        ),
        "no_norm": (
            "the pixel decoder's GroupNorms are left out",
            lambda own, n, f, y: own.conv_layers[n](f + up(own, f, y)).relu(),
        ),
        "bilinear_corners": (
            "the pixel decoder enlarges maps bilinearly with align_corners; the original takes the nearest cell",
            lambda own, n, f, y: own.norms[n](own.conv_layers[n](f + functional.interpolate(
                y, f.shape[-2:], mode="bilinear", align_corners=True))).relu(),
        ),
    }  # fmt: skip
    for name, (words, stage) in stages.items():
        yield DetectorFault(f"{row}.{name}", words, row, staged(stage))
    words = "the pixel decoder enlarges maps bilinearly; the original takes the nearest cell"
    yield DetectorFault(
        f"{row}.bilinear", words, row, lambda model, layer: setting(pixel_decoder(model), upsampling="bilinear")
    )

    def with_norms(**attributes: object) -> Callable[[Detector, int], Change]:
        def made(model: Detector, layer: int) -> Change:
            return together(*(setting(norm, **attributes) for norm in pixel_decoder(model).norms))

        return made

    def divides(groups: int) -> Callable[[Detector, int], bool]:
        def applies(model: Detector, layer: int) -> bool:
            norm = pixel_decoder(model).norms[0]
            return isinstance(norm, nn.GroupNorm) and norm.num_channels % groups == 0

        return applies

    for groups in (1, 16, 32):
        words = f"the pixel decoder's GroupNorms have {groups} group{'s' if groups > 1 else ''}; the original's have 8"
        yield DetectorFault(
            f"{row}.groups:{groups}", words, row, with_norms(num_groups=groups), applies=divides(groups)
        )
    for said, eps in (("1e-06", 1e-6), ("1e-12", 1e-12), ("0.001", 1e-3)):
        words = f"the pixel decoder's GroupNorms run at eps {said}; the original's at 1e-05"
        yield DetectorFault(f"{row}.eps:{said}", words, row, with_norms(eps=eps))

    def transposed(model: Detector, layer: int) -> Change:
        own = part(model, f"{_MASKS}.encoder_map", 0, EncoderMap)
        compute = own.forward
        return computing(own, lambda cells, height, width: compute(cells, width, height).mT)

    words = "the memory's cells are put into a map column by column; the original's row by row"
    yield DetectorFault(f"{row}.cells_transposed", words, row, transposed)
    for said, kernel in (("turned by half a turn", lambda w: w.flip(2, 3)), ("transposed", lambda w: w.mT)):

        def turned(model: Detector, layer: int, kernel: Callable[[Tensor], Tensor] = kernel) -> Change:
            layers = pixel_decoder(model).conv_layers
            return together(*(replacing(conv, {"weight": kernel(conv.get_parameter("weight"))}) for conv in layers))

        key = "flipped" if "half" in said else "transposed"
        words = f"the kernels of the pixel decoder's convolutions are {said}"
        yield DetectorFault(f"{row}.kernels_{key}", words, row, turned)


def _mask_heads() -> Iterator[DetectorFault]:
    row = "masks.instance"

    def left_out(model: Detector, layer: int) -> Change:
        return computing(_head(model).instance_seg_head, lambda x: x)

    yield DetectorFault(f"{row}.left_out", "instance_seg_head is left out", row, left_out)

    def transposed(model: Detector, layer: int) -> Change:
        head = _head(model).instance_seg_head
        return replacing(head, {"weight": head.weight.transpose(0, 1)})

    words = "input and output channels of instance_seg_head are exchanged"
    yield DetectorFault(f"{row}.transposed", words, row, transposed)

    row, path = "masks.mask_embed", f"{_MASKS}.mask_predictor"
    yield from mlp_faults(row, "mask_embed", f"{path}.mask_embed")

    def reading(of: Callable[[Decoder, list[Tensor]], Tensor]) -> Callable[[Detector, int], Change]:
        """``of``: the decoder and what each layer returned: the queries that masks are read from."""

        def made(model: Detector, layer: int) -> Change:
            decoder, head = part(model, "transformer.decoder", 0, Decoder), _head(model)
            norm, compute = decoder.norm.forward, head.forward
            returned: list[Tensor] = []

            def noted(x: Tensor) -> Tensor:
                if len(returned) == len(decoder.layers):
                    returned.clear()
                returned.append(x)
                return norm(x)

            def forward(
                maps: list[Tensor], memory: Tensor, prompt: Tensor, mask: Tensor, queries: Tensor
            ) -> tuple[Tensor, Tensor]:
                return compute(maps, memory, prompt, mask, of(decoder, returned))

            return together(computing(decoder.norm, noted), computing(head, forward))

        return made

    words = "masks are read from the queries of the next-to-last layer; the original's from the last"
    yield DetectorFault(
        f"{row}.next_to_last", words, row, reading(lambda d, q: type(d.norm).forward(d.norm, q[-2])),
        applies=lambda model, layer: len(part(model, "transformer.decoder", 0, Decoder).layers) > 1,
    )  # fmt: skip
    words = "masks are read from the queries of the first layer; the original's from the last"
    yield DetectorFault(f"{row}.first", words, row, reading(lambda d, q: type(d.norm).forward(d.norm, q[0])))
    words = "masks are read from the queries as the layer returns them; the original's from the normed"
    yield DetectorFault(f"{row}.not_normed", words, row, reading(lambda d, q: q[-1]))

    row = "masks.semantic"

    def from_instance(model: Detector, layer: int) -> Change:
        head = _head(model)
        own, instance = head.semantic_seg_head.forward, head.instance_seg_head
        return computing(
            head.semantic_seg_head,
            lambda pixels: own(functional.conv2d(pixels, instance.weight, instance.bias)),
        )

    words = "the semantic mask is read behind instance_seg_head; the original's from the pixel decoder"
    yield DetectorFault(f"{row}.from_instance", words, row, from_instance)


# ---- outputs


def _outputs() -> Iterator[DetectorFault]:
    def given(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[Detector, int], Change]:
        def made(model: Detector, layer: int) -> Change:
            own = model.detect

            def detect(*args: Tensor | list[Tensor]) -> Detections:
                found = own(*args)  # type: ignore[arg-type]
                return {**found, name: change(found[name])}  # type: ignore[misc]

            return setting(model, detect=detect)

        return made

    def decoded(change: Callable[[Decoded], Decoded]) -> Callable[[Detector, int], Change]:
        def made(model: Detector, layer: int) -> Change:
            decoder = part(model, "transformer.decoder", 0, Decoder)
            own = decoder.forward
            return computing(decoder, lambda *args: change(own(*args)))

        return made

    def of_layer(number: int) -> Callable[[Detector, int], Change]:
        def made(model: Detector, layer: int) -> Change:
            own, scoring = model.detect, _scores(model)
            compute = scoring.forward
            every: list[Tensor] = []

            def forward(queries: Tensor, prompt: Tensor, mask: Tensor) -> Tensor:
                every[:] = [compute(queries, prompt, mask)]
                return every[0]

            def detect(*args: Tensor | list[Tensor]) -> Detections:
                found = own(*args)  # type: ignore[arg-type]
                return {**found, "pred_logits": every[0][number]}

            return together(computing(scoring, forward), setting(model, detect=detect))

        return made

    row = "outputs.pred_logits"
    words = "pred_logits are those of the first layer; the original's are those of the last"
    yield DetectorFault(f"{row}.first_layer", words, row, of_layer(0))
    yield DetectorFault(f"{row}.sigmoid", "pred_logits are probabilities; the original's are logits", row,
                        given("pred_logits", torch.sigmoid))  # fmt: skip

    def with_presence(model: Detector, layer: int) -> Change:
        own = model.detect

        def detect(*args: Tensor | list[Tensor]) -> Detections:
            found = own(*args)  # type: ignore[arg-type]
            both = found["pred_logits"].sigmoid() * found["presence_logit_dec"].sigmoid()[:, None]
            return {**found, "pred_logits": both.logit()}

        return setting(model, detect=detect)

    words = "the presence score is multiplied into pred_logits; the original leaves that to its processor"
    yield DetectorFault(f"{row}.with_presence", words, row, with_presence)

    row = "outputs.pred_boxes_xyxy"

    def boxed(change: Callable[[Tensor], Tensor]) -> Callable[[Detector, int], Change]:
        """``change``: of pred_boxes, cx cy w h."""

        def made(model: Detector, layer: int) -> Change:
            own = model.detect

            def detect(*args: Tensor | list[Tensor]) -> Detections:
                found = own(*args)  # type: ignore[arg-type]
                return {**found, "pred_boxes_xyxy": change(found["pred_boxes"])}

            return setting(model, detect=detect)

        return made

    words = "boxes are given as centre and size; the original's as two corners"
    yield DetectorFault(f"{row}.not_corners", words, row, boxed(lambda boxes: boxes))

    def x_y_w_h(boxes: Tensor) -> Tensor:
        centre, size = boxes.split(2, -1)
        return torch.cat((centre - size / 2, size), -1)

    words = "boxes are given as x0 y0 w h; the original's as two corners"
    yield DetectorFault(f"{row}.xywh", words, row, boxed(x_y_w_h))
    beyond = Need("a found box that sticks out of the picture", lambda model, layer, inputs: True)
    words = "boxes are cut to the picture; the original's are not"
    cut = given("pred_boxes_xyxy", lambda boxes: boxes.clamp(0, 1))
    yield DetectorFault(f"{row}.cut", words, row, cut, beyond)

    def in_pixels(model: Detector, layer: int) -> Change:
        return given("pred_boxes_xyxy", lambda boxes: boxes * model.image_size)(model, layer)

    words = "boxes are in pixels; the original's are relative to the picture"
    yield DetectorFault(f"{row}.pixels", words, row, in_pixels)

    def not_refined(model: Detector, layer: int) -> Change:
        decoder = part(model, "transformer.decoder", 0, Decoder)
        own = decoder.refined

        def refined(queries: Tensor, references: Tensor) -> Tensor:
            return own(queries, references) if queries.dim() == 3 else references

        return setting(decoder, refined=refined)

    words = "the boxes lack the last refinement: they are those that went into the last layer"
    yield DetectorFault(f"{row}.last_refinement", words, row, not_refined)

    row = "outputs.presence_logit_dec"
    loud = Need("a presence logit beyond 10", lambda model, layer, inputs: True)
    clamped = decoded(lambda d: d._replace(presence=d.presence.clamp(-10, 10)))
    words = "the presence logit is clamped to 10; the original's is not"
    yield DetectorFault(f"{row}.clamped", words, row, clamped, loud)
    words = "the presence logit is a probability"
    yield DetectorFault(f"{row}.sigmoid", words, row, given("presence_logit_dec", torch.sigmoid))
    first = decoded(lambda d: d._replace(presence=d.presence[:1].expand_as(d.presence)))
    words = "the presence logit is that of the first layer; the original's is that of the last"
    yield DetectorFault(f"{row}.first_layer", words, row, first)

    row = "outputs.pred_masks"

    def predicted(change: Callable[[MaskPredictor, Tensor, Tensor], Tensor]) -> Callable[[Detector, int], Change]:
        def made(model: Detector, layer: int) -> Change:
            own = part(model, f"{_MASKS}.mask_predictor", 0, MaskPredictor)
            return computing(own, lambda queries, pixels: change(own, own.mask_embed(queries), pixels))

        return made

    def dot(filters: Tensor, pixels: Tensor) -> Tensor:
        out: Tensor = (filters @ pixels.flatten(2)).unflatten(2, pixels.shape[-2:])
        return out

    scaled = predicted(lambda own, f, pixels: dot(f, pixels) * f.shape[-1] ** -0.5)
    words = "mask logits are scaled by the root of their width; the original's are not"
    yield DetectorFault(f"{row}.scaled", words, row, scaled)
    yield DetectorFault(f"{row}.transposed", "rows and columns of the masks are exchanged", row,
                        predicted(lambda own, f, pixels: dot(f, pixels).mT))  # fmt: skip
    yield DetectorFault(f"{row}.sigmoid", "masks are probabilities; the original's are logits", row,
                        predicted(lambda own, f, pixels: dot(f, pixels).sigmoid()))  # fmt: skip

    def from_pixels(model: Detector, layer: int) -> Change:
        head, own = _head(model), part(model, f"{_MASKS}.mask_predictor", 0, MaskPredictor)
        decoder = head.pixel_decoder
        compute = decoder.forward
        seen: list[Tensor] = []

        def noted(maps: list[Tensor]) -> Tensor:
            seen[:] = [compute(maps)]
            return seen[0]

        return together(
            computing(decoder, noted), computing(own, lambda queries, pixels: dot(own.mask_embed(queries), seen[0]))
        )

    words = "masks are read from the pixel decoder's map; the original's behind instance_seg_head"
    yield DetectorFault(f"{row}.from_pixels", words, row, from_pixels)
    row = "outputs.semantic_seg"
    yield DetectorFault(f"{row}.sigmoid", "the semantic mask is a probability; the original's is a logit", row,
                        given("semantic_seg", torch.sigmoid))  # fmt: skip
    words = "rows and columns of the semantic mask are exchanged"
    yield DetectorFault(f"{row}.transposed", words, row, given("semantic_seg", lambda x: x.mT))
