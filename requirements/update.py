"""Write the files of this folder anew, from pyproject.toml and constraints.txt.

    pip install -c constraints.txt '.[release]'
    python requirements/update.py

uv resolves for Python 3.10 and later at once and asks the index for the hashes of every file of every version that it
chose, and what it chooses is held by constraints.txt: a package that is not there is an error here, not a surprise.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import LicenseAcknowledgement, LicenseExpression
from cyclonedx.output.json import JsonV1Dot6
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL
from packaging.requirements import Requirement

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

HERE = Path(__file__).parent
ROOT = HERE.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
# What the index's torch brings for CUDA. Its CPU build has none of it, so constraints.txt does not either.
CUDA = re.compile(r"(?:nvidia|cuda|triton)\b")
WRITTEN = "# Written by requirements/update.py. docs/install.md says what it is for.\n"
BUILD = PYPROJECT["build-system"]["requires"]


def resolve(requirements: list[str], *options: str) -> dict[str, str]:
    """What uv chose, by name: the lines of all its versions, with their hashes or with what they are there for."""
    lines = "".join(f"{line}\n" for line in requirements)
    command = ["uv", "pip", "compile", "-q", "--no-header", "--no-config", "-c", "constraints.txt", *options, "-"]
    done = subprocess.run(command, cwd=ROOT, input=lines, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    found: dict[str, str] = {}
    for block in re.split(r"^(?=\w)", done.stdout, flags=re.MULTILINE)[1:]:
        name = block.partition("==")[0]
        found[name] = found.get(name, "") + block
    pinned = {line.partition("==")[0] for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()}
    # What is for other systems alone is not pinned, since it is not tested.
    needed = {n for n, block in found.items() if not re.search("sys_platform == '(?!linux)", block.partition("\\")[0])}
    if lost := [name for name in needed - pinned if not CUDA.match(name)]:
        sys.exit(f"not in constraints.txt: {', '.join(sorted(lost))}")
    return found


def write(name: str, about: str, blocks: dict[str, str]) -> None:
    """One file of requirements."""
    (HERE / name).write_text(f"# {about}\n{WRITTEN}{''.join(blocks.values())}", encoding="utf-8")


def hashed() -> None:
    """The lists of the README's two commands, and those of torch."""
    universal = ("--universal", "--python-version", "3.10", "--no-annotate", "--generate-hashes")
    for name, extra in (("demo", "transformers"), ("test", "test")):
        wanted = [*PROJECT["dependencies"], *with_extras(extra), *BUILD]
        every = resolve(wanted, *universal)
        of_torch = resolve([line for line in wanted if Requirement(line).name == "torch"], *universal)
        cuda = {n for n in every if CUDA.match(n)}
        here = {n: block for n, block in every.items() if n not in {"torch", "setuptools", *cuda}}
        about = f"What {name} needs besides torch: torch-cpu.txt or torch-cuda.txt."
        write(f"{name}.txt", about, here)
    write(
        "torch-cuda.txt",
        "torch as the index has it, for Linux with CUDA's libraries.",
        {n: block for n, block in of_torch.items() if n in {"torch", "setuptools"} or CUDA.match(n)},
    )
    cpu_build(of_torch["torch"].partition(" ")[0], of_torch["setuptools"])


def with_extras(name: str) -> list[str]:
    """The requirements of an extra, and of those that it names."""
    found = []
    for line in PROJECT["optional-dependencies"][name]:
        requirement = Requirement(line)
        if requirement.name == PROJECT["name"]:
            found += [inner for extra in sorted(requirement.extras) for inner in with_extras(extra)]
        else:
            found.append(line)
    return found


def cpu_build(pin: str, setuptools: str) -> None:
    """The CPU build for this Python, if pip finds it here; other builds keep their hashes until the version changes."""
    file = HERE / "torch-cpu.txt"
    known = file.read_text(encoding="utf-8") if file.exists() else ""
    hashes = set(re.findall(r"sha256:\w+", known.partition("\nsetuptools")[0])) if f"\n{pin} " in known else set()
    with tempfile.TemporaryDirectory() as folder:
        fetch = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, f"{pin}+cpu"]
        if subprocess.run(fetch, capture_output=True).returncode:
            print(f"no {pin}+cpu for this Python is to be had here: its hash in torch-cpu.txt stays as it is")
        for wheel in Path(folder).iterdir():
            told = subprocess.run([sys.executable, "-m", "pip", "hash", wheel], capture_output=True, text=True)
            hashes |= set(re.findall(r"sha256:\w+", told.stdout))
    line = " \\\n".join([pin, *(f"    --hash={h}" for h in sorted(hashes))])
    about = "torch built for processors alone, where pip has an index of it."
    write("torch-cpu.txt", about, {"": f"{line}\n{setuptools}"})


def bill_of_materials() -> None:
    """What the package needs to run, as the tests ran it on Linux: in the wheel, under ``.dist-info/sboms``."""
    blocks = resolve(PROJECT["dependencies"], "--python-version", "3.11", "--python-platform", "x86_64-manylinux_2_28")
    blocks = {name: block for name, block in blocks.items() if not CUDA.match(name)}
    version = re.search(r'__version__ = "(.+)"', (ROOT / "sam3lite_convert/__init__.py").read_text(encoding="utf-8"))
    assert version
    root = Component(
        name=PROJECT["name"],
        version=version[1],
        type=ComponentType.LIBRARY,
        bom_ref=PROJECT["name"],
        licenses=[LicenseExpression(PROJECT["license"], acknowledgement=LicenseAcknowledgement.DECLARED)],
    )
    parts, users = {}, {}
    for name, block in blocks.items():
        found = re.match(r"\S+==(\S+)", block)
        assert found
        purl = PackageURL("pypi", None, name, found[1])
        parts[name] = Component(name=name, version=found[1], purl=purl, bom_ref=str(purl), type=ComponentType.LIBRARY)
        users[name] = re.findall(r"#\s+(?:via )?(\S+)$", block, flags=re.MULTILINE)
    parts["torch"].description = "The build for CUDA also brings the packages of requirements/torch-cuda.txt."
    bom = Bom(components=parts.values())
    bom.metadata.component = root
    direct = {re.sub(r"[-_.]+", "-", Requirement(line).name).lower() for line in PROJECT["dependencies"]}
    bom.register_dependency(root, [parts[name] for name in sorted(direct)])
    for user, part in parts.items():
        bom.register_dependency(part, [parts[name] for name in sorted(parts) if user in users[name]])
    document = json.loads(JsonV1Dot6(bom).output_as_string())
    # These are others in each run; the same input makes the same file.
    del document["serialNumber"], document["metadata"]["timestamp"]
    text = json.dumps(document, indent=1)
    if fault := JsonStrictValidator(SchemaVersion.V1_6).validate_str(text):
        sys.exit(str(fault))
    (HERE / f"{PROJECT['name']}.cdx.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    hashed()
    bill_of_materials()
