"""Folders with one change each: no false "proven", no false "exact".

Whether a change matters is decided by the program that reads such a folder, not by this tool. Of each kind of
folder some thirty are tried, most of them by the stress tests; SAM3LITE_MUTATIONS=N tries N in all (all: every one),
with SAM3LITE_STRESS=all and "stress or not stress", and prints the table that RELIABILITY.md has.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from support.folders import convert, sam3lite, tiny_state, write
from support.mutations import Mutation, Reading, mutations, reading

ASKED = os.environ.get("SAM3LITE_MUTATIONS", "60")


class Trial:
    """A good folder, and what its reader takes from it."""

    def __init__(self, place: Path, layout: str, with_receipt: bool) -> None:
        self.checkpoint = write(place, tiny_state())
        self.layout, self.place, self.with_receipt = layout, place, with_receipt
        self.folder = convert(self.checkpoint, place / "good", "--layout", layout)
        if not with_receipt:
            for name in ("conversion.json", "fingerprint.json", "README.md"):
                (self.folder / name).unlink()
        good = reading(self.folder, layout)
        assert good is not None
        self.good: Reading = good

    def chosen(self, part: slice) -> Sequence[Mutation]:
        """All mutations, or a share of each kind, the same ones each time; of these a part."""
        every = list(mutations(self.folder, self.layout))
        if ASKED == "all":
            return every[part]
        order = sorted(every, key=lambda m: hashlib.sha256(m.name.encode()).digest())
        out: list[Mutation] = []
        for kind, share in (("config", 18), ("processor", 6), ("tensor", 12), ("file", 15)):
            out += [m for m in order if m.kind == kind][: share * int(ASKED) // 100]
        return out[part]

    def run(self, mutation: Mutation) -> tuple[str, list[str]]:
        """What happened in one word, and what is wrong with it."""
        folder = self.place / "changed"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.folder, folder)
        mutation.apply(folder)
        proof = sam3lite("verify", folder, "--checkpoint", self.checkpoint, "--json")
        side = sam3lite("parity", self.checkpoint, "--converted", folder, "--json")
        wrong = [f"traceback: {x.err}" for x in (proof, side) if x.code not in (0, 1, 2, 3, 4)]
        verdict = proof.json.get("verdict", "refused")
        if mutation.kind == "config" and verdict == "mismatch" and not named(mutation, proof.json):
            wrong.append("no finding names the field")
        parity = side.json.get("verdict", "refused")
        if verdict != "proven" and parity != "exact":
            return verdict, wrong
        now = reading(folder, self.layout)
        # Without hashes: a field that is null or left out is the default, processor_class is only a name, and mask_size
        # is for masks that are given in training.
        words = ("-> null", " deleted", "processor_class", "mask_size")
        default = not self.with_receipt and any(w in mutation.name for w in words)
        if verdict == "proven" and mutation.kind == "processor" and not default:
            wrong.append("proven, although a field of the processor is another")
        if verdict == "proven" and (now is None or not now.same(self.good)):
            wrong.append("false proven" if now else "proven, and its reader fails")
        # Parity speaks of the text encoder alone: that the rest cannot be loaded is not its subject.
        of_text = any(word in mutation.name for word in ("text_encoder", "text_projection", "text_config"))
        spoken_of = now is not None or of_text or mutation.kind == "file"
        if parity == "exact" and spoken_of and (now is None or not now.text().same(self.good.text())):
            wrong.append("false exact" if now else "exact, and its reader fails")
        if verdict == "proven":
            return "proven, and the same", wrong
        return verdict, wrong


def named(mutation: Mutation, document: Any) -> bool:
    """Whether a finding names the changed field of config.json, the section that it is in, or a field of it."""
    field = mutation.name.partition(": ")[2].split(" ")[0]
    if not field:  # the file as a whole was changed
        return bool(document["findings"])
    said = [key.partition(": ")[2] for finding in document["findings"] for key in finding["keys"]]
    section = [part for part in field.split(".") if not part.isdigit()]
    return any(key and (key.startswith(".".join(section)) or field.startswith(key)) for key in said)


EIGHTH, ODD, ALL = slice(0, None, 8), slice(1, None, 2), slice(None)
NEXT = slice(2, None, 4), slice(4, None, 8)


@pytest.mark.parametrize(
    ("layout", "with_receipt", "part"),
    [
        pytest.param("transformers", False, EIGHTH, id="another tool's"),
        pytest.param("transformers", False, NEXT[0], id="another tool's, the next", marks=pytest.mark.stress),
        pytest.param("transformers", False, NEXT[1], id="another tool's, and those", marks=pytest.mark.stress),
        pytest.param("transformers", False, ODD, id="another tool's, the others", marks=pytest.mark.stress),
        pytest.param("transformers", True, ALL, id="ours", marks=pytest.mark.stress),
        pytest.param("packed", False, EIGHTH, id="packed"),
        pytest.param("packed", False, NEXT[0], id="packed, the next", marks=pytest.mark.stress),
        pytest.param("packed", False, NEXT[1], id="packed, and those", marks=pytest.mark.stress),
        pytest.param("packed", False, ODD, id="packed, the others", marks=pytest.mark.stress),
    ],
)
def test_no_changed_folder_is_proven(tmp_path: Path, layout: str, with_receipt: bool, part: slice) -> None:
    if layout == "transformers":
        pytest.importorskip("transformers")
    trial = Trial(tmp_path, layout, with_receipt)
    faults: list[str] = []
    counts: Counter[tuple[str, str]] = Counter()
    chosen = trial.chosen(part)
    for mutation in chosen:
        outcome, wrong = trial.run(mutation)
        counts[mutation.kind, outcome] += 1
        faults += [f"{mutation.name}: {what}" for what in wrong]
    for (kind, outcome), n in sorted(counts.items()):
        print(f"{layout}{', receipt' if with_receipt else ''} | {kind} | {outcome} | {n}")
    assert not faults, "\n".join(faults)
    assert len(chosen) >= 26 // (part.step or 1)
