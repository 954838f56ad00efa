"""A mapping table: one of a small set of tables is the input, or ends with it; all are loaded and applied to keys.

The first byte says which table, and whether the input takes its place or is appended to it.
"""

from __future__ import annotations

import functools
from pathlib import Path
from unittest import mock

from sam3lite_convert.checkpoint.index import Checkpoint, StoredTensor
from sam3lite_convert.errors import CannotRun, UnsoundPlan
from sam3lite_convert.plan import synthetic, tables
from sam3lite_convert.plan.names import canonical_names
from sam3lite_convert.plan.plan import Options, make_plan
from sam3lite_convert.plan.tables import Layout, Rule, load_mappings
from sam3lite_convert.plan.targets import expected_targets, target_of_text, written_name
from targets import check_refusal

NAMES = ("spellings.ini", "layout-mine.ini", "rules.ini", "targets.ini", "spellings-mine.ini")
BASE = {
    "spellings.ini": r"""
[prefix of a program]
source  = (?P<wrapper>model|net)\.(?P<rest>.+)
target  = {rest}
repeat  = yes
example = model.trunk.weight

[prefix of a copy]
source  = ema\.(?P<rest>.+)
target  = {rest}
copies  = yes
example = ema.trunk.weight

[renamed]
source  = tower\.(?P<i>\d+)\.(?P<p>weight|bias)
target  = trunk.{i}.{p}
example = tower.3.bias
""",
    "layout-mine.ini": """
[layout]
about     = what reads it
rules     = rules.ini
targets   = targets.ini
spellings = spellings-mine.ini
text_keys = keep
""",
    "rules.ini": r"""
[kept]
op      = keep
source  = trunk\.(?P<i>\d+)\.(?P<n>norm\.)?(?P<p>weight|bias)
target  = vision.layers.{i}.{n}{p}
example = trunk.1.norm.weight

[split]
op      = split
source  = text\.(?P<i>\d+)\.qkv\.(?P<p>weight|bias)
target  = text.{i}.q.{p}
          text.{i}.k.{p}
          text.{i}.v.{p}
example = text.1.qkv.weight

[joined]
op      = join
source  = box\.(?P<i>\d+)\.w\.(?P<p>weight|bias)
          box\.(?P<i>\d+)\.b\.(?P<p>weight|bias)
target  = boxes.{i}.{p}
example = box.2.w.bias

[turned]
op      = transpose
source  = head\.(?P<rest>[^.]+)
target  = head.{rest}
example = head.weight

[left]
op      = drop
source  = tracker\..+
reason  = not of the detector
example = tracker.memory
""",
    "targets.ini": """
[vision.layers.{i}]
each = vit_layers
weight = vit_hidden, 3*vit_hidden
norm.weight = vit_hidden/4
bias = 16

[text]
scale = scalar
* = any
""",
    "spellings-mine.ini": r"""
[older]
source  = model\.(?P<rest>.+)
target  = {rest}
example = model.head.weight
""",
}
KEYS = (
    "trunk.1.weight", "trunk.0.norm.bias", "tower.3.bias", "model.net.trunk.2.weight", "text.1.qkv.weight",
    "box.2.w.bias", "box.2.b.bias", "head.weight", "tracker.memory", "ema.trunk.1.bias", "a", "a.b.c.d.e.f.g",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "0.1.2.3.4.5.6.7.8.9.10", "x.weight.bias.norm.weight",
)  # fmt: skip
_SHOWN = 40  # rules and targets that are looked at


@functools.cache
def _prepared(folder: Path) -> synthetic.Architecture:
    """Write the sound tables as those that ship, and say which sizes their targets get."""
    shipped = folder / "shipped"
    shipped.mkdir(parents=True)
    for name, text in BASE.items():
        (shipped / name).write_text(text, encoding="utf-8")
    return synthetic.small_architecture()


def write(folder: Path, data: bytes) -> None:
    """Write the table that the input stands for into ``own``."""
    _prepared(folder)
    own = folder / "own"
    own.mkdir(exist_ok=True)
    for path in own.iterdir():
        path.unlink()
    kind, rest = data[0] if data else 0, data[1:]
    name = NAMES[kind % len(NAMES)]
    appended = kind // len(NAMES) % 2
    (own / name).write_bytes(BASE[name].encode() * appended + rest)


def check(folder: Path) -> None:
    """Load the tables: they are refused in words, or what they turn a key into leads back to that key."""
    architecture = _prepared(folder)
    try:
        with mock.patch.object(tables, "builtin_directory", lambda: folder / "shipped"):
            mappings = load_mappings(folder / "own")
    except CannotRun as fault:
        check_refusal(fault, 2)
        return
    for layout in mappings.layouts.values():
        for rule in layout.rules[:_SHOWN]:
            _check_rule(rule)
        _check_layout(layout, architecture)
    tensors = {key: StoredTensor(key, "float32", (6, 6), 0, (6, 1)) for key in KEYS}
    checkpoint = Checkpoint(Path("file.pt"), 144, "safetensors", None, tensors)
    names = canonical_names(checkpoint, mappings.spellings)
    assert sorted(key for keys in names.sources.values() for key in keys) == sorted(KEYS) or names.left
    for layout in mappings.names:
        try:
            make_plan(checkpoint, mappings, Options(layout))
        except (CannotRun, UnsoundPlan) as fault:
            check_refusal(fault, 2, 3)


def _check_rule(rule: Rule) -> None:
    """What a rule makes of a key leads back to that key alone."""
    assert rule.apply(rule.example) is not None
    for key in (rule.example, *KEYS):
        targets = rule.apply(key)
        rule.wrapper(key) if len(rule.patterns) == 1 else None
        if rule.beside:
            rule.beside_of(key)
        for target in targets or ():
            sources = rule.sources(target)
            assert key in sources, (rule.name, key, target, sources)
            assert all(target in (rule.apply(source) or ()) for source in sources)
    for key in KEYS:
        rule.sources(key)


def _check_layout(layout: Layout, architecture: synthetic.Architecture) -> None:
    for component in ("all", "text"):
        try:
            targets = [target for target, _ in expected_targets(layout, architecture, component)]
        except CannotRun as fault:
            check_refusal(fault, 2)
            continue
        for target in targets[:_SHOWN]:
            layout.written_by(target, targets)
            layout.module(target)
            if component == "text":
                _, name = written_name(target, layout, component)
                assert not layout.strips_text or target_of_text(name, layout)
