"""A fingerprint finds the faults of a port without the checkpoint, passes right ports, and is the same everywhere."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.folders import ROOT, environment, sam3lite, tiny_state, write
from support.plain_port import FAULTS, VARIATIONS, run_port

from sam3lite_convert.commands.fingerprint import judge_by_fingerprint, read_fingerprint
from sam3lite_convert.errors import Sam3LiteError
from sam3lite_convert.parity.fingerprint import first_difference
from sam3lite_convert.parity.port_files import PortFile
from sam3lite_convert.plan.synthetic import write_checkpoint

TEXT = "detector.backbone.language_backbone."
PAGE = (ROOT / "docs" / "fingerprint.md").read_text()


def code(language: str) -> str:
    found = re.search(rf"<!-- {language} -->\n```{language}\n(.*?)```", PAGE, re.DOTALL)
    assert found
    return found[1]


def first_tap_off() -> Callable[..., Any]:
    """The function of docs/fingerprint.md, as a porter copies it."""
    scope: dict[str, Any] = {}
    exec(code("python").split("\n\n\nfingerprint =")[0], scope)
    found: Callable[..., Any] = scope["first_tap_off"]
    return found


@pytest.fixture(scope="module")
def demo(tmp_path_factory: Any) -> tuple[Path, dict[str, torch.Tensor], Any]:
    """The demo checkpoint's fingerprint, and its text weights."""
    place = tmp_path_factory.mktemp("fingerprint")
    checkpoint = place / "demo.pt"
    write_checkpoint(checkpoint)
    assert sam3lite("convert", checkpoint, "--output", place / "out").code == 0
    state = torch.load(checkpoint, weights_only=True)["model"]
    weights = {k: t for k, t in state.items() if k.startswith(TEXT)}
    path = place / "out" / "fingerprint.json"
    return path, weights, json.loads(path.read_text())


def judged(path: Path, made: dict[str, np.ndarray]) -> Any:
    tensors = {tap: torch.from_numpy(value.copy()) for tap, value in made.items()}
    return judge_by_fingerprint(path, PortFile("tensors", tensors, {}), "port")


def port(demo: Any, **changes: Any) -> dict[str, np.ndarray]:
    _, weights, said = demo
    found = run_port(weights, torch.tensor(said["ids"]), **changes)
    return {tap: value.numpy() for tap, value in found.items()}


def test_it_is_small_and_holds_what_is_promised(demo: Any) -> None:
    path, _, said = demo
    assert path.stat().st_size < 16_000
    assert len(said["ids"]) == 3
    for tap in said["taps"]:
        assert len(tap["values"]) == len(said["positions"]["x".join(map(str, tap["shape"]))]) == 64
        assert tap["floor"] > 0 and tap["l2"] > 0 and tap["max_abs"] > 0


def test_the_faults_of_a_plain_port_are_found_at_their_tap(demo: Any) -> None:
    path, weights, said = demo
    right, look = port(demo), first_tap_off()
    floors = {tap["name"]: tap["floor"] for tap in said["taps"]}
    named, hidden = [], []
    for name, fault in FAULTS.items():
        tap = fault.tap(weights)
        if tap is None or fault.needs:
            continue  # this encoder has no such part, or these ids do not bring it out
        made = port(demo, fault=name)
        # What the three prompts do not move beyond the rounding, no comparison can find.
        if made[tap].shape == right[tap].shape and np.abs(made[tap] - right[tap]).max() <= 4 * floors[tap]:
            hidden.append(name)
            continue
        found = judged(path, made)
        assert (found.verdict, found.first_off) == ("differs", tap), name
        assert look(said, made)[0] == tap, name
        named.append(name)
    assert len(named) >= 20, (named, hidden)
    assert len(hidden) <= 6, hidden


def test_right_ports_agree(demo: Any) -> None:
    path, _, said = demo
    look, passed = first_tap_off(), 0
    for name in VARIATIONS:
        made = port(demo, variation=name)
        if any(value.dtype not in (np.float32, np.float64) for value in made.values()):
            continue
        found = judged(path, made)
        assert found.verdict == "agrees", (name, found.summary)
        assert look(said, made) is None, name
        passed += 1
    assert passed >= 10


def test_an_error_at_one_value_that_is_not_among_the_64_shows_in_the_norm(demo: Any) -> None:
    path, _, said = demo
    made = port(demo)
    tap = made["layers.2"] = made["layers.2"].copy()
    where = said["positions"]["x".join(map(str, tap.shape))]
    other = next(n for n in range(tap.size) if n not in where)
    tap.reshape(-1)[other] += 1.0
    found = judged(path, made)
    assert found.first_off == "layers.2" and found.verdict == "differs"


