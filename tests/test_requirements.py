"""What pyproject.toml claims of versions, and what is tested."""

from __future__ import annotations

import json
import re
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from sam3lite_convert import __version__

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
    used = ("transformers", "prompts", "pictures", "onnx", "openvino", "test")  # what ``all`` names, and test
    lines = [*PROJECT["project"]["dependencies"], *(line for extra in used for line in extras[extra])]
    return {name(r): r for r in map(Requirement, lines) if name(r) != OURS}


def pins(file: str, python: str = f"3.{sys.version_info.minor}") -> dict[str, Version]:
    """What a file pins on Linux with this version of Python. A line that goes on holds hashes, which are left out."""
    text = re.sub(r" \\\n +--hash=\S+", "", (ROOT / file).read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    here = {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux"}
    requirements = [r for r in map(Requirement, lines) if r.marker is None or r.marker.evaluate(here)]
    found = {name(r): Version(str(r.specifier).removeprefix("==")) for r in requirements}
    assert len(found) == len(requirements)  # no package twice
    return found


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
    assert f"for version in {' '.join(v for v in named if v != '3.11')}; do" in CI.read_text()


# ---- the lists with hashes, and the bill of materials

CUDA = re.compile(r"(?:nvidia|cuda|triton)\b")  # comes with the index's torch, and is not in its CPU build
PYTHONS = ("3.10", "3.11", "3.12", "3.13")


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("file", ["demo", "test", "torch-cpu", "torch-cuda"])
def test_hashed_versions_are_those_of_the_constraints(file, python):
    hashed = {n: v for n, v in pins(f"requirements/{file}.txt", python).items() if not CUDA.match(n)}
    constraints = pins("constraints.txt", python)
    assert hashed and hashed == {n: constraints.get(n) for n in hashed}


@pytest.mark.parametrize("file", ["demo", "test", "torch-cpu", "torch-cuda"])
def test_every_version_has_its_hashes(file):
    text = (ROOT / "requirements" / f"{file}.txt").read_text()
    blocks = re.split(r"^(?=\w)", text, flags=re.MULTILINE)[1:]
    pattern = r"[\w.-]+==[\w.]+(?: ; [^\\\n]+)?(?: \\\n    --hash=sha256:[0-9a-f]{64})+\n"
    assert [b for b in blocks if not re.fullmatch(pattern, b)] == []


def with_extras(extra: str) -> set[str]:
    """The names of what an extra asks for, also by way of other extras."""
    asked = list(map(Requirement, PROJECT["project"]["optional-dependencies"][extra]))
    inner = [with_extras(other) for r in asked if name(r) == OURS for other in r.extras]
    return {name(r) for r in asked if name(r) != OURS}.union(*inner)


@pytest.mark.parametrize(("file", "extra"), [("demo", "transformers"), ("test", "test")])
def test_a_list_holds_what_is_asked_for(file, extra):
    """What these need in turn pip asks for itself, for it takes nothing without a hash: .ci/run installs both."""
    asked = {name(Requirement(r)) for r in [*PROJECT["project"]["dependencies"], *PROJECT["build-system"]["requires"]]}
    listed = pins(f"requirements/{file}.txt", "3.11").keys()
    assert (asked | with_extras(extra)) - listed == {"torch"}  # which has a list of its own


def test_all_is_every_extra_of_the_tool():
    extras = set(PROJECT["project"]["optional-dependencies"])
    (everything,) = map(Requirement, PROJECT["project"]["optional-dependencies"]["all"])
    assert everything.extras == extras - {"all", "tour", "test", "browser", "fuzz", "lint", "release"}


BILL = json.loads((ROOT / "requirements" / f"{OURS}.cdx.json").read_text())
PARTS = {part["bom-ref"]: part for part in BILL["components"]}
NEEDS = {row["ref"]: set(row.get("dependsOn", ())) for row in BILL["dependencies"]}


def test_the_bill_of_materials_names_what_the_package_needs_and_nothing_else():
    about = BILL["metadata"]["component"]
    assert (about["name"], about["version"]) == (OURS, __version__)
    direct = {PARTS[ref]["name"] for ref in NEEDS[about["bom-ref"]]}
    assert direct == {name(Requirement(line)) for line in PROJECT["project"]["dependencies"]}
    reached, new = set(), {about["bom-ref"]}
    while new:
        reached |= new
        new = set().union(*(NEEDS[ref] for ref in new)) - reached
    assert reached == NEEDS.keys() == PARTS.keys() | {about["bom-ref"]}
    constraints = pins("constraints.txt", "3.11")
    assert {p["name"]: Version(p["version"]) for p in PARTS.values()} == {
        p["name"]: constraints[p["name"]] for p in PARTS.values()
    }


def test_the_bill_of_materials_is_what_the_installed_packages_say():
    compared = 0
    for ref, part in PARTS.items():
        try:
            installed = metadata.distribution(part["name"])
        except metadata.PackageNotFoundError:
            continue
        if Version(installed.version).public != part["version"]:
            continue  # the lowest versions, or another Python
        here = {"python_version": "3.11", "python_full_version": "3.11.0", "extra": ""}
        asked = [r for r in map(Requirement, installed.requires or ()) if not r.marker or r.marker.evaluate(here)]
        needed = {name(r) for r in asked if not CUDA.match(name(r))}
        assert {PARTS[need]["name"] for need in NEEDS[ref]} == needed, part["name"]
        compared += 1
    assert compared > 5
