"""``sam3lite inspect``."""

from __future__ import annotations

from sam3lite_convert.checkpoint.selection import selection
from sam3lite_convert.cli import options as o
from sam3lite_convert.cli.shared import locate, needed_checkpoint, one_checkpoint
from sam3lite_convert.hub.aliases import DEFAULT_REPO, DEFAULT_REVISION


def inspect(
    source: o.SourceArgument = None,
    checkpoint: o.CheckpointOption = None,
    context: o.ContextOption = None,
    causal: o.Causal = False,
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
    """Describe a checkpoint: format, components, dtypes, architecture.

    Reads no tensor data; of a checkpoint on the Hub only the index is downloaded.

    Examples:
    # A released file, of which only the index is downloaded:
    sam3lite inspect s0
    # A file of a trainer, which also holds averaged weights:
    sam3lite inspect my.pt --state-dict-key model_ema
    """
    from sam3lite_convert.commands.inspect import inspect_checkpoint
    from sam3lite_convert.plan.tables import load_mappings
    from sam3lite_convert.report.inspect import inspected
    from sam3lite_convert.report.terminal import as_json

    chosen = selection(state_dict_key, strip_prefix, drop, reason)
    name = needed_checkpoint(one_checkpoint(source, checkpoint), "inspect")
    found = locate(name, repo_id, revision, cache_dir, json, chosen).index()
    document = inspect_checkpoint(found, load_mappings(mapping), causal, mapping, context)
    (as_json if json else inspected)(document)
