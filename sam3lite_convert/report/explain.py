"""Shows what a plan does with one key, and what a code means."""

from __future__ import annotations

from sam3lite_convert.records.explain import CodeDocument, ExplainDocument, TensorFacts
from sam3lite_convert.report.inspect import fetched
from sam3lite_convert.report.terminal import conclude, say, say_text


def code_explained(d: CodeDocument) -> None:
    """A code of a finding: its meaning, how it is seen, what it costs, how to mend it."""
    conclude(f"{d.code}: {d.title}", "bold")
    for name, text in (("meaning", d.meaning), ("seen by", d.seen), ("costs", d.cost), ("to mend", d.mend)):
        say_text(text, f"{name:8}")


def explained(d: ExplainDocument) -> None:
    """The source tensor, its operation, its targets and the rule that applies."""
    say(f"source  {d.source.key}  {_tensor(d.source)}")
    if d.source.canonical != d.source.key:
        say(f"        canonical name {d.source.canonical}")
    for other in d.joined or ():
        if other != d.source.key:
            say(f"with    {other}")
    if d.outcome == "filled":
        conclude("filled  not in the checkpoint; the target holds zeros")
    elif d.outcome == "dropped":
        conclude(f"dropped {d.reason}")
    else:
        say_text(f"{d.operation}: {d.operation_about}", "op      ")
    for target in d.targets:
        conclude(f"target  {target.key}  {_tensor(target)}" + (f"  ({target.part})" if target.part else ""))
    if d.rule:
        say(f"rule    [{d.rule.name}] in {d.rule.table}")
        for line in d.rule.pattern.splitlines():
            say(f"        {line}")
    for text in d.notes:
        say_text(text, "note    ")
    fetched(d.fetched)


def _tensor(t: TensorFacts) -> str:
    return f"{t.dtype} {'x'.join(map(str, t.shape)) or 'scalar'}"
