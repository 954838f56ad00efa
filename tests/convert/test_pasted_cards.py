"""What a model card holds of others stays text: the card has the structure of that of a harmless folder."""

from __future__ import annotations

import ast
import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from support.folders import sam3lite, tiny_state, write
from support.markdown import flat, reader, shape
from support.odd_names import ODD_NAMES

from sam3lite_convert.convert.card import model_card
from sam3lite_convert.records.receipt import LicenceFile, ParitySummary, Receipt, SourceRecord, TapSummary

NAMES = [name for name in ODD_NAMES if name.strip()]


@pytest.fixture(scope="module")
def receipt(tmp_path_factory: pytest.TempPathFactory) -> Receipt:
    place = tmp_path_factory.mktemp("card")
    checkpoint = write(place, tiny_state())
    done = sam3lite("convert", "--checkpoint", checkpoint, "--output", place / "out", "--layout", "packed")
    assert done.code == 0, done
    return Receipt.from_json(json.loads((place / "out" / "conversion.json").read_text()))


def named(receipt: Receipt, name: str, hub: bool) -> Receipt:
    """The receipt with a name in every field that holds text of others."""
    origin = {"repo": name, "file": name, "commit": name} if hub else {}
    link = "LICENSE" if name.startswith("https:") else name  # a plain address is a link
    source = replace(
        receipt.source,
        name=name,
        licence={"license": name, "license_name": name, "license_link": link} if hub else None,
        **origin,
    )
    assert isinstance(source, SourceRecord)
    tap = TapSummary(name=name, max_abs_diff=0.0, isolated_max_abs_diff=0.0, relative_l2=0.0)
    parity = ParitySummary(
        verdict="exact",
        reference=name,
        candidate_encoder=name,
        attention="eager",
        dtype="float32",
        max_abs_diff=0.0,
        tolerance=0.0,
        inputs=name,
        layers=(tap,),
    )
    licence = LicenceFile(path=name, commit="0" * 40, name=None, why=name, blob_id=None)
    return replace(
        receipt,
        source=source,
        layout=name,
        reader=name,
        notes=(name, f"a note about {name}"),
        model_id=name if hub else None,
        parity=parity,
        licences=(licence, replace(licence, name=name, why=None)) if hub else None,
        proven={name: name},
    )


def python_of(card: str) -> list[str]:
    return [t.content for t in reader().parse(card) if t.type == "fence" and t.info == "python"]


@pytest.mark.parametrize("hub", [True, False])
def test_a_card_has_the_structure_of_a_harmless_one(receipt: Receipt, hub: bool) -> None:
    harmless = model_card(named(receipt, "name", hub))
    for name in NAMES:
        card = model_card(named(receipt, name, hub))
        front, _, body = card.removeprefix("---\n").partition("\n---\n")
        assert shape(body) == shape(harmless.removeprefix("---\n").partition("\n---\n")[2]), (name, card)
        plain = name.encode("utf-8", "backslashreplace").decode()
        said = yaml.safe_load(front)
        assert list(said) == list(yaml.safe_load(harmless.removeprefix("---\n").partition("\n---\n")[0]))
        if hub:
            assert said["base_model"] == plain
            assert said["license"] == plain
        for code in python_of(card):
            texts = [n.value for n in ast.walk(ast.parse(code)) if isinstance(n, ast.Constant)]
            assert not hub or name in texts, code


def test_the_command_of_a_card_is_one_command(receipt: Receipt) -> None:
    for name in NAMES:
        card = model_card(named(receipt, name, True))
        command = [t.content for t in reader().parse(card) if t.type == "fence" and not t.info][-1]
        assert command.count("\n") == 1
        if name.isprintable():
            words = shlex.split(command)
            file = f"./{name}" if name.startswith("-") else name
            assert words == ["sam3lite", "verify", "DIR", file, "--repo-id", name, "--revision", name]


@pytest.mark.parametrize("name", ["a;touch pwned.pt", "# h\n<script>.pt", "$(touch pwned).pt", "a|b`c`.pt", "-x.pt"])
def test_a_checkpoint_of_an_odd_name_is_converted_and_its_commands_run(name, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(write(tmp_path, tiny_state(), "plain.pt").read_bytes())
    done = sam3lite("convert", "--checkpoint", name, "--output", "out", "--layout", "packed")
    assert done.code == 0, done
    card = Path("out", "README.md").read_text()
    assert not any(t.type.startswith("html") for t in flat(reader().parse(card)))
    assert len(re.findall("(?m)^# ", card.partition("\n---\n")[2])) == 1
    # Every command that it prints names the file in one word.
    printed = [line.partition("sam3lite ")[2] for line in done.out.splitlines() if "sam3lite verify" in line]
    for line in printed:
        if name.isprintable():
            assert any(word in (name, f"./{name}") for word in shlex.split(line)), line
