"""``sam3lite convert``: checks of its options, the target of a push, and progress on the terminal."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial as partly
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from sam3lite_convert.checkpoint.selection import selection
from sam3lite_convert.cli import interrupts
from sam3lite_convert.cli import options as o
from sam3lite_convert.cli.mistakes import Mistake
from sam3lite_convert.cli.shared import (
    check_layout,
    found_or_fault,
    locate,
    many_checkpoints,
    needed_checkpoint,
    typed,
    use_one_thread,
    where,
)
from sam3lite_convert.errors import CannotRun
from sam3lite_convert.hub.aliases import DEFAULT_PATTERN, DEFAULT_REPO, DEFAULT_REVISION

if TYPE_CHECKING:
    from sam3lite_convert.checkpoint.hashing import SourceHash
    from sam3lite_convert.commands.convert import Progress, Request
    from sam3lite_convert.commands.push import PushTarget
    from sam3lite_convert.commands.sources import Location
    from sam3lite_convert.plan.tables import Mappings
    from sam3lite_convert.records.convert import ConvertAllDocument, ConvertDocument
    from sam3lite_convert.workers import Advance


_SEVERAL = "several checkpoints"


def check_together(asked: set[str], names: Sequence[str], component: str, verify: bool | None) -> None:
    """Raises CannotRun if options contradict each other, or if one needs another that is not given.

    ``asked``: names of the options that differ from their defaults. ``names``: the checkpoints.
    """
    if "--all" not in asked:
        needed_checkpoint(names[0] if names else None, "convert", "; or --all")
    for one, other in (
        ("--all", "--checkpoint"), ("--all", "--dry-run"), ("--all", "--hub-model-id"), ("--all", "--partial"),
        ("--all", "--state-dict-key"), ("--all", "--strip-prefix"), ("--all", "--drop"),
        ("--dry-run", _SEVERAL), ("--hub-model-id", _SEVERAL), ("--partial", _SEVERAL),
        ("--partial", "--push-to-hub"), ("--dry-run", "--push-to-hub"), ("--dry-run", "--parity"),
        ("--dry-run", "--verify"), ("--dry-run", "--fail-on-nonfinite"), ("--trust", "--push-to-hub"),
        ("--trust", "--verify"), ("--trust", "--overwrite"), ("--trust", "--onnx"), ("--dry-run", "--onnx"),
    ):  # fmt: skip
        if {one, other} <= asked | ({"--checkpoint"} if names else set()) | ({_SEVERAL} if len(names) > 1 else set()):
            other = "a checkpoint" if other == "--checkpoint" else other
            raise CannotRun(f"{one} cannot be combined with {other}", "usage")
    for one, needed in (
        ("--pattern", "--all"), ("--hub-namespace", "--all"), ("--hub-model-id", "--push-to-hub"),
        ("--hub-namespace", "--push-to-hub"), ("--private", "--push-to-hub"), ("--create-pr", "--push-to-hub"),
        ("--commit-message", "--push-to-hub"), ("--hub-overwrite", "--push-to-hub"),
    ):  # fmt: skip
        if one in asked and needed not in asked:
            raise CannotRun(f"{one} needs {needed}", "usage")
    if "--push-to-hub" in asked and verify is False:
        raise CannotRun("--push-to-hub cannot be combined with --no-verify: only verified folders are pushed", "usage")
    if "--onnx" in asked and verify is False:
        raise CannotRun("--onnx cannot be combined with --no-verify: a graph is written over proven tensors", "usage")
    if "--partial" in asked and component != "text":
        raise Mistake(
            "--partial downloads only the text tensors, so it needs --component text",
            lambda line: line.with_option("--component", "text"),
        )


class Destination:
    """The target of a push, as the options give it. ``asked``: whether there is a push at all."""

    def __init__(
        self,
        asked: bool,
        repo: str | None,
        namespace: str | None,
        private: bool,
        pr: bool,
        message: str | None,
        replace: bool,
    ) -> None:
        self.asked, self._repo, self._namespace = asked, repo, namespace
        self._how = (private, pr, message, replace)

    def check(self) -> None:
        """Look up the user name for missing parts of the target. Raises CannotRun if no token is accepted."""
        from sam3lite_convert.commands.push import user_name

        user = user_name()
        self._namespace = self._namespace or user
        if self._repo is not None and "/" not in self._repo:
            self._repo = f"{user}/{self._repo}"

    def target(self, location: Location) -> PushTarget:
        """The PushTarget of one checkpoint. Raises CannotRun if its name is not valid."""
        from sam3lite_convert.commands.push import PushTarget, check_name

        repo = self._repo or f"{self._namespace}/{location.stem}"
        check_name(repo)
        return PushTarget(repo, *self._how)


def convert_one(
    location: Location,
    mappings: Mappings,
    request: Request,
    to: Destination,
    hashing: SourceHash | None,
    json: bool,
) -> ConvertDocument:
    """Convert one checkpoint, with progress on the terminal unless ``json``; returns its document."""
    from sam3lite_convert.commands import convert_all
    from sam3lite_convert.commands.convert_all import Callbacks
    from sam3lite_convert.report import push

    if to.asked:
        to.check()
    target = to.target(location) if to.asked else None
    bars = _Bars(json)
    callbacks = Callbacks(progress=bars.progress, hashes=bars.follow)
    if not json:
        callbacks = replace(callbacks, planned=bars.planned, written=bars.written, pushes=push.push_planned)
    try:
        return convert_all.convert_one(location, mappings, request, target, callbacks, hashing)
    finally:
        bars.close()


def convert_many(run: Callable[..., ConvertAllDocument], to: Destination, json: bool) -> ConvertAllDocument:
    """Several conversions, with progress on the terminal unless ``json``; returns one document.

    ``run``: does them, with the keyword arguments ``target`` and ``callbacks``.
    """
    from sam3lite_convert.commands.convert_all import Callbacks
    from sam3lite_convert.report import push

    if to.asked:
        to.check()  # a missing token is reported before the first download
    bars = _Bars(json)
    callbacks = Callbacks()
    if not json:
        callbacks = Callbacks(
            planned=bars.remember,
            pushes=push.push_planned,
            begins=_begins,
            ends=push.batch_ends,
            hashes=bars.follow,
            progress=bars.progress,
        )
    try:
        return run(target=to.target if to.asked else None, callbacks=callbacks)
    finally:
        bars.close()


def _begins(number: int, total: int, location: Location, what: str) -> None:
    from sam3lite_convert.report.push import batch_begins

    size = None
    if location.file is not None:
        size = location.file.size if what == "convert" else None
    elif location.path.is_file():
        size = location.path.stat().st_size
    batch_begins(number, total, location.name, size)


class _Bars:
    """Progress bars that appear with the first byte: by then the plan is printed and the totals are known."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._totals: dict[str, int | None] = {"write": None, "hash": None, "verify": None}
        self._shown = ExitStack()
        self._bars: Progress | None = None

    def planned(self, document: ConvertDocument) -> None:
        from sam3lite_convert.report.convert import planned

        self.remember(document)
        planned(document)

    def remember(self, document: ConvertDocument) -> None:
        self.close()
        if document.plan is not None:
            size = document.plan.bytes
            self._totals = {"write": size, "hash": document.plan.file.size, "verify": size}

    def written(self, document: ConvertDocument) -> None:
        from sam3lite_convert.report.convert import converted

        self.close()
        converted(document)

    def follow(self, hashing: SourceHash, path: Path) -> None:
        """A bar for a hash that is computed before there is a plan: an earlier folder is compared by it."""
        if path.is_file():
            self._totals["hash"] = path.stat().st_size
        hashing.follow(self._advance("hash"))

    def progress(self, location: Location) -> Progress:
        return self._advance

    def _advance(self, what: str) -> Advance:
        if self._bars is None:
            labels = {"write": "writing", "hash": "hashing the source", "verify": "verifying"}
            from sam3lite_convert.report.bars import byte_progress

            self._bars = self._shown.enter_context(byte_progress(self._totals, labels, self._quiet))
        advance = self._bars(what)

        def checked(n: int) -> None:
            interrupts.check()
            advance(n)

        return checked

    def close(self) -> None:
        self._shown.close()
        self._bars = None


