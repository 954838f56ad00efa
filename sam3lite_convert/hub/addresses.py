"""Addresses of checkpoints on the Hub, as people copy them: pages of a browser, and hf:// paths."""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from huggingface_hub import constants

from sam3lite_convert.errors import CannotRun
from sam3lite_convert.hub.log import masked_url

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_OF_A_FILE = ("blob", "resolve", "raw", "blame", "tree")
_OTHERS = {"datasets": "a dataset", "spaces": "a Space", "kernels": "a kernel", "buckets": "a bucket"}
_NAME = re.compile(r"[\w-][\w.-]*")


class Address(NamedTuple):
    """A place on the Hub.

    shown: the address without a query, which may hold a signature, and without a user name and password.
    repo: OWNER/NAME. revision: None if the address names none. path: in the repository; empty for its top.
    """

    shown: str
    repo: str
    revision: str | None
    path: str


def _endpoint() -> tuple[str, str]:
    """Host with port, and path, of the configured endpoint."""
    parts = urlsplit(constants.ENDPOINT)
    return parts.netloc.lower(), parts.path.strip("/")


def public_hosts() -> frozenset[str]:
    """Host names of the public Hub, as huggingface_hub knows them."""
    known = getattr(constants, "HF_URL_HOSTS", frozenset[str]())
    own = urlsplit(constants.ENDPOINT).hostname or ""
    return (frozenset(known) - {own}) | {urlsplit(constants.HUGGINGFACE_CO_URL_HOME).hostname or ""}


def address_of(name: str) -> Address | None:
    """The place that an address names; None if this is no address.

    Raises CannotRun for an address of another host, of another kind of repository, or of a page that is not that of a
    repository, a folder or a file.
    """
    scheme = _SCHEME.match(name)
    if scheme and scheme[1].lower() == "hf":
        return _of_uri(name)
    first = name.split("/", 1)[0].lower()
    if not scheme and first not in public_hosts() | {_endpoint()[0]}:
        return None
    try:
        parts = urlsplit(name if scheme else f"https://{name}")
    except ValueError as fault:
        raise CannotRun(f"{name}: this is no URL ({fault})", "usage") from fault
    host = parts.netloc.rpartition("@")[2].lower()
    shown = f"{parts.scheme}://{host}{parts.path}"
    if scheme and scheme[1].lower() not in ("http", "https"):
        raise CannotRun(f"{shown}: {scheme[1]}:// is not read here; download the file and give its path", "usage")
    endpoint, prefix = _endpoint()
    path = parts.path.strip("/")
    if host == endpoint:
        path = path.removeprefix(prefix).strip("/")
    elif host not in public_hosts():
        raise CannotRun(
            f"{shown}: {host or 'this'} is not the Hub ({masked_url(constants.ENDPOINT)}); download the file and give "
            "its path",
            "other_host",
        )
    segments = _repository([segment for segment in path.split("/") if segment], shown)
    repo, rest = "/".join(segments[:2]), segments[2:]
    if rest and rest[0] not in _OF_A_FILE:
        raise CannotRun(
            f"{shown} is not the page of a file, a folder or a repository; a file's is .../{repo}/blob/main/FILE",
            "usage",
        )
    # A revision with slashes is one segment, in which they are encoded.
    revision, below = _split_revision([unquote(segment) for segment in rest[1:]])
    return Address(shown, repo, revision, "/".join(below))


def _of_uri(name: str) -> Address:
    """``hf://[models/]OWNER/NAME[@REVISION][/PATH]``."""
    body = name[len("hf://") :]
    segments = _repository([segment for segment in body.split("/") if segment], name)
    model, at, begin = segments[1].partition("@")
    rest = segments[2:]
    if not at:
        return Address(name, f"{segments[0]}/{model}", None, "/".join(rest))
    revision, below = _split_revision([unquote(begin), *rest])
    if not revision:
        raise CannotRun(f"{name}: no revision behind the @", "usage")
    return Address(name, f"{segments[0]}/{model}", revision, "/".join(below))


def _repository(segments: list[str], shown: str) -> list[str]:
    """The segments from OWNER on. Raises CannotRun if they begin with no model repository."""
    if segments and segments[0] in _OTHERS:
        raise CannotRun(
            f"{shown} is {_OTHERS[segments[0]]}; checkpoints are read from model repositories. Download the file and "
            "give its path.",
            "not_a_model_repository",
        )
    segments = segments[1:] if segments[:1] == ["models"] else segments
    if len(segments) < 2 or not _NAME.fullmatch(segments[0]) or not _NAME.fullmatch(segments[1].partition("@")[0]):
        raise CannotRun(f"{shown} names no repository (OWNER/NAME)", "usage")
    return segments


def _split_revision(segments: list[str]) -> tuple[str | None, list[str]]:
    """The revision in front, and the rest. Those of pull requests and conversions have three parts."""
    if segments[:1] == ["refs"] and segments[1:2] in (["pr"], ["convert"]) and len(segments) > 2:
        return "/".join(segments[:3]), segments[3:]
    return (segments[0] if segments else None), segments[1:]
