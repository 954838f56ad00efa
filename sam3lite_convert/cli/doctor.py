"""``sam3lite doctor``."""

from __future__ import annotations

import typer

from sam3lite_convert.cli import options as o
from sam3lite_convert.cli.shared import quiet_hub
from sam3lite_convert.hub.aliases import DEFAULT_REPO


def doctor(
    offline: o.Offline = False,
    imports: o.Imports = False,
    repo_id: o.RepoId = DEFAULT_REPO,
    cache_dir: o.CacheDir = None,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
    json: o.Json = False,
) -> None:
    """Check versions, extras, disk, memory and the Hub, and print what to mend.

    The output has no token, password, user name or home folder, so that it can be pasted into an issue. Exits with
    code 1 if something that is needed does not work.

    Examples:
    # What an issue should hold:
    sam3lite doctor --imports
    # Without asking the Hub:
    sam3lite doctor --offline
    """
    from sam3lite_convert.commands.doctor import examine
    from sam3lite_convert.report.doctor import examined
    from sam3lite_convert.report.terminal import as_json

    quiet_hub(json)
    document = examine(repo_id, cache_dir, offline, imports)
    (as_json if json else examined)(document)
    if document.verdict == "problem":
        raise typer.Exit(1)
