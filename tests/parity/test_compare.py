"""Activations compared and judged: pure functions, against numpy and sums made by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sam3lite_convert.errors import CannotRun
from sam3lite_convert.parity.compare import Running, absolute_difference, compare, greatest_and_row_mean, max_abs
from sam3lite_convert.parity.judgement import FLOORS, Floor, check_tolerance, isolated_belongs, judge, require_finite

INF, NAN = math.inf, math.nan
TAPS = ("embeddings", "layers.0", "layers.1", "final_layer_norm", "projected", "pooled")
PADDED = torch.tensor([[False, False, True]])

# ---- two activations ----------------------------------------------------------------------------


def test_a_difference_as_a_person_would_work_it_out():
    found = compare(torch.tensor([[3.0, 0.0], [4.0, 0.0]]), torch.tensor([[3.0, 0.0], [4.0, 5.0]]))
    assert (found.shape, found.max_abs, found.position) == ((2, 2), 5.0, (1, 1))
    assert (found.reference, found.candidate) == (0.0, 5.0)
    assert found.mean_abs == 5 / 4
    assert found.relative_l2 == 5 / 5
    assert found.cosine == pytest.approx(25 / (5 * math.sqrt(50)), abs=1e-15)


ARRAYS = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=1, max_dims=3, max_side=4),
    elements=st.floats(-1e6, 1e6, width=32, allow_subnormal=False),
)


@settings(max_examples=60, deadline=None)
@given(ARRAYS, st.data())
def test_every_number_is_that_of_numpy_in_float64(ours, data):
    theirs = data.draw(hnp.arrays(np.float32, ours.shape, elements=st.floats(-1e6, 1e6, width=32)))
    found = compare(torch.from_numpy(ours), torch.from_numpy(theirs))
    a, b = ours.astype(np.float64), theirs.astype(np.float64)
    difference = np.abs(a - b)
    assert found.max_abs == difference.max() == max_abs(torch.from_numpy(ours), torch.from_numpy(theirs))
    assert difference[found.position] == found.max_abs
    assert (found.reference, found.candidate) == (a[found.position], b[found.position])
    assert found.mean_abs == pytest.approx(difference.mean(), rel=1e-12)
    norm = np.linalg.norm(a)
    if norm:
        assert found.relative_l2 == pytest.approx(np.linalg.norm(a - b) / norm, rel=1e-12)
    if norm and np.linalg.norm(b):
        assert found.cosine == pytest.approx((a * b).sum() / (norm * np.linalg.norm(b)), abs=1e-12)
    assert -1 - 1e-12 <= found.cosine <= 1 + 1e-12


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        # Both round to the same number in half precision.
        (torch.tensor([1.0]), torch.tensor([1.0 + 2**-20])),
        # Neither number is one of float32, which holds 2^24 and 2^24 + 2.
        (torch.tensor([2.0**24]), torch.tensor([2.0**24 + 1], dtype=torch.float64)),
        # The difference itself is too small for float32.
        (torch.tensor([1.0], dtype=torch.float64), torch.tensor([1 + 2**-52], dtype=torch.float64)),
        (torch.tensor([2e-45]), torch.tensor([4e-45])),
        # It is too great for half precision.
        (torch.tensor([60000.0], dtype=torch.float16), torch.tensor([-60000.0], dtype=torch.float16)),
        (torch.tensor([3e38]), torch.tensor([-3e38])),
    ],
    ids=["fine", "beyond float32", "last bit", "denormal", "beyond float16", "beyond the range of float32"],
)
def test_the_arithmetic_is_float64(ours, theirs):
    wanted = abs(ours.numpy().astype(np.float64) - theirs.numpy().astype(np.float64))[0]
    assert 0 < wanted < INF
    found = compare(ours, theirs)
    assert (found.max_abs, found.mean_abs) == (wanted, wanted)
    assert absolute_difference(ours, theirs).dtype == torch.float64


def test_tiny_numbers_of_float64_have_a_cosine():
    found = compare(torch.tensor([1e-300], dtype=torch.float64), torch.tensor([3e-300], dtype=torch.float64))
    assert found.cosine == pytest.approx(1.0)


def test_a_sum_does_not_lose_small_differences():
    ours = torch.zeros(200_000)
    theirs = torch.full_like(ours, 1e-3)
    theirs[0] = 1e6
    small = np.float64(np.float32(1e-3))
    assert compare(ours, theirs).mean_abs == pytest.approx((1e6 + small * (len(ours) - 1)) / len(ours), rel=1e-12)


def test_the_dtypes_of_both_sides_may_differ():
    assert compare(torch.tensor([1.5], dtype=torch.bfloat16), torch.tensor([1.25], dtype=torch.float16)).max_abs == 0.25


@pytest.mark.parametrize(("a", "b"), [(NAN, 1.0), (1.0, NAN), (INF, 1.0), (1.0, -INF), (INF, -INF), (NAN, INF)])
def test_not_a_number_or_infinity_on_one_side_is_an_infinite_difference(a, b):
    found = compare(torch.tensor([0.0, a, 0.5]), torch.tensor([0.0, b, 0.0]))
    assert (found.max_abs, found.position, found.finite) == (INF, (1,), False)
    assert not any(map(math.isfinite, (found.max_abs, found.mean_abs, found.relative_l2)))
    assert (found.reference, found.candidate) == pytest.approx((a, b), nan_ok=True)


@pytest.mark.parametrize("both", [NAN, INF, -INF])
def test_the_same_on_both_sides_differs_by_nothing(both):
    found = compare(torch.tensor([0.0, both]), torch.tensor([0.0, both]))
    assert (found.max_abs, found.mean_abs, found.cosine, found.finite) == (0.0, 0.0, 1.0, False)
    assert compare(torch.tensor([0.0, both]), torch.tensor([0.25, both])).max_abs == 0.25


def test_equal_activations_are_equal_to_the_last_digit():
    values = torch.randn(50, generator=torch.Generator().manual_seed(0))
    found = compare(values, values.clone())
    assert (found.max_abs, found.mean_abs, found.relative_l2, found.cosine) == (0.0, 0.0, 0.0, 1.0)
    assert compare(torch.tensor([0.0]), torch.tensor([-0.0])).max_abs == 0.0


def test_against_zeros_the_relative_difference_is_infinite():
    found = compare(torch.zeros(2), torch.tensor([3.0, 4.0]))
    assert (found.relative_l2, found.cosine) == (INF, 0.0)
    assert compare(torch.tensor([3.0, 4.0]), torch.zeros(2)).relative_l2 == 1.0
    nothing = compare(torch.zeros(2), torch.zeros(2))
    assert (nothing.relative_l2, nothing.cosine) == (0.0, 1.0)


@pytest.mark.parametrize("shape", [(0,), (2, 0, 3)])
def test_empty_activations_do_not_differ(shape):
    found = compare(torch.zeros(shape), torch.zeros(shape))
    assert (found.shape, found.max_abs, found.mean_abs, found.cosine) == (shape, 0.0, 0.0, 1.0)
    assert max_abs(torch.zeros(shape), torch.zeros(shape)) == 0.0
    assert greatest_and_row_mean(torch.zeros(shape), torch.zeros(shape)) == (0.0, 0.0)


@pytest.mark.parametrize(("a", "b"), [((2, 3), (3, 2)), ((2,), (1, 2)), ((1, 3), (2, 3)), ((0,), (1,))])
def test_other_shapes_are_refused_and_not_broadcast(a, b):
    for function in (compare, max_abs, absolute_difference, greatest_and_row_mean):
        with pytest.raises(ValueError, match="shapes differ"):
            function(torch.zeros(a), torch.zeros(b))


def test_the_mean_is_that_of_the_worst_row_and_not_of_a_column():
    ours = torch.zeros(2, 2, 2)
    theirs = torch.tensor([[[0.0, 3.0], [0.0, 0.0]], [[1.0, 1.0], [1.0, 1.0]]])
    # The rows' means are 3/4 and 4/4; of the columns, one has a mean of 4/2.
    assert greatest_and_row_mean(ours, theirs) == (3.0, 1.0)
    assert compare(ours, theirs).row_mean == 1.0


# ---- added up batch by batch --------------------------------------------------------------------


def test_batches_are_added_up_as_a_person_would():
    running = Running()
    for ours, theirs in (
        ([[3.0, 0.0]], [[3.0, 1.0]]),
        ([[0.0, 4.0], [0.0, 0.0]], [[0.0, 4.0], [2.0, 0.0]]),
        ([[0.0, 0.0]], [[1.0, 1.0]]),
    ):
        difference = running.add(torch.tensor(ours), torch.tensor(theirs))
        assert difference.tolist() == np.abs(np.array(ours) - np.array(theirs)).tolist()
    found = running.difference()
    assert (found.shape, found.max_abs, found.position) == ((4, 2), 2.0, (2, 0))
    assert (found.reference, found.candidate) == (0.0, 2.0)
    assert found.mean_abs == (1 + 2 + 1 + 1) / 8
    assert found.row_mean == 1.0  # of the rows 1/2, 0, 1 and 1
    assert found.relative_l2 == pytest.approx(math.sqrt(1 + 4 + 1 + 1) / 5, rel=1e-15)
    assert found.cosine == pytest.approx((9 + 16) / (5 * math.sqrt(9 + 1 + 16 + 4 + 1 + 1)), rel=1e-15)


def test_the_greatest_mean_of_a_row_may_stand_in_any_batch():
    batches = [torch.tensor([[1.0, 5.0]]), torch.tensor([[4.0, 4.0]]), torch.tensor([[0.0, 2.0]])]
    running = Running()
    for theirs in batches:
        running.add(torch.zeros(1, 2), theirs)
    assert (running.difference().max_abs, running.difference().row_mean) == (5.0, 4.0)


@pytest.mark.parametrize("sizes", [(6,), (2, 4), (3, 3), (1, 1, 4)])
def test_of_equal_differences_the_first_is_told_however_many_batches_there_are(sizes):
    ours, theirs = torch.arange(12.0).reshape(6, 2), torch.arange(12.0).reshape(6, 2)
    theirs[1, 1] += 0.5
    theirs[4, 0] -= 0.5
    running = Running()
    for a, b in zip(ours.split(sizes), theirs.split(sizes), strict=True):
        running.add(a, b)
    found = running.difference()
    assert (found.position, found.reference, found.candidate) == ((1, 1), 3.0, 3.5)


def test_equal_batches_tell_their_first_value_and_count_in_the_mean_and_the_norms():
    running = Running()
    running.add_equal(torch.tensor([[3.0, 4.0]]))
    only = running.difference()
    assert (only.shape, only.max_abs, only.position, only.row_mean) == ((1, 2), 0.0, (0, 0), 0.0)
    assert (only.reference, only.candidate, only.relative_l2, only.cosine, only.finite) == (3.0, 3.0, 0.0, 1.0, True)
    running.add_equal(torch.tensor([[7.0, 0.0], [0.0, 0.0]]))
    assert (running.difference().reference, running.difference().position) == (3.0, (0, 0))
    running.add(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 2.0]]))
    found = running.difference()
    assert (found.shape, found.max_abs, found.position) == ((4, 2), 2.0, (3, 1))
    assert found.mean_abs == 2 / 8
    assert found.relative_l2 == pytest.approx(2 / math.sqrt(9 + 16 + 49), rel=1e-15)
    assert found.cosine == pytest.approx(74 / math.sqrt(74 * 78), rel=1e-15)


def test_an_equal_batch_behind_a_different_one_hides_nothing():
    running = Running()
    running.add(torch.tensor([[1.0, 1.0]]), torch.tensor([[1.0, 3.0]]))
    running.add_equal(torch.tensor([[9.0, 9.0]]))
    found = running.difference()
    assert (found.max_abs, found.position, found.reference, found.candidate) == (2.0, (0, 1), 1.0, 3.0)


def test_batches_without_values_add_nothing_but_their_rows():
    running = Running()
    running.add(torch.zeros(2, 0), torch.zeros(2, 0))
    running.add_equal(torch.zeros(1, 0))
    found = running.difference()
    assert (found.shape, found.max_abs, found.position, found.mean_abs) == ((3, 0), 0.0, (), 0.0)
    assert (found.reference, found.candidate, found.cosine, found.finite) == (0.0, 0.0, 1.0, True)


def test_equal_batches_of_zeros_have_no_direction_and_spoil_no_cosine():
    running = Running()
    running.add_equal(torch.zeros(2, 2))
    assert (running.difference().relative_l2, running.difference().cosine) == (0.0, 1.0)
    running.add(torch.tensor([[3.0, 4.0]]), torch.tensor([[4.0, 3.0]]))
    assert running.difference().cosine == pytest.approx(24 / 25, rel=1e-15)


def test_equal_batches_that_are_not_finite_are_marked():
    running = Running()
    running.add_equal(torch.tensor([[1.0, INF]]))
    running.add_equal(torch.tensor([[1.0, 1.0]]))
    assert not running.difference().finite


# ---- all taps -----------------------------------------------------------------------------------


def side(**errors):
    """Activations of one side: zeros, with an error at the taps named (dots written as _)."""
    made = {t: torch.zeros((1, 2) if t == "pooled" else (1, 3, 2)) for t in TAPS}
    for name, error in errors.items():
        tap = name.replace("layers_", "layers.")
        made[tap] = made[tap].clone()
        made[tap].view(-1)[0] = error
    return made


def floors(propagated=1.0, isolated=0.5, *means):
    """The same at every tap; ``means``: floors of the mean abs diff, propagated and isolated."""
    return {t: Floor(propagated, isolated, *means) for t in TAPS}


def judged(candidate, isolated=None, measured=None, tolerance=None):
    return judge(side(), candidate, side() if isolated is None else isolated, measured, PADDED, tolerance)


def test_nothing_differs_is_exact_without_any_floor():
    found = judged(side())
    assert (found.verdict, found.first_divergence, found.max_abs, found.smallest_passing) == ("exact", None, 0.0, 0.0)
    assert [t.name for t in found.taps] == list(TAPS)


@pytest.mark.parametrize("tap", TAPS[:-1])
def test_exact_is_nothing_but_0_at_every_tap_that_the_detector_reads(tap):
    name = tap.replace(".", "_")
    least = 5e-324
    candidate = {**side(), tap: side()[tap].double()}
    candidate[tap].view(-1)[0] = least
    assert judged(candidate, measured=floors()).verdict == "within_tolerance"
    assert judged(side(), candidate, floors()).verdict == "within_tolerance"
    assert judged(side(**{name: 1.0}), measured=floors()).verdict == "within_tolerance"


def test_pooled_may_be_within_its_floor_and_the_verdict_is_still_exact():
    found = judged(side(pooled=FLOORS), side(pooled=FLOORS * 0.5), floors())
    assert (found.verdict, found.first_divergence) == ("exact", None)
    assert found.max_abs == FLOORS


@pytest.mark.parametrize(
    ("propagated", "isolated", "first"),
    [(FLOORS * 1.01, 0.0, None), (0.0, FLOORS * 0.51, "pooled"), (FLOORS * 1.01, FLOORS * 0.51, "pooled")],
)
def test_pooled_above_its_floor_differs(propagated, isolated, first):
    found = judged(side(pooled=propagated), side(pooled=isolated), floors())
    assert (found.verdict, found.first_divergence) == ("differs", first)


def test_exact_holds_pooled_to_its_floor_whatever_tolerance_is_given():
    assert judged(side(pooled=9.0), side(pooled=9.0), floors(), tolerance=10.0).verdict == "within_tolerance"
    assert judged(side(pooled=2.0), side(pooled=2.0), floors(), tolerance=10.0).verdict == "exact"
    assert judged(side(pooled=2.0), side(pooled=9.0), floors(), tolerance=10.0).verdict == "within_tolerance"
    # Each of the two columns is held to its own floor: 4 x 1 and 4 x 0.5 here.
    assert judged(side(pooled=9.0), side(), floors(), tolerance=10.0).verdict == "within_tolerance"
    assert judged(side(), side(pooled=2.5), floors(), tolerance=10.0).verdict == "within_tolerance"
    assert judged(side(), side(pooled=1.5), floors(), tolerance=10.0).verdict == "exact"
    small = floors(0.25, 0.25)
    assert judged(side(pooled=1.0), side(pooled=1.0), small, tolerance=10.0).verdict == "exact"
    assert judged(side(pooled=1.5), side(), small, tolerance=10.0).verdict == "within_tolerance"
    assert judged(side(), side(pooled=1.5), small, tolerance=10.0).verdict == "within_tolerance"
    # Nothing was measured, so a difference has no floor to be within.
    assert judged(side(pooled=1.0), side(), None, tolerance=10.0).verdict == "within_tolerance"
    assert judged(side(), side(pooled=1.0), None, tolerance=10.0).verdict == "within_tolerance"


def test_each_tap_is_held_to_its_own_floor():
    measured = floors() | {"layers.0": Floor(0.1, 0.1), "layers.1": Floor(100.0, 100.0)}
    assert judged(side(layers_1=300.0), side(layers_1=300.0), measured).verdict == "within_tolerance"
    found = judged(side(layers_0=0.5, layers_1=300.0), side(layers_0=0.5), measured)
    assert (found.verdict, found.first_divergence) == ("differs", "layers.0")
    assert [(t.tolerance, t.isolated_tolerance) for t in found.taps[1:3]] == [(FLOORS * 0.1,) * 2, (FLOORS * 100,) * 2]
    assert found.tolerance == FLOORS * 100


def test_the_two_columns_have_floors_of_their_own():
    assert judged(side(layers_0=3.9), side(layers_0=1.9), floors()).verdict == "within_tolerance"
    assert judged(side(layers_0=3.9), side(layers_0=2.1), floors()).verdict == "differs"


def everywhere(tap, error):
    return {**side(), tap: side()[tap] + error}


def test_a_mean_above_its_floor_counts_where_one_great_channel_set_the_floor():
    small = everywhere("layers.0", 0.25)  # a sixth of the max abs floor, and everywhere
    assert judged(small, small, floors(1.0, 1.0)).verdict == "within_tolerance"
    assert judged(small, small, floors(1.0, 1.0, 0.25 / FLOORS, 0.25 / FLOORS)).verdict == "within_tolerance"
    found = judged(small, small, floors(1.0, 1.0, 0.1, 0.05))
    assert (found.verdict, found.first_divergence) == ("differs", "layers.0")
    layer = found.record().layers[1]
    assert (layer.mean_abs_diff, layer.isolated_mean_abs_diff) == (0.25, 0.25)
    assert (layer.diverges, layer.status, layer.floors) == (True, "diverges", 0.25 / 0.05)
    # Carried on, and not made there.
    found = judged(small, side(), floors(1.0, 1.0, 0.05, 0.05))
    assert (found.verdict, found.first_divergence) == ("differs", None)
    # A given tolerance speaks of the greatest difference alone.
    assert judged(small, small, floors(1.0, 1.0, 0.1, 0.05), 0.25).verdict == "within_tolerance"


def test_an_error_carried_on_makes_no_first_divergence():
    carried = side(layers_0=9.0, layers_1=9.0, final_layer_norm=9.0, projected=9.0, pooled=9.0)
    found = judged(carried, side(), floors())
    assert (found.verdict, found.first_divergence) == ("differs", None)
    assert not any(t.diverges for t in found.taps)
    found = judged(carried, side(layers_1=9.0, projected=9.0), floors())
    assert (found.first_divergence, found.also_diverging) == ("layers.1", ["projected"])


def test_an_isolated_error_counts_where_the_outputs_agree():
    # Two errors that cancel out.
    found = judged(side(), side(layers_0=9.0), floors())
    assert (found.verdict, found.first_divergence) == ("differs", "layers.0")


def test_without_floors_any_difference_is_too_great():
    assert judged(side(pooled=1e-30)).verdict == "differs"
    assert judged(side(), side(layers_1=1e-30)).first_divergence == "layers.1"


def test_a_given_tolerance_takes_the_place_of_the_floors():
    errors = side(layers_0=3.0, projected=3.0)
    assert judged(errors, errors, floors(), tolerance=3.0).verdict == "within_tolerance"
    assert judged(errors, errors, None, tolerance=3.0).verdict == "within_tolerance"
    found = judged(errors, errors, floors(100.0, 100.0), tolerance=2.9)
    assert (found.verdict, found.first_divergence, found.tolerance) == ("differs", "layers.0", 2.9)
    assert judged(errors, errors, floors(100.0, 100.0), tolerance=0.0).verdict == "differs"
    assert judged(side(), side(), floors(), tolerance=0.0).verdict == "exact"


def test_the_record_has_both_columns_and_what_they_were_held_to():
    record = judged(side(layers_0=2.5), side(layers_0=0.25), floors()).record().to_json()
    assert (record["verdict"], record["max_abs_diff"], record["first_divergence"]) == ("within_tolerance", 2.5, None)
    assert [t["name"] for t in record["layers"]] == list(TAPS)
    layer = record["layers"][1]
    assert (layer["max_abs_diff"], layer["isolated_max_abs_diff"]) == (2.5, 0.25)
    assert layer["shape"] == [1, 3, 2]
    assert (layer["tolerance"], layer["isolated_tolerance"]) == (FLOORS, FLOORS / 2)
    assert layer["floor"] == {"propagated": 1.0, "isolated": 0.5, "mean_propagated": None, "mean_isolated": None}
    assert (layer["diverges"], layer["within"], layer["status"], layer["floors"]) == (False, True, "within", 2.5)
    assert (record["tolerance"], record["tolerance_is"]) == (FLOORS, "measured: 4 noise floors at each tap")


def test_the_record_says_that_a_tolerance_was_given_also_where_it_is_0():
    for tolerance in (3.0, 0.0):
        record = judged(side(layers_0=2.5), measured=floors(), tolerance=tolerance).record()
        assert (record.tolerance, record.tolerance_is) == (tolerance, "given")


def test_where_no_floor_was_measured_none_is_recorded():
    layer = judged(side(layers_0=2.5), tolerance=3.0).record().layers[1]
    assert (layer.floor, layer.floors) == (None, 0.0)


def test_an_error_where_the_floor_is_0_is_infinitely_many_floors():
    layer = judged(side(layers_0=2.5), measured=floors(0.0, 0.0)).record().layers[1]
    assert (layer.floors, layer.within) == (INF, False)
    assert judged(side(), measured=floors(0.0, 0.0, 0.0, 0.0)).taps[1].floors == 0.0


def test_each_tap_has_one_word_for_what_a_reader_has_to_know():
    found = judged(side(layers_0=9.0, layers_1=9.0, projected=3.0), side(layers_0=9.0, projected=1.0), floors())
    words = {t.name: t.status for t in found.record().layers}
    assert words == {
        "embeddings": "equal", "layers.0": "diverges", "layers.1": "carried", "final_layer_norm": "equal",
        "projected": "within", "pooled": "equal",
    }  # fmt: skip
    # Equal outputs of two errors that cancel out are not equal.
    assert judged(side(), side(layers_0=1.0), floors()).record().layers[1].status == "within"


def test_the_verdict_is_summed_up_in_words():
    def summary(judgement, dtype="float32"):
        return judgement.record(dtype).summary

    measured = "(tolerance 4.00e+00, measured: 4 noise floors at each tap)"
    reads = "0.0 at every tap that the detector reads"
    assert summary(judged(side())) == reads
    assert summary(judged(side()), "bfloat16") == f"{reads}, both sides in bfloat16"
    small = judged(side(pooled=2.0), side(pooled=0.5), floors())
    assert summary(small) == f"{reads}; pooled, which it does not read: 2.00e+00, 2 noise floors"
    assert summary(judged(side(layers_0=2.5), measured=floors())) == f"max abs diff 2.50e+00 {measured}"
    wrong = judged(side(layers_0=9.0), side(layers_0=9.0), floors())
    assert summary(wrong) == f"max abs diff 9.00e+00 {measured}"
    carried = judged(side(layers_0=9.0), measured=floors())
    assert summary(carried).startswith(f"max abs diff 9.00e+00 {measured}; no layer diverges by itself")
    given = judged(side(layers_0=INF), side(layers_0=INF), tolerance=3.0)
    assert summary(given, "float16") == "max abs diff inf, both sides in float16 (tolerance 3.00e+00, given)"


def test_words_and_padding_are_reported_apart():
    padded = torch.tensor([[False, True, True], [False, False, False]])
    ours = {"projected": torch.zeros(2, 3, 2), "pooled": torch.zeros(2, 2)}
    theirs = {"projected": torch.zeros(2, 3, 2), "pooled": torch.ones(2, 2)}
    theirs["projected"][0, 0, 1], theirs["projected"][0, 2, 0], theirs["projected"][1, 2, 0] = 1.0, -7.0, 2.0
    taps = judge(ours, theirs, theirs, None, padded, 10.0).taps
    assert (taps[0].valid, taps[0].padded) == (2.0, 7.0)
    assert (taps[1].valid, taps[1].padded) == (None, None)  # pooled has no positions
    for width in (1, 3, 5):  # also where it is as wide as the sequence is long
        both = {"pooled": torch.zeros(2, width)}, {"pooled": torch.ones(2, width)}
        (pooled,) = judge(*both, both[1], None, padded, 10.0).taps
        assert (pooled.valid, pooled.padded) == (None, None)
    taps = judge(ours, theirs, theirs, None, torch.zeros(2, 3, dtype=torch.bool), 10.0).taps
    assert (taps[0].valid, taps[0].padded) == (7.0, None)


@pytest.mark.parametrize("error", [NAN, INF, -INF])
def test_what_is_not_finite_is_above_every_tolerance(error):
    broken = side(layers_1=error)
    for measured, tolerance in ((floors(), None), (floors(1e300, 1e300), None), (None, 1e300)):
        found = judged(broken, broken, measured, tolerance)
        assert (found.verdict, found.first_divergence) == ("differs", "layers.1")
    record = judged(broken, broken, floors()).record().to_json()
    assert (record["max_abs_diff"], record["smallest_passing_tolerance"]) == (None, None)
    assert record["layers"][2]["isolated_max_abs_diff"] is None


def test_what_is_not_finite_is_carried_on_as_any_error_is():
    broken = side(layers_1=NAN, final_layer_norm=NAN, projected=NAN)
    found = judged(broken, side(layers_1=NAN, final_layer_norm=1e-7), floors())
    assert found.taps[3].isolated < found.taps[3].isolated_tolerance
    assert (found.first_divergence, found.also_diverging) == ("layers.1", [])


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_a_reference_that_is_not_finite_proves_nothing(value):
    require_finite(side(layers_0=1e38))
    with pytest.raises(CannotRun, match=r"gives NaN or infinity from layers\.1 on .*float32") as caught:
        require_finite(side(layers_1=value, projected=value))
    assert (caught.value.exit_code, caught.value.details) == (2, {"tap": "layers.1"})


@pytest.mark.parametrize("tolerance", [-1e-300, -1.0, NAN, INF, -INF])
def test_what_is_no_tolerance(tolerance):
    check_tolerance(None)
    check_tolerance(0.0)
    check_tolerance(1e300)
    with pytest.raises(CannotRun) as caught:
        check_tolerance(tolerance)
    assert (caught.value.exit_code, caught.value.code) == (2, "usage")


def alone(candidate, *given, measured=None, tolerance=None):
    """Judged without isolated activations; ``given``: taps, if not all."""
    kept = given or TAPS
    sides = ({t: v for t, v in s.items() if t in kept} for s in (side(), candidate))
    return judge(*sides, {}, measured or floors(), PADDED, tolerance, TAPS)


def test_without_isolated_activations_the_first_tap_that_is_off_diverges_and_the_rest_is_unknown():
    found = alone(side(layers_0=9.0, layers_1=9.0, projected=9.0))
    assert (found.verdict, found.first_divergence, found.place) == ("differs", "layers.0", "layers.0")
    assert (found.also_diverging, found.unseen) == (["projected"], ())  # final_layer_norm agrees, which it reads
    record = found.record()
    words = [t.status for t in record.layers]
    assert words == ["equal", "diverges", "unknown", "equal", "diverges", "equal"]
    assert {(t.isolated_max_abs_diff, t.isolated_mean_abs_diff, t.judged_by) for t in record.layers} == {
        (None, None, "propagated")
    }


def test_without_isolated_activations_errors_are_held_to_the_floor_of_what_is_carried():
    assert alone(side(layers_0=3.9)).verdict == "within_tolerance"
    assert alone(side(layers_0=4.1)).first_divergence == "layers.0"
    mean = floors(1.0, 0.5, 0.05, 0.01)
    assert alone(everywhere("layers.0", 0.19), measured=mean).verdict == "within_tolerance"
    assert alone(everywhere("layers.0", 0.21), measured=mean).first_divergence == "layers.0"
    assert alone(side(layers_0=9.0), tolerance=9.0).verdict == "within_tolerance"
    assert alone(side(layers_0=NAN), tolerance=1e300).first_divergence == "layers.0"


@pytest.mark.parametrize(
    ("given", "place", "unseen"),
    [
        (["embeddings", "layers.1", "projected"], "between embeddings and layers.1", ("layers.0",)),
        (["layers.1"], "at or before layers.1", ("embeddings", "layers.0")),
        (["layers.0", "layers.1"], "layers.1", ()),
        (["embeddings", "layers.0", "pooled"], "between layers.0 and pooled", ("layers.1", "final_layer_norm")),
    ],
)
def test_where_taps_are_missing_the_place_is_a_range(given, place, unseen):
    found = alone(side(layers_1=9.0, projected=9.0, pooled=9.0), *given)
    assert (found.place, found.unseen) == (place, unseen)
    assert found.first_divergence == place.split()[-1]
    assert found.not_given == tuple(t for t in TAPS if t not in given)
    assert [t.diverges for t in found.taps if t.name == found.first_divergence] == [not unseen]


def test_some_taps_alone_are_exact_only_with_what_the_detector_receives():
    assert alone(side(), *TAPS[:-1]).verdict == alone(side(), "projected").verdict == "exact"
    for some in (TAPS[:-2], ["pooled"], ["embeddings", "pooled"]):
        found = alone(side(), *some)
        assert found.verdict == "within_tolerance"
        assert (
            f"{'was' if len(some) == 1 else 'were'} compared ({len(some)} of 6 taps): max abs diff 0.0"
            in found.record().summary
        )


def test_isolated_activations_belong_to_a_candidate_up_to_its_first_difference():
    carried = side(layers_0=1.0, layers_1=1.0, final_layer_norm=1.0)
    assert isolated_belongs(side(), side(), side())
    assert isolated_belongs(side(), carried, side(layers_0=1.0))
    assert isolated_belongs(side(), carried, side(layers_0=1.0, layers_1=7.0))  # two faults
    assert not isolated_belongs(side(), carried, side())
    assert not isolated_belongs(side(), carried, side(layers_0=2.0))
    assert not isolated_belongs(side(), carried, side(embeddings=1.0, layers_0=1.0))
    assert not isolated_belongs(side(), side(), side(pooled=1.0))


# Isolated activations may be missing, and are looked up by name.
@pytest.mark.parametrize(
    ("which", "change"),
    [("candidate", c) for c in ("missing", "more", "another order", "another name")]
    + [("isolated", c) for c in ("more", "another name")],
)
def test_other_taps_on_one_side_are_refused(change, which):
    other = {
        "missing": {t: v for t, v in side().items() if t != "layers.1"},
        "more": {**side(), "layers.2": torch.zeros(1)},
        "another order": dict(reversed(side().items())),
        "another name": {("layers.9" if t == "layers.1" else t): v for t, v in side().items()},
    }[change]
    sides = {"candidate": side(), "isolated": side(), which: other}
    with pytest.raises(ValueError, match="not recorded at the same taps"):
        judge(side(), sides["candidate"], sides["isolated"], None, PADDED)


@pytest.mark.parametrize("which", ["candidate", "isolated"])
def test_another_shape_on_one_side_is_refused(which):
    sides = {"candidate": side(), "isolated": side(), which: {**side(), "projected": torch.zeros(1, 3, 1)}}
    with pytest.raises(ValueError, match="shapes differ"):
        judge(side(), sides["candidate"], sides["isolated"], None, PADDED)


ERRORS = st.dictionaries(st.sampled_from(TAPS), st.floats(0, 1e9, width=32, allow_subnormal=False))


@settings(max_examples=100, deadline=None)
@example({"pooled": 1.0}, {"pooled": 2.0})
@example({"layers.0": 3.0}, {})
@given(ERRORS, ERRORS)
def test_the_smallest_passing_tolerance_passes_and_nothing_below_it_does(propagated, isolated):
    candidate, alone = (side(**{t.replace(".", "_"): e for t, e in s.items()}) for s in (propagated, isolated))
    smallest = judged(candidate, alone, floors()).smallest_passing
    greatest = max([0.0, *propagated.values(), *isolated.values()])
    assert smallest == greatest
    assert judged(candidate, alone, floors(), smallest).verdict != "differs"
    assume(smallest > 0)
    assert judged(candidate, alone, floors(), np.nextafter(smallest, 0)).verdict == "differs"


@settings(max_examples=100, deadline=None)
@given(ERRORS, ERRORS, st.floats(0, 1e9))
def test_verdict_and_first_divergence_follow_from_their_definitions(propagated, isolated, tolerance):
    candidate, alone = (side(**{t.replace(".", "_"): e for t, e in s.items()}) for s in (propagated, isolated))
    found = judged(candidate, alone, None, tolerance)
    above = [t for t in TAPS if isolated.get(t, 0) > tolerance]
    assert found.first_divergence == (above[0] if above else None)
    assert found.also_diverging == above[1:]
    assert (found.verdict == "differs") == any(e > tolerance for s in (propagated, isolated) for e in s.values())
