"""How one tensor of a checkpoint is converted, and what the code of a finding means."""

from __future__ import annotations

import difflib

from sam3lite_convert.commands.sources import Source
from sam3lite_convert.errors import CannotRun
from sam3lite_convert.plan.counts import mapped_names
from sam3lite_convert.plan.plan import Options, make_plan
from sam3lite_convert.plan.tables import Mappings, Rule
from sam3lite_convert.records.explain import CodeDocument, ExplainDocument, RuleFacts, TensorFacts
from sam3lite_convert.verify.codes import CODES


def explain_code(name: str) -> CodeDocument:
    """What the code of a finding means; upper and lower case are the same.

    Raises CannotRun, with the nearest codes, if there is no such code.
    """
    code = CODES.get(name.upper())
    if code is None:
        wanted = name.upper() if name.upper().startswith("V-") else f"V-{name.upper()}"
        near = difflib.get_close_matches(wanted, CODES, 4, 0.5)
        hint = f" Nearest: {', '.join(near)}." if near else f" There are: {', '.join(CODES)}."
        raise CannotRun(
            f"{name} is not a code of verify.{hint} To explain a tensor: sam3lite explain CHECKPOINT KEY",
            "unknown_code",
            {"near": near},
        )
    return CodeDocument(
        code=code.name, title=code.title, meaning=code.meaning, seen=code.seen, cost=code.cost, mend=code.mend
    )


def explain_key(source: Source, key: str, mappings: Mappings, options: Options) -> ExplainDocument:
    """What happens to one key; ``key`` is a source key in any spelling, or a target key.

    Raises CannotRun, with the nearest names, if it is neither.
    """
    with source.trusted():
        plan = make_plan(source.read(mappings), mappings, options)
    canonical = {name: source for source, name in mapped_names(plan).items()}
    canonical |= {d.canonical: d.source.key for d in plan.dropped.values() if d.label != "twin"}
    found = key if key in plan.checkpoint.tensors else canonical.get(key)
    if found is None and key in plan.mapped:
        found = plan.mapped[key].source.key
    if found is None:
        found = next((m.source.key for m in plan.mapped.values() if m.target == key), None)
    if found is None:
        near = difflib.get_close_matches(key, [*plan.checkpoint.tensors, *canonical, *plan.mapped], 4, 0.6)
        hint = "\nNearest names:\n  " + "\n  ".join(near) if near else ""
        message = f"{key} is not a tensor of the checkpoint, nor of its conversion.{hint}"
        raise CannotRun(message, "unknown_key", {"near": near})
    dropped = plan.dropped.get(found)
    pieces = [m for m in plan.mapped.values() if found in (m.source.key, *(s.key for s in m.sources))]
    filled = not dropped and pieces[0].source.absent
    rule = dropped.rule if dropped else pieces[0].rule
    stored = plan.checkpoint.tensors.get(found, pieces[0].source if pieces else None)
    if stored is None:
        raise ValueError(f"{found} is neither in the checkpoint nor in the plan")
    name = dropped.canonical if dropped else mapped_names(plan).get(found, pieces[0].canonical)
    joined = {s.key: None for piece in pieces for s in piece.sources} if pieces and len(pieces[0].sources) > 1 else {}
    return ExplainDocument(
        key=key,
        layout=plan.layout.name,
        fetched=source.fetched(),
        outcome="dropped" if dropped else "filled" if filled else "mapped",
        source=TensorFacts(
            key=found,
            dtype=stored.dtype,
            shape=stored.shape,
            canonical=name,
        ),
        joined=tuple(joined) or None,
        operation=None if dropped else pieces[0].operation.name,
        reason=dropped.reason if dropped else None,
        rule=_rule(rule) if rule else None,
        targets=tuple(TensorFacts(key=p.key, dtype=p.dtype, shape=p.shape, part=p.part) for p in pieces),
    )


def _rule(rule: Rule) -> RuleFacts:
    return RuleFacts(name=rule.name, table=rule.table, pattern=rule.pattern, targets=tuple(rule.targets))
