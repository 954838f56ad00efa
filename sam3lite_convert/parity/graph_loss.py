"""What a quantised graph loses and gains against the graph that it was made of: bytes, time, taps, neighbours."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from original_ref.detector import prepare
from sam3lite_convert.errors import CannotRun
from sam3lite_convert.graph.compare import taps_of
from sam3lite_convert.graph.cut import with_outputs
from sam3lite_convert.graph.decode import BOX_LABELS, BOX_MASK, BOXES
from sam3lite_convert.graph.read import stored_values
from sam3lite_convert.graph.text import FEATURES, IDS, MASK, POOLED
from sam3lite_convert.graph.vision import IMAGE
from sam3lite_convert.parity.compare import compare, compare_large
from sam3lite_convert.parity.inputs import Inputs, make_inputs
from sam3lite_convert.parity.noun_phrases import phrase_inputs
from sam3lite_convert.parity.onnx_session import OnnxRuntime, OnnxSession
from sam3lite_convert.parity.picture_files import synthetic_picture
from sam3lite_convert.progress import bar
from sam3lite_convert.records.export import Agreement, ChangedNeighbour, DetectionLoss, GraphLoss, TapLoss

if TYPE_CHECKING:
    import onnx

BUDGET = 1e-2  # relative L2
BATCH = 100  # rows a call
_TAP_ROWS, _ALONE_ROWS = 64, 16
_CALLS, _SECONDS = 24, 10.0
_BEST, _SURE = 10, 0.5  # queries, and the score from which on one counts
_PICTURE = "built-in picture"
_LISTED, _LONG = 10, 80  # changed neighbours, and characters of one
_FEWEST = 3  # prompts: of two, the nearest other one is always the same
_STRETCH = 1024  # rows of a table of cosines
# How much the mean squares of a matrix's columns vary, against those of independent draws: 0.75 to 1.3 times as much if
# they are such; a trained table of 32,000 words has 31.
_RANDOM_BELOW = 2.0


def graph_losses(
    plain: Mapping[str, onnx.ModelProto],
    made: Mapping[str, onnx.ModelProto],
    folder: Path,
    inputs: Inputs | None = None,
    budget: float = BUDGET,
) -> dict[str, GraphLoss]:
    """Run the graphs of a text encoder or of a detector and the quantised ones beside them; by name as in ``plain``.

    plain: the graphs, in order of execution; their weights lie in the folder. made: the quantised ones.
    inputs: what text is measured on, of ``loss_inputs``; by default the built-in phrases. A detector is run on the
        built-in picture and the first of these.
    budget: relative L2 that a tap may have.

    Raises CannotRun if onnxruntime is missing or does not run one of them.
    """
    losses, values, after = {}, dict[str, Tensor](), dict[str, Tensor]()
    size = None
    inputs = inputs or loss_inputs(plain)
    with bar("measuring what quantising loses", len(plain)) as advance:
        for name, model in plain.items():
            if _reads(model, IDS):
                losses[name] = text_loss(model, made[name], folder, inputs, budget)
                values[IDS] = after[IDS] = inputs.ids[:1]
            else:
                if _reads(model, IMAGE):
                    size = (
                        next(v for v in model.graph.input if v.name == IMAGE).type.tensor_type.shape.dim[-1].dim_value
                    )
                    values[IMAGE] = after[IMAGE] = prepare(synthetic_picture(max(size, 224)).permute(2, 0, 1), size)
                what = f"the {_PICTURE}, {size} pixels"
                what += "" if _reads(model, IMAGE) else ", and a box, by the unquantised graphs before it"
                # With a box, since some taps hold nothing without one.
                losses[name] = picture_loss(model, made[name], folder, values | _boxes(1), what, budget)
                values |= _boxes(0)
                after |= _boxes(0)
            for given, graph in ((values, model), (after, made[name])):
                given |= OnnxSession(graph, folder).run(given)
            advance(stage=name)
    if size is not None:
        losses[name] = replace(losses[name], detection=detection_loss(values, after, size, _said(inputs)[0]))
    return losses


def _reads(model: onnx.ModelProto, name: str) -> bool:
    return any(value.name == name for value in model.graph.input)


def _said(inputs: Inputs) -> tuple[str, ...]:
    """What each row is called, shortened."""
    texts = inputs.prompts or tuple(f"row {n}" for n in range(len(inputs.ids)))
    return tuple(text if len(text) <= _LONG else f"{text[:_LONG]}..." for text in texts)


def text_loss(
    plain: onnx.ModelProto, made: onnx.ModelProto, folder: Path, inputs: Inputs, budget: float = BUDGET
) -> GraphLoss:
    """Run a text encoder's graph and the quantised one beside it. ``inputs``: at least three rows, no two alike."""
    ids = inputs.ids
    ours, theirs = OnnxSession(plain, folder), OnnxSession(made, folder)
    times = _times(ours, theirs, {IDS: ids[:1]})
    before, after = _features(ours, ids), _features(theirs, ids)
    few = ids[:_ALONE_ROWS]
    alone = torch.cat([theirs.run({IDS: row}, [FEATURES])[FEATURES] for row in few.split(1)])
    together = theirs.run({IDS: ids[:BATCH]}, [FEATURES])[FEATURES][: len(few)]
    del ours, theirs  # a session holds weights
    spread = ids[torch.linspace(0, len(ids) - 1, min(_TAP_ROWS, len(ids))).long()]
    loss = _loss(plain, made, folder, {IDS: spread}, times, budget, inputs.what)
    return replace(
        loss,
        rows=len(ids),
        batch=min(BATCH, len(ids)),
        agreement=tuple(_agreement(before[name], after[name], name, inputs) for name in before),
        batch_relative_l2=compare(together, alone).relative_l2,
    )


