"""Shows what a checkpoint is, and the parts of that which other commands show too."""

from __future__ import annotations

import shlex

from rich.table import Table

from sam3lite_convert.figures import human_bytes, human_count
from sam3lite_convert.report.terminal import Record, say, show

_LISTED = 20


def _fetched(r: Record) -> None:
    if r.get("fetched"):
        f = r["fetched"]
        read = (
            f"{human_bytes(f['bytes'])} of {human_bytes(f['of'])}" if f["bytes"] else "nothing, it was fetched before"
        )
        say(f"note: read by range requests from the Hub, not downloaded: {read}")


def _headline(r: Record) -> None:
    dtypes = ", ".join(f"{n} {d}" for d, n in r["dtypes"].items())
    wrapper = f"wrapped in {r['wrapper']!r}" if r["wrapper"] else "bare state dict"
    prefix = f"prefix {r['prefix']!r}" if r["prefix"] else "no prefix"
    say(f"{r['checkpoint']}: {human_bytes(r['size'])}, {r['format']}, {wrapper}, {prefix}", "bold")
    _origin(r)
    say(f"tensors: {dtypes}")


def _origin(r: Record) -> None:
    source = r.get("source")
    if source and source.get("repo"):
        say(f"from {source['repo']}: {source['file']} at commit {source['commit'][:12]}")


def _text_encoder(r: Record) -> None:
    a = r["architecture"]
    if a is None:
        return
    count = r["text_parameters"]
    whole = r["sam3_text_parameters"]
    fewer = 100 * (1 - count / whole)
    say(
        f"text encoder: {a['variant']}, {a['num_hidden_layers']} layers, {a['hidden_size']} wide, "
        f"{_plural(a['num_attention_heads'], 'head')}, context {a['context_length']}"
        + (", causal" if a["causal_masking"] else "")
    )
    say(f"  {human_count(count)} parameters; SAM3's has {whole / 1e6:.2f} M, so {fewer:.0f} % fewer")


def _plural(n: int, noun: str) -> str:
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def _component_table(r: Record) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("component", no_wrap=True)
    for name in ("keys", "mapped", "dropped", "parameters"):
        table.add_column(name, justify="right", no_wrap=True)
    total = [0, 0, 0, 0]
    for name, c in r["components"].items():
        row = [c["keys"], c["mapped"], sum(c["dropped"].values()), c["parameters"]]
        total = [a + b for a, b in zip(total, row, strict=True)]
        table.add_row(name, *[f"{n:,}" for n in row[:3]], human_count(row[3]))
    table.add_section()
    table.add_row("total", *[f"{n:,}" for n in total[:3]], human_count(total[3]), style="bold")
    show(table)
    by_label: dict[str, int] = {}
    for c in r["components"].values():
        for label, n in c["dropped"].items():
            by_label[label] = by_label.get(label, 0) + n
    for label, n in by_label.items():
        reason = r["dropped"].get(label, label)
        say(f"  dropped {n:>4}  " + ("second spelling of a tensor, equal to the bit" if label == "twin" else reason))


def _sum(r: Record) -> None:
    c = r["counts"]
    if "mapped" in c:
        say(
            f"{c['source']:,} source tensors = {c['mapped']:,} mapped + {c['dropped']:,} dropped; "
            f"{c['target']:,} target tensors"
        )


def inspected(r: Record) -> None:
    """What a checkpoint is."""
    _headline(r)
    say(f"kind: {r['kind']}")
    _text_encoder(r)
    for name, n in r["spellings"].items():
        say(f"spelling: {name} ({n} keys)")
    say()
    _component_table(r)
    _sum(r)
    _notes(r)
    _fetched(r)
    say()
    tables = f" --mapping {shlex.quote(r['mapping'])}" if r.get("mapping") else ""
    if r["convert"]["all"] == "yes":
        say(f"Next: sam3lite convert --checkpoint {r['option']}{tables}")
    else:
        say("convert refuses the whole file: " + _short(r["convert"]["all"]))
        if r["convert"]["text"] == "yes":
            say(f"Next: sam3lite convert --checkpoint {r['option']} --component text{tables}")


def _short(message: str) -> str:
    lines = message.splitlines()
    if len(lines) <= _LISTED:
        return message
    return "\n".join([*lines[:_LISTED], f"... ({len(lines) - _LISTED} more lines)"])


def _notes(r: Record) -> None:
    assumed = (r["architecture"] or {}).get("assumed", {})
    said = [f"assumed {name}: {what}" for name, what in assumed.items()]
    for text in [*r["notes"], *(s for s in said if s not in r["notes"])]:
        say(f"note: {text}")


def _tensor(t: Record) -> str:
    return f"{t['dtype']} {'x'.join(map(str, t['shape'])) or 'scalar'}"
