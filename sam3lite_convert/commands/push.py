"""Pushes a converted folder to the Hub: plans the changes, makes one commit, and checks what arrived.

Files are uploaded by ``huggingface_hub``, which does not send content again that the Hub already has.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, constants, hf_hub_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from sam3lite_convert.checkpoint.hashing import git_blob_id, sha256_of
from sam3lite_convert.checkpoint.index import stamp_of
from sam3lite_convert.checkpoint.place import JSON_LIMIT
from sam3lite_convert.convert.card import CARD_NAME
from sam3lite_convert.convert.folder import Folder
from sam3lite_convert.convert.graph_files import DETECTOR_MODELS, QUANTIZED_MODELS, TEXT_MODEL
from sam3lite_convert.convert.processor_files import FRAMES_NAME, PROCESSOR, TOKENIZER_NAMES
from sam3lite_convert.convert.receipt import RECEIPT_NAME
from sam3lite_convert.convert.safetensors_writer import INDEX_NAME
from sam3lite_convert.convert.side_files import CONFIG_NAME, FINGERPRINT_NAME, missing_licences
from sam3lite_convert.errors import CannotRun, Sam3LiteError, Untrusted
from sam3lite_convert.hub.aliases import DEFAULT_REVISION
from sam3lite_convert.hub.bounds import COMMIT, at_most, unexpected
from sam3lite_convert.hub.licences import LICENCE_NAME
from sam3lite_convert.hub.repository import forget, odd_entry
from sam3lite_convert.hub.requests import INVALID_NAME, hub_faults, retried
from sam3lite_convert.hub.tree import Entry, Info, read_info, read_references, read_tree, read_user
from sam3lite_convert.json_text import parse_json
from sam3lite_convert.opened import read_small
from sam3lite_convert.records.convert import FileState, PushedFile, PushPlanRecord, PushRecord
from sam3lite_convert.records.receipt import Receipt
from sam3lite_convert.records.verify import VerifyDocument
from sam3lite_convert.seen import same_content

_LOGIN = "Log in with 'hf auth login', or set HF_TOKEN to a token that may write"
_REQUESTS_LOOKED_AT = 10  # of the newest pull requests
_ANSWERS = 12  # to the request that creates a repository; the client repeats it for as long as it is told to
_SMALL = 16 << 20  # bytes of a receipt, and of a file that is sent from memory
# What a conversion writes, beside files of tensors and licences.
_OF_A_MODEL = (CARD_NAME, CONFIG_NAME, FINGERPRINT_NAME, INDEX_NAME, RECEIPT_NAME)
_OF_ITS_USE = (FRAMES_NAME, *PROCESSOR, *TOKENIZER_NAMES, TEXT_MODEL, *DETECTOR_MODELS, *QUANTIZED_MODELS)
_OURS = frozenset((*_OF_A_MODEL, *_OF_ITS_USE))
_SERVED = (".gitattributes", "README.md", "LICENSE")  # what a repository may hold before anything is pushed


@dataclass(frozen=True)
class PushTarget:
    """The repository that a folder is pushed to, and how.

    ``repo``: NAMESPACE/NAME.
    ``private``: make a new repository private.
    ``create_pr``: open a pull request in place of a commit on the main branch.
    ``message``: the commit message; None for a generated one.
    ``replace``: overwrite another conversion, and a model card or licence file that was edited on the Hub.
    """

    repo: str
    private: bool = False
    create_pr: bool = False
    message: str | None = None
    replace: bool = False


@dataclass(frozen=True)
class PushPlan:
    """What a push would do. ``files``: by name; ``left``: files of the folder that no conversion writes; ``deleted``:
    files of an earlier conversion that this one does not have; ``head``: the commit that it is based
    on, None for a repository that does not exist; ``revision``: what that is the head of; ``stamps``: identity, size
    and times of the files when the plan was made."""

    target: PushTarget
    files: dict[str, PushedFile]
    deleted: tuple[str, ...]
    head: str | None
    private: bool
    left: tuple[str, ...] = ()
    revision: str = DEFAULT_REVISION
    stamps: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def nothing(self) -> bool:
        """Whether everything is there already."""
        unchanged = all(file.state in ("same", "kept") for file in self.files.values())
        return self.head is not None and not self.deleted and unchanged

    def record(self) -> PushPlanRecord:
        """What the push changes, for documents."""
        return PushPlanRecord(
            repo=self.target.repo,
            creates=self.head is None,
            private=self.private,
            pull_request=self.target.create_pr,
            revision=self.revision,
            files=self.files,
            deleted=self.deleted,
            left=self.left,
        )


def user_name() -> str:
    """The name of the user whose token is set. Raises CannotRun if there is none or the Hub refuses it."""
    try:
        with hub_faults("the account", "write"):
            return read_user()
    except CannotRun as fault:
        if fault.code == "no_token":
            raise CannotRun(f"no token is set, and a push needs one. {_LOGIN}.", "no_token") from fault
        if fault.code == "no_access":
            raise CannotRun(f"the Hub does not accept the token that is set. {_LOGIN}.", "no_access") from fault
        raise


def check_name(repo: str) -> None:
    """Raises CannotRun if this is not a valid NAMESPACE/NAME."""
    try:
        validate_repo_id(repo)
    except HFValidationError as fault:
        raise CannotRun(INVALID_NAME.format(repo), "usage") from fault
    if repo.count("/") != 1:
        raise CannotRun(INVALID_NAME.format(repo), "usage")


def plan_push(folder: Path, target: PushTarget) -> PushPlan:
    """Compare the folder with the repository. What changes in the folder after this is not pushed.

    Raises CannotRun if the repository holds files that no conversion wrote, or another conversion, or if it is public
    and ``private`` is set.
    """
    stamps = {p.name: stamp_of(p) for p in _files(folder)}
    with hub_faults(target.repo, "write"):
        try:
            info = read_info(target.repo)
        except GatedRepoError:
            raise
        except RepositoryNotFoundError:
            # A private one of somebody else looks the same; creating it will say so.
            local = {p.name: PushedFile(bytes=p.stat().st_size, state="new") for p in _files(folder)}
            return PushPlan(target, local, (), None, target.private, _left(folder), stamps=stamps)
        head = info.commit
        there = _tree(target.repo, head)
        if target.private and not info.private:
            raise CannotRun(
                f"{target.repo} exists and is public; --private applies only to new repositories. Make it private in "
                "its settings, or choose another one with --hub-model-id.",
                "repository_is_public",
            )
        earlier = _earlier(target, folder, there, head)
        files, deleted = _compare(folder, there)
        receipt = _receipt(folder)
        written = _written(earlier) if earlier else {}
        for name in (CARD_NAME, *_licences(receipt)):
            held = there.get(name)
            changed = name in files and files[name].state == "changed"
            if held and changed and held.blob_id not in written.get(name, ()) and not target.replace:
                files[name] = PushedFile(bytes=held.size, state="kept")
        # Only what that conversion wrote. That a tokenizer or a licence could not be had here is no reason to take it
        # away.
        listed = _listed(earlier) if earlier else frozenset()
        tokenizer = TOKENIZER_NAMES if receipt.tokenizer is None else frozenset()
        unknown = receipt.licences is None or missing_licences(folder, receipt)
        licences = _licences(earlier) if earlier and unknown else frozenset()
        deleted = tuple(n for n in deleted if n in listed - tokenizer - licences)
        plan = PushPlan(target, files, deleted, head, bool(info.private), _left(folder), stamps=stamps)
        return (_proposed(folder, plan) or plan) if target.create_pr and not plan.nothing else plan


def _proposed(folder: Path, plan: PushPlan) -> PushPlan | None:
    """The plan against the newest pull request that holds exactly this folder; None if there is none."""
    for found in read_references(plan.target.repo)[:_REQUESTS_LOOKED_AT]:
        files, deleted = _compare(folder, _tree(plan.target.repo, found.commit))
        files |= {name: file for name, file in plan.files.items() if file.state == "kept"}
        proposed = replace(plan, files=files, deleted=deleted, head=found.commit, revision=found.ref)
        if proposed.nothing:
            return proposed
    return None


def _files(folder: Path) -> list[Path]:
    listed = _listed(_receipt(folder))
    return sorted(p for p in folder.iterdir() if p.name in listed and p.is_file() and not p.is_symlink())


def _left(folder: Path) -> tuple[str, ...]:
    ours = {p.name for p in _files(folder)}
    return tuple(sorted(p.name for p in folder.iterdir() if p.name not in ours))


def _listed(receipt: Receipt) -> frozenset[str]:
    """The files of a conversion, as its receipt lists them."""
    return frozenset([*receipt.files, INDEX_NAME, CARD_NAME, RECEIPT_NAME, CONFIG_NAME, *receipt.beside])


def _licences(receipt: Receipt) -> frozenset[str]:
    """The licence files of a conversion, by their names in its folder."""
    return frozenset(licence.name for licence in receipt.licences or () if licence.name)


def _written(receipt: Receipt) -> dict[str, tuple[str | None, ...]]:
    """Git's ids of the card and the licence files as a conversion wrote or pushed them, by name."""
    licences = {licence.name: (licence.blob_id,) for licence in receipt.licences or () if licence.name}
    return {CARD_NAME: (receipt.card_blob_id, receipt.edited_card_blob_id), **licences}


