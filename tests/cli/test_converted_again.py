"""A converted folder that is converted again: how its new one is named."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from support.folders import sam3lite, tiny_state

TEXT = ("--component", "text")


def test_a_converted_folder_gives_its_new_one_the_name_of_its_checkpoint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": tiny_state()}, "a.pt")
    assert sam3lite("convert", "a.pt", *TEXT).code == 0
    folder = "converted/a-packed-text"
    again = sam3lite("convert", folder, *TEXT, "--json")
    assert (again.code, again.json["error"]["code"]) == (2, "already_converted")
    assert "--layout" in again.json["error"]["message"] and "--output" in again.json["error"]["message"]
    same = sam3lite("convert", folder, *TEXT, "--dry-run", "--json")
    assert same.json["error"]["code"] == "already_converted"
    for options, name in (
        (["--layout", "transformers"], "a-transformers-text"),
        (["--dtype", "float16"], "a-packed-text-float16"),
    ):
        done = sam3lite("convert", folder, *TEXT, *options, "--dry-run", "--json")
        assert done.json["output"] == f"converted/{name}"
    shutil.copytree(folder, "mine")  # a name of the user's own is kept
    both = sam3lite("convert", folder, "mine", *TEXT, "--json")
    assert both.code == 1
    assert [(Path(r["output"]).name, r["state"]) for r in both.json["results"]] == [
        ("a-packed-text", "failed"),
        ("mine-packed-text", "converted"),
    ]
    assert both.json["results"][0]["error"]["code"] == "already_converted"
