"""Every operation forwards and backwards, against what torch makes of the same tensor."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.folders import raw
from support.rows import LAYOUTS, shipped_tables

from sam3lite_convert.plan.operations import (
    OPERATIONS,
    Drop,
    DropClassRow,
    Duplicate,
    Join,
    Keep,
    Lost,
    Slice,
    Split,
    Transpose,
    Zeros,
    joined_rows,
    joined_shape,
    positions,
    with_positions,
)
from sam3lite_convert.plan.synthetic import small_architecture, source_shapes

DTYPES = ["float64", "float32", "bfloat16", "int8"]


def numbered(shape, dtype="float32"):
    """Every element another one, as far as the dtype has so many."""
    return torch.arange(math.prod(shape)).reshape(shape).to(getattr(torch, dtype))


def shapes(low=0, high=4):
    return st.lists(st.integers(1, 5), min_size=low, max_size=high).map(tuple)


def forwards(operation, tensor):
    """(label, shape, bytes) of each target, and the slices that they come from."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    width, data = tensor.element_size(), raw(tensor)
    out = []
    for part in operation.slices(tuple(tensor.shape)):
        held = data[part.begin * width : (part.begin + part.numel) * width]
        made = operation.forward(held, part, dtype)
        assert operation.backward(made, part, dtype) == held
        assert len(made) == math.prod(part.shape) * width
        assert operation.verbatim == (type(operation).forward is Keep.forward)
        out.append((part.label, part.shape, made))
    return out


def assert_makes(operation, tensor, *wanted):
    """That the targets are these torch tensors, and that their shapes lead back to the source's."""
    made = forwards(operation, tensor)
    assert made == [(label, tuple(t.shape), raw(t)) for label, t in wanted]
    assert tuple(label for label, _, _ in made) == operation.labels


@given(shapes(), st.sampled_from(DTYPES))
def test_keep_keeps_any_tensor(shape, dtype):
    tensor = numbered(shape, dtype)
    assert_makes(Keep(), tensor, (None, tensor))
    assert Keep().source_shape([shape]) == shape
    assert Keep().lost(shape) is None


@given(st.integers(0, 5), shapes(high=3), st.sampled_from(DTYPES))
def test_split_makes_torchs_thirds(rows, rest, dtype):
    tensor = numbered((3 * rows, *rest), dtype)
    q, k, v = tensor.split(rows)[:3] if rows else [tensor] * 3
    assert_makes(Split(), tensor, ("q", q), ("k", k), ("v", v))
    assert Split().source_shape([tuple(t.shape) for t in (q, k, v)]) == tuple(tensor.shape)
    assert Split().lost(tuple(tensor.shape)) is None


@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from(DTYPES))
def test_transpose_is_torchs(rows, columns, dtype):
    tensor = numbered((rows, columns), dtype)
    assert_makes(Transpose(), tensor, (None, tensor.T))
    assert Transpose().source_shape([(columns, rows)]) == (rows, columns)
    assert Transpose().lost((rows, columns)) is None


@given(st.integers(1, 4), st.integers(1, 9), st.sampled_from(DTYPES))
def test_drop_class_row_drops_the_first_row_and_no_other(side, width, dtype):
    table = numbered((1, side * side + 1, width), dtype)
    assert_makes(DropClassRow(), table, (None, table[:, 1:]))
    assert DropClassRow().source_shape([(1, side * side, width)]) == tuple(table.shape)
    assert DropClassRow().lost(tuple(table.shape)) == Lost("class_row", 1, width)
    whole = table[:, 1:].contiguous()
    assert_makes(DropClassRow(), whole, (None, whole))
    assert DropClassRow().lost(tuple(whole.shape)) is None


def test_drop_has_no_target_and_needs_a_reason():
    assert Drop().slices((2, 3)) == ()
    assert [o.name for o in OPERATIONS.values() if o.needs_reason] == ["drop"]
    with pytest.raises(ValueError, match="no target"):
        Drop().source_shape([])


@pytest.mark.parametrize(
    ("operation", "shape", "says"),
    [
        (Split(), (), "not a multiple of three"),
        (Split(), (4, 3), "not a multiple of three"),
        (Transpose(), (4,), "only a matrix"),
        (Transpose(), (2, 3, 4), "only a matrix"),
        (DropClassRow(), (17, 4), "three dimensions"),
        (DropClassRow(), (1, 15, 4), "not a square grid"),
        (DropClassRow(), (1, 3, 4), "not a square grid"),
        (Keep(2), (3, 4, 1), "four dimensions, or two"),
        (Keep(2), (1, 1, 3, 4, 1), "four dimensions"),
    ],
)
def test_a_shape_that_does_not_allow_the_operation_is_refused(operation, shape, says):
    with pytest.raises(ValueError, match=says):
        operation.slices(shape)


