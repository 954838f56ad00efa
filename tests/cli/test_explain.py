"""``explain``: a tensor by any of its names, held against the maps that were made from the models themselves."""

from __future__ import annotations

import csv
import gzip

import pytest
from support import families
from support.folders import DATA, PROJECTION, QKV, convert, sam3lite, tiny_state, write
from support.rows import key_list, shipped_tables, table

from sam3lite_convert.commands.explain import explain_key
from sam3lite_convert.plan.plan import Options

VIDEO = ("--component", "video", "--layout", "transformers", "--json")


@pytest.fixture(scope="module")
def mapped() -> dict[str, list[str]]:
    """Source key -> its targets."""
    with gzip.open(DATA / "map_video.tsv.gz", "rt", encoding="utf-8") as lines:
        rows = csv.DictReader(lines, delimiter="\t")
        return {row["source"]: row["target(s)"].split() for row in rows}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return families.write(tmp_path_factory.mktemp("explain") / "s0.pt", "s0")


@pytest.mark.parametrize(
    "source",
    [
        "tracker.maskmem_tpos_enc",
        # one source, two targets; four sources, one target
        "tracker.sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
        "tracker.sam_prompt_encoder.point_embeddings.2.weight",
        "detector.backbone.vision_backbone.sam2_convs.1.conv_3x3.weight",
        "detector.transformer.decoder.layers.0.self_attn.in_proj_weight",
    ],
)
def test_a_tensor_is_explained_from_both_ends(checkpoint, mapped, source):
    targets = mapped[source]
    together = [key for key, to in mapped.items() if to == targets]
    for asked in (source, *targets):
        said = sam3lite("explain", checkpoint, asked, *VIDEO).json
        assert [target["key"] for target in said["targets"]] == targets
        assert said["source"]["key"] in together and (said.get("joined") or [source]) == together
        assert asked != source or said["source"]["key"] == source


def test_an_operation_is_said_in_words(checkpoint):
    said = sam3lite("explain", checkpoint, "detector.backbone.vision_backbone.trunk.pos_embed").out
    assert "op      drop_class_row: without the first row where the table has one for a class token" in said


def test_what_no_model_takes_is_dropped_with_its_reason(checkpoint, mapped):
    dropped = next(key for key, targets in mapped.items() if not targets and "points_" in key)
    said = sam3lite("explain", checkpoint, dropped, *VIDEO).json
    assert not said["targets"] and said["reason"]


# ---- names of any layout, in any spelling


def source_of(layout: str, target: str) -> str:
    """The source of a target, by what another implementation found to be equal."""
    (found,) = {row[2] for row in table(f"oracle_{layout}_s0") if row[0] == target}
    return found


OF_LIBRARY = "text_encoder.layers.3.self_attn.k_proj.weight"
PACKED = "text_encoder.layers.3.attention.in_proj_weight"
VISION = "vision_encoder.backbone.layers.7.attention.v_proj.bias"
TRACKER = "tracker_model.mask_decoder.iou_token.weight"
BLOCK = QKV.replace("transformer.1.", "transformer.3.")
SHORT = BLOCK.removeprefix("detector.")


@pytest.mark.parametrize(
    ("name", "source", "shown"),
    [
        # of the original, with and without what may stand in front
        (BLOCK, BLOCK, ("packed", "all")),
        (SHORT, BLOCK, ("packed", "all")),
        (f"model._orig_mod.{SHORT}", BLOCK, ("packed", "all")),
        (BLOCK.replace("qkv_proj.", "attn.in_proj_"), BLOCK, ("packed", "all")),
        (BLOCK.removeprefix("detector.backbone.language_backbone."), BLOCK, ("packed", "all")),
        # of the layouts
        (PACKED, source_of("packed", PACKED), ("packed", "all")),
        (f"module.{PACKED}", source_of("packed", PACKED), ("packed", "all")),
        (OF_LIBRARY, source_of("transformers", OF_LIBRARY), ("transformers", "all")),
        (f"_orig_mod.{OF_LIBRARY}", source_of("transformers", OF_LIBRARY), ("transformers", "all")),
        (VISION, source_of("packed", VISION), ("packed", "all")),
        # of the library's other classes: the video model, and the text encoder alone
        (f"detector_model.{OF_LIBRARY}", source_of("transformers", OF_LIBRARY), ("transformers", "video")),
        (f"sam3_video.{TRACKER}", "tracker.sam_mask_decoder.iou_token.weight", ("transformers", "video")),
        (f"tracker_model.{TRACKER}", "tracker.sam_mask_decoder.iou_token.weight", ("transformers", "video")),
        (OF_LIBRARY.removeprefix("text_encoder."), source_of("transformers", OF_LIBRARY), ("transformers", "text")),
        # attention that is packed, or stands apart, otherwise than in any layout
        (SHORT.replace("qkv_proj.", "in_proj_"), BLOCK, ("packed", "all")),
        (SHORT.replace("qkv_proj.", "v_proj."), BLOCK, ("packed", "all")),
        (PACKED.replace("in_proj_", "q_proj."), BLOCK, ("packed", "all")),
        (VISION.replace("v_proj.", "qkv."), source_of("packed", VISION), ("packed", "all")),
    ],
)
def test_a_tensor_is_found_by_any_of_its_names(name, source, shown):
    said = explain_key(families.held("s0"), name, shipped_tables(), Options(), stated=False)
    assert said.source.key == source
    assert (said.layout, said.component) == shown
    ways = [note for note in said.notes if "sam3lite" in note]
    assert len(ways) == (shown != ("packed", "all"))  # the default
    options = f"--layout {shown[0]}" + (f" --component {shown[1]}" if shown[1] != "all" else "")
    assert all(way.endswith(f"as typed:\nsam3lite explain s0 {name} {options}") for way in ways)


