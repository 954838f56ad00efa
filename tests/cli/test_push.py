"""Pushing: what goes where, nothing unverified, nothing twice, and every fault of the way."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import constants
from support.folders import old_state, sam3lite, snapshot, write
from support.hub_files import OLD, clip_files, publish
from support.hub_server import TOKEN, HubServer

from sam3lite_convert.commands.push import PushTarget, plan_push, push
from sam3lite_convert.convert import safetensors_writer

STEM = "efficient_sam3_image_encoder_mobileclip_s0_ctx16"
MINE = f"porter/{STEM}"
FOLDER = Path("converted") / f"{STEM}-packed"
PUSH = ["convert", "--checkpoint", "s0", "--push-to-hub"]


@pytest.fixture
def s0(hub: HubServer, tmp_path: Path) -> Path:
    return publish(hub, tmp_path, {"s0": OLD["s0"]})["s0"]


def pushed(hub: HubServer, repo: str = MINE, revision: str = "main") -> dict[str, bytes]:
    return {n: data for n, data in hub.files(repo, revision).items() if n != ".gitattributes"}


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def uploads(hub: HubServer) -> list[str]:
    return [r.path for r in hub.log if r.method == "PUT"]


# ---- what goes where --------------------------------------------------------------------------------


def test_convert_and_push(s0, hub):
    done = sam3lite(*PUSH)
    assert done.code == 0, done
    assert pushed(hub) == contents(FOLDER)
    shown, after = done.out.index(f"To {MINE}"), done.out.index(f"Pushed to {MINE}")
    assert shown < after
    for name in contents(FOLDER):
        assert name in done.out[shown:after]
    assert "a new repository, public" in done.out and "proven" in done.out
    assert [c.message for c in hub.commits(MINE)][-1].startswith("Convert with sam3lite-convert")


def test_the_graph_goes_with_it_and_the_second_time_nothing(s0, hub):
    done = sam3lite(*PUSH, "--onnx", "--component", "text")
    assert done.code == 0 and pushed(hub) == contents(Path(f"{FOLDER}-text")), done
    assert "model.onnx" in pushed(hub) and "## ONNX" in pushed(hub)["README.md"].decode()
    commits = hub.commits(MINE)
    assert sam3lite(*PUSH, "--onnx", "--component", "text").code == 0 and hub.commits(MINE) == commits
    done = sam3lite("verify", MINE, "s0", "--json")
    assert done.code == 0 and "model.onnx was not checked; --whole does" in done.json["notes"]
    done = sam3lite("verify", MINE, "s0", "--whole", "--json")
    assert done.json["verdict"] == "proven" and "proven" in json.loads(pushed(hub)["conversion.json"])


def test_quantised_graphs_go_whole_with_what_they_lose(s0, hub):
    there = Path(f"{FOLDER}-text")
    assert sam3lite("convert", "s0", "--component", "text", "--verify").code == 0
    assert sam3lite("export", "onnx", there, "--quantize", "int8").code == 0
    done = sam3lite(*PUSH, "--component", "text")
    assert done.code == 0 and pushed(hub) == contents(there), done
    card, name = pushed(hub)["README.md"].decode(), "model.int8.onnx"
    commands = [line.rpartition("| `")[2].removesuffix("` |") for line in card.splitlines() if f"| `{name}`" in line]
    assert len(commands) == 4 and set(commands[1:]) == {"sam3lite export onnx DIR --quantize int8"}
    # What arrived is proven by what the card says, without this folder.
    copy = Path("downloaded")
    copy.mkdir()
    for file, data in pushed(hub).items():
        (copy / file).write_bytes(data)
    assert sam3lite(*commands[0].replace("DIR", str(copy)).split()[1:]).code == 0
    commits = hub.commits(MINE)
    assert sam3lite(*PUSH, "--component", "text").code == 0 and hub.commits(MINE) == commits
    (there / name).write_bytes((there / name).read_bytes()[:-1])
    done = sam3lite(*PUSH, "--component", "text")
    assert done.code == 2 and name in done.err and hub.commits(MINE) == commits
    (there / name).unlink()
    assert sam3lite(*PUSH, "--component", "text").code == 0
    assert name not in pushed(hub) and name not in pushed(hub)["README.md"].decode()


def test_what_goes_is_shown_before_it_goes(s0, hub, monkeypatch):
    from sam3lite_convert.report import push

    state = []
    inner = push.push_planned

    def planned(record):
        state.append([r.path for r in hub.log if r.method in ("POST", "PUT")])
        inner(record)

    monkeypatch.setattr(push, "push_planned", planned)
    assert sam3lite(*PUSH).code == 0
    assert state == [[]]


def test_the_second_run_makes_no_commit_and_sends_nothing(s0, hub):
    sam3lite(*PUSH)
    commits, before = hub.commits(MINE), snapshot(FOLDER)
    hub.clear_log()
    done = sam3lite(*PUSH)
    assert done.code == 0 and "nothing was pushed" in done.out
    assert hub.commits(MINE) == commits and snapshot(FOLDER) == before
    assert [r.path for r in hub.log if r.method != "GET" and r.method != "HEAD"] == []
    assert hub.sent("/cdn/") == 0


def test_a_folder_that_was_converted_before_is_pushed_without_converting(s0, hub, monkeypatch):
    sam3lite("convert", "--checkpoint", "s0")
    weights = (FOLDER / "model.safetensors").stat().st_mtime_ns
    assert sam3lite(*PUSH).code == 0
    assert (FOLDER / "model.safetensors").stat().st_mtime_ns == weights
    assert pushed(hub) == contents(FOLDER)
    assert MINE in (FOLDER / "README.md").read_text()


def test_all_are_pushed_and_the_second_time_nothing(hub, tmp_path):
    publish(hub, tmp_path, OLD)
    done = sam3lite("convert", "--all", "--push-to-hub", "--json")
    assert done.code == 0, done
    repos = {r["push"]["repo"] for r in done.json["results"]}
    assert repos == {f"porter/{Path(path).stem}" for path in OLD.values()}
    for repo in repos:
        assert pushed(hub, repo) == contents(Path("converted") / f"{repo.partition('/')[2]}-packed")
    commits = {repo: hub.commits(repo) for repo in repos}
    hub.clear_log()
    again = sam3lite("convert", "--all", "--push-to-hub", "--json")
    assert again.code == 0
    assert {r["push"]["state"] for r in again.json["results"]} == {"current"}
    assert {repo: hub.commits(repo) for repo in repos} == commits
    assert not uploads(hub)


def test_all_into_a_namespace(hub, tmp_path):
    publish(hub, tmp_path, {"s0": OLD["s0"]})
    done = sam3lite("convert", "--all", "--push-to-hub", "--hub-namespace", "team", "--json")
    assert [r["push"]["repo"] for r in done.json["results"]] == [f"team/{STEM}"]


def test_a_local_file_is_pushed_too(s0, hub):
    done = sam3lite("convert", "--checkpoint", s0, "--push-to-hub", "--json")
    assert done.json["push"]["repo"] == f"porter/{s0.stem}"
    assert sam3lite("convert", "--checkpoint", s0, "--push-to-hub", "--json").json["push"]["state"] == "current"


def test_private_message_and_model_id(s0, hub):
    options = ["--hub-model-id", "porter/own", "--private", "--commit-message", "my words"]
    done = sam3lite(*PUSH, *options)
    assert done.code == 0 and "a new repository, private" in done.out
    assert hub.commits("porter/own")[-1].message == "my words"
    assert hub._repos["porter/own"].private


def test_a_public_repository_does_not_take_what_should_be_private(s0, hub):
    hub.add_repo("porter/own", {"README.md": b"# mine\n"})
    done = sam3lite(*PUSH, "--hub-model-id", "porter/own", "--private")
    assert "is public" in one_line_of_many(done)
    assert list(hub.files("porter/own")) == ["README.md"]


def one_line_of_many(done) -> str:
    assert done.code == 2 and done.err.count("error: ") == 1 and "Traceback" not in done.err, done
    return done.err


def test_a_pull_request(s0, hub):
    hub.add_repo("team/model", {"README.md": b"# here\n"}, writers={"someone"})
    done = sam3lite(*PUSH, "--hub-model-id", "team/model", "--create-pr", "--json")
    assert done.code == 0, done
    assert list(hub.files("team/model")) == ["README.md"]
    # A card that somebody wrote there stays theirs.
    expected = contents(FOLDER) | {"README.md": b"# here\n"}
    assert pushed(hub, "team/model", "refs/pr/1") == expected
    assert done.json["push"]["pull_request"] is True


def test_a_pull_request_that_is_open_is_not_made_again(s0, hub):
    hub.add_repo("team/model", {"README.md": b"# here\n"})
    options = [*PUSH, "--hub-model-id", "team/model", "--create-pr", "--json"]
    assert sam3lite(*options).code == 0
    hub.clear_log()
    again = sam3lite(*options)
    assert again.json["push"]["state"] == "current" and "refs/pr/1" in again.json["push"]["revision"]
    assert not uploads(hub) and not [r for r in hub.log if "/commit/" in r.path]


def test_a_changed_conversion_sends_what_changed(s0, hub):
    options = [*PUSH, "--hub-model-id", "porter/own"]
    sam3lite(*options, "--max-shard-size", "3MB")
    assert len([n for n in pushed(hub, "porter/own") if n.endswith(".safetensors")]) > 1
    done = sam3lite(*options, "--overwrite")
    assert done.code == 0, done
    # Shards of the earlier one would be loaded, since their index names them.
    assert "delete   model.safetensors.index.json" in done.out
    assert pushed(hub, "porter/own") == contents(FOLDER)
    done = sam3lite(*options, "--overwrite", "--commit-message", "again")
    assert "nothing was pushed" in done.out


def test_what_no_conversion_writes_is_not_sent(s0, hub):
    sam3lite("convert", "--checkpoint", "s0")
    # The names that a conversion may write are not enough: it has to have written them.
    for name in (".env", "notes.bin", ".README.md.partial-x", "vocab.json", "tokenizer.json"):
        (FOLDER / name).write_bytes(b"secret")
    (s0.parent / "private").write_bytes(b"secret")
    (FOLDER / "merges.txt").symlink_to(s0.parent / "private")
    done = sam3lite(*PUSH)
    assert done.code == 0 and "not sent" in done.out and ".env" in done.out
    assert all(b"secret" not in data for data in hub.files(MINE).values())


def test_a_card_that_was_edited_on_the_hub_stays_there(s0, hub):
    sam3lite(*PUSH)
    hub.commit(MINE, {"README.md": b"---\nlicense: mit\n---\n# edited\n"})
    done = sam3lite(*PUSH)
    assert done.code == 0 and "nothing was pushed" in done.out
    assert b"# edited" in hub.files(MINE)["README.md"]
    hub.commit(MINE, {"config.json": None})
    assert sam3lite(*PUSH).code == 0
    assert b"# edited" in hub.files(MINE)["README.md"] and "config.json" in hub.files(MINE)
    assert sam3lite(*PUSH, "--hub-overwrite").code == 0
    assert pushed(hub) == contents(FOLDER)


def test_every_edit_of_the_folders_card_arrives(s0, hub):
    sam3lite(*PUSH)
    for words in (b"first words", b"second words"):
        (FOLDER / "README.md").write_bytes((FOLDER / "README.md").read_bytes() + words)
        assert sam3lite(*PUSH).code == 0
        assert hub.files(MINE)["README.md"].endswith(words)


def test_a_kept_card_is_said_to_differ(s0, hub):
    sam3lite(*PUSH)
    hub.commit(MINE, {"README.md": b"# edited\n"})
    assert "except for README.md" in sam3lite(*PUSH).out


def test_files_that_somebody_put_there_stay(s0, hub):
    sam3lite(*PUSH)
    hub.commit(MINE, {"generation_config.json": b"{}", "LICENSE": b"x"})
    assert "nothing was pushed" in sam3lite(*PUSH).out
    assert {"generation_config.json", "LICENSE"} <= hub.files(MINE).keys()


def test_a_repository_whose_creation_was_not_answered(s0, hub):
    hub.fail("drop", match="/repos/create", processed=True, after=-1)
    done = sam3lite(*PUSH)
    assert done.code == 0, done
    assert pushed(hub) == contents(FOLDER)


def test_an_edited_config_is_not_pushed(s0, hub):
    sam3lite("convert", "--checkpoint", "s0")
    config = json.loads((FOLDER / "config.json").read_text()) | {"auto_map": {"AutoModel": "evil.py"}}
    (FOLDER / "config.json").write_text(json.dumps(config))
    assert "config.json" in one_line_of_many(sam3lite(*PUSH))


def test_what_comes_of_ranges_is_not_pushed(hub):
    done = sam3lite(*PUSH, "--component", "text", "--partial")
    assert "--partial" in one_line_of_many(done)


def test_a_name_without_a_namespace_is_ones_own(s0, hub):
    assert sam3lite(*PUSH, "--hub-model-id", "bare", "--json").json["push"]["repo"] == "porter/bare"


def test_files_that_are_gone_are_made_again_and_never_deleted_there(s0, hub, tmp_path):
    options = [*PUSH, "--layout", "transformers", "--hub-model-id", "porter/own"]
    folder = Path("converted") / f"{STEM}-transformers"
    hub.add_repo("openai/clip-vit-base-patch32", clip_files(), commit="3d74acf9a28c67741b2f4f2ea7635f0aaf6f0268")
    sam3lite(*options)
    before = pushed(hub, "porter/own")
    assert {"vocab.json", "processor_config.json"} <= before.keys()
    for name in ("preprocessor_config.json", "processor_config.json", "vocab.json"):
        (folder / name).unlink()
    assert sam3lite(*options).code == 0
    assert pushed(hub, "porter/own") == before == contents(folder)
    # On another machine, where the tokenizer cannot be had, it stays on the hub.
    hub._repos.pop("openai/clip-vit-base-patch32")
    shutil.rmtree("converted")
    shutil.rmtree(constants.HF_HUB_CACHE)
    done = sam3lite(*options)
    assert done.code == 0 and "the folder has no tokenizer" in done.out
    assert before.keys() == pushed(hub, "porter/own").keys()


def test_an_edited_tokenizer_is_not_pushed(s0, hub, clip):
    convert = ["convert", "--checkpoint", "s0", "--layout", "transformers", "--output", "out"]
    sam3lite(*convert, "--tokenizer", clip)
    Path("out/vocab.json").write_text("{}")
    done = sam3lite(*convert)
    assert done.code == 0 and "vocab.json: edited" in done.out
    done = sam3lite(*convert, "--push-to-hub", "--hub-model-id", "porter/own")
    assert "vocab.json" in one_line_of_many(done) and "--overwrite" in done.err
    # A tokenizer that is named takes the place of what is there.
    assert sam3lite(*convert, "--tokenizer", clip).code == 0
    assert Path("out/vocab.json").read_bytes() == clip_files()["vocab.json"]


def test_what_differs_from_the_original_is_not_pushed(s0, hub, monkeypatch):
    from sam3lite_convert.commands import parity as parity_commands

    inner = parity_commands.run_parity

    def differs(*arguments, **options):
        document = inner(*arguments, **options)
        return replace(document, judgement=replace(document.judgement, verdict="differs"))

    monkeypatch.setattr(parity_commands, "run_parity", differs)
    for options in (["--parity"], ["--parity"]):
        done = sam3lite(*PUSH, *options)
        assert done.code == 1 and "Not pushed" in done.out, done
    monkeypatch.setattr(parity_commands, "run_parity", inner)
    done = sam3lite(*PUSH)  # without asking again
    assert done.code == 1 and "Not pushed" in done.out, done
    assert not [r for r in hub.log if r.method in ("POST", "PUT")]


# ---- what is not pushed -----------------------------------------------------------------------------


def test_nothing_is_pushed_that_does_not_verify(s0, hub, monkeypatch):
    inner = safetensors_writer.write_piece

    def wrong(source, piece, out, advance, loss):
        inner(source, piece, out, advance, loss)
        if piece.key == "text_encoder.projection":
            out.seek(-4, os.SEEK_CUR)
            out.write(b"\1\2\3\4")

    monkeypatch.setattr(safetensors_writer, "write_piece", wrong)
    done = sam3lite(*PUSH)
    assert (
        done.code == 1
        and "text_encoder.projection" in done.err
        and "verification of " in done.err
        and " failed: " in done.err
    )
    assert not FOLDER.exists() and not [r for r in hub.log if r.method in ("POST", "PUT")]


def test_a_folder_that_was_changed_since_is_not_pushed(s0, hub):
    sam3lite("convert", "--checkpoint", "s0")
    path = FOLDER / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    done = sam3lite(*PUSH)
    assert done.code == 1 and "verification of " in done.err and " failed: " in done.err
    assert not [r for r in hub.log if r.method in ("POST", "PUT")]


def flip_last_bit(path: Path) -> None:
    """Change the file, and leave its size and its time of change as they were."""
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize(
    ("converted", "moment", "name"),
    [
        (False, "push_planned", "config.json"),
        (True, "plan_push", "model.safetensors"),
        pytest.param(False, "plan_push", "config.json", marks=pytest.mark.stress),
        pytest.param(False, "plan_push", "model.safetensors", marks=pytest.mark.stress),
        pytest.param(False, "push_planned", "model.safetensors", marks=pytest.mark.stress),
        pytest.param(True, "plan_push", "config.json", marks=pytest.mark.stress),
        pytest.param(True, "push_planned", "config.json", marks=pytest.mark.stress),
        pytest.param(True, "push_planned", "model.safetensors", marks=pytest.mark.stress),
    ],
)
def test_what_changes_after_the_proof_is_not_sent(converted, moment, name, s0, hub, monkeypatch):
    from sam3lite_convert.commands import push as commands
    from sam3lite_convert.report import push as shown

    if converted:
        sam3lite("convert", "--checkpoint", "s0")
    module = commands if moment == "plan_push" else shown
    inner = getattr(module, moment)

    def meanwhile(*arguments):
        if moment == "push_planned" or (FOLDER / "README.md").read_text().count(MINE):
            flip_last_bit(FOLDER / name)
        return inner(*arguments)

    monkeypatch.setattr(module, moment, meanwhile)
    done = sam3lite(*PUSH)
    assert done.code == 4 and name in done.err and "changed since" in done.err, done
    assert not uploads(hub) and not [r for r in hub.log if "/commit/" in r.path]


def test_what_changes_while_it_is_hashed_for_the_hub_is_not_sent(s0, hub, monkeypatch):
    from sam3lite_convert.commands import push as commands

    inner = commands.CommitOperationAdd

    def meanwhile(*arguments, **named):
        made = inner(*arguments, **named)
        if named["path_in_repo"] == "model.safetensors":
            flip_last_bit(FOLDER / "model.safetensors")
        return made

    monkeypatch.setattr(commands, "CommitOperationAdd", meanwhile)
    done = sam3lite(*PUSH)
    assert done.code != 0 and "model.safetensors" in done.err and "changed since" in done.err
    assert not uploads(hub) and not [r for r in hub.log if "/commit/" in r.path]


def test_a_receipt_that_lists_half_of_the_files_sends_nothing(s0, hub):
    sam3lite("convert", "--checkpoint", "s0", "--max-shard-size", "3MB")
    path = FOLDER / "conversion.json"
    receipt = json.loads(path.read_text())
    gone = receipt["files"].pop()
    path.write_text(json.dumps(receipt))
    assert gone in one_line_of_many(sam3lite(*PUSH, "--max-shard-size", "3MB"))
    assert not [r for r in hub.log if r.method in ("POST", "PUT")]


def test_the_files_that_are_sent_are_those_that_were_proven(s0, hub):
    from sam3lite_convert.commands.sources import Location
    from sam3lite_convert.commands.verify import verify_folder
    from sam3lite_convert.errors import CannotRun
    from sam3lite_convert.plan.tables import load_mappings

    sam3lite("convert", "--checkpoint", "s0")
    held = []
    proof = verify_folder(FOLDER, Location("s0", s0).whole(), load_mappings(), proven=held.append)
    path = FOLDER / "conversion.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"files": ["config.json"]}))
    with pytest.raises(CannotRun, match=r"model\.safetensors"):
        push(FOLDER, plan_push(FOLDER, PushTarget(MINE)), proof, held[0])
    assert not [r for r in hub.log if r.method in ("POST", "PUT")]


def test_a_library_user_cannot_push_what_is_not_verified(s0, hub):
    from sam3lite_convert.commands.sources import Location
    from sam3lite_convert.commands.verify import verify_folder
    from sam3lite_convert.errors import CannotRun
    from sam3lite_convert.plan.tables import load_mappings

    sam3lite("convert", "--checkpoint", "s0")
    plan = plan_push(FOLDER, PushTarget("porter/own"))
    proof = verify_folder(FOLDER, Location("s0", s0).whole(), load_mappings())
    assert proof.verdict == "proven"
    for verification in (None, replace(proof, verdict="mismatch")):
        with pytest.raises(CannotRun, match="not verified"):
            push(FOLDER, plan, verification)


@pytest.mark.parametrize("files", [{"model.safetensors": b"theirs"}, {"notes.txt": b"x"}])
def test_a_repository_that_no_conversion_wrote_is_left_alone(files, s0, hub):
    hub.add_repo("porter/own", files)
    done = sam3lite(*PUSH, "--hub-model-id", "porter/own")
    assert "holds files that this tool did not write" in one_line_of_many(done)
    assert hub.files("porter/own") == files
    assert FOLDER.exists()


@pytest.mark.parametrize(
    "options",
    [
        ["--layout", "transformers"],
        pytest.param(["--dtype", "float16"], marks=pytest.mark.stress),
        pytest.param(["--component", "text"], marks=pytest.mark.stress),
    ],
)
def test_another_conversion_does_not_replace_the_first(options, s0, hub):
    sam3lite(*PUSH)
    done = sam3lite(*PUSH, *options)
    assert "--hub-model-id" in one_line_of_many(done) and "layout packed" in done.err
    assert sam3lite(*PUSH, *options, "--hub-overwrite").code == 0


def test_another_checkpoint_does_not_replace_the_first(s0, hub, tmp_path):
    hub.reset()
    publish(hub, tmp_path, OLD)
    options = ["--push-to-hub", "--hub-model-id", "porter/own"]
    sam3lite("convert", "--checkpoint", "s0", *options)
    done = sam3lite("convert", "--checkpoint", "s1", *options)
    assert "another conversion" in one_line_of_many(done)


@pytest.mark.parametrize("options", [["--context", "8"], ["--causal"]])
def test_other_options_do_not_replace_the_first(options, s0, hub):
    sam3lite(*PUSH)
    assert "another conversion" in one_line_of_many(sam3lite(*PUSH, "--overwrite", *options))


def test_a_folder_of_another_context_does_not_replace_the_first(hub, tmp_path):
    """The same bytes and options: the name that the file has now states how it is called."""
    convert = ["--push-to-hub", "--hub-model-id", "porter/own", "--output", "out", "--overwrite"]
    path = write(tmp_path, old_state(), "x.pt")
    assert sam3lite("convert", path, *convert).code == 0
    said = one_line_of_many(sam3lite("convert", path.rename(tmp_path / "x_ctx16.pt"), *convert))
    assert "another conversion" in said and "context 77" in said and "context 16" in said


def test_the_same_name_in_another_repository_does_not_replace_the_first(s0, hub, tmp_path):
    from support.hub_files import checkpoint

    hub.add_repo("somebody/else", {OLD["s0"]: checkpoint(tmp_path, "theirs")})
    sam3lite(*PUSH)
    done = sam3lite(*PUSH, "--repo-id", "somebody/else", "--output", "other")
    assert "another conversion" in one_line_of_many(done)


def test_a_repository_that_appears_meanwhile_is_looked_at_first(s0, hub):
    theirs = {"pytorch_model.bin": b"theirs", "config.json": b"{}"}

    def appear(request):
        if request.path == "/api/repos/create" and "porter/own" not in hub._repos:
            hub.add_repo("porter/own", theirs)

    hub.on_request = appear
    done = sam3lite(*PUSH, "--hub-model-id", "porter/own", "--private")
    hub.on_request = None
    assert "in the meantime" in one_line_of_many(done)
    assert hub.files("porter/own") == theirs


def test_a_pull_request_whose_answer_is_lost_is_not_made_twice(s0, hub):
    hub.add_repo("team/model", {})
    hub.fail("drop", match="/commit/", processed=True, after=-1)
    options = [*PUSH, "--hub-model-id", "team/model", "--create-pr", "--json"]
    assert sam3lite(*options).code == 2
    assert sam3lite(*options).json["push"]["revision"] == "refs/pr/1"
    assert list(hub._repos["team/model"].pull_requests) == ["refs/pr/1"]


@pytest.mark.parametrize("name", ["not a name", "a/b/c", "-x/y"])
def test_a_name_that_is_none(name, s0, hub):
    assert f"{name} is not a valid repository name" in one_line_of_many(sam3lite(*PUSH, "--hub-model-id", name))


# ---- the token --------------------------------------------------------------------------------------


def test_without_a_token_nothing_begins(s0, hub, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    for command in (PUSH, ["convert", "--all", "--push-to-hub"]):
        assert "hf auth login" in one_line_of_many(sam3lite(*command))
    assert not Path("converted").exists() and hub.sent("/cdn/") == 0


def test_a_token_that_is_not_accepted(s0, hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    done = sam3lite(*PUSH)
    assert "token" in one_line_of_many(done) and "hf_wrong" not in done.err


def test_a_namespace_that_one_may_not_write(s0, hub):
    done = sam3lite(*PUSH, "--hub-model-id", "other/own")
    hub.add_repo("team/theirs", {}, writers={"someone"})
    theirs = sam3lite(*PUSH, "--hub-model-id", "team/theirs")
    for outcome in [theirs] if done.code == 0 else [done, theirs]:
        assert "403" in one_line_of_many(outcome) and str(FOLDER) in outcome.err


def test_the_token_is_nowhere(s0, hub, tmp_path):
    said = ""
    for options in ([], ["--json"], ["--hub-model-id", "porter/own"]):
        done = sam3lite(*PUSH, *options)
        said += done.out + done.err
    hub.fail("status", match="/commit/", status=403, times=None)
    done = sam3lite(*PUSH, "--hub-model-id", "porter/third", "--json")
    assert done.code == 2
    said += done.out + done.err
    assert TOKEN not in said
    places = [tmp_path, Path(constants.HF_HOME)]
    written = [p for place in places for p in place.rglob("*") if p.is_file()]
    assert len(written) > 10
    assert not [p for p in written if TOKEN.encode() in p.read_bytes()]
    assert not any(TOKEN.encode() in data for repo in (MINE, "porter/own") for data in hub.files(repo).values())


# ---- faults of the way ------------------------------------------------------------------------------

PASSING = {
    "upload dropped": ("drop", {"match": "/upload/", "method": "PUT", "after": 100_000}),
    "upload 500": ("status", {"match": "/upload/", "method": "PUT", "status": 500}),
    "commit 500": ("status", {"match": "/commit/", "status": 500}),
    "commit 429": ("status", {"match": "/commit/", "status": 429, "retry_after": 1}),
    "batch 500": ("status", {"match": "objects/batch", "status": 500}),
    "preupload 500": ("status", {"match": "/preupload/", "status": 500}),
    "whoami 500": ("status", {"match": "/whoami", "status": 500}),
    "create 500": ("status", {"match": "/repos/create", "status": 500}),
    "look afterwards dropped": ("drop", {"match": f"/{MINE}/tree/"}),
}


@pytest.mark.parametrize(
    "fault", [fault if fault == "commit 500" else pytest.param(fault, marks=pytest.mark.stress) for fault in PASSING]
)
def test_a_fault_that_passes(fault, s0, hub):
    what, options = PASSING[fault]
    hub.fail(what, **options)
    done = sam3lite(*PUSH)
    assert done.code == 0, done
    assert pushed(hub) == contents(FOLDER)
    assert "error: " not in done.err


LASTING = {
    "commit refused": ("status", {"match": "/commit/", "status": 403, "times": None}, "403"),
    "upload refused": ("status", {"match": "/upload/", "method": "PUT", "status": 403, "times": None}, "403"),
    "creation refused": ("status", {"match": "/repos/create", "status": 403, "times": None}, "403"),
    "a long pause": ("status", {"match": "/commit/", "status": 429, "retry_after": 3600, "times": None}, "3600"),
    "bad metadata": ("status", {"match": "/validate-yaml", "status": 400, "times": None}, "400"),
}


@pytest.mark.parametrize(
    "fault",
    [f if f in ("upload refused", "commit refused") else pytest.param(f, marks=pytest.mark.stress) for f in LASTING],
)
def test_a_push_that_fails_keeps_the_folder_and_says_how_to_go_on(fault, s0, hub):
    what, options, said = LASTING[fault]
    hub.fail(what, **options)
    done = sam3lite(*PUSH)
    message = one_line_of_many(done)
    assert said in message and str(FOLDER) in message and "Run the same command again" in message
    assert sam3lite("verify", FOLDER, "--checkpoint", s0).code == 0
    hub.clear_faults()
    hub.clear_log()
    before = snapshot(FOLDER)
    assert sam3lite(*PUSH).code == 0
    assert pushed(hub) == contents(FOLDER) and snapshot(FOLDER) == before


def test_what_has_arrived_is_not_sent_again(s0, hub):
    hub.fail("status", match="/commit/", status=403, times=None)
    sam3lite(*PUSH)
    assert uploads(hub)
    hub.clear_faults()
    hub.clear_log()
    assert sam3lite(*PUSH).code == 0
    assert uploads(hub) == []


def test_a_commit_whose_answer_was_lost(s0, hub):
    hub.fail("drop", match="/commit/", processed=True, after=-1)
    first = sam3lite(*PUSH)
    assert first.code in (0, 2)
    assert sam3lite(*PUSH).code == 0
    assert pushed(hub) == contents(FOLDER)
    assert len([c for c in hub.commits(MINE) if c.message.startswith("Convert")]) == 1


def test_somebody_elses_commit_in_between_is_not_overwritten(s0, hub):
    sam3lite(*PUSH)
    once = []

    def change(request):
        if "/preupload/" in request.path and not once:
            once.append(hub.commit(MINE, {"README.md": b"# theirs\n"}))

    hub.on_request = change
    done = sam3lite(*PUSH, "--overwrite", "--max-shard-size", "3MB")
    hub.on_request = None
    assert done.code == 2 and "412" in done.err
    assert hub.files(MINE)["README.md"] == b"# theirs\n"


def test_what_arrives_is_looked_at(s0, hub, monkeypatch):
    def swap(request):
        if request.path.endswith("/commit/main"):
            monkeypatch.setattr(hub, "_listed", wrong)

    inner = hub._listed

    def wrong(repo, commit, path, expand):
        found = inner(repo, commit, path, expand)
        return found | {"oid": "0" * 40} if found and path == "config.json" else found

    hub.on_request = swap
    done = sam3lite(*PUSH)
    hub.on_request = None
    assert "config.json" in one_line_of_many(done)


# ---- and back ---------------------------------------------------------------------------------------


def test_a_pushed_folder_loads_by_name(s0, hub, clip):
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    options = ["--layout", "transformers", "--hub-model-id", "porter/own", "--tokenizer", clip]
    assert sam3lite(*PUSH, *options).code == 0
    model, info = AutoModel.from_pretrained("porter/own", output_loading_info=True)
    assert type(model).__name__ == "Sam3LiteTextModel"
    assert not any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert AutoConfig.from_pretrained("porter/own").model_type == "sam3_lite_text"
    tokenizer = AutoTokenizer.from_pretrained("porter/own")
    assert tokenizer("a dog", padding="max_length").input_ids == [49406, 320, 1929, 49407] + [0] * 12
