"""Addresses on the Hub, as a browser shows them and as hf:// paths, and what they are not."""

from __future__ import annotations

import re

import pytest
from huggingface_hub import constants
from support.folders import sam3lite
from support.hub_files import OLD, REPO, S0, checkpoint, one_line, publish
from support.hub_server import HubServer
from support.surroundings import HUB

from sam3lite_convert.errors import CannotRun
from sam3lite_convert.hub.addresses import address_of

PUBLIC = constants.HUGGINGFACE_CO_URL_HOME.rstrip("/")
FORMS = {
    "{}/a/b/blob/main/x/s0.pt": ("a/b", "main", "x/s0.pt"),
    "{}/a/b/resolve/v1/s0.pt?download=true": ("a/b", "v1", "s0.pt"),
    "{}/a/b/raw/main/s0.pt": ("a/b", "main", "s0.pt"),
    "{}/a/b/blob/refs%2Fpr%2F7/s0.pt": ("a/b", "refs/pr/7", "s0.pt"),
    "{}/a/b/blob/refs/pr/7/s0.pt": ("a/b", "refs/pr/7", "s0.pt"),
    "{}/a/b/blob/feature%2Fone/a%20name.pt#L1": ("a/b", "feature/one", "a name.pt"),
    "{}/a/b/tree/main": ("a/b", "main", ""),
    "{}/a/b/tree/main/x/": ("a/b", "main", "x"),
    "{}/a/b": ("a/b", None, ""),
    "{}/a/b/": ("a/b", None, ""),
    "{}/models/a/b": ("a/b", None, ""),
    "hf://a/b/x/s0.pt": ("a/b", None, "x/s0.pt"),
    "hf://a/b@v1/s0.pt": ("a/b", "v1", "s0.pt"),
    "hf://a/b@refs/pr/7/s0.pt": ("a/b", "refs/pr/7", "s0.pt"),
    "hf://a/b@refs%2Fpr%2F7": ("a/b", "refs/pr/7", ""),
    "hf://models/a/b": ("a/b", None, ""),
}


@pytest.mark.parametrize(
    "host",
    [PUBLIC, PUBLIC.partition("://")[2], HUB.url, PUBLIC.replace("https", "HTTP").upper()],
    ids=["public", "without https", "here", "in capitals"],  # the server here has another port each time
)
@pytest.mark.parametrize("form", FORMS)
def test_an_address_leads_to_repository_revision_and_path(form, host):
    found = address_of(form.format(host))
    assert found is not None and tuple(found[1:]) == FORMS[form]
    assert "?" not in found.shown and "#" not in found.shown


def test_an_endpoint_below_a_path(monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "https://mirror.example/hub")
    found = address_of("https://mirror.example/hub/a/b/blob/main/s0.pt")
    assert found is not None and tuple(found[1:]) == ("a/b", "main", "s0.pt")


@pytest.mark.parametrize("name", ["s0", "sam3_litetext/s0.pt", "C:/s0.pt", "a/b", "model.safetensors"])
def test_a_name_is_no_address(name):
    assert address_of(name) is None


REFUSED = {
    "https://example.org/a/b/blob/main/s0.pt": "example.org is not the Hub",
    f"{HUB.url}0/a/b": "is not the Hub",
    f"https://{PUBLIC[8:]}.example.org/a/b": "is not the Hub",
    f"https://{PUBLIC[8:]}@example.org/a/b": "^https://example.org/a/b: example.org is not the Hub",
    "s3://bucket/s0.pt": "s3:// is not read here; download",
    f"{PUBLIC}/datasets/a/b/blob/main/s0.pt": "is a dataset",
    f"{PUBLIC}/spaces/a/b": "is a Space",
    "hf://datasets/a/b/s0.pt": "is a dataset",
    "hf://buckets/a/b/s0.pt": "is a bucket",
    f"{PUBLIC}/a/b/discussions/3": "not the page of a file",
    f"{PUBLIC}/a": "names no repository",
    f"{PUBLIC}": "names no repository",
    "hf://a": "names no repository",
    "hf://": "names no repository",
    "hf://a/b@/s0.pt": "no revision",
    "hf://../b/s0.pt": "names no repository",
}


@pytest.mark.parametrize("name", REFUSED, ids=[f"address {n}" for n in range(len(REFUSED))])  # one holds a port
def test_other_addresses_are_refused(name):
    with pytest.raises(CannotRun) as fault:
        address_of(name)
    assert re.search(REFUSED[name], fault.value.message) and "\n" not in fault.value.message


def test_a_query_and_a_password_are_not_repeated():
    for name in (
        "https://me:secret@example.org/s0.pt?signature=secret",
        f"https://me:secret@{PUBLIC[8:]}/a/b/x/y?secret",
    ):
        with pytest.raises(CannotRun) as fault:
            address_of(name)
        assert "secret" not in fault.value.message


