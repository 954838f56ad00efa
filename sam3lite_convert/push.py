"""Pushing a converted folder to the Hub: what would change there first, then one commit, then a look.

Files go through ``huggingface_hub``, which resumes: content that arrived before is not sent again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, hf_hub_download
from huggingface_hub.errors import (
    GatedRepoError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
)
from huggingface_hub.hf_api import ModelInfo, RepoFile

from sam3lite_convert.aliases import DEFAULT_REVISION
from sam3lite_convert.errors import CannotRun, Sam3LiteError
from sam3lite_convert.hub import hub_faults, retried
from sam3lite_convert.output import OWN_FILES
from sam3lite_convert.receipt import RECEIPT_NAME

_LOGIN = "Log in with 'hf auth login', or set HF_TOKEN to a token that may write"
_REQUESTS_LOOKED_AT = 10  # of the newest pull requests
_SERVED = (".gitattributes", "README.md", "LICENSE")  # what a repository may hold before anything is pushed


@dataclass(frozen=True)
class Target:
    """Where a folder goes: repository, and how. ``message``: the commit's, None for one made here."""

    repo: str
    private: bool = False
    create_pr: bool = False
    message: str | None = None


@dataclass(frozen=True)
class PushPlan:
    """What a push would do. ``files``: name -> (bytes, ``new``, ``changed`` or ``same``); ``deleted``:
    files of an earlier conversion that this one does not have; ``head``: the commit that it is based
    on, None for a repository that does not exist; ``revision``: what that is the head of."""

    target: Target
    files: dict[str, tuple[int, str]]
    deleted: tuple[str, ...]
    head: str | None
    private: bool
    revision: str = DEFAULT_REVISION

    @property
    def nothing(self) -> bool:
        """Whether everything is there already."""
        return self.head is not None and not self.deleted and all(state == "same" for _, state in self.files.values())

    def record(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "repo": self.target.repo,
            "creates": self.head is None,
            "private": self.private,
            "pull_request": self.target.create_pr,
            "revision": self.revision,
            "files": {name: {"bytes": size, "state": state} for name, (size, state) in self.files.items()},
            "deleted": list(self.deleted),
        }


def user_name() -> str:
    """The user whose token the library finds. Raises CannotRun where there is none or it is refused."""
    try:
        with hub_faults("the account", "write"):
            return str(retried(lambda: HfApi().whoami())["name"])
    except LocalTokenNotFoundError as fault:
        raise CannotRun(f"pushing needs a token, and none is set. {_LOGIN}.", "no_token") from fault
    except CannotRun as fault:
        if fault.code == "no_access":
            raise CannotRun(f"the Hub does not accept the token that is set. {_LOGIN}.", "no_access") from fault
        raise


def plan_push(folder: Path, target: Target) -> PushPlan:
    """Compare the folder with what the repository holds.

    Raises CannotRun where that is not the result of a conversion, or of another one, or is public where
    a private one was asked for.
    """
    with hub_faults(target.repo, "write"):
        api = HfApi()
        try:
            info: ModelInfo = retried(lambda: api.model_info(target.repo))
        except GatedRepoError:
            raise
        except RepositoryNotFoundError:
            # A private one of somebody else looks the same; creating it will say so.
            local = {p.name: (p.stat().st_size, "new") for p in _files(folder)}
            return PushPlan(target, local, (), None, target.private)
        head = str(info.sha)
        there = _tree(api, target.repo, head)
        if target.private and not info.private:
            raise CannotRun(
                f"{target.repo} exists and is public; --private does not change that. Make it private on its page, or "
                "name another one with --hub-model-id.",
                "repository_is_public",
            )
        _check_ours(target, folder, there, head)
        plan = PushPlan(target, *_compare(folder, there), head, bool(info.private))
        return (_proposed(api, folder, plan) or plan) if target.create_pr and not plan.nothing else plan


def _proposed(api: HfApi, folder: Path, plan: PushPlan) -> PushPlan | None:
    """The plan against the newest pull request that holds exactly this folder; None where none does."""
    refs = retried(lambda: api.list_repo_refs(plan.target.repo, include_pull_requests=True))
    newest = sorted(refs.pull_requests or [], key=lambda r: int(r.ref.rpartition("/")[2]), reverse=True)
    for ref in newest[:_REQUESTS_LOOKED_AT]:
        files, deleted = _compare(folder, _tree(api, plan.target.repo, ref.target_commit))
        found = replace(plan, files=files, deleted=deleted, head=ref.target_commit, revision=ref.ref)
        if found.nothing:
            return found
    return None


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_file())


