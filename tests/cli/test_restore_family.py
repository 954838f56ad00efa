"""``sam3lite restore`` on every kind of checkpoint of the family, and the tracker's joined and doubled tensors."""

from __future__ import annotations

import shutil

import pytest
import torch
from support import families
from support.folders import TRUNK, assert_equal_states, convert, edit, receipt, sam3lite, same, tensors, write

POS_EMBED = TRUNK + "pos_embed"
POINTS = "tracker.sam_prompt_encoder.point_embeddings.{}.weight"
POSITIONS = "tracker.sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
POINT_TABLE = "tracker_model.prompt_encoder.point_embed.weight"
COPIES = (
    "tracker_model.prompt_encoder.shared_embedding.positional_embedding",
    "tracker_model.shared_image_embedding.positional_embedding",
)
TRANSFORMERS = ["--layout", "transformers"]
VIDEO = [*TRANSFORMERS, "--component", "video"]
ORIGINAL = ["--layout", "original"]


def restored(folder, output, *options):
    done = sam3lite("restore", folder, "--output", output, "--json", *options)
    assert done.code == 0, done
    return torch.load(output, weights_only=True)["model"], done.json


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("s0", VIDEO),
        ("s1", []),
        ("l", TRANSFORMERS),
        ("s0-32", TRANSFORMERS),
        ("s0-3.1", TRANSFORMERS),
        ("teacher", VIDEO),
        pytest.param("teacher", TRANSFORMERS, marks=pytest.mark.stress),
        pytest.param("teacher", ORIGINAL, marks=pytest.mark.stress),
        pytest.param("teacher-3.1", TRANSFORMERS, marks=pytest.mark.stress),
        ("student", ORIGINAL),
        pytest.param("student-3.1", ORIGINAL, marks=pytest.mark.stress),
        pytest.param("student-ft", ORIGINAL, marks=pytest.mark.stress),
        pytest.param("student-ft", [*TRANSFORMERS, "--component", "text"], marks=pytest.mark.stress),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value[1::2]) or "packed",
)
def test_every_tensor_comes_back(kind, options, tmp_path):
    state = families.state_dict(kind)
    original = write(tmp_path, state, "in.pt")
    folder = convert(original, tmp_path / "out", *options)
    found, record = restored(folder, tmp_path / "back.pt", original)
    assert list(found) == list(state)
    assert_equal_states(found, state)
    said = receipt(folder)
    assert record["equal"] == said["counts"]["mapped"]
    assert sum(record["from_checkpoint"].values()) == said["counts"]["dropped"]
    alone, record = restored(folder, tmp_path / "alone.pt")
    assert set(alone) == set(state) - set(said["dropped"])
    different = {key for key, tensor in alone.items() if not same(tensor, state[key])}
    assert different == {remark["key"] for remark in record["partly"]}
    assert different == ({POS_EMBED} if "class_row" in said["lost"] else set())
    if options == VIDEO:
        (folder / "conversion.json").unlink()
        bare, record = restored(folder, tmp_path / "bare.pt")
        assert_equal_states(bare, alone)
        assert (record["basis"], record["component"], record["family"]) == ("layout", "video", said["family"])


@pytest.fixture(scope="module")
def state():
    return families.state_dict("s0")


@pytest.fixture(scope="module")
def original(state, tmp_path_factory):
    return write(tmp_path_factory.mktemp("video"), state)


@pytest.fixture(scope="module")
def made(original, tmp_path_factory):
    return convert(original, tmp_path_factory.mktemp("video") / "out", *VIDEO)


@pytest.fixture
def folder(made, tmp_path):
    return shutil.copytree(made, tmp_path / "out")


def test_a_row_of_a_joined_table_is_one_tensor_of_the_original(folder, state, original, tmp_path):
    table = tensors(folder)[POINT_TABLE].clone()
    table[2] += 1
    edit(folder, {POINT_TABLE: table})
    wanted = state | {POINTS.format(2): table[2:3]}
    found, record = restored(folder, tmp_path / "back.pt", original)
    assert_equal_states(found, wanted)
    assert record["changed"] == [POINTS.format(2)]
    alone, _ = restored(folder, tmp_path / "alone.pt")
    for row in range(4):
        assert same(alone[POINTS.format(row)], wanted[POINTS.format(row)])


def test_a_tracker_under_a_doubled_prefix(folder, state, original, tmp_path):
    """As save_pretrained of transformers 5.23 writes it, where the model was built and not loaded."""
    found = tensors(folder)
    doubled = {key: f"tracker_model.{key}" for key in found if key.startswith("tracker_model.")}
    edit(folder, dict.fromkeys(doubled) | {doubled[key]: found[key] for key in doubled})
    back, record = restored(folder, tmp_path / "back.pt", original)
    assert_equal_states(back, state)
    dropped = receipt(folder)["dropped"]
    (folder / "conversion.json").unlink()
    alone, record = restored(folder, tmp_path / "alone.pt")
    assert set(alone) == set(state) - set(dropped)
    assert record["basis"] == "layout" and record["unplaced"] == []


def test_two_copies_that_were_trained_alike(folder, state, original, tmp_path):
    new = state[POSITIONS] + 1
    edit(folder, dict.fromkeys(COPIES, new))
    found, record = restored(folder, tmp_path / "back.pt", original)
    assert_equal_states(found, state | {POSITIONS: new})
    assert record["changed"] == [POSITIONS]
    alone, _ = restored(folder, tmp_path / "alone.pt")
    assert same(alone[POSITIONS], new)


@pytest.mark.parametrize("which", COPIES)
def test_two_copies_that_differ_are_refused_with_both_names(which, folder, state, original, tmp_path):
    edit(folder, {which: state[POSITIONS] + 1})
    for options in ([original], [], ["bare"]):
        if options == ["bare"]:
            (folder / "conversion.json").unlink()
        arguments = [option for option in options if option != "bare"]
        done = sam3lite("restore", folder, "--output", tmp_path / "back.pt", "--json", *arguments)
        assert done.code == 4, done
        error = done.json["error"]
        assert error["code"] == "twins_differ" and sorted(error["details"]["keys"]) == sorted(COPIES)
        assert not (tmp_path / "back.pt").exists()


def test_a_level_that_was_filled_and_is_not_zero_any_more(tmp_path):
    state = families.state_dict("s0-3.1")
    original = write(tmp_path, state, "in.pt")
    folder = convert(original, tmp_path / "out", *TRANSFORMERS)
    key = "vision_encoder.neck.fpn_layers.3.proj1.bias"
    edit(folder, {key: torch.ones_like(tensors(folder)[key])})
    for options in ([original], []):
        found, record = restored(folder, tmp_path / "back.pt", "--overwrite", *options)
        assert [remark["key"] for remark in record["unplaced"]] == [key]
        assert not any("convs.3" in name for name in set(found) - set(state))


def test_the_checkpoint_of_another_family_is_told_as_another_file(folder, tmp_path):
    other = families.write(tmp_path / "teacher.pt", "teacher")
    done = sam3lite("restore", folder, other, "--output", tmp_path / "back.pt", "--json")
    assert done.code == 3
    said = done.json["error"]["message"]
    assert said.startswith(f"{other} is not the file that conversion.json names")
    assert "cannot be turned back: detector_model.text_encoder." in said
