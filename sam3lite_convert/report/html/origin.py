"""The sections of a page about where its subject comes from: accounting, receipt, notes, versions, command."""

from __future__ import annotations

from typing import Any

from sam3lite_convert.figures import human_bytes, human_count
from sam3lite_convert.report.html.parts import (
    badge,
    code,
    count,
    document,
    facts,
    folded,
    lines,
    listing,
    measure,
    number,
    paragraph,
    plural,
    section,
    table,
    text,
)

Record = dict[str, Any]


def accounting_section(a: Record | None) -> str:
    """What became of every tensor of the checkpoint, by component."""
    if not a:
        return ""
    components = a.get("components") or {}
    out = ""
    if components:
        numbers = {name: _numbers(c) for name, c in components.items()}
        titles = [text(name).replace("_", "_<wbr>") for name in numbers]
        rows = [[name, *map(count, n[:3]), human_count(n[3])] for name, n in zip(titles, numbers.values(), strict=True)]
        total = [sum(column) for column in zip(*numbers.values(), strict=True)]
        foot = ["total", *map(count, total[:3]), human_count(total[3])]
        head = ["component", "keys", "mapped", "dropped", "parameters"]
        out += table("Tensors of the checkpoint by component", head, rows, [1, 2, 3, 4], foot, kind="names")
    return section("Accounting", _sum(a.get("counts") or {}), out, _dropped(a, components))


def _numbers(c: Record) -> list[int]:
    return [c.get("keys") or 0, c.get("mapped") or 0, sum((c.get("dropped") or {}).values()), c.get("parameters") or 0]


def _sum(c: Record) -> str:
    if "source" not in c or "mapped" not in c:
        return ""
    said = f"{count(c['source'])} source tensors = {count(c['mapped'])} mapped + {count(c.get('dropped'))} dropped"
    return paragraph(f"{said}; {count(c['target'])} target tensors." if "target" in c else f"{said}.")


def _dropped(a: Record, components: Record) -> str:
    by_label: dict[str, int] = {}
    for c in components.values():
        for label, n in (c.get("dropped") or {}).items():
            by_label[label] = by_label.get(label, 0) + n
    reasons = {"twin": "second spelling of a tensor, equal to the bit"} | (a.get("dropped") or {})
    if not by_label:
        return ""
    rows = [[text(label), count(n), text(reasons.get(label, "-"))] for label, n in by_label.items()]
    return table("Why they were dropped", ["kind", "tensors", "reason"], rows, [1], kind="names")


def repository_section(r: Record | None) -> str:
    """The code of the original that was run, where it was."""
    if not r:
        return ""
    held = r.get("against_original_ref")
    files, stood_in = r.get("files") or [], r.get("stood_in") or []
    rows = [
        ("Path", code(r["path"]) if r.get("path") else None),
        ("Commit", code(r["commit"]) if r.get("commit") else "not a commit that could be read"),
        ("Files read", ", ".join(map(code, files))),
        ("Stood in for", ", ".join(map(code, stood_in))),
        ("Against our own reference", f"{badge(held.get('verdict'))} max abs diff "
         f"{number(measure(held, 'max_abs_diff'))}" if held else None),
    ]  # fmt: skip
    said = "The reference of this run is the original's own code."
    return section("Original repository", paragraph(said, "muted"), facts(rows))


def receipt_section(r: Record | None) -> str:
    """What the folder says of itself."""
    if r is None:
        return ""
    if not r:
        return section("Receipt", paragraph("It is empty.", "muted"))
    return section("Receipt", facts(_receipt_rows(r)), folded("The whole receipt as JSON", document(r)))


def _receipt_rows(r: Record) -> list[tuple[str, str | None]]:
    source, tool, a = (_table(r.get(key)) for key in ("source", "tool", "architecture"))
    size = source.get("size")
    chosen = [f"{name.replace('_', ' ')} {value}" for name, value in _table(r.get("options")).items() if value]
    text_encoder = None
    if a.get("num_hidden_layers"):
        shape = [
            f"{a['num_hidden_layers']} layers",
            f"{a.get('hidden_size')} wide",
            plural(a.get("num_attention_heads") or 0, "head"),
        ]
        shape += [f"context {a.get('context_length')}"] + ["causal"] * bool(a.get("causal_masking"))
        text_encoder = text(f"{a.get('variant') or 'custom'}: {', '.join(shape)}")
    return [
        ("Source", code(source["name"]) + (f", {human_bytes(size)}" if isinstance(size, int) else "")
         if source.get("name") else None),
        ("SHA-256", _code(source.get("sha256"))),
        ("Repository", _code(source.get("repo"))),
        ("File", _code(source.get("file"))),
        ("Commit", _code(source.get("commit"))),
        ("ETag", _code(source.get("etag"))),
        ("Layout", _text(r.get("layout"))),
        ("Component", _text(r.get("component"))),
        ("Stored as", _text(r.get("dtype"))),
        ("Text encoder", text_encoder),
        ("Options", text(", ".join(chosen)) if chosen else None),
        ("Tensors", _sum_words(_table(r.get("counts")))),
        ("Made by", _text(" ".join(str(tool[k]) for k in ("name", "version") if tool.get(k)))),
        ("Tables, SHA-256", _code(tool.get("mappings_sha256"))),
    ]  # fmt: skip


def _sum_words(c: Record) -> str | None:
    if "source" not in c:
        return None
    return f"{count(c['source'])} source, {count(c.get('mapped'))} mapped, {count(c.get('dropped'))} dropped"


def _table(value: Any) -> Record:
    """A receipt lies beside what others may have edited: what is no table counts as an empty one."""
    return value if isinstance(value, dict) else {}


def _code(value: Any) -> str | None:
    return code(value) if value else None


def _text(value: Any) -> str | None:
    return text(value) if value else None


def last_sections(r: Record, notes: list[str]) -> str:
    """Notes, versions, the command, the date."""
    versions = [(name, text(v) if v else "not installed") for name, v in (r.get("versions") or {}).items()]
    command = f"<pre>{lines(r['command'])}</pre>" if r.get("command") else ""
    made = f"Made {text(r['made'])} by sam3lite-convert." if r.get("made") else "Made by sam3lite-convert."
    return (
        section("Notes", listing([text(note) for note in notes]) if notes else "")
        + section("Versions", facts(versions))
        + section("Command", command)
        + f"<footer><p>{made}</p></footer>"
    )