def convert(
    sources: o.SourcesArgument = None,
    checkpoint: o.CheckpointOption = None,
    all_: o.All = False,
    pattern: o.Pattern = DEFAULT_PATTERN,
    output: o.OutputOption = None,
    layout: o.Layout = None,
    component: o.ComponentOption = o.Component.all,
    dtype: o.CastTo = None,
    context: o.ContextOption = None,
    causal: o.Causal = False,
    max_shard_size: o.MaxShardSize = None,
    fail_on_nonfinite: o.FailOnNonfinite = False,
    allow_overflow: o.AllowOverflow = False,
    tokenizer: o.Tokenizer = None,
    state_dict_key: o.StateDictKey = None,
    strip_prefix: o.StripPrefix = None,
    drop: o.Drop = None,
    reason: o.Reason = None,
    mapping: o.Mapping = None,
    dry_run: o.DryRun = False,
    overwrite: o.Overwrite = False,
    trust: o.Trust = False,
    verify: o.VerifyOption = None,
    onnx: o.OnnxOption = False,
    parity: o.ParityOption = False,
    allow_not_read: o.AllowNotRead = False,
    partial: o.Partial = False,
    repo_id: o.RepoId = DEFAULT_REPO,
    revision: o.Revision = DEFAULT_REVISION,
    cache_dir: o.CacheDir = None,
    push_to_hub: o.PushToHub = False,
    hub_model_id: o.HubModelId = None,
    hub_namespace: o.HubNamespace = None,
    hub_overwrite: o.HubOverwrite = False,
    private: o.Private = False,
    create_pr: o.CreatePr = False,
    commit_message: o.CommitMessage = None,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
    json: o.Json = False,
) -> None:
    """Convert a checkpoint to a safetensors folder, or several to a folder each.

    A folder also holds config.json, a receipt (conversion.json) and a model card. It is written as a whole or not
    at all. --partial needs --component text.

    Examples:
    # A released file from the Hub, to converted/:
    sam3lite convert s0
    # A fine-tune, for transformers, verified before it is in place:
    sam3lite convert my.pt --layout transformers --output my-sam3 --verify
    """
    from sam3lite_convert.checkpoint.hashing import SourceHash

    chosen = selection(state_dict_key, strip_prefix, drop, reason)
    names = many_checkpoints(sources, checkpoint)
    # Hashing takes longest: it begins before the rest is even imported.
    local = len(names) == 1 and not all_ and not dry_run and os.path.exists(names[0])
    hashing = SourceHash(Path(names[0])) if local else None
    from sam3lite_convert.commands.convert import Request, plan_conversion
    from sam3lite_convert.commands.convert_all import convert_all, convert_several
    from sam3lite_convert.convert.processor_files import DEFAULT_TOKENIZER
    from sam3lite_convert.convert.strict import Strict
    from sam3lite_convert.plan.plan import Options
    from sam3lite_convert.plan.tables import load_mappings
    from sam3lite_convert.report import convert as shown
    from sam3lite_convert.report.push import converted_all, converted_end
    from sam3lite_convert.report.terminal import as_json

    use_one_thread()
    asked = {
        "--all": all_, "--dry-run": dry_run, "--pattern": pattern != DEFAULT_PATTERN, "--push-to-hub": push_to_hub,
        "--hub-model-id": hub_model_id, "--hub-namespace": hub_namespace, "--private": private,
        "--create-pr": create_pr, "--commit-message": commit_message, "--hub-overwrite": hub_overwrite,
        "--partial": partial, "--parity": parity, "--onnx": onnx, "--trust": trust, "--overwrite": overwrite,
        "--verify": verify, "--fail-on-nonfinite": fail_on_nonfinite, "--allow-overflow": allow_overflow,
        "--state-dict-key": state_dict_key is not None, "--strip-prefix": strip_prefix, "--drop": drop,
    }  # fmt: skip
    check_together({name for name, value in asked.items() if value}, names, component.value, verify)
    if push_to_hub or onnx:
        verify = True
    request = Request(
        Options(o.layout_of(layout, component), component.value, dtype.value if dtype else None, context, causal),
        output,
        overwrite,
        o.parse_size(max_shard_size) if max_shard_size is not None else None,
        bool(verify),
        parity,
        tokenizer or DEFAULT_TOKENIZER,
        tokenizer is not None,
        cache_dir,
        partial=partial,
        command=typed(),
        strict=Strict(fail_on_nonfinite, not allow_overflow),
        mapping=mapping,
        not_read_allowed=allow_not_read,
        trust=trust,
        onnx=onnx,
    )
    mappings = load_mappings(mapping)
    check_layout(layout, mappings)
    to = Destination(push_to_hub, hub_model_id, hub_namespace, private, create_pr, commit_message, hub_overwrite)
    if all_ or len(names) > 1:
        run = partly(convert_all, where(repo_id, revision, cache_dir, json), pattern, mappings, request)
        if not all_:
            found = {name: found_or_fault(name, repo_id, revision, cache_dir, json, chosen) for name in names}
            run = partly(convert_several, found, mappings, request)
        every = convert_many(run, to, json)
        (as_json if json else converted_all)(every)
        if every.verdict == "failed":
            raise typer.Exit(1)
        return
    location = locate(names[0], repo_id, revision, cache_dir, json, chosen)
    if dry_run:
        document = plan_conversion(location, mappings, request)
        if not json:
            shown.planned(document, whole=True)
            shown.planned_alone(document)
    else:
        document = convert_one(location, mappings, request, to, hashing, json)
        if not json:
            converted_end(document)
    if json:
        as_json(document)
    if document.written is not None and document.written.failed:
        raise typer.Exit(1)
