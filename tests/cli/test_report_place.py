"""--report FILE.html: from a real run to a page, and what it may take the place of."""

from __future__ import annotations

import html
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.folders import (
    convert,
    edit,
    environment,
    right,
    right_verdicts,
    sam3lite,
    tensors,
    tiny_architecture,
    write,
    write_safetensors,
)

from sam3lite_convert.errors import CannotRun
from sam3lite_convert.plan import synthetic

SMALL = {"vocab": 49408, "text_hidden": 64, "text_heads": 1, "projection_dim": 64}


@pytest.fixture(scope="module")
def s0(tmp_path_factory) -> Path:
    return write_safetensors(tmp_path_factory.mktemp("s0"), synthetic.state_dict(tiny_architecture(**SMALL)))


def words(path: Path) -> str:
    """What a reader sees of the page, in one line."""
    page = path.read_text(encoding="utf-8")
    body = re.sub(r"<(style|title)\b.*?</\1>", " ", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<wbr>", "", body).replace("<", " <"))).replace("> ", ">")


def seen(path: Path) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", words(path)))


@pytest.mark.parametrize("as_json", [False, True])
def test_a_parity_page_holds_what_the_run_found(s0, tmp_path, as_json):
    pytest.importorskip("instant_clip_tokenizer")
    page = tmp_path / "r.html"
    options = ["--as-used", "--prompt", "a <b>dog</b>", *(["--json"] if as_json else [])]
    done = sam3lite("parity", "--checkpoint", s0, "--report", page, *options)
    assert done.code == 0 and f"Report: {page}" in done.err
    if as_json:
        assert done.json["verdict"] in right(done.json)  # the page changes nothing of the one document
    said = seen(page)
    verdicts = right_verdicts("transformers", (1, 16, 64))
    assert any(verdict.replace("_", " ").capitalize() in said for verdict in verdicts)
    for part in ("Differs", "padded with id 49407, not 0", "Sam3LiteTextModel.from_pretrained", "49406"):
        assert part in said, part
    counts = sam3lite("convert", "--checkpoint", s0, "--dry-run", "--json").json["counts"]
    assert f"{counts['source']:,} source tensors = {counts['mapped']:,} mapped" in said
    assert f"--report {page}" in said
    assert "<b>dog</b>" not in page.read_text()


def test_a_page_of_a_fault_shows_the_layer_the_cause_and_the_map(s0, tmp_path):
    folder = convert(s0, tmp_path / "out")
    key = "text_encoder.layers.2.attention.out_proj.bias"
    edit(folder, {key: tensors(folder)[key] * 0})
    page = tmp_path / "r.html"
    done = sam3lite("parity", "--checkpoint", s0, "--converted", folder, "--report", page)
    assert done.code == 1
    said = seen(page)
    for part in ("layers.2", "out_proj.bias is missing (zero)", "Where it differs", "Not compared"):
        assert part in said, part
    assert "Mapping tables" in said and "mappings_sha256" in page.read_text()


def test_a_verify_page_for_a_proof_and_for_a_mismatch(s0, tmp_path):
    folder = convert(s0, tmp_path / "out")
    page = tmp_path / "v.html"
    assert sam3lite("verify", folder, "--checkpoint", s0, "--report", page).code == 0
    assert "Proven" in seen(page) and re.search(r"([\d,]+) of \1 tensors turn back", seen(page))
    key = "text_encoder.layers.2.attention.out_proj.bias"
    edit(folder, {key: tensors(folder)[key] * 0})
    assert sam3lite("verify", folder, "--checkpoint", s0, "--report", page).code == 1
    assert "Mismatch" in seen(page) and "out_proj.bias" in seen(page)
    document = sam3lite("verify", folder, "--checkpoint", s0, "--report", page, "--json").json
    assert sum(place["tensors"] for place in document["places"]) == len(tensors(folder))
    assert [(p["component"], p["layer"], p["off"]) for p in document["places"] if p["off"]] == [("text_encoder", 2, 1)]


WATCHED = """
import sys
from sam3lite_convert.cli.app import run
for options in ([], ["--report", "r.html"]):
    assert run([*sys.argv[1:], *options]) == 0
    print("jinja2" in sys.modules, file=sys.stderr)
"""


@pytest.mark.parametrize("command", [pytest.param("parity", marks=pytest.mark.stress), "verify"])
def test_jinja2_is_loaded_for_a_report_only(command, s0, tmp_path):
    folder = convert(s0, tmp_path / "out")
    named = ["--converted", str(folder)] if command == "parity" else [str(folder)]
    program = [sys.executable, "-c", WATCHED, command, *named, "--checkpoint", str(s0)]
    done = subprocess.run(program, capture_output=True, text=True, env=environment(), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stderr.splitlines() if line in ("False", "True")] == ["False", "True"]


def test_judged_activations_have_a_page_too(s0, tmp_path):
    sam3lite("parity", "--checkpoint", s0, "--save-activations", tmp_path / "a")
    page = tmp_path / "r.html"
    assert sam3lite("parity", "--judge", tmp_path / "a", "--report", page).code == 0
    assert "Exact" in seen(page) and "embeddings" in seen(page)


def test_only_a_report_of_ours_is_replaced(s0, tmp_path):
    page = tmp_path / "r.html"
    for _ in range(2):
        assert sam3lite("parity", "--checkpoint", s0, "--report", page).code == 0
    page.write_text("<html>mine</html>")
    done = sam3lite("parity", "--checkpoint", s0, "--report", page)
    assert done.code == 2 and "is not a report of this tool" in done.err and page.read_text() == "<html>mine</html>"


def test_a_file_that_speaks_of_reports_is_none(s0, tmp_path):
    page = tmp_path / "notes.html"
    page.write_text("see sam3lite-convert report, my notes")
    assert sam3lite("parity", "--checkpoint", s0, "--report", page).code == 2
    assert page.read_text() == "see sam3lite-convert report, my notes"


def test_a_link_is_followed(s0, tmp_path):
    (tmp_path / "there").mkdir()
    link = tmp_path / "r.html"
    link.symlink_to(tmp_path / "there" / "real.html")
    for _ in range(2):
        assert sam3lite("parity", "--checkpoint", s0, "--report", link).code == 0
    assert link.is_symlink() and "Exact" in seen(tmp_path / "there" / "real.html")


def test_what_cannot_hold_a_report_is_refused_before_the_work(s0, tmp_path):
    os.mkfifo(tmp_path / "fifo.html")
    for place in (tmp_path / "fifo.html", "/dev/stdout", tmp_path / "r.txt"):
        done = sam3lite("parity", "--checkpoint", "missing.pt", "--report", place)
        assert done.code == 2 and "missing.pt" not in done.err, done
    folder = convert(s0, tmp_path / "out")
    done = sam3lite("verify", folder, "--checkpoint", s0, "--report", folder / "report.html")
    assert (
        done.code == 2
        and "is a converted folder, which holds no other files" in done.err
        and not (folder / "report.html").exists()
    )
    both = tmp_path / "a.html"
    done = sam3lite("parity", "--checkpoint", s0, "--report", both, "--save-activations", both)
    assert done.code == 2 and "name the same file" in done.err


@pytest.mark.parametrize("as_json", [False, True])
def test_a_report_that_cannot_be_written_loses_nothing_of_the_run(s0, tmp_path, as_json, monkeypatch):
    def full(path, data, earlier):
        why = "No space left on device"
        raise OSError(28, why, str(path)) if as_json else CannotRun(f"{path}: {why}; nothing was written there")

    monkeypatch.setattr("sam3lite_convert.cli.report_place.write_whole", full)
    options = ["--report", tmp_path / "r.html", *(["--json"] if as_json else [])]
    done = sam3lite("parity", "--checkpoint", s0, *options)
    assert done.code == 2 and "No space left" in done.err
    if as_json:
        assert done.json["verdict"] == "exact" and "No space left" in done.json["report_error"]
    else:
        assert "verdict 1, weights: exact" in done.out
    folder = convert(s0, tmp_path / "out")
    key = "text_encoder.layers.2.attention.out_proj.bias"
    edit(folder, {key: tensors(folder)[key] * 0})
    assert sam3lite("verify", folder, "--checkpoint", s0, *options).code == 1


PLACES = [("", "is a folder"), ("no/such/r.html", "no such folder"), ("r", "must end in .html")]


@pytest.mark.parametrize("command", ["parity", "verify"])
@pytest.mark.parametrize(("place", "said"), PLACES)
def test_a_place_where_none_can_go_is_said_before_the_work(command, place, said, tmp_path):
    arguments = [tmp_path] if command == "verify" else []
    done = sam3lite(command, *arguments, "--checkpoint", "missing.pt", "--report", tmp_path / place)
    assert done.code == 2 and said in done.err


def test_a_failed_run_keeps_the_earlier_report(s0, tmp_path):
    page = tmp_path / "r.html"
    sam3lite("parity", "--checkpoint", s0, "--report", page)
    before = page.read_bytes()
    broken = write(tmp_path, {"a": 1}, "broken.pt")
    assert sam3lite("parity", "--checkpoint", broken, "--report", page).code != 0
    assert page.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir() if "r.html" in p.name] == ["r.html"]


def test_without_the_option_the_record_is_as_small_as_before(s0):
    assert not {"heat_map", "versions", "accounting"} & sam3lite("parity", "--checkpoint", s0, "--json").json.keys()