def _check_ours(target: Target, folder: Path, there: Iterable[str], head: str) -> None:
    """Raises CannotRun where the repository holds something that a push would spoil."""
    names = [n for n in there if n not in _SERVED]
    if not names:
        return
    other = "Name another repository with --hub-model-id"
    if RECEIPT_NAME not in names:
        listed = ", ".join(sorted(names)[:4])
        raise CannotRun(
            f"{target.repo} holds files that no conversion wrote ({listed}), so nothing is pushed there. {other}.",
            "repository_not_ours",
        )
    path = retried(lambda: hf_hub_download(target.repo, RECEIPT_NAME, revision=head))
    try:
        old = json.loads(Path(path).read_text(encoding="utf-8"))
        new = json.loads((folder / RECEIPT_NAME).read_text(encoding="utf-8"))
        was, now = ((r["layout"], r["component"]) for r in (old, new))
    except (OSError, ValueError, KeyError, TypeError) as fault:
        raise CannotRun(
            f"the {RECEIPT_NAME} in {target.repo} cannot be read. {other}.", "repository_not_ours"
        ) from fault
    if was != now:
        raise CannotRun(
            f"{target.repo} holds another conversion (layout {was[0]}, component {was[1]}; this is {now[0]}, "
            f"{now[1]}), which would be replaced. {other}.",
            "repository_holds_other",
        )


def _state(path: Path, there: RepoFile | None) -> str:
    if there is None:
        return "new"
    if path.stat().st_size != there.size:
        return "changed"
    if there.lfs is not None:
        return "same" if _digest(hashlib.sha256(), path) == there.lfs.sha256 else "changed"
    blob = hashlib.sha1(b"blob %d\0" % there.size, usedforsecurity=False)
    return "same" if _digest(blob, path) == there.blob_id else "changed"


def _digest(digest: Any, path: Path) -> str:
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return str(digest.hexdigest())


def push(folder: Path, plan: PushPlan, verification: dict[str, Any] | None) -> dict[str, Any]:
    """Carry out a plan; returns where it went. Only for a folder whose verification succeeded.

    Raises CannotRun where it does not arrive; the folder stays as it is.
    """
    if plan.nothing:
        return plan.record() | {"state": "current", "commit": plan.head, "url": None}
    if not verification or verification["verdict"] != "proven":
        raise CannotRun(f"{folder} was not verified, so it is not pushed", "not_verified")
    try:
        return plan.record() | {"state": "pushed"} | _commit(folder, plan)
    except Sam3LiteError as fault:
        raise CannotRun(
            f"the push to {plan.target.repo} did not succeed: {fault.message} The folder {folder} is complete and "
            "stays as it is. Run the same command again to go on; what has arrived is not sent again.",
            fault.code,
        ) from fault


def _commit(folder: Path, plan: PushPlan) -> dict[str, Any]:
    target = plan.target
    message = target.message or f"Convert with sam3lite-convert: {_said(folder)}"
    sent = [n for n, (_, state) in plan.files.items() if state != "same"]
    with hub_faults(target.repo, "write"):
        api = HfApi()
        if plan.head is None:
            retried(lambda: api.create_repo(target.repo, private=target.private, exist_ok=True))
        done = retried(
            lambda: api.create_commit(
                target.repo,
                [
                    *(CommitOperationAdd(path_in_repo=n, path_or_fileobj=folder / n) for n in sent),
                    *(CommitOperationDelete(path_in_repo=n) for n in plan.deleted),
                ],
                commit_message=message,
                create_pr=target.create_pr,
                # A commit that somebody else made in between is not overwritten.
                parent_commit=None if target.create_pr else plan.head,
            )
        )
        files, _ = _compare(folder, _tree(api, target.repo, done.oid))
    wrong = [n for n, (_, state) in files.items() if state != "same"]
    if wrong:
        raise CannotRun(f"what arrived is not what was sent ({', '.join(wrong)}).", "push_incomplete")
    return {"commit": done.oid, "url": done.pr_url or done.commit_url, "sent": sent}


def _tree(api: HfApi, repo: str, revision: str) -> dict[str, RepoFile]:
    entries = retried(lambda: list(api.list_repo_tree(repo, recursive=True, revision=revision)))
    return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}


def _compare(folder: Path, there: dict[str, RepoFile]) -> tuple[dict[str, tuple[int, str]], tuple[str, ...]]:
    """The folder's files with their states, and the files of an earlier conversion that it lacks."""
    files = {p.name: (p.stat().st_size, _state(p, there.get(p.name))) for p in _files(folder)}
    ours = (n for n in there if n not in files and n != ".gitattributes" and OWN_FILES.fullmatch(n))
    return files, tuple(sorted(ours))


def _said(folder: Path) -> str:
    receipt = json.loads((folder / RECEIPT_NAME).read_text(encoding="utf-8"))
    return f"{receipt['source']['name']}, layout {receipt['layout']}"
