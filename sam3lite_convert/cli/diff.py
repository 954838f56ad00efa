"""``sam3lite diff``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sam3lite_convert.checkpoint.selection import selection
from sam3lite_convert.cli import options as o
from sam3lite_convert.cli.shared import leave, locate, one_format, use_one_thread
from sam3lite_convert.hub.aliases import DEFAULT_REPO, DEFAULT_REVISION

if TYPE_CHECKING:
    from sam3lite_convert.commands.sources import Source
    from sam3lite_convert.plan.tables import Mappings
    from sam3lite_convert.records.diff import DiffDocument


def diff(
    a: o.FirstArgument,
    b: o.SecondArgument,
    every: o.EveryTensor = False,
    exit_code: o.ExitCode = False,
    markdown: o.Markdown = False,
    state_dict_key: o.StateDictKey = None,
    state_dict_key_a: o.StateDictKeyA = None,
    state_dict_key_b: o.StateDictKeyB = None,
    strip_prefix: o.StripPrefix = None,
    strip_prefix_a: o.StripPrefixA = None,
    strip_prefix_b: o.StripPrefixB = None,
    mapping: o.Mapping = None,
    repo_id: o.RepoId = DEFAULT_REPO,
    revision: o.Revision = DEFAULT_REVISION,
    cache_dir: o.CacheDir = None,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
    json: o.Json = False,
) -> None:
    """Compare two checkpoints tensor by tensor: what is equal, what changed and by how much, what is only in one.

    Names are canonical, so that it takes any two checkpoints of this family, in any spelling. A checkpoint on the Hub
    is downloaded. Exits with code 0 whatever the result is, unless --exit-code is given.

    Examples:
    # What a fine-tune changed:
    sam3lite diff s0 my.pt
    # Two sets of weights in one file:
    sam3lite diff my.pt my.pt --state-dict-key-a model --state-dict-key-b ema
    """
    from sam3lite_convert.plan.tables import load_mappings
    from sam3lite_convert.report.diff import compared, compared_markdown
    from sam3lite_convert.report.terminal import as_json

    one_format(json, markdown)
    chosen_a = selection(state_dict_key_a or state_dict_key, strip_prefix_a or strip_prefix)
    chosen_b = selection(state_dict_key_b or state_dict_key, strip_prefix_b or strip_prefix)
    use_one_thread()
    first = locate(a, repo_id, revision, cache_dir, json, chosen_a)
    second = locate(b, repo_id, revision, cache_dir, json, chosen_b)
    document = _diff(first.whole(), second.whole(), load_mappings(mapping), json)
    if json:
        as_json(document)
    elif markdown:
        compared_markdown(document)
    else:
        compared(document, every)
    leave(exit_code and document.verdict != "equal", True)


def _diff(a: Source, b: Source, mappings: Mappings, json: bool) -> DiffDocument:
    from sam3lite_convert.commands.diff import diff_checkpoints
    from sam3lite_convert.report.bars import byte_progress

    totals = {"compare": a.size, "hash": a.size + b.size}
    with byte_progress(totals, {"compare": "comparing", "hash": "checking both files"}, json) as progress:
        return diff_checkpoints(a, b, mappings, progress)
