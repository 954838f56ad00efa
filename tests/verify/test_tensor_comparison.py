"""Two tensors compared: bits first, then values, with torch's figures as the truth."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.checkpoints import as_bytes

from sam3lite_convert.checkpoint.index import StoredTensor, contiguous_stride, joined, zeros
from sam3lite_convert.checkpoint.reader import open_source, read_checkpoint
from sam3lite_convert.checkpoint.tensor_reader import read_pieces, read_tensor
from sam3lite_convert.verify import tensor_comparison
from sam3lite_convert.verify.tensor_comparison import (
    Comparison,
    OpenTensor,
    Rows,
    compare_tensors,
    lacking_rows,
    leading_rows,
)

FLOATS = ("float64", "float32", "float16", "bfloat16")
COMPLEX = ("complex128", "complex64")
EIGHT_BITS = ("float8_e4m3fn", "float8_e5m2")
INTEGERS = ("int64", "int32", "int16", "int8", "uint8", "bool")


@pytest.fixture(autouse=True, params=[7, 1 << 18], ids=["many pieces", "one piece"])
def step(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_comparison, "_STEP", request.param)


def compared(a: torch.Tensor, b: torch.Tensor, folder: Path) -> Comparison:
    for name, tensor in (("a.pt", a), ("b.pt", b)):
        torch.save({"w": tensor, "beside.it": torch.zeros(2)}, folder / name)
    first, second = (read_checkpoint(folder / name) for name in ("a.pt", "b.pt"))
    with open_source(first) as one, open_source(second) as other:
        sides = OpenTensor(one, first.tensors["w"]), OpenTensor(other, second.tensors["w"])
        return compare_tensors(*sides)


def pair(dtype: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Two of 9 x 5, of which rows 2, 3 and 8 differ."""
    torch.manual_seed(3)
    kind: torch.dtype = getattr(torch, dtype)
    a = (
        torch.randn(9, 5, dtype=kind)
        if dtype in FLOATS + COMPLEX
        else (torch.randn(9, 5) * 3).to(kind)
        if dtype in EIGHT_BITS
        else torch.randint(0, 100, (9, 5)).to(kind)
    )
    b = a.clone()
    for row, column in ((2, 1), (3, 0), (3, 4), (8, 2)):
        value = b[row, column].to(torch.complex128)
        changed = 1 - value if dtype == "bool" else value * 2 + 1
        b[row, column] = (changed if b.is_complex() else changed.real).to(kind)
    return a, b


