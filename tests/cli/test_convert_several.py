"""Several checkpoints in one call of convert, and the name of the folder that a converted one is converted to."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.folders import sam3lite, tiny_state


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with two checkpoints and a file that is none."""
    monkeypatch.chdir(tmp_path)
    torch.save({"model": tiny_state()}, "a.pt")
    Path("b.pt").write_bytes(Path("a.pt").read_bytes())
    Path("odd.pt").write_text("no checkpoint\n")
    return tmp_path


def test_each_goes_to_a_folder_and_one_that_fails_stops_no_other():
    # a.pt twice, as when two patterns of a shell match it, and a name that nothing has
    words = ["convert", "odd.pt", "a.pt", "b.pt", "./a.pt", "missing/none.pt", "--output", "out", "--component", "text"]
    done = sam3lite(*words, "--json")
    assert done.code == 1
    results = {r["checkpoint"]: r for r in done.json["results"]}
    assert {name: r["state"] for name, r in results.items()} == {
        "odd.pt": "failed", "a.pt": "converted", "b.pt": "converted", "missing/none.pt": "failed",
    }  # fmt: skip
    for name in ("odd.pt", "missing/none.pt"):
        assert results[name]["error"]["exit_code"] == sam3lite("convert", name).code
    assert sorted(p.name for p in Path("out").iterdir()) == ["a-packed-text", "b-packed-text"]
    assert (done.json["verdict"], done.json["repo"], done.json["pattern"]) == ("failed", None, None)
    for name in ("a", "b"):
        assert sam3lite("verify", f"out/{name}-packed-text", f"{name}.pt").code == 0
    shown = sam3lite("convert", "odd.pt", "a.pt", "b.pt", "--output", "out", "--component", "text", "--verify")
    assert shown.code == 1 and "2 current, 1 failed, of 3 checkpoints" in shown.out and "FAILED  odd.pt" in shown.out
    assert shown.err.startswith("error: odd.pt: ") and shown.err.count("odd.pt") == 1
    assert sam3lite("convert", "a.pt", "b.pt", "--output", "out", "--component", "text").code == 0


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("a.pt b.pt --dry-run", "--dry-run takes one checkpoint, and several are given"),
        ("a.pt b.pt --partial --component text", "--partial takes one checkpoint"),
        ("a.pt b.pt --push-to-hub --hub-model-id me/x", "--hub-namespace names the owner of all"),
        ("a.pt b.pt --all", "--all cannot be combined with a checkpoint"),
        ("a.pt b.pt --checkpoint a.pt", "list all of them"),
        ("a.pt b.pt --pattern *.pt", "--pattern needs --all"),
        ("a.pt sub/a.pt", "would both be written to converted/a-packed; convert one of them alone"),
        ("a.pt b.pt out", "sam3lite convert a.pt b.pt --output out"),
        ("a.pt packed", "sam3lite convert a.pt --layout packed"),
    ],
)
def test_what_fits_no_batch_is_told_before_anything_is_written(line, says, here):
    Path("sub").mkdir()
    Path("sub/a.pt").write_bytes(b"")
    done = sam3lite("convert", *line.split())
    assert done.code == 2 and says in done.err.replace("\n", " "), done.err
    assert not Path("converted").exists()


def test_a_converted_folder_gives_its_new_one_the_name_of_its_checkpoint():
    assert sam3lite("convert", "a.pt", "--component", "text").code == 0
    folder = "converted/a-packed-text"
    again = sam3lite("convert", folder, "--component", "text", "--json")
    assert (again.code, again.json["error"]["code"]) == (2, "already_converted")
    assert "--layout" in again.json["error"]["message"] and "--output" in again.json["error"]["message"]
    for options, name in ((["--layout", "transformers"], "transformers-text"), (["--dtype", "float16"], None)):
        done = sam3lite("convert", folder, "--component", "text", *options, "--dry-run", "--json")
        assert done.json["output"] == f"converted/a-{name or 'packed-text-float16'}"
    Path(folder).rename("mine")  # a name of the user's own is kept
    done = sam3lite("convert", "mine", "--component", "text", "--dry-run", "--json")
    assert done.json["output"] == "converted/mine-packed-text"
