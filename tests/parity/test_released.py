"""What was recorded of the released weights: agreement is found, and the tap where it ends is named."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import pytest
import torch
from support.folders import ROOT, sam3lite, tiny_state, write
from support.goldens import golden, tiny

from sam3lite_convert.parity import released
from sam3lite_convert.parity.compact import compact
from sam3lite_convert.plan.architecture import Architecture
from sam3lite_convert.plan.context import CalledContext
from sam3lite_convert.plan.infer import infer_architecture


def recorded_of_golden() -> released.Recorded:
    """A record as the shipped one, made of what the real original code computed on a golden's weights."""
    held = golden("tiny_mct")
    ids, taps = held.ids()[:1], {}
    activations = held.activations()
    for tap in ("layers.0", "layers.1", "layers.2", "layers.3", "final_layer_norm", "projected"):
        taps[tap] = activations[tap][0]
    taps["projected_at_end_token"] = taps["projected"][int(ids.argmax())]
    made = {tap: compact(tap, value, "tiny") for tap, value in taps.items()}
    return released.Recorded(
        "tiny",
        "tiny_mct.safetensors",
        tuple(ids[0].tolist()),
        {tap: released.RecordedTap(c.shape, c.l2, c.max_abs, c.values) for tap, c in made.items()},
        "the original code",
    )


def test_the_reference_agrees_with_what_the_original_code_computed() -> None:
    check = released.check_released(tiny(), recorded_of_golden())
    assert check.agrees, check
    assert check.first_off is None and "agrees with what the original code recorded" in check.summary


@pytest.mark.parametrize("tap", ["layers.0", "layers.1", "projected", "projected_at_end_token"])
@pytest.mark.parametrize("field", ["values", "l2", "max_abs"])
def test_the_first_tap_that_is_off_is_named(tap: str, field: str) -> None:
    record = recorded_of_golden()
    stated = record.taps[tap]
    off = {
        "values": tuple(v + 0.01 * (n == 40) for n, v in enumerate(stated.values)),
        "l2": stated.l2 * 1.01,
        "max_abs": stated.max_abs * 1.01,
    }
    changed = {**record.taps, tap: dataclasses.replace(stated, **{field: off[field]})}
    check = released.check_released(tiny(), dataclasses.replace(record, taps=changed))
    assert (check.agrees, check.first_off) == (False, tap)
    assert "another training, or the reference is wrong" in check.summary


def test_the_model_is_as_before() -> None:
    model = tiny()
    before = {k: t.clone() for k, t in model.state_dict().items()}
    released.check_released(model, recorded_of_golden())
    assert all(torch.equal(t, before[k]) for k, t in model.state_dict().items())


def test_the_shipped_record_is_whole_and_names_its_source() -> None:
    path = Path(released.__file__).with_name("released_activations.json")
    # The file of the reference data, unchanged.
    assert hashlib.sha256(path.read_bytes()).hexdigest() == SHA256
    said = json.loads(path.read_text())["source"]
    assert (said["repository"], said["license"]) == ("rifkybujana/sam3.c", "MIT")
    assert {n: len(r.taps) for n, r in released.recorded().items()} == {"s0": 9, "s1": 15, "l": 15}
    assert all(len(t.values) == 64 for r in released.recorded().values() for t in r.taps.values())


SHA256 = "fd9ac0b939271a7a77223bf34641f7d9d5d0e45c4b94665badd0a3decf57368e"


def architecture(model: str) -> Architecture:
    rows = (line.split("\t") for line in (ROOT / "tests" / "data" / f"{model}_ctx16.tsv").read_text().splitlines())
    shapes = {
        r[0].removeprefix("detector."): tuple(int(n) for n in r[2].split("x") if n.isdigit())
        for r in rows
        if "language_backbone" in r[0]
    }
    return infer_architecture(shapes, False)


@pytest.mark.parametrize("model", ["s0", "s1", "l"])
def test_who_could_be_released(model: str) -> None:
    for rows in (16, 77):
        for stated in (None, 16):
            found = released.could_be_released(called(model, rows, stated), rows)
            assert found is not None and found.variant == model
        assert released.could_be_released(called(model, rows, 32), rows) is None
    assert released.could_be_released(called(model, 32, None), 32) is None
    masked = dataclasses.replace(called(model, 16, None), causal_masking=True)
    assert released.could_be_released(masked, 16) is None


def called(model: str, rows: int, stated: int | None) -> Architecture:
    """The architecture of a file with so many rows, whose name states this context."""
    context = CalledContext(stated or rows, rows, "name" if stated else "unknown", name=stated)
    return architecture(model).with_context(context)


def test_a_small_model_is_not_asked(tmp_path: Path) -> None:
    done = sam3lite("parity", write(tmp_path, tiny_state()), "--json")
    assert done.json["released"] is None


def test_a_file_of_random_weights_disagrees_and_keeps_its_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The full size is tested under its own marker; here a record of other weights stands for the released ones.
    record = dataclasses.replace(recorded_of_golden(), ids=tuple([510, 1, 2, 511] + [0] * 12))
    monkeypatch.setattr(released, "could_be_released", lambda architecture, rows: record)
    checkpoint = write(tmp_path, tiny_state())
    done = sam3lite("parity", checkpoint, "--json")
    found = done.json["released"]
    assert done.code == 0 and done.json["verdict"] != "differs"
    assert (found["agrees"], found["first_off"]) == (False, "layers.0")
    shown = sam3lite("parity", checkpoint)
    assert "released weights: the reference on this file does not agree" in shown.out.replace("\n", " ")
    assert "Please tell the project" in shown.out.replace("\n", " ")
