"""The test hub with the real client in process: what it serves, stores, refuses and breaks."""

from __future__ import annotations

import hashlib
import io
import json
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request as UrlRequest
from urllib.request import urlopen

import huggingface_hub
import pytest
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationCopy,
    CommitOperationDelete,
    HfApi,
    get_session,
    hf_hub_download,
    hf_hub_url,
    set_client_factory,
    snapshot_download,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import _http, disable_progress_bars
from packaging.version import Version
from support.hub_server import TOKEN, HubServer, Request

REPO = "team/model"
CARD = b"---\nlicense: apache-2.0\ntags:\n- segmentation\n---\n# A model\n"
WEIGHTS = bytes(range(256)) * 20
EMPTY_OBJECT = "9e26dfeeb6e641a33dae4961196235bdb965b21b"  # git hash-object of {}
FILES = {
    "README.md": CARD,
    "config.json": b"{}",
    "model.safetensors": WEIGHTS,
    "text/a.txt": b"a",
    "text/deep/b.txt": b"bb",
    "z.txt": b"",
}

# The client's own way of sending a file.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")


@pytest.fixture(scope="module", autouse=True)
def own_client() -> Iterator[None]:
    """The library's own client, without the bounds that the command line gives it in this process."""
    before = _http._GLOBAL_CLIENT_FACTORY
    set_client_factory(_http.default_client_factory)
    yield
    set_client_factory(before)


@pytest.fixture
def server() -> Iterator[HubServer]:
    disable_progress_bars()
    users = {TOKEN: "porter", "hf_of_a_guest": "guest"}
    with HubServer(users=users, part_size=1000) as hub:
        yield hub
        assert hub.errors == []


@pytest.fixture
def api(server: HubServer) -> HfApi:
    return HfApi(endpoint=server.url, token=TOKEN)


@pytest.fixture
def anonymous(server: HubServer) -> HfApi:
    return HfApi(endpoint=server.url, token=False)


def download(server: HubServer, path: str, cache: Path, token: str | bool = False, revision: str = "main") -> Path:
    return Path(hf_hub_download(REPO, path, endpoint=server.url, cache_dir=cache, token=token, revision=revision))


def add(path: str, content: bytes) -> CommitOperationAdd:
    """An open file: with hf-xet installed, the client uploads only those by plain HTTP."""
    return CommitOperationAdd(path, io.BytesIO(content))