def test_nan_never_agrees(demo: Any) -> None:
    path, _, said = demo
    made = port(demo)
    made["projected"] = np.full_like(made["projected"], np.nan)
    assert judged(path, made).first_off == "projected"
    assert first_tap_off()(said, made)[0] == "projected"


def test_what_is_not_given_is_said(demo: Any) -> None:
    path, _, _ = demo
    found = judged(path, {"projected": port(demo)["projected"]})
    assert found.verdict == "agrees" and "not compared: embeddings" in found.summary
    assert "64 values and the norm of 1 tap are the original's" in found.summary
    with pytest.raises(Sam3LiteError, match="its taps are embeddings"):
        judged(path, {"nothing": np.zeros(3)})


@pytest.mark.skipif(
    shutil.which("node") is None,
    reason="runs the JavaScript of docs/fingerprint.md, which needs node; the Python beside it is always run",
)
def test_the_javascript_finds_the_same(demo: Any, tmp_path: Path) -> None:
    path, _, _ = demo
    runs = {"right": port(demo), "wrong": port(demo, fault="positions one late")}
    for name, made in runs.items():
        content = {tap: value.reshape(-1).tolist() for tap, value in made.items()}
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    (tmp_path / "run.js").write_text(
        code("javascript")
        + f"""
const fs = require("fs"), load = (p) => JSON.parse(fs.readFileSync(p));
for (const name of ["right", "wrong"]) {{
  const made = load(name + ".json");
  for (const tap in made) made[tap] = Float32Array.from(made[tap]);
  console.log(firstTapOff(load({json.dumps(str(path))}), made));
}}"""
    )
    done = subprocess.run(["node", "run.js"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["null", "embeddings"]


@pytest.mark.stress
def test_other_kernels_and_thread_counts_write_the_same_values(demo: Any, tmp_path: Path) -> None:
    path, _, said = demo
    checkpoint = path.parents[1] / "demo.pt"
    for kernels, threads in (("default", "1"), ("avx2", "2")):
        output = tmp_path / kernels
        command = [sys.executable, "-m", "sam3lite_convert", "convert", checkpoint, "--output", output]
        varied = {"ATEN_CPU_CAPABILITY": kernels, "OMP_NUM_THREADS": threads}
        subprocess.run(command, env=environment() | varied, check=True, capture_output=True, timeout=120)
        made = json.loads((output / "fingerprint.json").read_text())
        for here, there in zip(said["taps"], made["taps"], strict=True):
            for name in ("floor", "floor_l2"):  # measured: other kernels round in another order
                assert 0.25 <= here[name] / there[name] <= 4
                there[name] = here[name]
        assert made == said


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda f: f.update(taps=[]), "no taps"),
        (lambda f: f.update(tolerance=1e9), "pass anything"),
        (lambda f: f["taps"][0].update(floor=-1.0), "floor"),
        (lambda f: f["taps"][0].update(floor=1e9), "its floor at embeddings would pass wrong values"),
        (lambda f: f["taps"][2].update(floor_l2=1e9), "its floor at layers.1 would pass wrong values"),
        (lambda f: f["taps"][0].update(floor=math.inf), "NaN or infinity at embeddings"),
        (lambda f: f["taps"][0].update(max_abs=math.nan), "NaN or infinity at embeddings"),
        (lambda f: f["taps"][1].update(l2=math.nan), "NaN or infinity at layers.0"),
        (lambda f: f["taps"][1]["values"].__setitem__(3, math.nan), "NaN or infinity at layers.0"),
        (lambda f: f["taps"].append(f["taps"][0]), "a tap twice"),
        (lambda f: f.update(schema_version=99), "version 99"),
        (lambda f: f["positions"].clear(), "positions"),
        (lambda f: f["taps"][0]["values"].pop(), "positions"),
        (lambda f: f.pop("ids"), "not a fingerprint"),
    ],
)
def test_a_damaged_fingerprint_is_refused(demo: Any, tmp_path: Path, change: Any, says: str) -> None:
    _, _, said = demo
    said = json.loads(json.dumps(said))
    change(said)
    path = tmp_path / "fingerprint.json"
    path.write_text(json.dumps(said))
    with pytest.raises(Sam3LiteError, match=says) as fault:
        read_fingerprint(path)
    assert fault.value.exit_code == 4


