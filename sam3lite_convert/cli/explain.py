"""``sam3lite explain``."""

from __future__ import annotations

from sam3lite_convert.cli import options as o
from sam3lite_convert.cli.shared import locate
from sam3lite_convert.hub.aliases import DEFAULT_REPO, DEFAULT_REVISION


def explain(
    checkpoint: o.CheckpointArgument,
    key: o.KeyArgument,
    layout: o.Layout = "packed",
    component: o.ComponentOption = o.Component.all,
    context: o.ContextOption = None,
    causal: o.Causal = False,
    mapping: o.Mapping = None,
    repo_id: o.RepoId = DEFAULT_REPO,
    revision: o.Revision = DEFAULT_REVISION,
    cache_dir: o.CacheDir = None,
    json: o.Json = False,
) -> None:
    """Show how one tensor is converted, or why it is dropped.

    Prints the rule, the operation, and the names and shapes on both sides. Reads no tensor data.
    """
    from sam3lite_convert.commands.explain import explain_key
    from sam3lite_convert.plan.plan import Options
    from sam3lite_convert.plan.tables import load_mappings
    from sam3lite_convert.report.explain import explained
    from sam3lite_convert.report.terminal import as_json

    options = Options(layout, component.value, context=context, causal=causal)
    source = locate(checkpoint, repo_id, revision, cache_dir, json).index()
    document = explain_key(source, key, load_mappings(mapping), options)
    (as_json if json else explained)(document)