def test_the_command_of_a_note_can_be_typed(checkpoint):
    said = sam3lite("explain", checkpoint, f"detector_model.{OF_LIBRARY}", "--json").json
    again = sam3lite(*said["notes"][0].partition("\nsam3lite ")[2].split(), "--json").json
    assert again["targets"] == said["targets"] and again["notes"] == []


def test_where_a_layout_is_stated_it_is_shown_with_the_way_to_the_other(checkpoint):
    said = sam3lite("explain", checkpoint, OF_LIBRARY, "--layout", "packed")
    assert PACKED in said.out and "a name of the layout transformers:" in said.out
    assert said.out.splitlines()[-1].strip() == f"sam3lite explain {checkpoint} {OF_LIBRARY} --layout transformers"


@pytest.mark.parametrize(
    ("key", "options", "ways"),
    [
        ("tracker.no_mem_embed", (), "--layout transformers --component video"),
        ("tracker.no_mem_embed", ("--component", "video"), None),
        ("detector.geometry_encoder.points_pool_project.bias", (), "--layout original"),
        ("detector.dot_prod_scoring.hs_proj.bias", ("--component", "text"), "--layout packed"),
    ],
)
def test_what_is_dropped_points_to_where_it_is_written(checkpoint, mapped, key, options, ways):
    said = sam3lite("explain", checkpoint, key, *options, "--json").json
    assert bool(ways) == bool(said["notes"]) and all(ways in note for note in said["notes"])
    if "tracker" in key:
        assert mapped[key]


@pytest.mark.parametrize(
    ("name", "word"),
    [
        (OF_LIBRARY.replace(".3.", ".40."), "encoder.transformer.40.pre_norm_mha.1.qkv_proj.weight"),
        ("text_encoder.text_model.encoder.layers.3.self_attn.q_proj.weight", "of SAM3, made of"),
        (OF_LIBRARY.replace("self_attn", "self_atn"), OF_LIBRARY.replace("text_encoder.", "")[7:]),
        ("nonsense", "not a tensor of the checkpoint, nor of its conversion.\n"),
        ("tracker", " '*tracker*'\n"),
        ("pos_embedd", " '*pos_embed*'\n"),
        (
            "projector.bais",
            "\nNearest names of the checkpoint:\n  detector.backbone.language_backbone.projector.bias",
        ),
        ("text_projection.bais", "\nNearest names of the conversion:\n  text_projection.bias"),
        ("v-swaped", ": sam3lite explain V-SWAPPED\n"),
        ("*.layers.77.*", ".layers.77. in the names of 0 tensors"),
        ("[", "no tensor has a name like"),
    ],
)
def test_an_unknown_name_says_what_it_is_or_what_is_near(checkpoint, name, word):
    done = sam3lite("explain", checkpoint, name, "--layout", "transformers")
    assert (done.code, done.out) == (2, "")
    assert word in done.err


def test_a_misspelt_name_is_not_said_to_be_one_of_the_originals(checkpoint):
    """The layout of the original's names takes whatever a component holds."""
    said = sam3lite("explain", checkpoint, "detector.dot_prod_scoring.hs_proj.bia").err
    assert "It is a name of" not in said
    assert said.splitlines()[1:3] == ["Nearest names of the checkpoint:", "  detector.dot_prod_scoring.hs_proj.bias"]


def test_a_key_of_a_converted_folder_is_found_in_it(tmp_path):
    folder = convert(write(tmp_path, tiny_state()), tmp_path / "out", "--layout", "transformers")
    said = sam3lite("explain", folder, "text_encoder.projection.weight", "--json").json
    assert said["source"]["key"] == PROJECTION
    assert (
        sam3lite("explain", folder, "module.text_encoder.projection.weight", "--json").json["source"] == said["source"]
    )


def test_sam3s_own_checkpoint_needs_no_layout():
    name = "text_encoder.text_model.encoder.layers.3.self_attn.q_proj.weight"
    (source,) = [row[0] for row in table("map_teacher") if name in row[2].split()]
    said = explain_key(families.held("teacher"), name, shipped_tables(), Options(), stated=False)
    assert (said.layout, said.source.key, said.notes) == ("transformers", source, ())


# ---- patterns


def test_a_reason_that_all_tensors_of_a_pattern_have_is_said_once(checkpoint):
    keys = [key for key in key_list("s0_ctx16") if "freqs_cis" in key]
    lines = sam3lite("explain", checkpoint, "*freqs_cis*").out.partition("\n\n")[0].splitlines()
    assert lines[: len(keys)] == keys and len(keys) > 1
    assert lines[len(keys)].startswith("all dropped [") and "dropped" not in " ".join(lines[len(keys) + 1 :])
    mixed = sam3lite("explain", checkpoint, "*trunk.blocks.0.attn.*").out
    assert mixed.count("dropped [") == 1 and mixed.count("->") > 1 and "all dropped" not in mixed


def test_a_pattern_is_one_line_a_tensor_up_to_a_limit(checkpoint):
    keys = [key for key in key_list("s0_ctx16") if key.endswith(".bias")]
    done = sam3lite("explain", checkpoint, "detector*.bias")
    lines, _, rest = done.out.partition("\n\n")
    count = sum(key.startswith("detector.") for key in keys)
    assert [line.split()[0] for line in lines.splitlines()] == [k for k in keys if k.startswith("detector.")][:40]
    assert f"{count} of {len(key_list('s0_ctx16')):,} tensors" in rest and f"{count - 40} more: --all" in rest
    every = sam3lite("explain", checkpoint, "detector*.bias", "--all").out
    assert len(every.partition("\n\n")[0].splitlines()) == count and "--all" not in every