def safetensors(values: int) -> bytes:
    header = json.dumps({"w": {"dtype": "U8", "shape": [values], "data_offsets": [0, values]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(values)


# Reading


def test_whoami(server: HubServer, api: HfApi) -> None:
    assert api.whoami()["name"] == "porter"
    assert api.whoami(token="hf_of_a_guest")["name"] == "guest"
    with pytest.raises(HfHubHTTPError) as refused:
        api.whoami(token="hf_nobody")
    assert refused.value.response.status_code == 401


def test_model_info_tells_commit_card_and_files(server: HubServer, anonymous: HfApi) -> None:
    first = server.add_repo(REPO, FILES, commit="c0ffee" + "0" * 34)
    assert first == "c0ffee" + "0" * 34
    second = server.commit(REPO, {"z.txt": None, "new.txt": b"new"})
    info = anonymous.model_info(REPO, files_metadata=True)
    assert (info.id, info.sha, info.private, info.gated) == (REPO, second, False, False)
    assert info.card_data is not None and info.card_data.license == "apache-2.0"
    assert info.tags == ["segmentation", "license:apache-2.0"]
    files = {s.rfilename: s for s in info.siblings or []}
    assert set(files) == set(FILES) - {"z.txt"} | {"new.txt"}
    weights = files["model.safetensors"]
    assert weights.lfs is not None and weights.lfs.sha256 == hashlib.sha256(WEIGHTS).hexdigest()
    assert (weights.size, files["config.json"].lfs) == (len(WEIGHTS), None)
    assert files["config.json"].blob_id == EMPTY_OBJECT
    assert anonymous.model_info(REPO, revision=first).sha == first


def test_listing_comes_in_pages(server: HubServer, anonymous: HfApi) -> None:
    server.add_repo(REPO, FILES)
    tree = list(anonymous.list_repo_tree(REPO, recursive=True, expand=True))
    assert [f.path for f in tree] == sorted([*FILES, "text", "text/deep"])
    assert [r.query.get("cursor") is not None for r in server.requests("/tree/")] == [False, True, True]
    assert [f.path for f in anonymous.list_repo_tree(REPO)] == [
        "README.md",
        "config.json",
        "model.safetensors",
        "text",
        "z.txt",
    ]
    assert [f.path for f in anonymous.list_repo_tree(REPO, "text/deep")] == ["text/deep/b.txt"]
    assert anonymous.list_repo_files(REPO) == sorted(FILES)
    with pytest.raises(EntryNotFoundError):
        list(anonymous.list_repo_tree(REPO, "nowhere"))


def test_paths_info_refs_and_history(server: HubServer, anonymous: HfApi) -> None:
    first = server.add_repo(REPO, FILES)
    server.tag(REPO, "v1")
    for n in range(4):
        server.commit(REPO, {"config.json": b"%d" % n}, f"change {n}")
    assert [i.path for i in anonymous.get_paths_info(REPO, ["text", "z.txt", "nowhere"], expand=True)] == [
        "text",
        "z.txt",
    ]
    refs = anonymous.list_repo_refs(REPO)
    assert [(b.name, b.target_commit) for b in refs.branches] == [("main", server.head(REPO))]
    assert [(t.name, t.target_commit) for t in refs.tags] == [("v1", first)]
    history = anonymous.list_repo_commits(REPO)
    assert [c.title for c in history] == [f"change {n}" for n in (3, 2, 1, 0)] + ["initial commit"]
    assert [c.commit_id for c in history] == [c.id for c in reversed(server.commits(REPO))]
    assert server.files(REPO, "v1")["config.json"] == b"{}"


@pytest.mark.parametrize("path", ["config.json", "model.safetensors"])
def test_download_lands_in_the_cache_by_etag_and_commit(server: HubServer, tmp_path: Path, path: str) -> None:
    commit = server.add_repo(REPO, FILES)
    got = download(server, path, tmp_path, TOKEN)
    assert got.read_bytes() == FILES[path]
    assert got.parent.name == commit
    assert (tmp_path / "models--team--model" / "refs" / "main").read_text() == commit
    etags = {"config.json": EMPTY_OBJECT, "model.safetensors": hashlib.sha256(WEIGHTS).hexdigest()}
    assert got.resolve().name == etags[path]
    assert server.sent(path) == len(FILES[path])
    download(server, path, tmp_path)
    assert server.sent(path) == len(FILES[path])


def test_large_files_come_from_another_origin_without_the_token(server: HubServer, tmp_path: Path) -> None:
    server.add_repo(REPO, FILES)
    download(server, "model.safetensors", tmp_path, TOKEN)
    seen = [(r.method, r.path.split("/")[1], r.storage, "authorization" in r.headers) for r in server.log]
    assert seen == [("HEAD", "team", False, True), ("GET", "cdn", True, False)]
    url = hf_hub_url(REPO, "model.safetensors", endpoint=server.url)
    headers = {"authorization": f"Bearer {TOKEN}"}
    assert get_session().get(url, headers=headers).content == WEIGHTS  # follows, and strips the token
    location = get_session().get(url, follow_redirects=False).headers["Location"]
    assert get_session().get(location, headers=headers).status_code == 400
    assert get_session().get(location.partition("?")[0]).status_code == 403


def test_a_former_name_is_redirected(server: HubServer, api: HfApi, tmp_path: Path) -> None:
    server.add_repo("team/renamed", FILES)
    server.alias(REPO, "team/renamed")
    assert api.model_info(REPO).id == "team/renamed"
    assert api.list_repo_files(REPO) == sorted(FILES)
    assert download(server, "text/a.txt", tmp_path).read_bytes() == b"a"


def test_snapshot_of_a_revision(server: HubServer, tmp_path: Path) -> None:
    first = server.add_repo(REPO, FILES)
    server.commit(REPO, {"config.json": b"newer"})
    folder = Path(snapshot_download(REPO, revision=first, endpoint=server.url, cache_dir=tmp_path, token=False))
    assert {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()} == FILES


def test_ranges(server: HubServer, api: HfApi) -> None:
    server.add_repo(REPO, {**FILES, "small.safetensors": safetensors(10)})
    assert api.parse_safetensors_file_metadata(REPO, "small.safetensors").tensors["w"].shape == [10]
    assert server.log[-1].range == "bytes=0-100000" and server.log[-1].status == 206

    def ask(path: str, given: str, **headers: str) -> tuple[int, bytes, str | None]:
        response = get_session().get(hf_hub_url(REPO, path, endpoint=server.url), headers={"Range": given, **headers})
        return response.status_code, response.content, response.headers.get("Content-Range")

    size = len(WEIGHTS)
    for path, content in (("model.safetensors", WEIGHTS), ("README.md", CARD)):
        size = len(content)
        assert ask(path, "bytes=3-6") == (206, content[3:7], f"bytes 3-6/{size}")
        assert ask(path, f"bytes={size - 2}-") == (206, content[-2:], f"bytes {size - 2}-{size - 1}/{size}")
        assert ask(path, "bytes=-5") == (206, content[-5:], f"bytes {size - 5}-{size - 1}/{size}")
        assert ask(path, f"bytes=0-{size * 2}") == (206, content, f"bytes 0-{size - 1}/{size}")
        assert ask(path, f"bytes={size}-") == (416, b"", f"bytes */{size}")
        assert ask(path, "bytes=1-2", **{"If-Range": '"another"'}) == (200, content, None)


def test_a_sparse_file_is_served_from_disk(server: HubServer, tmp_path: Path) -> None:
    path = tmp_path / "sparse.pt"
    with path.open("wb") as file:
        file.seek(50 << 20)
        file.write(b"end")
    server.add_repo(REPO, {"sparse.pt": path})
    with urlopen(UrlRequest(hf_hub_url(REPO, "sparse.pt", endpoint=server.url), headers={"Range": "bytes=-5"})) as got:
        assert got.read() == b"\0\0end"
    assert server.sent("/cdn/") == 5


# Refusals


def test_what_is_not_there(server: HubServer, api: HfApi, anonymous: HfApi, tmp_path: Path) -> None:
    for client in (api, anonymous):
        with pytest.raises(RepositoryNotFoundError):
            client.model_info(REPO)
        with pytest.raises(RepositoryNotFoundError):
            client.hf_hub_download(REPO, "config.json", cache_dir=tmp_path)
    commit = server.add_repo(REPO, FILES)
    with pytest.raises(EntryNotFoundError):
        download(server, "nothing.txt", tmp_path)
    assert (tmp_path / "models--team--model" / ".no_exist" / commit / "nothing.txt").exists()
    for revision in ("v9", "0" * 40, commit[:12]):
        with pytest.raises(RevisionNotFoundError):
            api.model_info(REPO, revision=revision)
        with pytest.raises(RevisionNotFoundError):
            download(server, "config.json", tmp_path, revision=revision)
    assert api.file_exists(REPO, "config.json") and not api.file_exists(REPO, "nothing.txt")


def test_private_repo(server: HubServer, api: HfApi, anonymous: HfApi, tmp_path: Path) -> None:
    server.add_repo(REPO, FILES, private=True, readers=["porter"])
    assert api.model_info(REPO).private is True
    assert download(server, "model.safetensors", tmp_path, TOKEN).read_bytes() == WEIGHTS
    for client, status in ((anonymous, 401), (HfApi(endpoint=server.url, token="hf_of_a_guest"), 404)):
        with pytest.raises(RepositoryNotFoundError) as refused:
            client.model_info(REPO)
        assert refused.value.response.status_code == status
        with pytest.raises(RepositoryNotFoundError):
            client.hf_hub_download(REPO, "config.json", cache_dir=tmp_path / "other")


def test_gated_repo(server: HubServer, api: HfApi, anonymous: HfApi, tmp_path: Path) -> None:
    server.add_repo(REPO, FILES, gated=True, readers=["porter"])
    assert anonymous.model_info(REPO).gated == "auto"
    assert download(server, "config.json", tmp_path, TOKEN).read_bytes() == b"{}"
    for token, status in ((False, 401), ("hf_of_a_guest", 403)):
        with pytest.raises(GatedRepoError) as refused:
            download(server, "z.txt", tmp_path / "other", token)
        assert refused.value.response.status_code == status


def test_a_wrong_token_is_refused(server: HubServer) -> None:
    server.add_repo(REPO, FILES)
    with pytest.raises(HfHubHTTPError) as refused:
        HfApi(endpoint=server.url, token="hf_nobody").model_info(REPO)
    assert refused.value.response.status_code == 401
    assert not isinstance(refused.value, RepositoryNotFoundError)


# Writing


def test_create_repo_twice(server: HubServer, api: HfApi, anonymous: HfApi) -> None:
    assert api.create_repo("made", private=True).repo_id == "porter/made"
    assert api.create_repo("porter/made", exist_ok=True).repo_id == "porter/made"
    with pytest.raises(HfHubHTTPError) as refused:
        api.create_repo("porter/made")
    assert refused.value.response.status_code == 409
    with pytest.raises(HfHubHTTPError):
        anonymous.create_repo("porter/other")
    assert api.model_info("porter/made").private is True
    assert list(server.files("porter/made")) == [".gitattributes"]


def test_commit_of_regular_and_lfs_files(server: HubServer, api: HfApi) -> None:
    first = server.add_repo(REPO)
    content = {
        "README.md": CARD,
        "whole.bin": WEIGHTS[:1000],
        "parts.safetensors": WEIGHTS[:2500],
        "empty.bin": b"",
    }
    made = api.create_commit(REPO, [add(p, c) for p, c in content.items()], commit_message="One", token=TOKEN)
    assert made.oid == server.head(REPO)
    assert server.files(REPO) == content
    puts = server.requests("/upload/", "PUT")
    assert sorted(r.received for r in puts) == [500, 1000, 1000, 1000]
    assert not any("authorization" in r.headers for r in puts)
    lfs = {i.path: i.lfs is not None for i in api.get_paths_info(REPO, list(content))}
    assert lfs == {"README.md": False, "whole.bin": True, "parts.safetensors": True, "empty.bin": False}
    assert [(c.id, c.message, c.author, c.parents) for c in server.commits(REPO)][1:] == [
        (made.oid, "One", "porter", (first,))
    ]
    assert not server.requests("/xet-")


def test_the_same_files_again_make_no_commit(server: HubServer, api: HfApi) -> None:
    server.add_repo(REPO)
    content = {"README.md": CARD, "a.safetensors": WEIGHTS}
    made = api.create_commit(REPO, [add(p, c) for p, c in content.items()], commit_message="One")
    server.clear_log()
    again = api.create_commit(REPO, [add(p, c) for p, c in content.items()], commit_message="Two")
    assert again.oid == made.oid
    assert len(server.commits(REPO)) == 2
    assert not server.requests("/commit/") and not server.requests("/upload/")
    # The object is there under another name: a commit, no upload.
    api.create_commit(REPO, [add("b.safetensors", WEIGHTS)], commit_message="Three")
    assert len(server.commits(REPO)) == 3 and not server.requests("/upload/")
    assert server.files(REPO)["b.safetensors"] == WEIGHTS


def test_the_server_itself_accepts_an_empty_commit(server: HubServer, api: HfApi) -> None:
    """So that a test for 'no empty commit' can fail."""
    server.add_repo(REPO)
    line = json.dumps({"key": "header", "value": {"summary": "nothing"}}).encode()
    url = f"{server.url}/api/models/{REPO}/commit/main"
    assert get_session().post(url, content=line, headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200
    assert len(server.commits(REPO)) == 2


def test_delete_and_copy(server: HubServer, api: HfApi) -> None:
    server.add_repo(REPO, FILES)
    operations = [
        CommitOperationDelete("z.txt"),
        CommitOperationDelete("text/"),
        CommitOperationCopy("model.safetensors", "copy.safetensors"),
    ]
    api.create_commit(REPO, operations, commit_message="Tidy")
    assert sorted(server.files(REPO)) == ["README.md", "config.json", "copy.safetensors", "model.safetensors"]
    with pytest.raises(EntryNotFoundError):
        api.create_commit(REPO, [CommitOperationDelete("z.txt")], commit_message="Again")
    with pytest.raises(EntryNotFoundError):
        api.create_commit(REPO, [CommitOperationDelete("text/")], commit_message="Again")
    assert len(server.commits(REPO)) == 2


def test_pull_request(server: HubServer, api: HfApi) -> None:
    base = server.add_repo(REPO, FILES, writers=[])
    with pytest.raises(HfHubHTTPError) as refused:
        api.create_commit(REPO, [add("a.pt", WEIGHTS)], commit_message="Direct")
    assert refused.value.response.status_code == 403
    made = api.create_commit(REPO, [add("a.pt", WEIGHTS)], commit_message="Proposed", create_pr=True)
    assert (made.pr_num, made.pr_revision) == (1, "refs/pr/1")
    assert server.head(REPO) == base
    assert server.head(REPO, "refs/pr/1") == made.oid
    assert [c.id for c in server.commits(REPO, "refs/pr/1")] == [base, made.oid]
    assert api.model_info(REPO, revision="refs/pr/1").sha == made.oid
    assert "a.pt" in api.list_repo_files(REPO, revision="refs/pr/1")
    more = api.create_commit(REPO, [add("b.txt", b"b")], commit_message="More", revision="refs/pr/1")
    assert server.commits(REPO, "refs/pr/1")[-1].id == more.oid
    assert api.create_commit(REPO, [add("c.txt", b"c")], commit_message="2", create_pr=True).pr_num == 2
    refs = api.list_repo_refs(REPO, include_pull_requests=True).pull_requests or []
    assert [r.ref for r in refs] == ["refs/pr/1", "refs/pr/2"]


def test_a_parent_that_is_not_the_head_is_refused(server: HubServer, api: HfApi) -> None:
    old = server.add_repo(REPO, FILES)
    server.commit(REPO, {"z.txt": b"z"})
    with pytest.raises(HfHubHTTPError) as refused:
        api.create_commit(REPO, [add("a.txt", b"a")], commit_message="Late", parent_commit=old)
    assert refused.value.response.status_code == 412


def test_objects_that_are_not_what_was_announced_are_refused(server: HubServer, api: HfApi) -> None:
    server.add_repo(REPO)
    value = {"path": "a.pt", "algo": "sha256", "oid": "0" * 64, "size": 3}
    lines = [{"key": "header", "value": {"summary": "s"}}, {"key": "lfsFile", "value": value}]
    headers = {"authorization": f"Bearer {TOKEN}"}
    body = "\n".join(json.dumps(line) for line in lines)
    posted = get_session().post(f"{server.url}/api/models/{REPO}/commit/main", content=body, headers=headers)
    assert posted.status_code == 400 and len(server.commits(REPO)) == 1
    batch = {"operation": "upload", "transfers": ["basic"], "objects": [{"oid": "0" * 64, "size": 3}]}
    answer = get_session().post(f"{server.url}/{REPO}.git/info/lfs/objects/batch", json=batch, headers=headers).json()
    assert answer["transfer"] == "basic"
    assert get_session().put(answer["objects"][0]["actions"]["upload"]["href"], content=b"abc").status_code == 400


def test_a_body_in_chunks_and_an_upload_on_disk(server: HubServer, api: HfApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("support.hub_server.IN_MEMORY", 100)
    server.add_repo(REPO)
    api.create_commit(REPO, [add("a.pt", WEIGHTS)], commit_message="One")
    assert server.files(REPO)["a.pt"] == WEIGHTS
    oid = hashlib.sha256(WEIGHTS[:3]).hexdigest()
    batch = {"operation": "upload", "objects": [{"oid": oid, "size": 3}]}
    headers = {"authorization": f"Bearer {TOKEN}"}
    answer = get_session().post(f"{server.url}/{REPO}.git/info/lfs/objects/batch", json=batch, headers=headers).json()
    href = answer["objects"][0]["actions"]["upload"]["href"]
    assert get_session().put(href, content=iter([WEIGHTS[:1], WEIGHTS[1:3]])).status_code == 200
    assert server.log[-1].headers["transfer-encoding"] == "chunked" and server.log[-1].received == 3


# Faults


def test_a_download_that_ends_early_is_resumed(server: HubServer, tmp_path: Path) -> None:
    """The client keeps what it got in steps of 10 MiB, and asks for the rest; an old one when it is called again."""
    size = 12 << 20
    (tmp_path / "large.pt").write_bytes(WEIGHTS * (size // len(WEIGHTS)))
    size = (tmp_path / "large.pt").stat().st_size
    server.add_repo(REPO, {"large.pt": tmp_path / "large.pt"})
    server.fail("short", match="/cdn/", after=11 << 20)
    with suppress(Exception):
        download(server, "large.pt", tmp_path / "cache")
    got = download(server, "large.pt", tmp_path / "cache")
    assert got.read_bytes() == (tmp_path / "large.pt").read_bytes()
    first, second = server.requests("/cdn/")
    assert (first.sent, first.range, second.range) == (11 << 20, None, f"bytes={10 << 20}-")
    assert (second.status, second.sent) == (206, size - (10 << 20))


def test_a_reset_download_is_not_retried_by_the_client(server: HubServer, tmp_path: Path) -> None:
    server.add_repo(REPO, FILES)
    server.fail("drop", match="/cdn/", after=100)
    with pytest.raises(Exception, match="reset by peer"):
        download(server, "model.safetensors", tmp_path)
    assert [r.sent for r in server.requests("/cdn/")] == [100]


@pytest.mark.stress
def test_too_many_requests_are_retried_after_the_time_stated(server: HubServer, anonymous: HfApi) -> None:
    server.add_repo(REPO, FILES)
    server.fail("status", match="/tree/", status=429, retry_after=2, skip=1)
    started = time.monotonic()
    assert anonymous.list_repo_files(REPO) == sorted(FILES)
    if Version(huggingface_hub.__version__) >= Version("1.22"):  # older clients read another header
        assert time.monotonic() - started > 1.9  # what was stated; one second if nothing were
    assert [r.status for r in server.requests("/tree/")] == [200, 429, 200, 200]


def test_status_with_an_error_code(server: HubServer, anonymous: HfApi) -> None:
    server.add_repo(REPO, FILES)
    server.fail("status", match=r"models/.*/model$", status=403, error_code="GatedRepo", times=2)
    for _ in range(2):
        with pytest.raises(GatedRepoError):
            anonymous.model_info(REPO)
    anonymous.model_info(REPO)
    server.fail("status", times=None)
    for _ in range(3):
        with pytest.raises(HfHubHTTPError):
            anonymous.model_info(REPO)
    server.clear_faults()
    anonymous.model_info(REPO)


def test_a_broken_upload_is_sent_again(server: HubServer, api: HfApi) -> None:
    server.add_repo(REPO)
    server.fail("drop", method="PUT", after=300)
    api.create_commit(REPO, [add("a.pt", WEIGHTS[:1500])], commit_message="One")
    assert [(r.status, r.received) for r in server.requests("/upload/")] == [(0, 300), (200, 1000), (200, 500)]
    assert server.files(REPO) == {"a.pt": WEIGHTS[:1500]}


def test_a_commit_whose_answer_is_lost(server: HubServer, api: HfApi) -> None:
    server.add_repo(REPO)
    server.fail("drop", match="/commit/", processed=True)
    with pytest.raises(Exception, match="reset by peer"):
        api.create_commit(REPO, [add("a.txt", b"a")], commit_message="One")
    assert server.files(REPO) == {"a.txt": b"a"}


@pytest.mark.parametrize("path", ["model.safetensors", "README.md"])
def test_wrong_bytes(server: HubServer, tmp_path: Path, path: str) -> None:
    server.add_repo(REPO, FILES)
    server.fail("wrong_bytes", match=path, method="GET")
    got = download(server, path, tmp_path / "all").read_bytes()
    assert got == bytes(b ^ 255 for b in FILES[path])
    server.fail("wrong_bytes", match=path, method="GET", at=7)
    got = download(server, path, tmp_path / "one").read_bytes()
    assert [n for n, (a, b) in enumerate(zip(got, FILES[path], strict=True)) if a != b] == [7]
    url = hf_hub_url(REPO, path, endpoint=server.url)
    server.fail("wrong_bytes", match="README|/cdn/", at=7)
    assert get_session().get(url, headers={"Range": "bytes=6-8"}).content[1] == FILES[path][7] ^ 255


def test_another_etag(server: HubServer, tmp_path: Path) -> None:
    server.add_repo(REPO, FILES)
    server.fail("etag", match="config.json", method="HEAD", etag="f" * 40)
    assert download(server, "config.json", tmp_path).resolve().name == "f" * 40
    server.fail("etag", match="model.safetensors", method="HEAD")
    assert download(server, "model.safetensors", tmp_path).resolve().name == "0" * 64


def test_a_file_swapped_behind_the_listing(server: HubServer, anonymous: HfApi, tmp_path: Path) -> None:
    commit = server.add_repo(REPO, FILES)
    server.fail("swap", match="/tree/", path="model.safetensors", content=b"other")
    listed = {i.path: i for i in anonymous.list_repo_tree(REPO)}["model.safetensors"]
    assert listed.lfs.sha256 == hashlib.sha256(WEIGHTS).hexdigest()
    assert server.head(REPO) == commit
    assert download(server, "model.safetensors", tmp_path).read_bytes() == b"other"
    server.fail("swap", match="resolve/main/config.json")
    assert download(server, "config.json", tmp_path).read_bytes() == b"\x84\x82"


def test_a_commit_between_listing_and_download(server: HubServer, anonymous: HfApi, tmp_path: Path) -> None:
    old = server.add_repo(REPO, FILES)

    def change(request: Request) -> None:
        if "/resolve/" in request.path and len(server.commits(REPO)) == 1:
            server.commit(REPO, {"config.json": b"changed"})

    server.on_request = change
    assert anonymous.model_info(REPO).sha == old
    assert download(server, "config.json", tmp_path).read_bytes() == b"changed"
    assert download(server, "config.json", tmp_path, revision=old).read_bytes() == b"{}"


def test_stalls(server: HubServer) -> None:
    others = set(threading.enumerate())  # of the hub that the other tests use
    server.add_repo(REPO, FILES)
    url = hf_hub_url(REPO, "README.md", endpoint=server.url)
    server.fail("stall", seconds=0.2)
    started = time.monotonic()
    assert urlopen(url).read() == CARD
    assert time.monotonic() - started > 0.2
    server.fail("stall", seconds=0.2, after=10)
    started = time.monotonic()
    with urlopen(url) as got:
        assert got.read() == CARD
    assert time.monotonic() - started > 0.2
    server.fail("stall", seconds=60)
    with pytest.raises(TimeoutError):
        urlopen(url, timeout=0.1)
    server.stop()
    wait_until = time.monotonic() + 5
    while answering := [t for t in set(threading.enumerate()) - others if "process_request_thread" in t.name]:
        assert time.monotonic() < wait_until, answering
        time.sleep(0.01)


def test_reset_forgets_everything(server: HubServer, anonymous: HfApi) -> None:
    server.add_repo(REPO, FILES)
    anonymous.model_info(REPO)
    server.fail("status", times=None)
    server.reset()
    assert server.log == [] and server.sent() == 0
    with pytest.raises(RepositoryNotFoundError):
        anonymous.model_info(REPO)


def test_many_at_once(server: HubServer) -> None:
    server.add_repo(REPO, FILES)
    server.fail("status", status=404, times=10)
    seen: list[int] = []

    def ask() -> None:
        for _ in range(10):
            try:
                with urlopen(hf_hub_url(REPO, "README.md", endpoint=server.url)) as got:
                    seen.append(got.status if got.read() == CARD else 0)
            except HTTPError as error:
                error.close()
                seen.append(error.code)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (seen.count(200), seen.count(404), len(server.log)) == (70, 10, 80)
    assert server.sent("README.md") >= 70 * len(CARD)