def wide(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.float() if "float8" in str(tensor.dtype) else tensor
    return tensor.to(torch.complex128).flatten()


def agrees(found: Comparison, a: torch.Tensor, b: torch.Tensor) -> None:
    """The figures are those that torch computes."""
    x, y = wide(a), wide(b)
    parts = torch.view_as_real(y - x)
    assert found.elements == a.numel()
    assert found.differing == int((x != y).sum())
    assert found.sums.relative_l2 == pytest.approx(float((y - x).norm() / x.norm()), rel=1e-12)
    assert found.sums.max_abs == pytest.approx(float(parts.abs().max()), rel=1e-12)
    products = torch.view_as_real(x).flatten() @ torch.view_as_real(y).flatten()
    assert found.sums.cosine == pytest.approx(float(products / (x.norm() * y.norm())), rel=1e-12)


@pytest.mark.parametrize("dtype", FLOATS + COMPLEX + EIGHT_BITS + INTEGERS)
def test_what_differs_is_measured_as_torch_measures_it(dtype: str, tmp_path: Path) -> None:
    a, b = pair(dtype)
    found = compared(a, b, tmp_path)
    agrees(found, a, b)
    assert (found.rows, found.differing) == (9, 4)
    assert found.changed_rows is not None and found.changed_rows.nonzero()[0].tolist() == [2, 3, 8]
    assert found.casts == ()
    same = compared(a, a.clone(), tmp_path)
    assert (same.differing, same.sums.relative_l2, same.sums.max_abs) == (0, 0.0, 0.0)
    assert same.changed_rows is not None and not same.changed_rows.any()


def test_strides_do_not_matter(tmp_path: Path) -> None:
    a, b = pair("float32")
    turned = b.T.contiguous().T
    assert not turned.is_contiguous()
    agrees(compared(a, turned, tmp_path), a, b)
    agrees(compared(a.T.contiguous().T, b, tmp_path), a, b)
    assert compared(a.T.contiguous().T, a, tmp_path).differing == 0
    row = torch.randn(5)
    expanded = row.expand(9, 5)
    assert compared(expanded, expanded.contiguous(), tmp_path).differing == 0


def test_a_tensor_made_of_others_is_compared_as_one(tmp_path: Path) -> None:
    a, b = pair("float32")
    torch.save({"whole": a, "one": b[:4].clone(), "other": b[4:].T.contiguous().T}, tmp_path / "parts.pt")
    index = read_checkpoint(tmp_path / "parts.pt")
    made = joined("made", (9, 5), [index.tensors["one"], index.tensors["other"]])
    with open_source(index) as file:
        found = compare_tensors(OpenTensor(file, index.tensors["whole"]), OpenTensor(file, made))
        agrees(found, a, b)
        assert read_tensor(file, made) == as_bytes(b)


@pytest.mark.parametrize("size", [1, 3, 4, 20, 64, 1000])
def test_pieces_of_any_tensor_are_its_bytes(size: int, tmp_path: Path) -> None:
    a, b = pair("float32")
    torch.save({"a": a, "turned": b.T.contiguous().T, "none": torch.empty(0, 3)}, tmp_path / "f.pt")
    index = read_checkpoint(tmp_path / "f.pt")
    made = joined("made", (3, 30), [index.tensors["turned"], index.tensors["a"]])
    lacking = zeros("lacking", "float32", (9, 5))
    truth = {
        "a": as_bytes(a),
        "turned": as_bytes(b),
        "none": b"",
        "made": as_bytes(b) + as_bytes(a),
        "lacking": bytes(180),
    }
    with open_source(index) as file:
        for stored in (*index.tensors.values(), made, lacking):
            data = truth[stored.key]
            pieces = list(read_pieces(file, stored, size))
            assert b"".join(pieces) == data and {len(p) for p in pieces[:-1]} <= {size}, stored.key
            for begin, end in ((0, 20), (20, 100), (100, 180)):
                assert b"".join(read_pieces(file, stored, size, begin, end)) == data[begin:end], stored.key


# ---- values that are not finite, zeros


def test_nan_at_the_same_place_is_equal_whatever_its_bits(tmp_path: Path) -> None:
    a = torch.randn(40)
    a[3] = math.nan
    other = a.clone()
    other.view(torch.int32)[3] ^= 1  # another NaN
    assert other[3].isnan() and other.view(torch.int32)[3] != a.view(torch.int32)[3]
    for b in (a.clone(), other):
        found = compared(a, b, tmp_path)
        assert (found.differing, found.nan_in_both, found.sums.relative_l2) == (0, 1, 0.0)
        assert [(n.nan, n.infinite) for n in found.not_finite] == [(1, 0), (1, 0)]


def test_sums_are_over_what_is_finite_on_both_sides(tmp_path: Path) -> None:
    a, b = torch.randn(40).double(), torch.randn(40).double()
    a[1], b[2], a[3], b[3], b[4] = math.nan, math.nan, math.inf, math.inf, -math.inf
    found = compared(a, b, tmp_path)
    kept = a.isfinite() & b.isfinite()
    assert int(kept.sum()) == 36
    assert found.sums.relative_l2 == pytest.approx(float((b - a)[kept].norm() / a[kept].norm()), rel=1e-12)
    assert (found.differing, found.nan_in_both) == (39, 0)  # not the infinity on both sides
    assert [(n.nan, n.infinite) for n in found.not_finite] == [(1, 1), (1, 2)]


def test_either_part_of_a_complex_number_may_change(tmp_path: Path) -> None:
    a = torch.randn(20, dtype=torch.complex64)
    for change in (2.0, 2j):
        b = a.clone()
        b[5] += change
        found = compared(a, b, tmp_path)
        assert (found.differing, found.sums.max_abs) == (1, pytest.approx(2.0, rel=1e-6))


def test_a_complex_nan_counts_once(tmp_path: Path) -> None:
    a = torch.randn(20, dtype=torch.complex64)
    a[2] = complex(math.nan, math.nan)
    b = a.clone()
    b[5] += 1
    found = compared(a, b, tmp_path)
    assert (found.elements, found.differing, found.nan_in_both) == (20, 1, 1)


def test_a_change_from_zero_has_no_relative_size(tmp_path: Path) -> None:
    found = compared(torch.zeros(30), torch.ones(30), tmp_path)
    assert found.sums.relative_l2 == math.inf and found.sums.cosine is None
    both = compared(torch.zeros(30), torch.zeros(30), tmp_path)
    assert (both.sums.relative_l2, both.differing) == (0.0, 0)


def test_the_sign_of_a_zero_is_a_difference_in_bits(tmp_path: Path) -> None:
    b = torch.zeros(30)
    b[4] = -0.0
    found = compared(torch.zeros(30), b, tmp_path)
    assert (found.differing, found.sums.max_abs, found.sums.relative_l2) == (1, 0.0, 0.0)


def test_a_scalar_and_nothing_at_all(tmp_path: Path) -> None:
    found = compared(torch.tensor(1000), torch.tensor(1005), tmp_path)
    assert (found.elements, found.differing, found.rows, found.sums.max_abs) == (1, 1, 1, 5.0)
    empty = compared(torch.empty(0, 3), torch.empty(0, 3), tmp_path)
    assert (empty.elements, empty.differing) == (0, 0)
    with pytest.raises(ValueError, match="shapes differ"):
        compared(torch.ones(3), torch.ones(1, 3), tmp_path)


# ---- two dtypes


@pytest.mark.parametrize(
    ("wide_dtype", "narrow"),
    [("float64", "float32"), ("float32", "float16"), ("float32", "bfloat16"), ("float16", "float8_e5m2"),
     ("complex128", "complex64")],
)  # fmt: skip
def test_a_cast_is_recognised_from_both_sides(wide_dtype: str, narrow: str, tmp_path: Path) -> None:
    a, _ = pair(wide_dtype)
    a[0, 0] = math.nan
    b = a.to(getattr(torch, narrow))
    for one, other in ((a, b), (b, a)):
        found = compared(one, other, tmp_path)
        assert found.casts == (narrow,)
        assert found.differing == int((wide(a) != wide(b)).sum()) - 1  # without the NaN
    b[4, 4] = b[4, 3]
    assert compared(a, b, tmp_path).casts == ()


def test_a_cast_keeps_nan_whatever_its_bits(tmp_path: Path) -> None:
    a = torch.randn(40)
    a[3] = math.nan
    b = a.half()
    b.view(torch.int16)[3] ^= 1
    assert b[3].isnan() and b.view(torch.int16)[3] != a.half().view(torch.int16)[3]
    assert compared(a, b, tmp_path).casts == ("float16",)


def test_a_cast_that_loses_nothing_names_the_narrower_dtype(tmp_path: Path) -> None:
    half = torch.randn(30).half()
    found = compared(half, half.float(), tmp_path)
    assert (found.casts, found.differing) == (("float16", "float32"), 0)
    whole = compared(torch.arange(30), torch.arange(30).float(), tmp_path)
    assert (whole.casts[0], whole.differing) == ("float32", 0)


def test_a_cast_that_overflows_is_still_that_cast(tmp_path: Path) -> None:
    a = torch.randn(30)
    a[7] = 1e6
    found = compared(a, a.half(), tmp_path)
    assert found.casts == ("float16",) and [n.infinite for n in found.not_finite] == [0, 1]


def test_real_and_complex_numbers_are_not_compared(tmp_path: Path) -> None:
    found = compared(torch.randn(3), torch.randn(3, dtype=torch.complex64), tmp_path)
    assert (found.same_kind, found.differing, found.casts) == (False, 3, ())


# ---- tables of other lengths


def test_some_rows_are_compared_with_others(tmp_path: Path) -> None:
    a, b = pair("float32")
    longer = torch.cat([torch.randn(4, 5), b])[None]
    torch.save({"a": a[None], "b": longer, "turned": longer[0].T.contiguous().T[None]}, tmp_path / "rows.pt")
    index = read_checkpoint(tmp_path / "rows.pt")
    with open_source(index) as file:
        for name in ("b", "turned"):
            sides = [OpenTensor(file, index.tensors[key]) for key in ("a", name)]
            found = compare_tensors(sides[0], sides[1], Rows(0, 4, 9))
            agrees(found, a, b)
            assert found.changed_rows is not None and found.changed_rows.nonzero()[0].tolist() == [2, 3, 8]
            assert compare_tensors(sides[0], sides[1], Rows(4, 8, 4)).differing == 0
            agrees(compare_tensors(sides[1], sides[0], Rows(6, 2, 5)), b[2:7], a[2:7])
            with pytest.raises(ValueError, match="shapes differ"):
                compare_tensors(sides[0], sides[1])


def test_rows_stand_along_the_first_dimension_that_has_several() -> None:
    assert leading_rows((1, 1, 77, 8), (1, 1, 16, 8)) == (77, 16)
    assert leading_rows((1, 8), (16, 8)) == (1, 16)
    assert leading_rows((), ()) == leading_rows((1, 1), (1, 1)) == (1, 1)
    assert leading_rows((0, 3), (5, 3)) == (0, 5)
    for one, other in (((12, 8), (12, 4)), ((12, 8), (5, 4)), ((5, 8), (1, 5, 8)), ((2, 77, 8), (2, 16, 8))):
        assert leading_rows(one, other) is None


def test_rows_that_a_file_does_not_hold_are_known() -> None:
    table = StoredTensor("t", "float32", (1, 16, 4), 64, contiguous_stride((1, 16, 4)))
    row = zeros("t", "float32", (1, 1, 4))
    assert lacking_rows(joined("t", (1, 17, 4), [row, table])) == 1
    assert lacking_rows(joined("t", (1, 17, 4), [table, row])) == lacking_rows(table) == 0
    assert lacking_rows(row) == lacking_rows(joined("t", (1, 2, 4), [row, row])) == 0


def test_a_stored_tensor_that_is_too_long_for_its_file_is_refused(tmp_path: Path) -> None:
    from sam3lite_convert.errors import Untrusted

    torch.save({"a": torch.ones(4)}, tmp_path / "f.pt")
    index = read_checkpoint(tmp_path / "f.pt")
    beyond: StoredTensor = replace(index.tensors["a"], offset=index.size - 4)
    with open_source(index) as file, pytest.raises(Untrusted, match="shorter"):
        compare_tensors(OpenTensor(file, index.tensors["a"]), OpenTensor(file, beyond))