def _receipt(folder: Path) -> Receipt:
    return _read_receipt(folder / RECEIPT_NAME)


def _read_receipt(path: Path) -> Receipt:
    return Receipt.from_json(parse_json(read_small(path, JSON_LIMIT)))


def _earlier(target: PushTarget, folder: Path, there: Mapping[str, Entry], head: str) -> Receipt | None:
    """The receipt of the conversion that the repository holds, None where it holds nothing yet.

    Raises CannotRun if a push would replace or mix with other files.
    """
    names = [n for n in there if n not in _SERVED]
    if not names:
        return None
    other = "Choose another repository with --hub-model-id"
    if RECEIPT_NAME not in names:
        listed = ", ".join(sorted(names)[:4])
        raise CannotRun(
            f"not pushed: {target.repo} holds files that this tool did not write ({listed}). {other}.",
            "repository_not_ours",
        )
    unread = CannotRun(f"the {RECEIPT_NAME} in {target.repo} cannot be read. {other}.", "repository_not_ours")
    if there[RECEIPT_NAME].size > _SMALL:
        raise unread
    with at_most(2 * _SMALL):
        path = Path(retried(lambda: hf_hub_download(target.repo, RECEIPT_NAME, revision=head)))
    if _state(path, there[RECEIPT_NAME]) != "same":
        forget(path)
        raise unexpected(f"the {RECEIPT_NAME} that it sent is not the one that it lists")
    try:
        old = _read_receipt(path)
    except (CannotRun, ValueError, TypeError, KeyError, AttributeError, RecursionError) as fault:
        raise unread from fault
    new = _receipt(folder)
    was, now = _what(old), _what(new)
    if _content(old) == _content(new):
        was, now = was[1:], now[1:]  # one content under two names
    if was != now and not target.replace:
        raise CannotRun(
            f"not pushed: {target.repo} holds another conversion ({', '.join(was)}; this one is {', '.join(now)}). "
            f"{other}, or replace it with --hub-overwrite.",
            "repository_holds_other",
        )
    return old