def test_the_password_of_an_endpoint_is_not_repeated(hub, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://me:s3cret@127.0.0.1:9")
    for name in ("s0", "https://example.org/a/b", "hf://a/b"):
        done = sam3lite("inspect", name)
        assert done.code == 2 and "***@127.0.0.1:9" in done.err and "s3cret" not in done.err, done
    monkeypatch.setattr(constants, "ENDPOINT", hub.url.replace("http://", "http://me:s3cret@"))
    hub.fail("status", match="", times=None, status=401)
    done = sam3lite("inspect", "hf://a/b/x.pt")
    assert done.code == 2 and "***@127.0.0.1" in done.err and "s3cret" not in done.err, done


# ---- as CHECKPOINT ----------------------------------------------------------------------------------


@pytest.fixture
def repo(hub: HubServer, tmp_path) -> str:
    """The repository of the checkpoints; v1 is a tag of its first commit, after which s0 was replaced."""
    publish(hub, tmp_path, OLD)
    hub.tag(REPO, "v1")
    hub.commit(REPO, {S0: checkpoint(tmp_path, "another")})
    return REPO


def test_a_page_is_the_file_that_it_shows(repo, hub):
    truth = {r: sam3lite("inspect", S0, "--revision", r, "--json").json for r in ("main", "v1")}
    assert truth["main"]["source"]["etag"] != truth["v1"]["source"]["etag"]
    for name, revision in (
        (f"{HUB.url}/{repo}/blob/main/{S0}", "main"), (f"{HUB.url}/{repo}/resolve/v1/{S0}?download=true", "v1"),
        (f"hf://{repo}/{S0}", "main"), (f"hf://{repo}@v1/{S0}", "v1"), (f"{PUBLIC}/{repo}/blob/v1/{S0}", "v1"),
    ):  # fmt: skip
        record = sam3lite("inspect", name, "--json").json
        assert record["source"] == truth[revision]["source"]
        assert record["architecture"] == truth[revision]["architecture"]
        # What is printed to be typed again says all of it.
        assert record["option"] == name.partition("?")[0]


def test_it_is_converted_named_and_found_again(repo, hub):
    page = f"{HUB.url}/{repo}/resolve/main/{S0}?download=true"
    done = sam3lite("convert", page, "--component", "text", "--json").json
    assert done["output"].endswith("_s0_ctx16-packed-text") and done["architecture"]["context_length"] == 16
    assert sam3lite("convert", page, "--component", "text", "--json").json["state"] == "current"
    assert sam3lite("verify", done["output"], page, "--json").json["verdict"] == "proven"
    assert sam3lite("verify", done["output"], S0, "--json").json["verdict"] == "proven"


def test_a_page_and_options_that_say_something_else(repo):
    page = f"{HUB.url}/{repo}/blob/v1/{S0}"
    done = sam3lite("inspect", page, "--revision", "other")
    assert "names v1 itself, and --revision other" in one_line(done, 2)
    assert "--repo-id someone/else" in one_line(sam3lite("inspect", page, "--repo-id", "someone/else"), 2)
    assert sam3lite("inspect", page, "--revision", "v1").code == 0
    done = sam3lite("inspect", f"hf://{repo}/{S0}", "--revision", "v1", "--json")
    assert done.json["option"] == f"hf://{repo}/{S0} --revision v1"


def test_the_page_of_a_folder_or_a_repository(repo, hub, tmp_path):
    done = sam3lite("inspect", f"{HUB.url}/{repo}/tree/main/sam3_litetext")
    assert f"{repo}/sam3_litetext holds 3 checkpoints: " in one_line(done, 2)
    assert S0.partition("/")[2] in done.err
    done = sam3lite("inspect", f"hf://{repo}")
    assert f"{repo} has no checkpoint at its top" in one_line(done, 2) and S0 in done.err
    made = next(p for p in tmp_path.glob("*.pt"))
    hub.add_repo("someone/else", {"weights.pt": made, "README.md": b"# x\n"})
    record = sam3lite("convert", f"{HUB.url}/someone/else", "--dry-run", "--component", "text", "--json").json
    assert record["source"]["file"] == "weights.pt"
    assert record["output"] == "converted/else-packed-text"


def test_an_alias_is_none_in_an_address(repo):
    assert "has no file or alias s0" in one_line(sam3lite("inspect", f"hf://{repo}/s0"), 2)


def test_another_host_is_not_asked(hub):
    assert "is not the Hub" in one_line(sam3lite("inspect", "https://example.org/a/b/blob/main/s0.pt"), 2)
    assert hub.log == []


def test_a_repository_by_its_name(repo, hub, tmp_path):
    made = next(p for p in tmp_path.glob("*.pt"))
    hub.add_repo("someone/else", {"weights.pt": made})
    hub.tag("someone/else", "v1")
    hub.commit("someone/else", {"weights.pt": None})
    record = sam3lite("inspect", "someone/else@v1", "--json").json
    assert (record["source"]["repo"], record["source"]["file"]) == ("someone/else", "weights.pt")
    assert record["option"] == "someone/else@v1"
    assert "someone/else has no checkpoint at its top" in one_line(sam3lite("inspect", "someone/else"), 2)
    for name in ("nobody/nothing", "sam3_litetext/nothing", "nobody/nothing.pt"):
        assert f"{REPO} has no file or alias {name}" in one_line(sam3lite("inspect", name), 2)
