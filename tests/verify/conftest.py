"""A tiny checkpoint that is planned once per file, which most tests of verify share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.folders import tiny_state, write_safetensors

from sam3lite_convert.plan.plan import make_plan
from sam3lite_convert.verify import recognise


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint; no test changes it."""
    return write_safetensors(tmp_path_factory.mktemp("tiny"), tiny_state())


@pytest.fixture(scope="module")
def plans_by_source() -> dict[Any, Any]:
    return {}


@pytest.fixture(autouse=True)
def plan_once(plans_by_source: dict[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Verify plans its source each time; here once per file of tests, layout and component."""

    def remembered(checkpoint: Any, mappings: Any, options: Any) -> Any:
        key = (checkpoint.path, checkpoint.path.stat().st_mtime_ns, id(mappings), options, repr(checkpoint.selection))
        if key not in plans_by_source:
            plans_by_source[key] = make_plan(checkpoint, mappings, options)
        return plans_by_source[key]

    monkeypatch.setattr(recognise, "make_plan", remembered)
