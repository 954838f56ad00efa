"""The documents: their Python runs, and what is generated from the code is current."""

from __future__ import annotations

import dataclasses
import re
import sys
from pathlib import Path

import pytest
import torch
from support.folders import ROOT, python, tiny_architecture
from support.hub_server import HubServer

from sam3lite_convert.plan import synthetic
from sam3lite_convert.records import reference, schema


def blocks(page: Path) -> list[str]:
    """The Python of a page, block by block."""
    return re.findall(r"^```python\n(.*?)^```$", page.read_text(encoding="utf-8"), re.S | re.M)


def records_in(cls: type) -> set[type]:
    """A record and every record in it."""
    module = sys.modules[cls.__module__]
    names = {name for field in dataclasses.fields(cls) for name in re.findall(r"[A-Z]\w+", str(field.type))}
    inner = [getattr(module, name) for name in names if dataclasses.is_dataclass(getattr(module, name, None))]
    return {cls}.union(*(records_in(each) for each in inner))


@pytest.fixture
def s0(hub: HubServer, tmp_path: Path) -> Path:
    # A vocabulary as long as CLIP's, since the page uses real ids.
    path = tmp_path / "s0.pt"
    state = synthetic.state_dict(tiny_architecture(vocab=49408, text_hidden=64, text_heads=1, projection_dim=64))
    torch.save({"model": state}, path)
    return path


def test_the_python_page_runs_as_printed(s0, hub, clip, monkeypatch, capsys):
    code = blocks(ROOT / "docs" / "python.md")
    assert len(code) >= 9
    names: dict[str, object] = {}
    for block in code:
        exec(compile(block, "docs/python.md", "exec"), names)
    out = capsys.readouterr().out
    assert "pushed" in out and "no_such_file" in out and "proven" in out
    assert hub.commits("me/my-conversion")


@pytest.mark.parametrize("name", sorted(schema.schema_files()))
def test_the_shipped_schemas_are_those_of_the_records(name):
    shipped = ROOT / "sam3lite_convert" / "records" / "schemas" / name
    assert shipped.read_text(encoding="utf-8") == schema.schema_files()[name]  # python -m sam3lite_convert.records


def test_the_json_page_is_that_of_the_records():
    assert (ROOT / "docs" / "json.md").read_text(encoding="utf-8") == reference.reference()


def test_what_docstrings_of_records_explain_are_fields():
    explained = 0
    for cls in {cls for name in schema.DOCUMENTS for cls in records_in(schema.DOCUMENTS[name])}:
        own = {field.name for field in dataclasses.fields(cls)}
        named = set(re.findall(r"^ {4}(\w+): ", cls.__doc__ or "", re.M))
        assert named <= own, cls
        explained += len(named)
    assert explained > 100


def test_help_is_fast_and_the_library_is_lazy():
    done = python("-X", "importtime", "-c", "import sam3lite_convert as s3; s3.CannotRun")
    heavy = {"torch", "numpy", "huggingface_hub", "rich", "typer", "jinja2", "transformers"}
    loaded = {line.rpartition("|")[2].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert done.returncode == 0 and not loaded & heavy