def _what(receipt: Receipt) -> tuple[str, ...]:
    """What tells one conversion from another: a newer state of the same file is the same one."""
    source, options = receipt.source, receipt.options
    return (
        f"{source.repo}: {source.file}" if source.repo else source.name,
        f"layout {receipt.layout}",
        f"component {receipt.component}",
        receipt.dtype,
        f"context {receipt.context.called}",
        *(["causal True"] if options.causal else []),
    )


def _content(receipt: Receipt) -> str | None:
    return receipt.source.sha256 or receipt.source.etag


def _state(path: Path, there: Entry | None) -> FileState:
    if there is None:
        return "new"
    if path.stat().st_size != there.size:
        return "changed"
    if there.sha256 is not None:
        return "same" if sha256_of(path) == there.sha256 else "changed"
    return "same" if git_blob_id(read_small(path, there.size)) == there.blob_id else "changed"


@dataclass(frozen=True)
class _Sent:
    """A file as it was read to be sent: what has to be there afterwards."""

    operation: CommitOperationAdd
    size: int
    sha256: str
    blob_id: str | None

    @classmethod
    def of(cls, path: Path) -> _Sent:
        """What lies at a path. A small file is sent as it was read, of a large one the Hub is told the hash."""
        size = path.stat().st_size
        data = read_small(path, _SMALL) if size <= _SMALL else None
        operation = CommitOperationAdd(path_in_repo=path.name, path_or_fileobj=path if data is None else data)
        # The client computes it only when it needs it, which is after the file was found unchanged; and shows no bar.
        info = operation.upload_info
        if data is None and not getattr(info, "is_hashed", True):
            info.sha256 = bytes.fromhex(sha256_of(path))
        digest = info.sha256.hex()
        return cls(operation, size if data is None else len(data), digest, git_blob_id(data) if data else None)

    def arrived_as(self, there: Entry | None) -> bool:
        """Whether this is what the Hub lists."""
        if there is None or there.size != self.size:
            return False
        return there.sha256 == self.sha256 if there.sha256 else there.blob_id == self.blob_id


