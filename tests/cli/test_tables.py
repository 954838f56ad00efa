"""``tables``: every tensor of a checkpoint is counted once, and the counts are those of lists that other tables made.

What is dropped of a family is told by the maps of tests/data, which were made from the two models, and of those that
have none by the names of the parts that no layout has.
"""

from __future__ import annotations

import fnmatch
import re
import textwrap
from collections import Counter

import pytest
from support import families
from support.folders import QKV, ROOT, sam3lite, tiny_state, write
from support.rows import key_list, shipped_tables, table

from sam3lite_convert.commands.tables import Choice, list_keys, list_tables
from sam3lite_convert.errors import CannotRun
from sam3lite_convert.plan.operations import OPERATIONS as OPERATIONS_KNOWN
from sam3lite_convert.plan.tables import builtin_directory
from sam3lite_convert.records.tables import TakenCounts

MAPPED = {"s0": ("map_video", 2), "teacher": ("map_teacher", 3)}  # kind -> map, column of the video model's targets
OPERATIONS = {"split3_dim0": "split", "drop_first_row_dim1": "drop_class_row", "duplicate2": "duplicate"}
NO_PLACE = re.compile(
    r"tracker\.|.*\.(?:sam2|interactive|propagation)_convs\.|.*\.freqs_cis|.*\.points_(?:direct|pool|pos_enc)_project\."
)
COUNTER = "num_batches_tracked"
TEXT = "detector.backbone.language_backbone."


def tables(kind, layout=None, component="all", **more):
    return list_tables(shipped_tables(), Choice(layout, component=component), families.held(kind, more))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write(tmp_path_factory.mktemp("tables"), tiny_state(), "s0.pt")


# ---- counts


@pytest.mark.parametrize("kind", MAPPED)
def test_the_counts_of_rules_are_those_of_the_maps(kind):
    name, column = MAPPED[kind]
    rows = [(row[0], row[1], len(row) > column and row[column]) for row in table(name)[1:]]
    assert {source for source, *_ in rows} == set(key_list(families.LISTS[kind]))
    counted = Counter()
    for rule in (done := tables(kind, component="video")).rules:
        counted[rule.operation] += rule.keys
    wanted = Counter(
        "join" if operation.startswith("concat") else OPERATIONS.get(operation, operation) for _, operation, _ in rows
    )
    assert counted == wanted
    assert done.taken.counts.dropped == sum(not targets for *_, targets in rows)
    assert done.taken.counts.left == done.taken.counts.unmatched == 0


WHOLE = [kind for kind in families.KINDS if not kind.startswith("student")]


@pytest.mark.parametrize(("kind", "layout"), [*((kind, None) for kind in WHOLE), ("s0", "transformers")])
def test_every_tensor_of_a_family_is_counted_once(kind, layout):
    done, keys = tables(kind, layout), key_list(families.LISTS[kind])
    dropped = sum(NO_PLACE.match(key) is not None for key in keys)
    counts = TakenCounts(tensors=len(keys), mapped=len(keys) - dropped, dropped=dropped, left=0, unmatched=0)
    assert done.taken.counts == counts
    assert sum(rule.keys for rule in done.rules) == len(keys)
    assert sum(rule.keys for rule in done.rules if rule.operation == "drop") == dropped
    detector = sum(key.startswith("detector.") for key in keys)
    assert [rule.keys for rule in done.spellings if rule.name == "prefix detector"] == [detector]


@pytest.mark.parametrize("kind", [kind for kind in families.KINDS if kind.startswith("student")])
def test_an_image_student_goes_to_the_originals_names_whole_and_elsewhere_its_keys_are_listed(kind):
    keys = key_list(families.LISTS[kind])
    assert tables(kind, "original").taken.counts.mapped == len(keys)
    done = tables(kind, "transformers")
    strange = [key for key in keys if ".trunk.model." in key]
    assert list(done.taken.unmatched) == strange
    assert sum(rule.keys for rule in done.rules) == len(keys) - len(strange)
    said = sum(int(n[0]) if (n := re.findall(r"\((\d+)\)$", p)) else 1 for p in done.taken.unmatched_patterns)
    assert said == len(strange)
    assert done.layouts == {"original": ("all", "text"), "packed": ("text",), "transformers": ("text",)}


def test_the_text_encoder_alone_leaves_out_the_rest():
    keys = key_list("s0_ctx16")
    done = tables("s0", "transformers", "text")
    text = sum(key.startswith(TEXT) for key in keys)
    assert done.taken.counts == TakenCounts(
        tensors=len(keys), mapped=text, dropped=0, left=len(keys) - text, unmatched=0
    )
    assert list(done.taken.left.values()) == [len(keys) - text]
    assert not any("vision" in rule.sources[0] for rule in done.rules)