def picture_loss(
    plain: onnx.ModelProto,
    made: onnx.ModelProto,
    folder: Path,
    given: Mapping[str, Tensor],
    what: str,
    budget: float = BUDGET,
) -> GraphLoss:
    """Run one of a detector's graphs and the quantised one on the same inputs, by name. ``what``: these, in words."""
    times = _times(OnnxSession(plain, folder), OnnxSession(made, folder), given)
    return _loss(plain, made, folder, given, times, budget, what)


def _loss(
    plain: onnx.ModelProto,
    made: onnx.ModelProto,
    folder: Path,
    given: Mapping[str, Tensor],
    times: _Times,
    budget: float,
    what: str,
) -> GraphLoss:
    """What is measured of any graph. ``given``: what the taps are compared on. ``times``: of ``_times``."""
    taps = tuple(tap_losses(plain, made, folder, given))
    low, middle, high = np.quantile(times.ratios, (0.25, 0.5, 0.75)).tolist()
    return GraphLoss(
        runtime=OnnxRuntime().name,
        inputs=what,
        own_prompts=False,
        rows=1,
        batch=1,
        bytes=made.ByteSize(),
        unquantised_bytes=plain.ByteSize() + _bytes_outside(plain),
        calls=len(times.ratios),
        milliseconds=times.after,
        unquantised_milliseconds=times.before,
        times_as_fast=middle,
        times_as_fast_quartiles=(low, high),
        budget=budget,
        first_over_budget=next((tap.name for tap in taps if not tap.relative_l2 <= budget), None),
        taps=taps,
        agreement=(),
        batch_relative_l2=None,
        detection=None,
        random_weights=look_random(plain, folder),
    )


def loss_inputs(plain: Mapping[str, onnx.ModelProto], prompts: Sequence[str] = ()) -> Inputs:
    """What the loss of the text encoder's graph among these is measured on. Raises as ``text_inputs`` does."""
    model = next(model for model in plain.values() if _reads(model, IDS))
    context = next(value for value in model.graph.input if value.name == IDS).type.tensor_type.shape.dim[1].dim_value
    table = next(node.input[0] for node in model.graph.node if IDS in node.input and node.op_type == "Gather")
    vocab = next(tensor.dims[0] for tensor in model.graph.initializer if tensor.name == table)
    return text_inputs(context, vocab, prompts)


def text_inputs(context: int, vocab: int, prompts: Sequence[str] = ()) -> Inputs:
    """What the loss of a text encoder is measured on: the prompts, or the built-in phrases.

    Raises CannotRun if the tokenizer is missing for the prompts, or if fewer than three of them differ.
    """
    if not prompts:
        return phrase_inputs(context, vocab)
    given = make_inputs(context, vocab, prompts=prompts)
    firsts: dict[tuple[int, ...], int] = {}
    for n, row in enumerate(given.ids.tolist()):
        firsts.setdefault(tuple(row), n)
    if len(firsts) < _FEWEST:
        raise CannotRun(
            f"--prompts-file needs three prompts whose ids differ, to compare neighbours; it has {len(firsts)}",
            "usage",
        )
    alike = len(prompts) - len(firsts)
    told = f"{len(firsts):,} prompts" + (f", without {alike:,} whose ids are another's" if alike else "")
    return replace(given.rows(list(firsts.values())), what=told)


def tap_losses(
    plain: onnx.ModelProto, made: onnx.ModelProto, folder: Path, given: Mapping[str, Tensor]
) -> Iterator[TapLoss]:
    """The loss at every tap of a graph, in order of execution. ``given``: the inputs of both by name."""
    places = taps_of(plain)
    values = list(dict.fromkeys(places.values()))
    ours, theirs = (OnnxSession(with_outputs(model, values), folder).run(given, values) for model in (plain, made))
    for tap, value in places.items():
        found = compare_large(ours[value], theirs[value])
        yield TapLoss(
            name=tap,
            shape=found.shape,
            relative_l2=found.relative_l2,
            cosine=found.cosine,
            max_abs_diff=found.max_abs,
        )


