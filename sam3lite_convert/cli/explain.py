"""``sam3lite explain``."""

from __future__ import annotations

from pathlib import Path

from sam3lite_convert.checkpoint.selection import selection
from sam3lite_convert.cli import options as o
from sam3lite_convert.cli.mistakes import Mistake
from sam3lite_convert.cli.shared import check_layout, is_checkpoint, locate
from sam3lite_convert.hub.aliases import DEFAULT_REPO, DEFAULT_REVISION

_LINES = 40  # of tensors that match a pattern


def explain(
    checkpoint: o.ExplainedArgument,
    key: o.KeyArgument = None,
    layout: o.Layout = None,
    component: o.ComponentOption = o.Component.all,
    context: o.ContextOption = None,
    causal: o.Causal = False,
    every: o.EveryMatch = False,
    state_dict_key: o.StateDictKey = None,
    strip_prefix: o.StripPrefix = None,
    drop: o.Drop = None,
    reason: o.Reason = None,
    mapping: o.Mapping = None,
    repo_id: o.RepoId = DEFAULT_REPO,
    revision: o.Revision = DEFAULT_REVISION,
    cache_dir: o.CacheDir = None,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
    json: o.Json = False,
) -> None:
    """Show how one tensor is converted, or why it is dropped; or what a finding of verify means.

    Prints the rule, the operation, and the names and shapes on both sides. KEY is any name of the tensor: in the
    checkpoint or in a layout, with or without prefixes. A pattern such as '*.layers.3.*qkv*' lists one line a tensor.
    Reads no tensor data. With CODE alone, such as V-TRANSPOSED, prints what it means, how it is seen, what it costs and
    how to mend it.

    Examples:
    # What becomes of one tensor:
    sam3lite explain s0 detector.dot_prod_scoring.hs_proj.bias
    # What a finding of verify means:
    sam3lite explain V-TRANSPOSED
    """
    from sam3lite_convert.commands.explain import explain_code, explain_key
    from sam3lite_convert.commands.tables import Choice, list_keys
    from sam3lite_convert.plan.plan import Options
    from sam3lite_convert.plan.tables import load_mappings
    from sam3lite_convert.plan.taken import is_glob
    from sam3lite_convert.report import tables as report
    from sam3lite_convert.report.explain import code_explained, explained
    from sam3lite_convert.report.terminal import as_json

    if key is None and is_checkpoint(checkpoint):
        raise Mistake(
            f"{checkpoint} is a checkpoint; explain also needs the name of a tensor, or a pattern",
            lambda line: line.with_argument(1, "*qkv_proj*"),
            example=True,
        )
    if key is None and ("." in checkpoint or is_glob(checkpoint)):
        raise Mistake(
            f"{checkpoint} may be names of tensors; give a checkpoint before it",
            lambda line: line.with_argument(0, "s0"),
            example=True,
        )
    if key is None:
        code = explain_code(checkpoint)
        (as_json(code) if json else code_explained(code))
        return
    if is_checkpoint(key) and not is_checkpoint(checkpoint) and not Path(checkpoint).exists():
        raise Mistake(f"{key} is a checkpoint, and comes before the key", lambda line: line.swapped(checkpoint, key))
    chosen = selection(state_dict_key, strip_prefix, drop, reason)
    mappings = load_mappings(mapping)
    check_layout(layout, mappings)
    choice = Choice(layout, component=component.value)
    source = locate(checkpoint, repo_id, revision, cache_dir, json, chosen).index()
    if is_glob(key):
        found = list_keys(source, key, mappings, choice, "explain")
        (as_json(found) if json else report.keys(found, None if every else _LINES))
        return
    options = Options(choice.name, component.value, context=context, causal=causal)
    document = explain_key(source, key, mappings, options, choice.stated)
    (as_json if json else explained)(document)
