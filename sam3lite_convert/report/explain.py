"""Shows one key of a plan."""

from __future__ import annotations

from sam3lite_convert.records.shared import Fetched
from sam3lite_convert.report.inspect import fetched, tensor_words
from sam3lite_convert.report.terminal import Record, say


def explained(r: Record) -> None:
    """One key."""
    source = r["source"]
    say(f"source  {source['key']}  {tensor_words(source)}")
    if source.get("canonical") != source["key"]:
        say(f"        canonical name {source['canonical']}")
    if r["outcome"] == "dropped":
        say(f"dropped {r['reason']}")
    else:
        say(f"op      {r['operation']}")
    for target in r["targets"]:
        say(f"target  {target['key']}  {tensor_words(target)}" + (f"  ({target['part']})" if "part" in target else ""))
    if r["rule"]:
        say(f"rule    [{r['rule']['name']}] in {r['rule']['table']}")
        say(f"        {r['rule']['pattern']}")
    fetched(Fetched.from_json(r["fetched"]) if r["fetched"] else None)