def look_random(model: onnx.ModelProto, folder: Path) -> bool:
    """Whether the largest matrix of a graph looks like random draws: the mean squares of its columns vary no more than
    those of independent values of one distribution."""
    matrices = [tensor for tensor in model.graph.initializer if len(tensor.dims) == 2 and tensor.external_data]
    if not matrices:
        return False
    largest = max(matrices, key=lambda tensor: tensor.dims[0] * tensor.dims[1])
    squares = np.asarray(stored_values(largest, folder)[:8192], np.float64) ** 2
    expected = squares.var() / len(squares)
    return bool(squares.mean(axis=0).var() < _RANDOM_BELOW * expected)


def _bytes_outside(model: onnx.ModelProto) -> int:
    """The bytes of the weights that a graph reads from files."""
    places = [entry for tensor in model.graph.initializer for entry in tensor.external_data]
    return sum(int(entry.value) for entry in places if entry.key == "length")


class _Times(NamedTuple):
    """Milliseconds a call, medians, and the ratios of the calls."""

    before: float
    after: float
    ratios: list[float]


def _times(ours: OnnxSession, theirs: OnnxSession, given: Mapping[str, Tensor]) -> _Times:
    """The times of both, called in turn as often as fits into some seconds."""
    pairs: list[tuple[float, float]] = []
    end = time.perf_counter() + _SECONDS
    while not pairs or (len(pairs) < _CALLS and time.perf_counter() < end):
        pairs.append((_milliseconds(ours, given), _milliseconds(theirs, given)))
    counted = pairs[len(pairs) // 8 :]  # the first calls are slower
    before, after = (statistics.median(each) for each in zip(*counted, strict=True))
    return _Times(before, after, [first / second for first, second in counted])


def _milliseconds(session: OnnxSession, given: Mapping[str, Tensor]) -> float:
    start = time.perf_counter()
    session.run(given)
    return (time.perf_counter() - start) * 1e3


def _features(session: OnnxSession, ids: Tensor) -> dict[Literal["tokens", "end"], Tensor]:
    """One vector a row: the mean of the text features over the row's tokens, and the pooled output."""
    means, pooled = [], []
    for rows in ids.split(BATCH):
        out = session.run({IDS: rows}, [FEATURES, MASK, POOLED])
        tokens = out[MASK][..., None].double()
        means.append((out[FEATURES].double() * tokens).sum(1) / tokens.sum(1))
        pooled.append(out[POOLED].double())
    return {"tokens": torch.cat(means), "end": torch.cat(pooled)}


def _agreement(before: Tensor, after: Tensor, name: Literal["tokens", "end"], inputs: Inputs) -> Agreement:
    ours, theirs = nearest(before), nearest(after)
    other = (ours != theirs).nonzero().flatten().tolist()
    said = _said(inputs)
    changed = (ChangedNeighbour(prompt=said[n], before=said[ours[n]], after=said[theirs[n]]) for n in other[:_LISTED])
    return Agreement(features=name, share=1 - len(other) / len(before), changed=tuple(changed))


def nearest(features: Tensor) -> Tensor:
    """For each row the other row of greatest cosine: (rows,), int64. ``features``: (rows, width), at least two rows."""
    unit = torch.nn.functional.normalize(features.double(), dim=-1)
    found = []
    for first in range(0, len(unit), _STRETCH):
        cosines = unit[first : first + _STRETCH] @ unit.T
        rows = torch.arange(len(cosines))
        cosines[rows, first + rows] = -torch.inf
        found.append(cosines.argmax(-1))
    return torch.cat(found)


def _boxes(count: int) -> dict[str, Tensor]:
    """Box prompts for one prompt: boxes in the middle of the picture."""
    return {
        BOXES: torch.tensor([0.5, 0.5, 0.4, 0.3]).expand(1, count, 4),
        BOX_LABELS: torch.ones(1, count, dtype=torch.int64),
        BOX_MASK: torch.zeros(1, count, dtype=torch.bool),
    }


def detection_loss(before: Mapping[str, Tensor], after: Mapping[str, Tensor], size: int, prompt: str) -> DetectionLoss:
    """Two results of a detector on the built-in picture, by the names of the decoder's outputs."""
    ours, theirs = before["scores"][0].double(), after["scores"][0].double()
    count = max(int((ours > _SURE).sum()), min(_BEST, len(ours)))
    best = ours.argsort(descending=True, stable=True)[:count]
    masks = [result["pred_masks"][0, best].flatten(1) > 0 for result in (before, after)]
    both, either = (masks[0] & masks[1]).sum(1).double(), (masks[0] | masks[1]).sum(1).double()
    shared = torch.where(either > 0, both / either, 1.0)
    return DetectionLoss(
        picture=_PICTURE,
        prompt=prompt,
        size=size,
        queries=count,
        mask_iou_mean=float(shared.mean()),
        mask_iou_least=float(shared.min()),
        score_max_abs_diff=float((ours - theirs).abs().max()),
        crossed=int(((ours > _SURE) != (theirs > _SURE)).sum()),
    )