def push(folder: Path, plan: PushPlan, verification: VerifyDocument | None, proven: Folder | None = None) -> PushRecord:
    """Carry out a plan; returns where it went. Only for a folder whose verification succeeded.

    ``verification``: the record of the folder's verification, which must have succeeded. ``proven``: the folder as it
    was read then; what is sent are the files that were read.
    Raises CannotRun if the push fails, or if the plan sends other weights than were proven; Untrusted if a file changed
    since. The folder is not changed.
    """
    if plan.nothing:
        return PushRecord(repo=plan.target.repo, state="current", plan=plan.record(), commit=plan.head)
    if verification is None or verification.verdict != "proven" or proven is None:
        raise CannotRun(f"{folder} was not verified, so it is not pushed", "not_verified")
    _check_sent(folder, plan, proven)
    try:
        return _commit(folder, plan, verification.proven or {})
    except Sam3LiteError as fault:
        raise CannotRun(
            f"push to {plan.target.repo} failed: {fault.message} The folder {folder} is complete. Run the same command "
            "again to continue; files that have arrived are not sent again.",
            fault.code,
        ) from fault


def _check_sent(folder: Path, plan: PushPlan, proven: Folder) -> None:
    """Raises CannotRun if the weights that the plan sends are not those that were proven, or if it sends a file that no
    conversion writes, Untrusted if a file that was read then changed since."""
    foreign = [n for n in plan.files if n not in _OURS and n not in proven.taken and not LICENCE_NAME.fullmatch(n)]
    if foreign:
        raise CannotRun(
            f"not pushed: the receipt of {folder} lists files that no conversion writes ({', '.join(foreign)}). "
            "--overwrite converts again.",
            "edited",
        )
    sent = {name for name in plan.files if name.endswith((".safetensors", ".bin"))}
    if sent != set(proven.taken):
        odd = ", ".join(sorted(sent ^ set(proven.taken)))
        raise CannotRun(
            f"not pushed: the receipt of {folder} lists other files of tensors than were proven ({odd}). --overwrite "
            "converts again.",
            "edited",
        )
    # The folder may have been moved into place since, and its receipt and card were written after the proof.
    stamps = {path.relative_to(proven.path).as_posix(): stamp for path, stamp in proven.stamps.items()}
    stamps.pop(RECEIPT_NAME, None)
    _check_unchanged(folder, stamps, "verified")


def _check_unchanged(folder: Path, stamps: Mapping[str, tuple[int, ...]], since: str) -> None:
    changed = [
        n for n, stamp in stamps.items() if not (folder / n).exists() or not same_content(stamp, stamp_of(folder / n))
    ]
    if changed:
        message = f"not pushed: {', '.join(changed)} in {folder} changed since it was {since}. Run the command again."
        raise Untrusted(message, "changed_file")


def _check_hashes(folder: Path, sent: Mapping[str, _Sent], proven: Mapping[str, str]) -> None:
    """Raises Untrusted if a file that was read to be sent is not the one that was proven, or that was written beside
    it: the card and the receipt, which say what was proven, are newer."""
    digests = {**_receipt(folder).beside, **proven}
    other = [n for n, file in sent.items() if n in digests and file.sha256 != digests[n] and n != CARD_NAME]
    if other:
        message = f"not pushed: {', '.join(other)} in {folder} changed since it was verified. Run the command again."
        raise Untrusted(message, "changed_file")


