"""The commands that the documents show: the files that they name, and what each has to print.

A block that begins with ```console holds commands after ``$ `` and what they print. ``...`` stands for what is left
out, on a line of its own or in a line. Numbers that another processor computes otherwise are not compared. An exit code
other than 0 stands in a comment above the block: ``<!-- exit 1 -->``.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import textwrap
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from support.folders import ROOT, convert, edit, edit_config, tensors
from support.hub_files import CARD, NEW, REPO, TOKENIZER, clip_files
from support.hub_server import HubServer
from support.plain_port import run_port

from sam3lite_convert.plan import synthetic

TEXT = "detector.backbone.language_backbone."
PAGES = sorted(
    str(page.relative_to(ROOT)) for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "benchmarks/README.md"]
)
_BLOCK = re.compile(r"(?:^<!-- exit (\d+) -->\n)?^```console\n(.*?)^```$", re.M | re.S)
# What rounding, the machine or the time of the run decides.
_MEASURED = re.compile(
    r"""-?\b\d+(\.\d+)?e[+-]\d\d\b  # an error
    | \b[01]\.\d{4,6}\b  # a cosine
    | \b\d+(\.\d+)?\ m?s\b
    | (?<=transformers\ )[\d.]+
    | \b[0-9a-f]{64}\b""",
    re.X,
)


class Shown(NamedTuple):
    """A command of a page and what the page says that it prints."""

    command: str
    output: str
    code: int


def shown(page: str) -> list[Shown]:
    """The commands of a page in their order."""
    found = []
    for exit_code, block in _BLOCK.findall((ROOT / page).read_text(encoding="utf-8")):
        runs = re.split(r"^\$ ", block, flags=re.M)[1:]
        for number, run in enumerate(runs):
            command, _, output = re.sub(r" \\\n *", " ", run).partition("\n")
            last = number == len(runs) - 1
            found.append(Shown(command, output, int(exit_code or 0) if last else 0))
    return found


def arguments(command: str) -> list[str]:
    """What follows ``sam3lite``; fails if it is another program."""
    program, *words = shlex.split(command, comments=True)
    assert program == "sam3lite", command
    return words


def fits(wanted: str, found: str) -> bool:
    """Whether a page shows what was printed."""
    parts = re.split(r"(?<!\S)\.\.\.(?!\S)", _plain(wanted))
    return (
        re.fullmatch(r"(?:.* )?".join(re.escape(part.lstrip()) for part in parts) + " ?", _plain(found) + " ")
        is not None
    )


def _plain(text: str) -> str:
    lines = [_MEASURED.sub("#", line) for line in text.strip().splitlines()]
    # In a row of measured numbers, those of few digits are measured too.
    lines = [re.sub(r"(?<= )\d[\d.]*(?= |$)", "#", line) if "#" in line else line for line in lines]
    return " ".join(" ".join(lines).split())  # where lines are broken, the width of the terminal decides


def make_files(folder: Path) -> None:
    """The files that the pages name, all made of the demo's checkpoint.

    demo.pt; ported/: another tool's folder for transformers, the pooled projection not transposed and the ViT's eps
    left out; swapped/: packed, q and k of layer 3 exchanged; tuned.pt: a fine-tune of some modules; tuned/: a folder of
    transformers, trained further; mine.npz: what a port with the tanh GELU in layer 3 computes; port.npz: what a right
    port computes of the ids of a fingerprint; mine.pt: keys behind ``mine.``; my-mappings/: what docs/tables.md adds
    for them; street.jpg.
    """
    from PIL import Image

    demo = folder / "demo.pt"
    synthetic.write_checkpoint(demo)
    state = torch.load(demo)["model"]

    ported = convert(demo, folder / "ported", "--layout", "transformers")
    key = next(k for k in tensors(ported) if k.endswith("text_encoder.projection.weight"))
    edit(ported, {key: tensors(ported)[key].T})
    edit_config(ported, "vision_config", "backbone_config", "layer_norm_eps")
    (ported / "conversion.json").unlink()
    swapped = convert(demo, folder / "swapped")
    for key in (k for k in tensors(swapped) if re.search(r"text_encoder.*\.layers\.3\..*in_proj_(weight|bias)$", k)):
        q, k, v = tensors(swapped)[key].chunk(3)
        edit(swapped, {key: torch.cat([k, q, v])})

    tuned = convert(demo, folder / "tuned", "--layout", "transformers")
    key = next(k for k in tensors(tuned) if k.endswith("text_projection.weight"))
    edit(tuned, {key: tensors(tuned)[key] * 1.01})
    touched = re.compile(r".*trunk\.blocks\.(28|29|30|31)\.attn\.qkv\.weight|.*transformer\.decoder\.layers\..*weight")
    changed = {k: t * 1.01 if touched.fullmatch(k) else t for k, t in state.items()}
    torch.save({"model": changed}, folder / "tuned.pt")

    ids = torch.tensor([[49406, 320, 1125, 49407] + [0] * 12])
    weights = {k.removeprefix(TEXT): t for k, t in state.items() if k.startswith(TEXT)}
    made = run_port(weights, ids, faults_in={"tanh GELU": [3]})
    kept = ("layers.0", "layers.2", "layers.3", "layers.4", "projected")
    np.savez(folder / "mine.npz", input_ids=ids.numpy(), **{tap: made[tap].numpy() for tap in kept})
    ids = torch.tensor(json.loads((tuned / "fingerprint.json").read_text())["ids"])
    np.savez(folder / "port.npz", **{tap: t.numpy() for tap, t in run_port(weights, ids).items()})

    torch.save({f"mine.{k.removeprefix('detector.')}": t for k, t in state.items()}, folder / "mine.pt")
    (rule,) = re.findall(r"^    \[prefix mine\]\n(?:    .*\n)+", (ROOT / "docs" / "tables.md").read_text(), re.M)
    (folder / "my-mappings").mkdir()
    shipped = (ROOT / "mappings" / "spellings.ini").read_text()
    at = shipped.index("[prefix ")
    (folder / "my-mappings" / "spellings.ini").write_text(shipped[:at] + textwrap.dedent(rule) + "\n" + shipped[at:])
    Image.new("RGB", (64, 48), "orange").save(folder / "street.jpg")


def publish(hub: HubServer, folder: Path) -> None:
    """The repository of the released files, with the demo's checkpoint as s0; CLIP's tokenizer; ported/."""
    hub.add_repo(REPO, {"README.md": CARD, "LICENSE": b"Terms.\n", NEW["s0"]: folder / "demo.pt"})
    hub.add_repo(TOKENIZER, dict(clip_files()))
    hub.add_repo("porter/sam3-litetext-s0", {path.name: path for path in (folder / "ported").iterdir()})


def copy_files(prepared: Path, folder: Path) -> None:
    """A folder of its own for a page: its commands may write over what is there."""
    shutil.copytree(prepared, folder, dirs_exist_ok=True)


def answer(reference: Path, port: Path) -> None:
    """What a right port of the detector computes of the inputs of a reference, which it also holds."""
    held = load_file(reference)
    taps = {k.removeprefix("reference."): t for k, t in held.items() if k.startswith("reference.")}
    save_file(taps, port)
