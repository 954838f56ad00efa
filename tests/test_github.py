"""What GitHub runs and asks: the workflow, the action, whose steps run here, and the forms of issues."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.folders import ROOT, convert, edit, environment, tensors, tiny_state, write

GITHUB = ROOT / ".github"
PAGE = ROOT / "docs" / "github-action.md"
FORMS = ("bug", "refused", "verdict", "feature")


def parsed(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def example() -> Any:
    (text,) = re.findall(r"^```yaml\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.S | re.M)
    return yaml.safe_load(text)


def files() -> dict[str, Any]:
    """The workflows and the action by name."""
    if not GITHUB.exists():
        return {}
    found = {path.name: parsed(path) for path in sorted(GITHUB.glob("workflows/*.yml"))}
    return found | {"action.yml": parsed(ROOT / "action.yml"), "example": example()}


FILES = files()


def steps(document: Any) -> list[dict[str, Any]]:
    jobs = document.get("jobs", {}).values()
    return [step for job in jobs for step in job["steps"]] + document.get("runs", {}).get("steps", [])


def injections(document: Any) -> list[str]:
    """The expressions that stand in a script, where their values would be run."""
    return [found for step in steps(document) for found in re.findall(r"\$\{\{.*?\}\}", step.get("run", ""))]


@pytest.mark.parametrize("name", FILES)
def test_no_expression_stands_in_a_script(name):
    assert steps(FILES[name]) and injections(FILES[name]) == []


def test_an_expression_in_a_script_would_be_found():
    assert injections({"runs": {"steps": [{"run": "echo ${{ inputs.folder }}"}]}}) == ["${{ inputs.folder }}"]


@pytest.mark.parametrize("name", [name for name in FILES if name != "example"])
def test_actions_of_others_are_pinned_to_a_commit_with_its_version(name):
    path = ROOT / name if name == "action.yml" else GITHUB / "workflows" / name
    used = re.findall(r"uses: (\S+)(.*)$", path.read_text(encoding="utf-8"), re.M)
    assert used
    for action, comment in used:
        assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", action) and re.fullmatch(r" # v\d+\.\d+\.\d+", comment)


@pytest.mark.parametrize("name", [name for name in FILES if name != "action.yml"])
def test_a_workflow_may_only_read(name):
    workflow = FILES[name]
    assert workflow["permissions"] == {"contents": "read"}
    assert all("permissions" not in job for job in workflow["jobs"].values())
    on = workflow[True]  # YAML's own reading of "on"
    assert "pull_request_target" not in on


def test_the_workflow_runs_what_ci_is():
    (ci,) = [step for step in steps(FILES["ci.yml"]) if "run" in step]
    assert ci["run"] == ".ci/run" and os.stat(ROOT / ".ci" / "run").st_mode & stat.S_IXUSR
    assert {"push", "pull_request"} <= FILES["ci.yml"][True].keys()


# ---- the action -------------------------------------------------------------------------------------


def test_the_example_fits_the_action():
    (used,) = [step for step in steps(FILES["example"]) if "sam3lite-convert@" in step["uses"]]
    inputs = FILES["action.yml"]["inputs"]
    assert used["with"].keys() <= inputs.keys()
    assert {name for name, about in inputs.items() if about.get("required")} <= used["with"].keys()
    assert "schedule" in FILES["example"][True]
    text = PAGE.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 50 and all(f"`{name}`" in text for name in inputs)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write(tmp_path_factory.mktemp("action"), tiny_state())


@pytest.fixture(scope="module")
def folder(checkpoint):
    made = convert(checkpoint, checkpoint.parent / "folder")
    (made / "fingerprint.json").unlink()  # which takes an import of torch to check
    return made


@pytest.fixture(scope="module")
def broken(folder):
    made = Path(shutil.copytree(folder, folder.parent / "broken"))
    edit(made, {next(key for key in tensors(made) if key.endswith("weight")): None})
    return made


class Ran:
    """A run of the action's script, as the runner calls it, with these inputs."""

    def __init__(self, place: Path, **inputs: str) -> None:
        (step,) = [step for step in steps(FILES["action.yml"]) if step.get("id") == "verify"]
        given = {name: about.get("default", "") for name, about in FILES["action.yml"]["inputs"].items()} | inputs
        variables = {
            name: given[re.fullmatch(r"\$\{\{ inputs\.([\w-]+) \}\}", value)[1]] for name, value in step["env"].items()
        }
        (place / "bin").mkdir()
        tool = place / "bin" / "sam3lite"
        # As pip writes it: Python's -m would import from the working directory first.
        tool.write_text(f"#!{sys.executable}\nfrom sam3lite_convert.cli.app import main\n\nmain()\n")
        tool.chmod(0o755)
        (place / "step.sh").write_text(step["run"])
        self.summary, output = place / "summary.md", place / "output"
        runner = {"GITHUB_STEP_SUMMARY": self.summary, "GITHUB_OUTPUT": output, "RUNNER_TEMP": place}
        env = environment() | variables | {name: str(path) for name, path in runner.items()}
        env["PATH"] = f"{place / 'bin'}:{Path(sys.executable).parent}:{env['PATH']}"
        command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(place / "step.sh")]
        done = subprocess.run(command, cwd=place, env=env, capture_output=True, text=True, timeout=60)
        self.code, self.out, self.err = done.returncode, done.stdout, done.stderr
        self.outputs = output.read_text() if output.exists() else ""

    @property
    def said(self) -> str:
        return self.summary.read_text() if self.summary.exists() else ""


