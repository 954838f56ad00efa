"""What a repository is and holds, as the Hub's API states it: odd entries of a listing are told apart by name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

from huggingface_hub import constants
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from sam3lite_convert.hub.bounds import COMMIT, api_page, unexpected
from sam3lite_convert.hub.log import LOG
from sam3lite_convert.hub.requests import TRIES, retried
from sam3lite_convert.records.record import JsonValue

_PAGES = 1_000
_ENTRIES = 200_000
_LARGEST = 1 << 44  # bytes; no file system of a Hub holds a larger file
_PATH, _NAME = 1_000, 255  # characters, and bytes of what is one name on a disk
_NOTED = 5
_BLOB = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_REFERENCE = re.compile(r"refs/pr/([0-9]{1,9})")
_LICENCE = ("license", "license_name", "license_link")
_LONGEST = 1_000  # characters of a field of a model card that is passed on


class Entry(NamedTuple):
    """A file as the Hub lists it. ``blob_id``: Git's, of a large file that of its pointer. ``sha256``: None for a
    small file."""

    path: str
    size: int
    blob_id: str
    sha256: str | None = None

    @property
    def etag(self) -> str:
        """What names its content in the cache."""
        return self.sha256 or self.blob_id


class OddEntry(NamedTuple):
    """An entry of a listing that cannot be used.

    ``path``: None if it has none that can be shown. ``why``: in words. ``placed``: whether its path is one of a file
    in a repository, so that a pattern tells whether it is meant.
    """

    path: str | None
    why: str
    placed: bool = True

    def __str__(self) -> str:
        return f"{self.path or 'an entry'} {self.why}"


class Tree(NamedTuple):
    """The files of a repository at a commit, and what is odd in their listing."""

    entries: tuple[Entry, ...]
    odd: tuple[OddEntry, ...]

    def note(self, repo: str) -> None:
        """Say what is left out."""
        for entry in self.odd[:_NOTED]:
            LOG.warning("%s: left out of the listing: %s", repo, entry)
        if len(self.odd) > _NOTED:
            LOG.warning("%s: left out of the listing: %s more entries", repo, f"{len(self.odd) - _NOTED:,}")


class Info(NamedTuple):
    """A repository at a revision. ``name``: OWNER/NAME, another one if it was renamed. ``private``: None if the Hub
    does not say. ``licence``: licence fields of its model card."""

    name: str
    commit: str
    private: bool | None
    licence: Mapping[str, JsonValue]


class Reference(NamedTuple):
    """A pull request. ``ref``: refs/pr/NUMBER."""

    number: int
    ref: str
    commit: str


def _api(repo: str, *rest: str) -> str:
    validate_repo_id(repo)
    return "/".join([f"{constants.ENDPOINT}/api/models/{repo}", *(quote(part, safe="") for part in rest)])


def read_info(repo: str, revision: str | None = None, tries: int = TRIES) -> Info:
    """A repository at a revision, or at the head of its main branch. ``tries``: as for ``retried``.

    Raises CannotRun for an answer that is not the Hub's, and as ``api_page`` does.
    """
    url = _api(repo) if revision is None else _api(repo, "revision", revision)
    found = _object(retried(lambda: api_page(url), tries).value)
    commit, name, private = found.get("sha"), found.get("id", repo), found.get("private")
    if not isinstance(commit, str) or not COMMIT.fullmatch(commit):
        raise unexpected("the commit is not a hash")
    if not isinstance(name, str) or not re.fullmatch(r"[\w.-]{1,96}/[\w.-]{1,96}", name, re.ASCII):
        raise unexpected("the repository's name is not a name")
    if private is not None and not isinstance(private, bool):
        raise unexpected("it does not say whether the repository is private")
    return Info(name, commit, private, _licence(found.get("cardData")))


def _object(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise unexpected("the answer of the API is not a JSON object")
    return value


def _licence(card: object) -> dict[str, JsonValue]:
    """The licence fields of a card: text, or a list of texts. What is neither is left out."""
    fields = card if isinstance(card, dict) else {}
    return {name: value for name in _LICENCE if (value := _said(fields.get(name))) is not None}


def _said(value: object) -> JsonValue:
    if isinstance(value, list):
        texts = [text for item in value[:20] if isinstance(text := _said(item), str)]
        return list[JsonValue](texts) or None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    text = str(value)
    return text if 0 < len(text) <= _LONGEST and _encodable(text) and "\0" not in text else None


def _encodable(text: str) -> bool:
    """Whether it has no lone surrogate."""
    return not any("\ud800" <= c <= "\udfff" for c in text)


def read_tree(repo: str, commit: str) -> Tree:
    """Every file of a repository at a commit.

    Raises CannotRun for a listing that is not one or does not end, and as ``api_page`` does.
    """
    rows: list[Any] = []
    url: str | None = _api(repo, "tree", commit) + "?" + urlencode({"recursive": "true", "expand": "false"})
    seen = set[str]()
    while url is not None:
        if url in seen or len(seen) >= _PAGES or len(rows) > _ENTRIES:
            raise unexpected("the pages of a listing do not end")
        seen.add(url)
        page = retried(lambda url=url: api_page(url))  # type: ignore[misc]
        if not isinstance(page.value, list):
            raise unexpected("a page of the listing is not a JSON list")
        rows += page.value
        url = page.more
    return tree_of(rows)


def tree_of(rows: Iterable[Any]) -> Tree:
    """The files of a listing. An entry that cannot be used, or contradicts another one, is odd."""
    files: dict[str, Entry] = {}
    odd: dict[str | None, OddEntry] = {}
    for row in rows:
        read = _entry(row)
        if isinstance(read, OddEntry):
            odd[read.path if read.path else f"{len(odd)}"] = read
        elif read is not None and files.setdefault(read.path, read) != read:
            odd[read.path] = OddEntry(read.path, "is listed twice, as different files")
    for path in files:
        parts = path.split("/")
        if any("/".join(parts[:n]) in files for n in range(1, len(parts))):
            odd[path] = OddEntry(path, "lies in a folder that is a file")
    return Tree(tuple(entry for path, entry in files.items() if path not in odd), tuple(odd.values()))


def _entry(row: Any) -> Entry | OddEntry | None:
    """One row of a listing; None for a folder."""
    if not isinstance(row, dict):
        return OddEntry(None, "is not a JSON object", False)
    path = row.get("path")
    if row.get("type") == "directory":
        return None
    if not isinstance(path, str):
        return OddEntry(None, "has a path that is not text", False)
    if why := _bad_path(path):
        return OddEntry(ascii(path[:100])[1:-1], why, False)
    if row.get("type") != "file":
        return OddEntry(path, "is neither a file nor a folder")
    size, blob, large = row.get("size"), row.get("oid"), row.get("lfs")
    if not isinstance(size, int) or not _is_size(size):
        return OddEntry(path, "has a size that is not one")
    if not isinstance(blob, str) or not _BLOB.fullmatch(blob):
        return OddEntry(path, "has a Git id that is not a hash")
    if large is None:
        return Entry(path, size, blob)
    if not isinstance(large, dict) or not isinstance(sha256 := large.get("oid"), str) or not _SHA256.fullmatch(sha256):
        return OddEntry(path, "has a SHA-256 that is not a hash")
    if not _is_size(large.get("size")) or large["size"] != size:
        return OddEntry(path, "has two sizes")
    return Entry(path, size, blob, sha256)


def _is_size(size: object) -> bool:
    return isinstance(size, int) and not isinstance(size, bool) and 0 <= size <= _LARGEST


def _bad_path(path: str) -> str | None:
    """Why a path cannot be used as one below a folder; None if it can."""
    if not path.strip():
        return "has an empty path"
    if not _encodable(path):
        return "has a path with a lone surrogate"
    if not path.isprintable():
        return "has a path with control characters"
    if len(path) > _PATH or any(len(part.encode()) > _NAME for part in path.split("/")):
        return "has a path that is too long"
    if "\\" in path or any(part in ("", ".", "..") for part in path.split("/")):
        return "has a path that leads elsewhere"
    return None


def read_references(repo: str) -> list[Reference]:
    """The open pull requests of a repository, the newest first; what is not one is left out.

    Raises CannotRun for an answer that is not the Hub's, and as ``api_page`` does.
    """
    url = _api(repo, "refs") + "?" + urlencode({"include_prs": "1"})
    found = _object(retried(lambda: api_page(url)).value).get("pullRequests")
    return sorted(_references(found if isinstance(found, list) else []), reverse=True)


def _references(rows: list[Any]) -> Iterator[Reference]:
    for row in rows:
        ref, commit = (row.get("ref"), row.get("targetCommit")) if isinstance(row, dict) else (None, None)
        if not isinstance(ref, str) or not isinstance(commit, str) or not COMMIT.fullmatch(commit):
            continue
        if match := _REFERENCE.fullmatch(ref):
            yield Reference(int(match[1]), ref, commit)


def read_user(tries: int = TRIES) -> str:
    """The name of the user whose token is set. ``tries``: as for ``retried``.

    Raises LocalTokenNotFoundError without a token, CannotRun for an answer that is not the Hub's, and as ``api_page``
    does.
    """
    found = _object(retried(lambda: api_page(f"{constants.ENDPOINT}/api/whoami-v2", token=True), tries).value)
    name = found.get("name")
    if not isinstance(name, str) or not re.fullmatch(r"[\w.-]{1,96}", name, re.ASCII):
        raise unexpected("the name of the account is not a name")
    return name
