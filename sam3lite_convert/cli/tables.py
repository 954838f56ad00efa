"""``sam3lite tables``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sam3lite_convert.checkpoint.selection import selection
from sam3lite_convert.cli import options as o
from sam3lite_convert.cli.mistakes import Mistake
from sam3lite_convert.cli.shared import check_family, check_layout, is_checkpoint, locate
from sam3lite_convert.errors import CannotRun
from sam3lite_convert.hub.aliases import DEFAULT_REPO, DEFAULT_REVISION

if TYPE_CHECKING:
    from sam3lite_convert.plan.tables import Mappings


def tables(
    checkpoint: o.TablesArgument = None,
    glob: o.GlobArgument = None,
    keys: o.KeysGlob = None,
    layout: o.Layout = None,
    component: o.ComponentOption = o.Component.all,
    family: o.FamilyOption = None,
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
    """Show the mapping tables: pattern to pattern, operations, and what is dropped and why.

    With CHECKPOINT also how many of its keys each rule takes, which rules take none, and the keys that no rule takes.
    With GLOB its tensors one by one. Reads no tensor data; of a checkpoint on the Hub only the index is downloaded.

    Examples:
    # How many keys each rule takes, and what is dropped:
    sam3lite tables s0
    # One layer's attention, from name to name:
    sam3lite tables s0 '*.layers.3.*attn*' --layout transformers
    """
    from sam3lite_convert.commands.tables import Choice, list_keys, list_tables
    from sam3lite_convert.plan.tables import load_mappings
    from sam3lite_convert.report import tables as report
    from sam3lite_convert.report.terminal import as_json

    if keys is not None and glob is not None and keys != glob:
        raise CannotRun(f"two patterns: {glob} and --keys {keys}; give one of them", "usage")
    pattern = glob if glob is not None else keys
    check_family(family)
    choice = Choice(layout, family, component.value)
    mappings = load_mappings(mapping)
    check_layout(layout, mappings)
    if checkpoint is None:
        chosen = (repo_id, revision, cache_dir) != (DEFAULT_REPO, DEFAULT_REVISION, None)
        if pattern is not None or chosen or state_dict_key or strip_prefix or drop or reason:
            raise CannotRun("keys are those of a checkpoint; give one: sam3lite tables s0 '*qkv*'", "usage")
        document = list_tables(mappings, choice)
        (as_json if json else report.tables)(document)
        return
    if not Path(checkpoint).exists():
        _check_meant(checkpoint, pattern, mappings)
    stated = selection(state_dict_key, strip_prefix, drop, reason)
    source = locate(checkpoint, repo_id, revision, cache_dir, json, stated).index()
    if pattern is None:
        document = list_tables(mappings, choice, source)
        (as_json if json else report.tables)(document)
        return
    found = list_keys(source, pattern, mappings, choice, "tables")
    (as_json if json else report.keys)(found)


def _check_meant(name: str, pattern: str | None, mappings: Mappings) -> None:
    """Raises Mistake if what stands in the place of the checkpoint is a pattern, a layout or a family."""
    from sam3lite_convert.plan.taken import is_glob

    if is_glob(name) and pattern is not None and is_checkpoint(pattern):
        raise Mistake(
            f"{pattern} is a checkpoint, and comes before the pattern", lambda line: line.swapped(name, pattern)
        )
    if is_glob(name):
        message = f"{name} is a pattern for keys; give a checkpoint before it"
        raise Mistake(message, lambda line: line.with_argument(0, "s0"), example=True)
    from sam3lite_convert.plan.families import FAMILIES

    for option, names in (("--layout", mappings.names), ("--family", FAMILIES)):
        if found := [one for one in names if one.lower() == name.lower()]:
            value = found[0]
            raise Mistake(
                f"{name} is not a checkpoint; it is a value of {option}",
                lambda line: line.as_option(name, option, value),  # noqa: B023  raised at once
            )