def test_keys_without_a_rule_and_second_spellings_are_counted_apart():
    dtype, shape = families.rows("s0")[QKV]
    twin = QKV.replace("language_backbone.", "language_backbone.tensor_runner.")
    extra = {f"detector.adapter.{i}.weight": (dtype, (2, 2)) for i in (0, 1, 5)} | {twin: (dtype, shape)}
    counts = (done := tables("s0", **extra)).taken.counts
    assert counts.tensors == len(key_list("s0_ctx16")) + 4
    assert (counts.unmatched, counts.left) == (3, 1)
    assert done.taken.unmatched_patterns == ("detector.adapter.{0,1,5}.weight (3)",)
    assert done.taken.left == {"second spelling of another tensor": 1}


def test_a_key_that_two_rules_take_is_named(tiny, edited_tables):
    rule = "[mine]\nop = keep\nsource = (?P<k>dot_prod_scoring\\.hs_proj\\.bias)\ntarget = {k}\n"
    example = "example = dot_prod_scoring.hs_proj.bias\n\n[sam2 neck]"
    mine = edited_tables("dropped.ini", ("[sam2 neck]", rule + example))
    done = sam3lite("tables", tiny, "--mapping", mine, "--json").json["taken"]
    assert done["disputed"] == ["detector.dot_prod_scoring.hs_proj.bias"]
    assert "more than one rule" in sam3lite("tables", tiny, "--mapping", mine).out


# ---- rules


VIDEO = ("tracker", "dropped-video", "trainers", "detector", "text-clip")


@pytest.mark.parametrize(
    ("options", "files"),
    [
        ((), ("detector", "text-packed", "dropped", "trainers")),
        (("--layout", "original"), ("original", "original-dropped", "original-text", "trainers")),
        (("--family", "sam3"), ("detector", "text-clip", "dropped", "trainers")),
        (
            ("--component", "video", "--family", "SAM3"),
            ("tracker", "dropped-video", "trainers", "detector", "text-clip"),
        ),
    ],
)
def test_without_a_checkpoint_it_shows_the_tables_word_for_word(options, files):
    text = sam3lite("tables", *options).out
    lines = {line.strip() for line in text.splitlines()}
    rules = sam3lite("tables", *options, "--json").json["rules"]
    assert len({rule["table"] for rule in rules}) == len(files)
    for name in files:
        written = (builtin_directory() / f"{name}.ini").read_text()
        sections = re.findall(r"^\[(.+)\]", written, re.M)
        assert [rule["name"] for rule in rules if rule["table"] == f"{name}.ini"] == sections
        assert all(any(line.startswith(f"[{section}]") for line in lines) for section in sections)
        assert set(re.findall(r"^source +=(?: (.+))", written, re.M)) <= lines