def _commit(folder: Path, plan: PushPlan, proven: Mapping[str, str]) -> PushRecord:
    """``proven``: SHA-256 by name of the files of tensors."""
    target = plan.target
    message = target.message or f"Convert with sam3lite-convert: {_said(folder)}"
    names = [n for n, file in plan.files.items() if file.state not in ("same", "kept")]
    held = [n for n, file in plan.files.items() if file.state == "same"]
    with hub_faults(target.repo, "write"):
        head = _create(target) if plan.head is None else plan.head
        sent: dict[str, _Sent] = {}

        def commit() -> CommitInfo:
            sent.update({n: _Sent.of(folder / n) for n in names})
            # What was hashed is what was proven, if nothing changed until now; from here on only the hashes count.
            _check_hashes(folder, sent, proven)
            _check_unchanged(folder, plan.stamps, "compared with the Hub")
            return HfApi().create_commit(
                target.repo,
                [*(s.operation for s in sent.values()), *(CommitOperationDelete(path_in_repo=n) for n in plan.deleted)],
                commit_message=message,
                create_pr=target.create_pr,
                # Fails if somebody else committed in between.
                parent_commit=None if target.create_pr else head,
            )

        # The client repeats most of it by itself. A pull request may exist although its response was lost.
        try:
            done = commit() if target.create_pr else retried(commit, 2)
        except (KeyError, AttributeError, TypeError) as fault:
            raise unexpected("the answer to the commit is not one; it may have been made") from fault
        if not isinstance(done.oid, str) or not COMMIT.fullmatch(done.oid):
            raise unexpected("the answer to the commit names no commit; it may have been made")
        there = _tree(target.repo, done.oid)
    wrong = [n for n, file in sent.items() if not file.arrived_as(there.get(n))]
    wrong += [n for n in held if n not in there] + [n for n in plan.deleted if n in there]
    if wrong:
        raise CannotRun(f"what arrived is not what was sent ({', '.join(wrong)}).", "push_incomplete")
    return PushRecord(
        repo=target.repo,
        state="pushed",
        plan=plan.record(),
        commit=done.oid,
        url=_address(done, target),
        sent=tuple(names),
    )


def _address(done: CommitInfo, target: PushTarget) -> str:
    """The page of the commit or of its pull request, if that is one of the Hub's."""
    own = f"{constants.ENDPOINT}/{target.repo}/"
    if done.pr_num is not None:
        return f"{own}discussions/{done.pr_num}"
    return f"{own}commit/{done.oid}"


def _create(target: PushTarget) -> str:
    """Create the repository; returns its head.

    Raises CannotRun if it was created by somebody else in the meantime, or otherwise than was asked.
    """
    try:
        with at_most(requests=_ANSWERS):
            made = retried(lambda: HfApi().create_repo(target.repo, private=target.private))
    except HfHubHTTPError as fault:
        if fault.response.status_code != 409:
            raise
        # It may be ours, from a request whose response was lost: then it is empty.
        info = read_info(target.repo)
        if bool(info.private) == target.private and set(_tree(target.repo, info.commit)) <= {".gitattributes"}:
            return _as_asked(info, target)
        raise CannotRun(
            f"{target.repo} was created by somebody else in the meantime. Run the command again to compare with it.",
            "repository_appeared",
        ) from fault
    if made.repo_id != target.repo:
        raise unexpected(f"it created another repository than {target.repo}, in which nothing was written")
    return _as_asked(read_info(target.repo), target)


def _as_asked(info: Info, target: PushTarget) -> str:
    """The head of a repository that was created just now. Raises CannotRun if it is another one, or public."""
    if info.name != target.repo:
        raise unexpected(f"{target.repo} is {info.name} there; nothing was written")
    if target.private and info.private is not True:
        raise CannotRun(
            f"{target.repo} was created, but the Hub does not say that it is private; nothing was written. Look at its "
            "settings.",
            "repository_is_public",
        )
    return info.commit


def _tree(repo: str, revision: str) -> dict[str, Entry]:
    """The files of a repository, by path. Raises CannotRun if an entry of the listing cannot be used."""
    tree = read_tree(repo, revision)
    for entry in tree.odd:
        raise odd_entry(repo, entry.path or "an entry", entry.why)
    return {entry.path: entry for entry in tree.entries}


def _compare(folder: Path, there: Mapping[str, Entry]) -> tuple[dict[str, PushedFile], tuple[str, ...]]:
    """The folder's files with their states, and the files of an earlier conversion that it lacks."""
    files = {p.name: PushedFile(bytes=p.stat().st_size, state=_state(p, there.get(p.name))) for p in _files(folder)}
    return files, tuple(sorted(n for n in there if n not in files and n != ".gitattributes"))


def _said(folder: Path) -> str:
    receipt = _receipt(folder)
    return f"{receipt.source.name}, layout {receipt.layout}"