def test_a_missing_one_is_added_again(tmp_path: Path) -> None:
    checkpoint, folder = write(tmp_path, tiny_state()), tmp_path / "out"
    assert sam3lite("convert", checkpoint, "--output", folder).code == 0
    before = (folder / "fingerprint.json").read_bytes()
    (folder / "fingerprint.json").unlink()
    done = sam3lite("convert", checkpoint, "--output", folder, "--json")
    assert done.code == 0 and done.json["added"] == ["fingerprint.json"]
    assert (folder / "fingerprint.json").read_bytes() == before


def test_the_command_judges_a_port_without_the_checkpoint(demo: Any, tmp_path: Path) -> None:
    path, _, said = demo
    for name, fault in (("right", None), ("wrong", "tanh GELU")):
        made = {tap: torch.from_numpy(value.copy()) for tap, value in port(demo, fault=fault).items()}
        save_file({"input_ids": torch.tensor(said["ids"]), **made}, tmp_path / f"{name}.safetensors")
    done = sam3lite("judge", tmp_path / "right.safetensors", "--fingerprint", path, "--name", "my port", "--json")
    assert (done.code, done.json["verdict"], done.json["candidate"]) == (0, "agrees", "my port")
    wrong = sam3lite("judge", tmp_path / "wrong.safetensors", "--fingerprint", path.parent)
    assert wrong.code == 1 and "verdict: differs: at layers.0" in wrong.out.replace("\n", " ")

    one_row = {tap: t[:1].contiguous() for tap, t in made_right(tmp_path).items()}
    save_file(one_row, tmp_path / "row.safetensors")
    shown = sam3lite("judge", tmp_path / "row.safetensors", "--fingerprint", path).out
    assert "at embeddings: its shape is (1, 16, 64)" in shown.replace("\n", " ") and " inf" not in shown

    # (sequence, batch, width) is read and said; other ids are refused, and none at all is said.
    turned = {tap: t.transpose(0, 1).contiguous() if t.dim() == 3 else t for tap, t in made_right(tmp_path).items()}
    save_file(turned, tmp_path / "turned.safetensors")
    done = sam3lite("judge", tmp_path / "turned.safetensors", "--fingerprint", path, "--json")
    assert done.code == 0, done.json
    assert any("(sequence, batch, width)" in n for n in done.json["notes"])
    assert any("holds no ids" in n for n in done.json["notes"])
    save_file({**turned, "input_ids": torch.zeros(3, 16, dtype=torch.int64)}, tmp_path / "other.safetensors")
    done = sam3lite("judge", tmp_path / "other.safetensors", "--fingerprint", path, "--json")
    assert (done.code, done.json["error"]["code"]) == (2, "bad_ids")


def made_right(place: Path) -> dict[str, torch.Tensor]:
    return {k: t for k, t in load_file(place / "right.safetensors").items() if k != "input_ids"}


def test_one_that_hides_unread_tensors_is_not_this_checkpoints(demo: Any) -> None:
    path, _, _ = demo
    made = read_fingerprint(path)
    assert first_difference(made, made) is None
    said = first_difference(made, replace(made, not_read=("encoder.adapter.weight",)))
    assert said is not None and "'not_read'" in said


def test_record_writes_the_same_fingerprint(demo: Any, tmp_path: Path) -> None:
    path, _, said = demo
    output = tmp_path / "print.json"
    checkpoint = path.parents[1] / "demo.pt"
    done = sam3lite("record", checkpoint, "--fingerprint", "--output", output, "--json")
    assert done.code == 0 and done.json["taps"] == [tap["name"] for tap in said["taps"]]
    assert output.read_bytes() == path.read_bytes()
    assert "Next:" in sam3lite("record", checkpoint, "--fingerprint", "--output", output).out
    other = tmp_path / "notes.json"
    other.write_text("{}")
    done = sam3lite("record", checkpoint, "--fingerprint", "--output", other, "--json")
    assert (done.code, done.json["error"]["code"], other.read_text()) == (2, "output_exists", "{}")


def test_options_that_do_not_go_together(demo: Any, tmp_path: Path) -> None:
    path, _, _ = demo
    for options in (["--tolerance", 1], ["--checkpoint", "s0.pt"]):
        assert sam3lite("judge", path, "--fingerprint", path, *options).code == 2
    assert sam3lite("record", "s0.pt", "--fingerprint", "--batch", 4).code == 2
