"""Answers that no Hub gives, through the real client: one message, in time, the token at home, nothing elsewhere."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import odd_hub
from support.folders import sam3lite
from support.hub_files import OLD, publish
from support.hub_server import Answer, HubServer
from support.odd_runs import at, marked, shorten, tried

from sam3lite_convert.hub import bounds

S0 = OLD["s0"]
STEM = Path(S0).stem
INSPECT, CONVERT = ["inspect", "s0"], ["convert", "--checkpoint", "s0", "--output", "out"]
ALL = ["convert", "--all"]
NAMELESS = ("path null", "path a number", "path a list", "path missing", "not an object", "null", "a list")


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    asked = shorten(monkeypatch)
    yield
    assert max(asked, default=0) <= bounds.LONGEST_WAIT


@pytest.fixture
def s0(hub: HubServer, tmp_path: Path, short: object) -> Path:
    return publish(hub, tmp_path, {"s0": S0})["s0"]


@pytest.fixture
def three(hub: HubServer, tmp_path: Path, short: object) -> dict[str, Path]:
    return publish(hub, tmp_path, OLD)


API = {"info": odd_hub.INFO, "tree": odd_hub.TREE}
FILES = {"resolve": odd_hub.RESOLVE, "cdn": odd_hub.CDN}


# ---- listings ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", marked(odd_hub.ROWS, "size 2^70"))
def test_an_odd_row_is_refused_by_name_or_left_out(name, s0, hub, tmp_path):
    odd_hub.row(S0, odd_hub.ROWS[name])(hub)
    done = tried(INSPECT, hub, tmp_path)
    assert "unexpected response from the Hub" in done.err or "left out of the listing" in done.err


@pytest.mark.parametrize("name", marked(odd_hub.ROWS))
def test_an_odd_row_does_not_stop_the_batch(name, three, hub, tmp_path):
    odd_hub.row(S0, odd_hub.ROWS[name])(hub)
    done = tried([*ALL, "--json"], hub, tmp_path, (0, 1))
    states = {r.get("checkpoint", r.get("output")): r["state"] for r in done.json["results"]}
    assert done.json["counts"]["converted"] == 2
    failed, odd = done.json["counts"]["failed"], len(done.json.get("odd_entries", []))
    # It is one of those that failed, or, where its path does not tell whether it is meant, it is said of the listing.
    assert failed == (done.code == 1) and failed + odd == 1 and (odd == 1 or not name.startswith(NAMELESS)), states


def test_one_of_each_does_not_stop_the_batch(s0, hub, tmp_path):
    changes = [
        lambda r, c=change, n=n: c(r | {"path": r["path"].replace("_s0", f"_s0{n}")} if isinstance(r, dict) else r)
        for n, change in enumerate(odd_hub.ROWS.values())
    ]
    odd_hub.more_rows(S0, *changes)(hub)
    done = tried([*ALL, "--json"], hub, tmp_path, (1,))
    assert done.json["counts"]["converted"] == 1
    failed = [r for r in done.json["results"] if r["state"] == "failed"]
    assert failed and all(
        r["error"]["code"] == "hub_fault" and r["checkpoint"] in r["error"]["message"] for r in failed
    )


@pytest.mark.stress
@pytest.mark.parametrize(
    "content",
    [b"[]", b"", b"{}", bytes(range(256)), b'{"weight_map": 5}', b'{"weight_map": {"a": "../x"}}', b"[" * 9999],
)
def test_an_index_of_shards_that_is_none_does_not_stop_the_batch(content, three, hub, tmp_path):
    hub.commit("Simon7108528/EfficientSAM3", {"sam3_litetext/model.safetensors.index.json": content})
    done = tried([*ALL, "--pattern", "sam3_litetext/*", "--json"], hub, tmp_path, (1,))
    assert done.json["counts"] == {"converted": 3, "current": 0, "failed": 1}


@pytest.mark.stress
@pytest.mark.parametrize("fault", [KeyError("x"), RecursionError(), MemoryError(), UnicodeError(), OSError("x")])
def test_what_nobody_foresaw_does_not_stop_the_batch(fault, three, hub, tmp_path, monkeypatch):
    from sam3lite_convert.commands import convert_all as commands

    inner = commands.publish

    def publish(location, *arguments):
        if location.name == S0:
            raise fault
        return inner(location, *arguments)

    monkeypatch.setattr(commands, "publish", publish)
    done = sam3lite(*ALL, "--json")
    assert done.code == 1 and done.json["counts"] == {"converted": 2, "current": 0, "failed": 1}


@pytest.mark.stress
@pytest.mark.parametrize(
    ("name", "others", "codes"),
    [
        ("twice the same", [lambda r: r], (0,)),
        ("twice, another content", [lambda r: r | {"lfs": r["lfs"] | {"oid": odd_hub.HASH}}], (2,)),
        ("twice, another size", [lambda r: r | {"size": 5, "lfs": None}], (2,)),
        ("twins by case", [lambda r: r | {"path": r["path"].upper()}], (0,)),
        ("a file that is its folder", [lambda r: r | {"path": "sam3_litetext"}], (2,)),
        ("a file below it", [lambda r: r | {"path": r["path"] + "/below.pt"}], (0,)),
        ("1,000 odd ones", [lambda r: r | {"path": None}] * 1000, (0,)),
    ],
)
def test_rows_that_contradict_each_other(name, others, codes, s0, hub, tmp_path):
    odd_hub.more_rows(S0, *others)(hub)
    tried(INSPECT, hub, tmp_path, codes)


@pytest.mark.parametrize(("match", "name"), at(API, odd_hub.BODIES, ("tree", "a bomb")))
def test_an_answer_of_another_kind(match, name, s0, hub, tmp_path):
    odd_hub.edited(match, odd_hub.BODIES[name])(hub)
    assert "unexpected response from the Hub" in tried([*INSPECT], hub, tmp_path).err


@pytest.mark.stress
@pytest.mark.parametrize("name", odd_hub.INFOS)
def test_odd_facts_of_a_repository_are_refused(name, s0, hub, tmp_path):
    odd_hub.edited(odd_hub.INFO, odd_hub.info(odd_hub.INFOS[name]))(hub)
    assert "unexpected response from the Hub" in tried(CONVERT, hub, tmp_path).err
    assert not Path("out").exists()


@pytest.mark.stress
@pytest.mark.parametrize("name", odd_hub.HARMLESS_INFOS)
def test_odd_facts_that_nothing_needs_do_no_harm(name, s0, hub, tmp_path):
    odd_hub.edited(odd_hub.INFO, odd_hub.info(odd_hub.HARMLESS_INFOS[name]))(hub)
    tried(CONVERT, hub, tmp_path, (0,))
    assert odd_hub.MEGABYTE[:2000] not in Path("out/README.md").read_text() and json.loads(
        Path("out/conversion.json").read_text()
    )


# ---- pages ------------------------------------------------------------------------------------------------


def linked(make: Any) -> odd_hub.Arm:
    """Arms pages that end with the link that ``make`` makes of their number."""
    numbers = itertools.count(1)

    def edit(answer: Answer) -> Answer:
        return odd_hub.headed(Link=make(next(numbers)))(answer)

    return odd_hub.edited(odd_hub.TREE, edit)


@pytest.mark.parametrize(
    "name",
    marked(
        ("itself", "ever new ones", "another host", "another scheme", "no address", "no link", "a binary", "an escape"),
        "another host",
    ),
)
def test_the_next_page_leads_astray(name, s0, hub, tmp_path, monkeypatch):
    monkeypatch.setattr("sam3lite_convert.hub.tree._PAGES", 50)
    own, elsewhere = hub.url, hub.storage_url
    link = {
        "itself": lambda n: f'<{own}/api/models/{odd_hub.S0}/tree/x>; rel="next"',
        "ever new ones": lambda n: f'<{own}/tree/{n}>; rel="next"',
        "another host": lambda n: f'<{elsewhere}/tree/{n}>; rel="next"',
        "another scheme": lambda n: '<file:///etc/passwd>; rel="next"',
        "no address": lambda n: '<http://[::1>; rel="next"',
        "no link": lambda n: ";;;===<<<>>>" * 1000,
        "a binary": lambda n: f'<{own}/Simon7108528/EfficientSAM3/resolve/main/{S0}>; rel="next"',
        "an escape": lambda n: '<http://\x1b[31m/x>; rel="next"',
    }[name]
    if name in ("itself", "ever new ones"):
        hub.fail(
            "edit",
            match=r"/tree/(x|\d+)$",
            times=None,
            edit=lambda a: odd_hub.headed(Link=link(next(count)))(Answer.of([])),
        )
    count = itertools.count(1)
    linked(link)(hub)
    done = tried(INSPECT, hub, tmp_path, (0,) if name == "no link" else (2,))
    assert done.code == 0 or not [r for r in hub.log if r.storage]
    if name == "another host":
        assert "where your token is not sent" in done.err


# ---- statuses, redirects, connections -----------------------------------------------------------------------


@pytest.mark.parametrize(("match", "name"), at(API | FILES, odd_hub.STATUSES, ("tree", "429 for 30 years")))
def test_an_odd_refusal(match, name, s0, hub, tmp_path):
    odd_hub.edited(match, odd_hub.status(name))(hub)
    tried(CONVERT, hub, tmp_path)
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("match", "name"), at(API | {"resolve": odd_hub.RESOLVE}, odd_hub.REDIRECTS, ("info", "another host"))
)
def test_a_redirect_that_leads_astray(match, name, s0, hub, tmp_path):
    place = odd_hub.redirects(hub.url, hub.storage_url)[name]
    hub.fail("edit", match=match, times=20, edit=lambda a: Answer(302, {"Location": place}, b""))
    done = tried(CONVERT, hub, tmp_path, (0, 2) if match == odd_hub.RESOLVE else (2,))
    assert "token is not valid" not in done.err and "Log in" not in done.err
    if match == odd_hub.INFO and name.startswith("another host"):
        assert "where your token is not sent" in done.err and not [r for r in hub.log if r.storage]
    if match == odd_hub.INFO and name == "a binary of its own":
        assert "is not JSON" in done.err or "leads to" in done.err


@pytest.mark.parametrize("match", marked(API.values(), odd_hub.TREE))
def test_an_api_that_leads_to_a_binary_does_not_blame_the_token(match, s0, hub, tmp_path):
    hub.add_repo("porter/small", {"data": bytes(range(256)) * 100})
    place = f"{hub.url}/porter/small/resolve/main/data"
    hub.fail("edit", match=match, times=None, edit=lambda a: Answer(307, {"Location": place}, b""))
    said = tried(INSPECT, hub, tmp_path).err
    assert "is not JSON" in said and "application/octet-stream" in said and "token" not in said


@pytest.mark.parametrize(("match", "name"), at(API | FILES, odd_hub.CONNECTIONS, ("tree", "endless")))
def test_a_connection_that_speaks_nonsense(match, name, s0, hub, tmp_path):
    odd_hub.raw(match, odd_hub.CONNECTIONS[name])(hub)
    done = tried(CONVERT, hub, tmp_path, (0, 2, 4) if match == odd_hub.RESOLVE else (2, 4))
    assert done.code == 0 or not Path("out").exists()
    assert sum(r.sent for r in hub.log) < 800 << 20


@pytest.mark.parametrize(("match", "name"), at(API | FILES, odd_hub.SLOW))
def test_an_answer_that_never_ends_is_not_waited_for(match, name, s0, hub, tmp_path, monkeypatch):
    monkeypatch.setattr(bounds, "TIMEOUT", 1.0)
    monkeypatch.setattr(bounds, "_SECONDS", 2.0)
    odd_hub.raw(match, odd_hub.SLOW[name])(hub)
    tried(CONVERT, hub, tmp_path)
    assert not Path("out").exists()


# ---- files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", marked(odd_hub.FILE_HEADERS, "etag upwards"))
def test_odd_headers_of_a_file(name, s0, hub, tmp_path):
    odd_hub.edited(odd_hub.RESOLVE, odd_hub.headed(**odd_hub.FILE_HEADERS[name]))(hub)
    done = tried(CONVERT, hub, tmp_path, (0, 2, 4))
    assert done.code == 0 or not Path("out").exists()
    hub.clear_faults()
    assert sam3lite(*CONVERT, "--overwrite").code == 0


@pytest.mark.stress
@pytest.mark.parametrize("name", odd_hub.RANGES)
@pytest.mark.parametrize("command", [INSPECT, CONVERT], ids=["inspect", "convert"])
def test_odd_answers_to_a_range(command, name, s0, hub, tmp_path):
    odd_hub.edited(odd_hub.CDN, odd_hub.RANGES[name])(hub)
    tried(command, hub, tmp_path, (0, 2, 4))
    hub.clear_faults()
    assert sam3lite(*command).code in (0, 2)


@pytest.mark.stress
def test_the_earlier_folder_stays_whatever_the_hub_says(s0, hub, tmp_path):
    assert sam3lite(*CONVERT).code == 0
    before = {p.name: p.read_bytes() for p in Path("out").iterdir()}
    for match, edit in itertools.product((odd_hub.INFO, odd_hub.TREE), odd_hub.BODIES.values()):
        odd_hub.edited(match, edit)(hub)
        done = tried([*CONVERT, "--overwrite"], hub, tmp_path, (0, 2))
        hub.clear_faults()
        after = {p.name: p.read_bytes() for p in Path("out").iterdir()}
        # It falls back on what is cached, and then writes the receipt anew; or it fails, and all is as it was.
        assert after == before if done.code else after["model.safetensors"] == before["model.safetensors"]
        before = after


# ---- a folder on the Hub ------------------------------------------------------------------------------------

THERE = "porter/there"


@pytest.fixture
def there(hub: HubServer, tmp_path: Path, short: object) -> Path:
    """A converted folder on the hub; the checkpoint that it was made of, on this machine."""
    made = publish(hub, tmp_path, {"s0": S0})["s0"]
    assert sam3lite("convert", "--checkpoint", made, "--output", "out").code == 0
    hub.add_repo(THERE, {p.name: p for p in Path("out").iterdir()})
    return made


@pytest.mark.stress
@pytest.mark.parametrize("name", [n for n in odd_hub.ROWS if not n.startswith(("path with", "path upwards w"))])
@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
def test_a_folder_with_an_odd_row_is_not_judged_without_it(file, name, there, hub, tmp_path):
    if name.startswith("lfs"):
        file = "model.safetensors"  # a small file has no such entry
    odd_hub.row(file, odd_hub.ROWS[name])(hub)
    done = tried(["verify", THERE, "--checkpoint", there, "--json"], hub, tmp_path, (1, 2))
    # Where not even its path can be told, it is missing.
    assert done.code == 2 or name.startswith(("path", *NAMELESS)), done


@pytest.mark.stress
@pytest.mark.parametrize("name", odd_hub.RANGES)
def test_odd_answers_to_the_ranges_of_a_folder(name, there, hub, tmp_path):
    odd_hub.edited(odd_hub.CDN, odd_hub.RANGES[name])(hub)
    # The etag that counts is the one of the redirect to the storage.
    codes = (0,) if name == "another etag" else (2, 4)
    tried(["verify", THERE, "--checkpoint", there, "--json"], hub, tmp_path, codes)
    hub.clear_faults()
    assert sam3lite("verify", THERE, "--checkpoint", there).code == 0


@pytest.mark.stress
@pytest.mark.parametrize("name", [*odd_hub.BODIES, *odd_hub.STATUSES])
def test_odd_small_files_of_a_folder(name, there, hub, tmp_path):
    edit = odd_hub.BODIES.get(name) or odd_hub.status(name)
    odd_hub.edited("/resolve/.*config.json", edit)(hub)
    tried(["verify", THERE, "--checkpoint", there, "--json"], hub, tmp_path, (0, 1, 2, 4))