def test_a_right_folder_passes(folder, checkpoint, tmp_path):
    ran = Ran(tmp_path, folder=str(folder), checkpoint=str(checkpoint), report="pages/verify.html")
    assert (ran.code, ran.outputs) == (0, "exit-code=0\n"), ran.err
    assert ran.said.startswith("### verify: proven\n")
    assert (tmp_path / "pages" / "verify.html").stat().st_size > 1000
    pause = re.search(r"^::stop-commands::([0-9a-f]{32})$", ran.out, re.M)[1]
    assert ran.out.rstrip().endswith(f"::{pause}::") and "### verify: proven" in ran.out


def test_a_broken_folder_fails_and_its_summary_says_why(broken, checkpoint, tmp_path):
    ran = Ran(tmp_path, folder=str(broken), checkpoint=str(checkpoint))
    assert (ran.code, ran.outputs) == (1, "exit-code=1\n"), ran.err
    assert ran.said.startswith("### verify: mismatch\n") and "**1 finding**" in ran.said


@pytest.mark.parametrize("folder_name", ["--help", '$(touch ran) `touch ran`; touch ran; "\n::error::x'])
def test_what_cannot_be_verified_fails_and_no_input_is_run(folder_name, checkpoint, tmp_path):
    ran = Ran(tmp_path, folder=folder_name, checkpoint=str(checkpoint))
    assert (ran.code, ran.outputs) == (2, "exit-code=2\n"), ran.err
    assert ran.said.startswith("### verify: could not run\n") and not (tmp_path / "ran").exists()


def test_an_unknown_extent_is_refused(tmp_path):
    ran = Ran(tmp_path, folder="x", checkpoint="y", values="all; touch ran")
    assert ran.code == 2 and '"values" is none, partial or whole' in ran.err and not (tmp_path / "ran").exists()


def test_no_module_of_the_working_directory_is_run(tmp_path):
    """It is that of the job: a checkout, which may be that of a pull request."""
    for name in ("secrets", "typer", "sam3lite_convert", "sitecustomize"):
        (tmp_path / f"{name}.py").write_text("open('ran', 'w')\n")
    ran = Ran(tmp_path, folder="nowhere", checkpoint="nothing.pt")
    assert ran.code == 2 and not (tmp_path / "ran").exists()
    assert re.search(r"^::stop-commands::[0-9a-f]{32}$", ran.out, re.M)
    scripts = "".join(step.get("run", "") for step in steps(FILES["action.yml"]))
    called = re.findall(r'(?:"\$PYTHON"|\bpython3?"?) (-\S+)', scripts)
    assert len(called) == 4 and set(called) == {"-I"}


def test_the_scripts_are_bash():
    for step in (step for step in steps(FILES["action.yml"]) if "run" in step):
        subprocess.run(["bash", "-n"], input=step["run"], text=True, check=True)


# ---- the forms of issues ----------------------------------------------------------------------------

KINDS = {"textarea", "input", "dropdown", "markdown", "checkboxes"}


@pytest.mark.parametrize("name", FORMS)
def test_a_form_asks_for_what_is_needed(name):
    form = parsed(GITHUB / "ISSUE_TEMPLATE" / f"{name}.yml")
    assert {"name", "description", "body"} <= form.keys()
    asked = {item["id"]: item for item in form["body"]}
    assert len(asked) == len(form["body"])
    for item in asked.values():
        assert item["type"] in KINDS and item["attributes"]["label"]
        assert item.get("validations", {}).keys() <= {"required"}
    assert "sam3lite doctor" in asked["doctor"]["attributes"]["label"]
    required = {id for id, item in asked.items() if item.get("validations", {}).get("required")}
    assert len(required) >= 2 and ("doctor" in required) is (name != "feature")


def test_there_are_no_other_forms():
    assert {path.name for path in (GITHUB / "ISSUE_TEMPLATE").iterdir()} == {"config.yml", *(f"{f}.yml" for f in FORMS)}
    assert isinstance(parsed(GITHUB / "ISSUE_TEMPLATE" / "config.yml")["blank_issues_enabled"], bool)