# ---- the cut of the context ---------------------------------------------------------------------------


@given(st.integers(1, 8), st.integers(1, 4), st.data())
def test_a_cut_keeps_the_first_rows(rows, width, data):
    count = data.draw(st.integers(1, rows))
    table = numbered((1, 1, rows, width))
    cut = Keep().cut(count)
    assert_makes(cut, table, (None, table[:, :, :count]))
    assert cut.name == "keep"
    lost = Lost("positions", rows - count, (rows - count) * width)
    assert cut.lost(tuple(table.shape)) == (None if count == rows else lost)


@given(st.integers(1, 8), st.integers(1, 4), st.data())
def test_a_cut_of_clips_table_keeps_its_first_rows(rows, width, data):
    count = data.draw(st.integers(1, rows))
    table = numbered((rows, width))
    assert_makes(Keep().cut(count), table, (None, table[:count]))


@given(st.integers(1, 4), st.integers(1, 3), shapes(high=3), st.sampled_from(DTYPES))
def test_join_makes_torchs_cat(count, rows, rest, dtype):
    """The planner joins the sources; what the operation sees is their bytes one after another."""
    parts = [numbered((rows, *rest), dtype) + i for i in range(count)]
    whole = torch.cat(parts)
    assert joined_shape([tuple(p.shape) for p in parts]) == tuple(whole.shape)
    assert joined_rows(tuple(whole.shape), count) == (rows, *rest)
    assert b"".join(map(raw, parts)) == raw(whole)
    assert_makes(Join(), whole, (None, whole))
    assert Join().source_shape([tuple(whole.shape)]) == tuple(whole.shape)
    assert Join().lost(tuple(whole.shape)) is None


@pytest.mark.parametrize("parts", [[(2, 3), (2, 4)], [(), ()], [(2, 3), (6,)]])
def test_rows_that_do_not_fit_are_not_joined(parts):
    with pytest.raises(ValueError, match="cannot be joined"):
        joined_shape(parts)


def test_rows_do_not_come_from_a_number_that_does_not_divide_them():
    with pytest.raises(ValueError, match="cannot come from 3"):
        joined_rows((4, 2), 3)


@given(shapes(), st.sampled_from(DTYPES))
def test_duplicate_writes_the_tensor_twice(shape, dtype):
    tensor = numbered(shape, dtype)
    assert_makes(Duplicate(), tensor, (None, tensor), (None, tensor))
    assert Duplicate().source_shape([shape, shape]) == shape


@pytest.mark.parametrize("operation", [Split(), Transpose(), DropClassRow(), Drop(), Join(), Duplicate(), Zeros()])
def test_an_operation_that_cannot_leave_rows_out_is_not_cut(operation):
    assert operation.cut(4) is operation


def test_the_rows_of_a_position_table():
    """MobileCLIP's table has four dimensions, CLIP's two."""
    assert (positions((1, 1, 16, 64)), positions((32, 64)), positions((16, 64, 1)), positions(())) == (
        16,
        32,
        None,
        None,
    )
    assert (with_positions((1, 1, 16, 64), 8), with_positions((32, 64), 8)) == ((1, 1, 8, 64), (8, 64))
    with pytest.raises(ValueError, match="four dimensions"):
        with_positions((16, 64, 1), 8)


# ---- together -----------------------------------------------------------------------------------------


def test_each_operation_is_known_by_its_name_and_each_has_a_place_in_the_tables():
    assert all(OPERATIONS[o.name] is o for o in OPERATIONS.values())
    used = {r.operation.name for layout in shipped_tables().layouts.values() for r in layout.rules}
    assert used == set(OPERATIONS)


def test_operations_are_equal_if_they_do_the_same():
    assert Keep() == OPERATIONS["keep"] != Split()
    assert Keep().cut(8) == Keep(8) != Keep()
    assert Slice(0, (2, 3), (3, 2)).numel == 6


def test_the_tables_of_each_layout_lead_back_to_the_same_source_shapes():
    """The inverse shapes: packed keeps what transformers splits and transposes."""
    arch = small_architecture(text_hidden=96, projection_dim=64)
    packed, transformers = (source_shapes(arch, shipped_tables().layout(layout)) for layout in LAYOUTS)
    assert packed == transformers == source_shapes(arch)
    text = "backbone.language_backbone.encoder."
    assert packed[text + "projection_layer"] == (96, 64)
    assert packed[text + "transformer.1.pre_norm_mha.1.qkv_proj.weight"] == (288, 96)
