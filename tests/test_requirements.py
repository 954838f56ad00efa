"""What pyproject.toml claims of versions, and what is tested."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
CI = ROOT / ".ci" / "run"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
OURS = PROJECT["project"]["name"]


def name(requirement: Requirement) -> str:
    return re.sub(r"[-_.]+", "-", requirement.name).lower()


def claims() -> dict[str, Requirement]:
    """Every requirement that the suite runs with, by name."""
    extras = PROJECT["project"]["optional-dependencies"]
    used = ("transformers", "prompts", "pictures", "onnx", "openvino", "test")
    lines = [*PROJECT["project"]["dependencies"], *(line for extra in used for line in extras[extra])]
    return {name(r): r for r in map(Requirement, lines) if name(r) != OURS}


def pins(file: str) -> dict[str, Version]:
    lines = [line for line in (ROOT / file).read_text().splitlines() if line and not line.startswith("#")]
    requirements = [r for r in map(Requirement, lines) if r.marker is None or r.marker.evaluate()]
    return {name(r): Version(str(r.specifier).removeprefix("==")) for r in requirements}


@pytest.mark.parametrize("requirement", claims())
def test_the_lowest_version_that_is_claimed_is_the_one_that_is_tested(requirement):
    (claim,) = claims()[requirement].specifier
    assert claim.operator == ">="
    assert pins("tests/lowest.txt")[requirement] == Version(claim.version)


@pytest.mark.parametrize("requirement", claims())
def test_the_pinned_version_is_within_the_claim(requirement):
    for file in ("constraints.txt", "tests/lowest.txt"):
        assert claims()[requirement].specifier.contains(pins(file)[requirement]), file


def test_every_lowest_version_is_claimed():
    assert pins("tests/lowest.txt").keys() == claims().keys()


def test_every_python_that_is_named_is_within_requires_python():
    classifiers = PROJECT["project"]["classifiers"]
    named = [c.rpartition(" ")[2] for c in classifiers if re.search(r":: 3\.\d+$", c)]
    required = SpecifierSet(PROJECT["project"]["requires-python"])
    assert named and all(required.contains(version) for version in named)
    lowest = min(named, key=Version)
    assert str(required) == f">={lowest}"
    assert PROJECT["tool"]["ruff"]["target-version"] == f"py{lowest.replace('.', '')}"
    if CI.exists():  # an sdist has none
        assert f"for version in {' '.join(v for v in named if v != '3.11')}; do" in CI.read_text()
