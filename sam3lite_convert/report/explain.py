"""Shows one key of a plan."""

from __future__ import annotations

from sam3lite_convert.report.inspect import _fetched, _tensor
from sam3lite_convert.report.terminal import Record, say


def explained(r: Record) -> None:
    """One key."""
    source = r["source"]
    say(f"source  {source['key']}  {_tensor(source)}")
    if source.get("canonical") != source["key"]:
        say(f"        canonical name {source['canonical']}")
    if r["outcome"] == "dropped":
        say(f"dropped {r['reason']}")
    else:
        say(f"op      {r['operation']}")
    for target in r["targets"]:
        say(f"target  {target['key']}  {_tensor(target)}" + (f"  ({target['part']})" if "part" in target else ""))
    if r["rule"]:
        say(f"rule    [{r['rule']['name']}] in {r['rule']['table']}")
        say(f"        {r['rule']['pattern']}")
    _fetched(r)