def test_a_count_that_does_not_add_up_is_refused():
    with pytest.raises(ValueError, match="add up"):
        TakenCounts(tensors=3, mapped=1, dropped=1, left=0, unmatched=0)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--family", "sam4"), "SAM3-LiteText, SAM3"),
        (("--layout", "mine"), "packed"),
        (("--keys", "*qkv*"), "sam3lite tables s0"),
        (("*qkv*",), "before it"),
        (("TINY", "--family", "sam3"), "--family"),
        (("TINY", "*qkv*", "--keys", "*q*"), "two patterns"),
        (("TINY", "*.layers.77.*"), ".layers.77. in the names of 0 tensors"),
    ],
)
def test_what_cannot_be_shown_says_what_there_is(arguments, word, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = sam3lite("tables", *(str(tiny) if a == "TINY" else a for a in arguments))
    assert (done.code, done.out) == (2, "")
    assert word in done.err


# ---- keys


@pytest.mark.parametrize(
    ("layout", "pattern"),
    [
        ("packed", "*.layers.3.*"),
        ("packed", "tracker.*"),
        ("transformers", "text_encoder.*"),
        ("transformers", "*[vk]_*"),
    ],
)
def test_a_pattern_lists_the_tensors_with_such_names(pattern, layout):
    keys = (key for key in key_list("s0_ctx16") if not key.endswith(COUNTER))  # of which the oracle tells nothing
    called: dict[str, set[str]] = {key: {key, key.removeprefix("detector.")} for key in keys}
    for target, _, source in table(f"oracle_{layout}_s0"):
        called[source].add(target)
    wanted = [key for key, names in called.items() if any(fnmatch.fnmatchcase(name, pattern) for name in names)]
    document = list_keys(families.held("s0"), pattern, shipped_tables(), Choice(layout), "tables")
    found = [line for line in document.tensors if not line.key.endswith(COUNTER)]
    assert wanted and [line.key for line in found] == wanted
    assert all(line.targets or (NO_PLACE.match(line.key) and line.reason) for line in found)
    assert all(called[line.key].issuperset(line.targets) for line in found)


def test_a_pattern_points_to_the_layouts_that_have_such_names():
    pattern = "text_encoder.*.q_proj.weight"
    found = list_keys(families.held("s0"), pattern, shipped_tables(), Choice(), "tables")
    sources = {row[2] for row in table("oracle_transformers_s0") if fnmatch.fnmatchcase(row[0], pattern)}
    assert found.layout == "transformers" and {line.key for line in found.tensors} == sources
    assert "sam3lite tables s0 'text_encoder.*.q_proj.weight' --layout transformers" in found.notes[0]
    with pytest.raises(CannotRun, match="--layout transformers"):
        list_keys(families.held("s0"), pattern, shipped_tables(), Choice("packed"), "tables")


def test_a_note_counts_what_has_such_names_in_another_layout_alone():
    pattern = "*norm1*"
    found = list_keys(families.held("s0"), pattern, shipped_tables(), Choice("packed"), "tables")
    own = {line.key for line in found.tensors}
    more = [row[0] for row in table("map_video")[1:] if fnmatch.filter(row[2].split(), pattern) and row[0] not in own]
    assert more
    assert [int(note.split()[0]) for note in found.notes] == [len(more)]
    assert found.notes[0].endswith("--layout transformers --component video")


def test_a_pattern_may_begin_with_a_prefix_that_the_checkpoint_lacks():
    found = list_keys(families.held("s0"), "module.*hs_proj*", shipped_tables(), Choice(), "explain")
    plain = list_keys(families.held("s0"), "*hs_proj*", shipped_tables(), Choice(), "explain")
    assert found.tensors == plain.tensors and found.notes == ("read as *hs_proj*",)


def test_a_pattern_may_call_attention_otherwise():
    found = list_keys(families.held("s0"), "text_encoder.layers.3.*qkv*", shipped_tables(), Choice("packed"), "tables")
    assert {line.target for line in found.tensors} == {
        f"text_encoder.layers.3.attention.in_proj_{p}" for p in ("weight", "bias")
    }
    assert "attention" in found.notes[0]


# ---- what it looks like


@pytest.mark.parametrize(
    "arguments",
    [
        ("tables",),
        ("tables", "TINY"),
        ("tables", "TINY", "*.layers.0.*"),
        ("tables", "TINY", "--component", "text"),
        ("explain", "TINY", f"module.{QKV}", "--layout", "transformers"),
    ],
)
@pytest.mark.parametrize("terminal", [False, True], ids=["pipe", "terminal"])
def test_at_80_columns_no_word_is_broken(arguments, terminal, tiny, monkeypatch):
    words = [str(tiny) if a == "TINY" else a for a in arguments]
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")

    def shown(columns):
        monkeypatch.setenv("COLUMNS", str(columns))
        return re.sub(r"\x1b\[[\d;]*m", "", sam3lite(*words).out)

    narrow, wide = shown(80), shown(4000)
    assert narrow.split() == wide.split()
    if arguments[0] == "tables" and (terminal or "*.layers.0.*" not in arguments):  # a pipe gets one line a tensor
        long = [line.strip().removeprefix("-> ") for line in narrow.splitlines() if len(line) > 80]
        long = [line for line in long if not line.startswith("sam3lite ")]  # to be copied
        assert [line for line in long if len(re.sub(r" \(\d+\)$", "", line).split()) > 1] == []


def test_no_tensor_is_read_and_one_line_is_one_tensor(tiny):
    lines = sam3lite("tables", tiny, "*.layers.0.*").out.split("\n\n")[0].splitlines()
    assert lines and all(re.fullmatch(r"\S+ (?:-> .+ \[.+\]|dropped \[.+\]: .+)", line) for line in lines)


def test_the_rule_of_the_document_is_that_of_the_tables():
    page = (ROOT / "docs" / "tables.md").read_text()
    rule, spelling = re.findall(r"^    \[.+?(?=\n\n)", page, re.M | re.S)
    assert textwrap.dedent(rule) in (builtin_directory() / "text-transformers.ini").read_text()
    assert re.fullmatch(re.search("source += (.+)", spelling)[1], re.search("example = (.+)", spelling)[1])
    assert set(re.findall(r"^\| `(\w+)` \| \d", page, re.M)) == OPERATIONS_KNOWN.keys()
