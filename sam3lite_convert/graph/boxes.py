"""Arithmetic of boxes (cx, cy, w, h), relative to the image."""

from __future__ import annotations

from sam3lite_convert.graph.builder import GraphBuilder
from sam3lite_convert.plan.detector_constants import LOGIT_EPS


def corners(b: GraphBuilder, name: str, boxes: str, half: str) -> str:
    """(x0, y0, x1, y1) of boxes (..., 4). ``half``: 0.5 in their dtype."""
    center, size = b.node("Split", [f"{name}.center", f"{name}.size"], boxes, axis=-1, num_outputs=2)
    reach = b.node("Mul", f"{name}.reach", size, half)
    begin, end = (b.node(op, f"{name}.{op.lower()}", center, reach) for op in ("Sub", "Add"))
    return b.node("Concat", name, begin, end, axis=-1)


def logit(b: GraphBuilder, name: str, x: str) -> str:
    """The inverse of the sigmoid, cut near 0 and 1."""
    one, eps = b.floats(1.0, "one"), b.floats(LOGIT_EPS, "logit_eps")
    inside = b.node("Clip", f"{name}.inside", x, b.floats(0.0, "zero"), one)
    above = b.node("Max", f"{name}.above", inside, eps)
    below = b.node("Max", f"{name}.below", b.node("Sub", f"{name}.rest", one, inside), eps)
    return b.node("Log", name, b.node("Div", f"{name}.odds", above, below))
