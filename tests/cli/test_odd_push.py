"""Pushes to a hub that answers as none does: nothing goes to another host, what is not as it was sent is noticed, and
the folder stays complete.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import odd_hub
from support.folders import sam3lite
from support.hub_files import OLD, publish
from support.hub_server import Answer, HubServer
from support.odd_runs import marked, shorten, tried

from sam3lite_convert.hub import bounds

STEM = Path(OLD["s0"]).stem
MINE = f"porter/{STEM}"
PUSH = ["convert", "--checkpoint", "s0", "--output", "out", "--push-to-hub"]
HARMLESS = (
    "who: a number",
    "preupload: all are large",
    "preupload: all are small",
    "preupload: ids that are numbers",
    "upload: no etag",
    "yaml: HTML",
    "yaml: 400 with a list",
    "yaml: errors that are none",
    "yaml: warnings that are none",
    "commit: a url with escapes",
    "commit: a url elsewhere",
)


@pytest.fixture
def s0(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    asked = shorten(monkeypatch)
    yield publish(hub, tmp_path, {"s0": OLD["s0"]})["s0"]
    assert max(asked, default=0) <= bounds.LONGEST_WAIT


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def on_the_hub(hub: HubServer, repo: str = MINE) -> dict[str, bytes]:
    return {n: data for n, data in hub.files(repo).items() if n != ".gitattributes"}


@pytest.mark.parametrize(
    "name",
    marked(odd_hub.PUSHES, "batch: verified elsewhere"),
)
def test_an_odd_answer_to_a_push(name, s0, hub, tmp_path):
    match, edit = odd_hub.PUSHES[name]
    # The source's own listing is as it is.
    hub.fail("edit", match=f"(?<!EfficientSAM3){match}" if match == odd_hub.TREE else match, times=None, edit=edit)
    done = tried(PUSH, hub, tmp_path, (0, 2) if name in HARMLESS else (2,))
    if done.code == 0:
        assert on_the_hub(hub) == contents(Path("out"))
    if "elsewhere" in name and match not in (odd_hub.UPLOAD, odd_hub.COMMIT) and name not in HARMLESS:
        assert "where your token is not sent" in done.err or "where your files are not sent" in done.err, done.err
    hub.clear_faults()
    if Path("out").exists():
        assert sam3lite("verify", "out", "--checkpoint", s0).code == 0


@pytest.mark.stress
@pytest.mark.parametrize("said", [None, "true", 1, False])
def test_what_should_be_private_is_written_only_where_the_hub_says_that_it_is(said, s0, hub, tmp_path):
    hub.fail(
        "edit",
        match=f"/api/models/{MINE}$",
        times=None,
        edit=odd_hub.changed(lambda value: value | {"private": said}),
    )
    done = tried([*PUSH, "--private"], hub, tmp_path)
    assert "private" in done.err and not on_the_hub(hub)
    assert not [r for r in hub.log if r.method == "PUT"]


@pytest.mark.stress
@pytest.mark.parametrize("name", odd_hub.RECEIPTS)
def test_an_odd_receipt_on_the_hub_is_not_replaced(name, s0, hub, tmp_path):
    there = {"conversion.json": odd_hub.RECEIPTS[name], "model.safetensors": b"theirs"}
    hub.add_repo(MINE, there)
    assert "cannot be read" in tried(PUSH, hub, tmp_path).err
    assert hub.files(MINE) == there


@pytest.mark.stress
@pytest.mark.parametrize("name", odd_hub.REFERENCES)
def test_odd_pull_requests_are_none(name, s0, hub, tmp_path):
    hub.add_repo(MINE, {".gitattributes": b""})
    rows = odd_hub.REFERENCES[name]
    hub.fail("edit", match="/refs", times=None, edit=odd_hub.changed(lambda value: value | {"pullRequests": rows}))
    done = tried([*PUSH, "--create-pr"], hub, tmp_path, (0,))
    assert f"{MINE}/discussions/1" in done.out


@pytest.mark.stress
@pytest.mark.parametrize(
    "url", [None, 5, "", "http://x/y", "http://x/discussions/../../z", f"http://x/{odd_hub.CLEAR}/discussions/1"]
)
def test_the_odd_address_of_a_pull_request_is_not_shown(url, s0, hub, tmp_path):
    hub.add_repo(MINE, {".gitattributes": b""})
    edit = odd_hub.changed(lambda value: value | {"pullRequestUrl": url})
    hub.fail("edit", match=odd_hub.COMMIT, times=None, edit=edit)
    tried([*PUSH, "--create-pr"], hub, tmp_path, (0, 2))


@pytest.mark.stress
def test_a_card_that_changes_on_the_hub_during_the_push_is_not_overwritten(s0, hub, tmp_path):
    assert sam3lite(*PUSH).code == 0
    card = Path("out/README.md")
    card.write_text(card.read_text() + "\nmore\n")

    def meanwhile(request):
        if "/preupload/" in request.path and "theirs" not in hub.files(MINE):
            hub.on_request = None
            hub.commit(MINE, {"README.md": b"theirs", "theirs": b"x"})

    hub.on_request = meanwhile
    tried(PUSH, hub, tmp_path)
    assert hub.files(MINE)["README.md"] == b"theirs"


# ---- what was not proven ------------------------------------------------------------------------------------


def test_a_receipt_that_lists_what_no_conversion_writes_sends_nothing(s0, hub, tmp_path):
    import hashlib

    assert sam3lite("convert", "--checkpoint", "s0", "--output", "out").code == 0
    secret = b"secret"
    Path("out/secret.txt").write_bytes(secret)
    path = Path("out/conversion.json")
    receipt = json.loads(path.read_text())
    receipt["beside"]["secret.txt"] = hashlib.sha256(secret).hexdigest()
    path.write_text(json.dumps(receipt))
    assert "secret.txt" in tried(PUSH, hub, tmp_path).err
    assert not [r for r in hub.log if r.method in ("POST", "PUT")]


@pytest.mark.parametrize("name", ["model.safetensors", pytest.param("config.json", marks=pytest.mark.stress)])
def test_what_is_swapped_between_the_proof_and_the_upload_is_not_sent(name, s0, hub, tmp_path, monkeypatch):
    from sam3lite_convert.commands import push as commands

    inner = commands.HfApi.create_commit

    def meanwhile(self, *arguments, **named):
        # Everything was found unchanged: what is sent from here on is what the Hub was told, or is refused by it.
        path = Path("out") / name
        data = bytearray(path.read_bytes())
        data[-2] ^= 1
        path.write_bytes(data)
        return inner(self, *arguments, **named)

    before: dict[str, bytes] = {}
    inner_check = commands._check_unchanged

    def check(folder, stamps, since):
        before.update(contents(Path("out")))
        inner_check(folder, stamps, since)

    monkeypatch.setattr(commands, "_check_unchanged", check)
    monkeypatch.setattr(commands.HfApi, "create_commit", meanwhile)
    done = sam3lite(*PUSH)
    sent = on_the_hub(hub)
    assert (done.code == 0 and sent[name] == before[name]) or (done.code == 2 and name not in sent), done


def test_a_file_beside_the_weights_that_is_swapped_after_the_proof_is_not_sent(s0, hub, tmp_path, monkeypatch):
    from sam3lite_convert.commands import push as commands

    inner = commands.plan_push

    def meanwhile(*arguments):
        path = Path("out/fingerprint.json")
        path.write_text(path.read_text().replace("1", "2"))
        return inner(*arguments)

    monkeypatch.setattr(commands, "plan_push", meanwhile)
    done = sam3lite(*PUSH)
    assert done.code == 2 and "fingerprint.json" in done.err and "changed since it was verified" in done.err, done
    assert not on_the_hub(hub) and not [r for r in hub.log if r.method == "PUT"]


@pytest.mark.stress
def test_a_file_that_should_have_gone_is_noticed(s0, hub, tmp_path):
    assert sam3lite(*PUSH, "--max-shard-size", "3MB").code == 0
    assert "model.safetensors.index.json" in hub.files(MINE)
    kept = {}

    def keep(answer: Answer) -> Answer:
        if kept.setdefault("before", answer.body) and hub.requests("/commit/", "POST"):
            rows = json.loads(answer.body)
            old = [r for r in json.loads(kept["before"]) if r["path"] not in {x["path"] for x in rows}]
            return odd_hub.rewritten(answer, rows + old)
        return answer

    hub.clear_log()
    hub.page_size, size = 100, hub.page_size
    try:
        hub.fail("edit", match=f"/api/models/{MINE}/tree/", times=None, edit=keep)
        done = tried([*PUSH, "--overwrite"], hub, tmp_path)
    finally:
        hub.page_size = size
    assert "what arrived is not what was sent" in done.err
