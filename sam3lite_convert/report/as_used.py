"""What people see of verdict 2: ids on both sides, how far each cause moves the text features, the recipe."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from sam3lite_convert.figures import VERDICTS, ids_shown, number
from sam3lite_convert.report.terminal import say, show, width

Record = dict[str, Any]
_LISTED = 10
_NAME = "verdict 2, behaviour: "


def behaved(r: Record) -> None:
    """What the second verdict rests on."""
    b = r["behaviour"]
    say()
    say(f"as used    {b['candidate']}")
    say(f"           {b['tokenizer']}")
    for p in b["prompts"][:_LISTED]:
        say(f"  {p['prompt']!r}: rel. L2 {number(p['relative_l2'])}")
        say(f"    original  {ids_shown(p['original'], p['valid']['original'])}")
        say(f"    as used   {ids_shown(p['as_used'], p['valid']['as_used'])}")
    if b["built_in"]:
        say("  (built-in prompts, one for each cause; your own: --prompt TEXT or --prompts-file FILE)")
    if b["prompts_total"] > _LISTED:
        say(f"  ... these moved most, of {b['prompts_total']:,}")
    say()
    _causes(b)
    say()
    say("The recipe, the shortest code that calls it as the original is called:", "bold")
    for line in b["recipe"]["code"].splitlines():
        say(f"    {line}")
    say(f"with the recipe: {_words(b['recipe'], r['dtype'])}", VERDICTS[b["recipe"]["verdict"]])


def verdict(r: Record) -> None:
    """The second verdict in one line, also where nobody looked, and what to do about it."""
    b = r.get("behaviour")
    if b is None:
        say(f"{_NAME}not looked at; --as-used calls the transformers model as people do")
        return
    say(_NAME + _words(b["together"] | {"verdict": b["verdict"]}, r["dtype"]), VERDICTS[b["verdict"]])
    if b["verdict"] == "differs":
        if r["verdict"] == "differs":
            say("  settle verdict 1 first: with other weights no way of calling gives the original's features")
        elif b["recipe"]["verdict"] != "differs":
            say("  the weights are not the reason: call it by the recipe above")


def _words(d: Record, dtype: str) -> str:
    run = "" if dtype == "float32" else f", run in {dtype} as well,"
    if d["verdict"] == "exact":
        return f"exact: the text features of every word are the original's{run} to the bit"
    missing = d["tokens_without_counterpart"]
    lost = f"; {missing:,} tokens exist on one side only and are not compared" if missing else ""
    figures = f"relative L2 {number(d['relative_l2'])}, max abs diff {number(d['max_abs_diff'])}"
    return (
        f"{d['verdict'].replace('_', ' ')}: the text features of words are off the original's{run} by {figures}{lost}"
    )


def _causes(b: Record) -> None:
    """Each cause switched on alone, and all of them."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("cause, alone", no_wrap=True)
    names = ["rel. L2", "cosine", "max abs", "prompts"]
    shown = len(names) if width() >= 60 else 1
    for name in names[:shown]:
        table.add_column(name, justify="right", no_wrap=True)
    for cause in b["causes"]:
        table.add_row(cause["name"].replace("_", " "), *_figures(cause)[:shown])
    for cause in b["absent"]:
        table.add_row(cause["name"].replace("_", " "), *["-", "-", "-", "0"][:shown])
    table.add_section()
    table.add_row("all together", *_figures(b["together"])[:shown], style="bold")
    show(table)
    for cause in [*(c for c in b["causes"] if c["prompts"]), *b["absent"]]:
        say(f"  {cause['name'].replace('_', ' ')}: {cause['words']}")


def _figures(d: Record) -> list[str]:
    cosine = "-" if d["cosine"] is None else f"{d['cosine']:.6f}"
    return [number(d["relative_l2"]), cosine, number(d["max_abs_diff"]), f"{d['prompts']:,}"]
