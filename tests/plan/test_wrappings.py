"""Wrappers around a checkpoint's keys and dicts: the bytes are those of the plain file, or a refusal names the kind."""

from __future__ import annotations

import functools
import re
import shlex
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.folders import tiny_state
from support.rows import TEXT, Rows, fake, key_list, plan_of, rows_of, shipped_tables

from sam3lite_convert.checkpoint.reader import read_checkpoint
from sam3lite_convert.checkpoint.selection import Selection, selection, stated
from sam3lite_convert.convert.text_weights import planned_tensors
from sam3lite_convert.errors import CannotRun, UnsoundPlan
from sam3lite_convert.plan.names import canonical_names
from sam3lite_convert.plan.plan import Options, Plan, make_plan

ANYWHERE = ("module", "_orig_mod", "_forward_module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
IN_FRONT = ("model", "base_model.model", "net", "sam3_model", "ema_model", "online_model", "student", "teacher")
DTYPES = ("float32", "float16", "bfloat16")
EXTRAS = {"n_averaged": torch.tensor(3), "initted": torch.tensor(True), "step": torch.tensor(7)}
OFTEN = settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
State = dict[str, torch.Tensor]


@functools.cache
def text_state(dtype: str) -> State:
    state = {k: v for k, v in tiny_state().items() if k.startswith(TEXT)}
    return {k: v.to(getattr(torch, dtype)) if v.is_floating_point() else v for k, v in state.items()}


def planned(path: Path) -> Plan:
    return make_plan(read_checkpoint(path), shipped_tables(), Options(component="text"))


def written(plan: Plan) -> dict[str, tuple[torch.dtype, tuple[int, ...], bytes]]:
    """By target key: dtype, shape and bytes."""
    tensors = planned_tensors(plan)
    return {k: (t.dtype, tuple(t.shape), t.flatten().view(torch.uint8).numpy().tobytes()) for k, t in tensors.items()}


@functools.cache
def plain(dtype: str) -> dict[str, tuple[torch.dtype, tuple[int, ...], bytes]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plain.pt"
        torch.save({"model": text_state(dtype)}, path)
        return written(planned(path))


def nested(state: State, path: list[str], beside: bool) -> Any:
    content: Any = state
    for part in reversed(path):
        content = [content] if part == "0" else {part: content}
        if beside and isinstance(content, dict):
            content |= {"optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": []}, "epoch": 4}
    return content


@OFTEN
@given(
    front=st.lists(st.sampled_from(ANYWHERE + IN_FRONT), max_size=3),
    middle=st.none() | st.sampled_from(ANYWHERE),
    path=st.lists(st.sampled_from(["model", "state_dict", "net", "ema", "app", "weights", "0"]), max_size=3),
    beside=st.booleans(),
    legacy=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    extras=st.sets(st.sampled_from(sorted(EXTRAS))),
    counted=st.booleans(),
)
def test_a_wrapped_file_gives_the_bytes_of_the_plain_one(
    tmp_path_factory: Any, front: list[str], middle: str | None, path: list[str], beside: bool, legacy: bool,
    dtype: str, extras: set[str], counted: bool,
) -> None:  # fmt: skip
    start = "".join(f"{name}." for name in front)
    state = {
        start + (re.sub(r"(transformer\.\d+\.)", rf"\1{middle}.", key) if middle else key): value
        for key, value in text_state(dtype).items()
        if counted or not key.endswith("num_batches_tracked")
    }
    file = tmp_path_factory.getbasetemp() / "wrapped.pt"
    content = nested(state | {name: EXTRAS[name] for name in extras}, path, beside)
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    plan = planned(file)
    expected = plain(dtype)
    if not counted:
        zero = (torch.int64, (), bytes(8))
        expected = {k: zero if k.endswith("num_batches_tracked") else v for k, v in expected.items()}
    assert written(plan) == expected
    names = plan.names
    counts = {part: len(state) for part in front}
    assert {name: n for name, n in names.taken_off.items() if name in front and name != middle} == {
        name: n for name, n in counts.items() if name != middle
    }
    assert names.prefix == start + "detector."
    assert plan.checkpoint.wrapper == (".".join(path) or None)
    assert sum(plan.checkpoint.left.values()) == (len([part for part in path if part != "0"]) if beside else 0)


@settings(OFTEN, max_examples=30)
@given(
    prefix=st.from_regex(r"(my[a-z_]{1,6}\.){1,3}", fullmatch=True),
    wrapped=st.sampled_from(["", "module.", "detector."]),
)
def test_a_prefix_that_no_table_knows_is_offered_as_an_option(prefix: str, wrapped: str) -> None:
    rows = {prefix + wrapped + key: value for key, value in rows_of(text_state("float32")).items()}
    with pytest.raises(UnsoundPlan) as refusal:
        plan_of(rows, component="text")
    assert refusal.value.code == "unknown_prefix" and refusal.value.exit_code == 3
    option = refusal.value.message.rsplit("Take it off: ")[1]
    name, given_prefix = shlex.split(option)
    assert name == "--strip-prefix"
    chosen = selection(strip_prefix=[given_prefix])
    plan = make_plan(stating(rows, chosen), shipped_tables(), Options(component="text"))
    assert {m.source.key for m in plan.mapped.values()} == set(rows)
    assert plan.names.taken_off[given_prefix.removesuffix(".")] == len(rows)


def stating(rows: Rows, chosen: Selection) -> Any:
    return replace(fake(rows), selection=chosen)


@pytest.mark.parametrize(
    "prefixes", [("student.", "teacher."), ("online_model.", "ema_model."), ("one.", "two."), ("", "ema.")]
)
def test_two_copies_are_never_merged(prefixes: tuple[str, str]) -> None:
    known = rows_of(text_state("float32"))
    rows = {prefix + key: value for prefix in prefixes for key, value in known.items()}
    with pytest.raises(UnsoundPlan) as refusal:
        plan_of(rows, component="text")
    assert refusal.value.code == "several_copies"
    for prefix in prefixes:
        assert f"  {prefix or '(no prefix)'}: {len(known):,} tensors" in refusal.value.message
    named = prefixes[1]
    plan = make_plan(stating(rows, selection(strip_prefix=[named])), shipped_tables(), Options(component="text"))
    assert {m.source.key for m in plan.mapped.values()} == {named + key for key in known}
    left = {k: d for k, d in plan.dropped.items() if d.copy}
    assert left.keys() == {prefixes[0] + key for key in known} and not plan.not_read
    assert plan.counts.source == plan.counts.mapped + plan.counts.dropped == len(rows)


def test_the_copy_without_a_prefix_is_chosen_by_dropping_the_others() -> None:
    known = rows_of(text_state("float32"))
    rows = known | {"ema." + key: value for key, value in known.items()}
    with pytest.raises(UnsoundPlan) as refusal:
        plan_of(rows, component="text")
    pattern = shlex.split(refusal.value.message.rsplit("for those without a prefix, ")[1])[1]
    chosen = selection(drop=[pattern], reason=["the averaged copy"])
    plan = make_plan(stating(rows, chosen), shipped_tables(), Options(component="text"))
    assert {m.source.key for m in plan.mapped.values()} == set(known)
    assert {d.reason for d in plan.dropped.values()} == {"the averaged copy"}


@pytest.mark.parametrize(
    "key", ["tracker.model.no_mem", "backbone.vision_backbone.trunk.model.stem.weight", "backbone.student.weight"]
)
def test_real_modules_that_are_called_like_a_wrapper_keep_their_name(key: str) -> None:
    (name,) = canonical_names(fake({f"detector.{key}": ("float32", (2,))}), shipped_tables().spellings).sources
    assert name == key


def test_what_is_dropped_by_the_user_is_counted_and_caps_the_verdict() -> None:
    known = rows_of(text_state("float32"))
    adapters = {f"{TEXT}encoder.transformer.{i}.adapter.down": ("float32", (2, 2)) for i in (1, 2)}
    with pytest.raises(UnsoundPlan):
        plan_of(known | adapters, component="text")
    chosen = selection(drop=[r".+\.adapter\..+"], reason=["merged into the weights"])
    plan = make_plan(stating(known | adapters, chosen), shipped_tables(), Options(component="text"))
    assert {k: d.reason for k, d in plan.dropped.items()} == dict.fromkeys(adapters, "merged into the weights")
    assert set(plan.not_read) == set(adapters)


def test_a_pattern_or_a_prefix_for_which_there_is_no_key_cannot_run() -> None:
    rows = rows_of(text_state("float32"))
    for chosen in (selection(drop=["nothing"], reason=["x"]), selection(strip_prefix=["nothing."])):
        with pytest.raises(CannotRun, match="nothing"):
            canonical_names(stating(rows, chosen), shipped_tables().spellings)


@pytest.mark.parametrize(
    "options",
    [
        {"drop": ["a"]},
        {"drop": ["a"], "reason": [" "]},
        {"reason": ["a"]},
        {"drop": ["*.a"], "reason": ["b"]},
        {"strip_prefix": [""]},
    ],
)
def test_a_selection_that_cannot_be_meant_is_a_usage_error(options: dict[str, list[str]]) -> None:
    with pytest.raises(CannotRun) as refusal:
        selection(**options)  # type: ignore[arg-type]
    assert refusal.value.code == "usage"


def test_a_receipt_states_what_the_options_did() -> None:
    receipt = {"options": {"state_dict_key": "a.b", "strip_prefix": ["net_g."], "drop": {"x": "why"}}}
    found = stated(receipt)
    assert (found.state_dict_key, found.strip_prefix, found.drop) == ("a.b", ("net_g.",), (("x", "why"),))
    assert found.options == " --state-dict-key a.b --strip-prefix net_g. --drop x --reason why"
    assert stated(None).options == stated({"options": {"drop": 3}}).options == ""
    # Where the file has nothing for it, another spelling of the same file is read all the same.
    rows = rows_of(text_state("float32"))
    assert len(canonical_names(stating(rows, found), shipped_tables().spellings).sources) == len(rows)


def test_wrappers_and_spellings_are_told_in_the_order_of_the_key() -> None:
    """Not in that of a set, which differs from run to run: five names have the right order by chance once in 120."""
    front = ["_fsdp_wrapped_module", "module", "_orig_mod", "ema_model", "_forward_module"]
    rows = {".".join([*front, key]): value for key, value in rows_of(text_state("float32")).items()}
    assert list(plan_of(rows, component="text").names.taken_off) == front
    rows = {"mine." + key: value for key, value in rows.items()}
    plan = make_plan(stating(rows, selection(strip_prefix=["mine."])), shipped_tables(), Options(component="text"))
    assert list(plan.names.taken_off) == ["mine", *front]


@pytest.mark.parametrize("statistic", ["running_mean", "running_var"])
def test_counters_are_filled_and_statistics_are_not(statistic: str) -> None:
    rows = rows_of(text_state("float32"))
    counted = {k: v for k, v in rows.items() if not k.endswith("num_batches_tracked")}
    plan = plan_of(counted, component="text")
    assert len(plan.filled) == len(rows) - len(counted) > 0
    assert plan.counts.mapped == len(counted) and plan.counts.target == plan_of(rows, component="text").counts.target
    lost = next(k for k in counted if k.endswith(statistic))
    with pytest.raises(UnsoundPlan) as refusal:
        plan_of({k: v for k, v in counted.items() if k != lost}, component="text")
    (fault,) = refusal.value.details["faults"]
    assert fault["kind"] == "unfilled" and fault["key"].endswith(statistic)


def test_the_tracker_under_its_other_name_is_the_tracker() -> None:
    names = canonical_names(
        fake({"inst_interactive_predictor.model.no_mem_embed": ("float32", (2,))}), shipped_tables().spellings
    )
    assert list(names.sources) == ["tracker.no_mem_embed"]


def test_a_part_under_a_prefix_of_its_own_is_no_second_copy() -> None:
    """The text encoder under another name, beside a detector: no name is there twice."""
    rows = {k.replace("backbone.language_backbone.", "text."): v for k, v in rows_of(tiny_state()).items()}
    with pytest.raises(UnsoundPlan) as refusal:
        plan_of({k: v for k, v in rows.items() if "vision" not in k})
    assert refusal.value.code == "unknown_prefix" and "--strip-prefix detector.text." in refusal.value.message


def test_the_base_of_a_fine_tune_fills_what_it_lacks_and_its_own_tensors_count(small_rows):
    """What upstream plans for stage 3: the fine-tune's tensors, and those that it was trained from under a prefix."""
    own = {k: v for k, v in small_rows.items() if ".geometry_encoder." not in k}
    both = own | {f"preserved_base_model.{k}": v for k, v in small_rows.items()}
    plan, alone = plan_of(both), plan_of(small_rows)
    assert {k: m.shape for k, m in plan.mapped.items()} == {k: m.shape for k, m in alone.mapped.items()}
    sources = {s.key for m in plan.mapped.values() for s in m.sources}
    assert {k for k in sources if k.startswith("preserved_base_model.")} == {
        f"preserved_base_model.{k}" for k in small_rows if ".geometry_encoder." in k and ".points_" not in k
    }
    assert plan.dropped_by_label["other copy (base model)"] == len(own)
    assert plan.counts.mapped + plan.counts.dropped == len(both)


def test_encoders_of_another_kind_in_the_base_are_no_part_of_the_model():
    """A student trained from SAM3 itself: its own image and text encoder took the place of the base's."""
    own = key_list("student_ft_repvit")
    base = {f"preserved_base_model.{k}": v for k, v in key_list("sam3_teacher").items()}
    plan = plan_of(own | base, layout="original")
    assert plan.kind == "EfficientSAM3 with an image student (RepViT), with the text encoder of SAM3-LiteText"
    filled = {k for m in plan.mapped.values() for s in m.sources if (k := s.key).startswith("preserved_base_model.")}
    assert filled == {
        k for k in base if any(f".{part}." in k for part in ("geometry_encoder", "sam2_convs", "tracker"))
    }
    assert set(own) <= {s.key for m in plan.mapped.values() for s in m.sources}
    assert plan.counts.mapped + plan.counts.dropped == len(own) + len(base)


def test_a_file_of_the_base_alone_is_that_model(small_rows):
    rows = {f"preserved_base_model.{k}": v for k, v in small_rows.items()}
    assert plan_of(rows).counts == plan_of(small_rows).counts
