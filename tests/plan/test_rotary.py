"""The rotary tables that a conversion drops are those that the target computes."""

from __future__ import annotations

import cmath
import math
from collections import Counter

import numpy as np
import pytest
import torch
from support.folders import TRUNK, convert, receipt, sam3lite, tiny_state, verify, write

from sam3lite_convert.plan.rotary import THETA, TOLERANCE, axial_table

WINDOWED, GLOBAL = TRUNK + "blocks.0.attn.freqs_cis", TRUNK + "blocks.7.attn.freqs_cis"


def test_the_table_is_the_specifications():
    """By the formula, entry by entry: token t of a side x side grid, columns first, then rows."""
    side, pairs, window = 10, 8, 4
    table = axial_table(side, pairs, window)
    assert table.shape == (100, 8)
    for t in (0, 1, 9, 10, 57, 99):
        for j in range(4):
            frequency = 10000 ** (-4 * j / 16)
            assert table[t, j] == pytest.approx(cmath.exp(1j * (t % side) * window / side * frequency))
            assert table[t, 4 + j] == pytest.approx(cmath.exp(1j * (t // side) * window / side * frequency))


def test_the_table_is_what_the_library_computes(tmp_path):
    """In every block of a small model that it loads: 4 x 4 patches in a window, 8 x 8 in the global one."""
    from transformers import Sam3LiteTextModel

    path = write(tmp_path, tiny_state())
    folder = convert(path, tmp_path / "out", "--layout", "transformers")
    backbone = Sam3LiteTextModel.from_pretrained(folder).vision_encoder.backbone
    seen: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def keep(n):
        def hook(module, arguments, result):
            seen[n] = result

        return hook

    for n, layer in enumerate(backbone.layers):
        layer.rotary_emb.register_forward_hook(keep(n))
    with torch.inference_mode():
        backbone(torch.zeros(1, 3, 112, 112))
    assert len(seen) == 8
    for n, parts in seen.items():
        side = 8 if n == 7 else 4
        cos, sin = (part.reshape(side * side, 64).double() for part in parts)
        table = torch.from_numpy(axial_table(side, 32, 4))
        # The library holds every angle twice, once for each of the two channels that it turns.
        for found, wanted in ((cos, table.real), (sin, table.imag)):
            assert float((found[:, ::2] - wanted).abs().max()) < TOLERANCE / 10


def test_the_tolerance_is_above_float32_and_below_another_base():
    frequencies = torch.tensor(10000.0) ** (-torch.arange(16, dtype=torch.float32) / 16)
    angles = torch.outer(torch.arange(72, dtype=torch.float32) * (24 / 72), frequencies)
    single = torch.polar(torch.ones_like(angles), angles).numpy()
    assert np.abs(single - axial_table(72, 32, 24)[:72, :16]).max() < TOLERANCE / 10
    assert np.abs(axial_table(72, 32, 24, 10100) - axial_table(72, 32, 24, THETA)).max() > 50 * TOLERANCE


WRONG = {
    "all ones": (torch.ones_like, "everywhere"),
    "conjugated": (torch.conj_physical, "conjugated"),
    "NaN": (lambda t: torch.full_like(t, complex(math.nan, 0)), "NaN or infinite"),
    "one NaN": (lambda t: t.index_put((torch.tensor(3), torch.tensor(4)), torch.tensor(complex(math.nan, 0))), "1 of "),
    "another base": (lambda t: torch.from_numpy(axial_table(4, 32, 4, 500.0)).to(torch.complex64), "base 10000"),
    "rows first": (lambda t: torch.cat([t[:, 16:], t[:, :16]], 1), "not the table"),
    "longer": (lambda t: t * 1.001, "not the table"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_another_table_is_a_finding_and_convert_notes_it(wrong, tmp_path):
    change, word = WRONG[wrong]
    state = tiny_state()
    state[WINDOWED] = change(state[WINDOWED])
    path = write(tmp_path, state)
    folder = convert(path, tmp_path / "out")
    (note,) = [n for n in receipt(folder)["notes"] if "freqs_cis" in n]
    assert WINDOWED in note and word in note
    record = verify(folder, path).json
    (finding,) = record["findings"]
    assert (record["verdict"], finding["code"], finding["keys"]) == ("mismatch", "V-ROTARY", [WINDOWED])
    assert word in finding["cause"]


def test_tables_with_one_fault_are_one_finding(tmp_path):
    state = {k: torch.ones_like(t) if k.endswith("freqs_cis") else t for k, t in tiny_state().items()}
    path = write(tmp_path, state)
    (finding,) = verify(convert(path, tmp_path / "out"), path).json["findings"]
    assert len(finding["keys"]) == 8 and finding["patterns"] == [TRUNK + "blocks.{0..7}.attn.freqs_cis (8)"]


def test_a_global_block_is_compared_with_its_own_size(tmp_path):
    state = tiny_state()
    # 8 x 8 patches: angles must be those of the window of 4; here they are those of a grid of 8.
    state[GLOBAL] = torch.from_numpy(axial_table(8, 32, 8)).to(torch.complex64)
    path = write(tmp_path, state)
    (finding,) = verify(convert(path, tmp_path / "out"), path).json["findings"]
    assert finding["keys"] == [GLOBAL]


def test_right_tables_are_no_finding_and_no_note(tmp_path):
    path = write(tmp_path, tiny_state())
    folder = convert(path, tmp_path / "out")
    assert not [n for n in receipt(folder)["notes"] if "freqs_cis" in n]
    record = verify(folder, path).json
    assert record["findings"] == [] and not [n for n in record["notes"] if "rotary" in n]


def test_random_tables_of_generated_checkpoints_are_said_and_proven(tmp_path):
    generator = torch.Generator().manual_seed(0)
    state = {
        k: torch.polar(torch.ones(t.shape), torch.rand(t.shape, generator=generator) * 2 * math.pi)
        if k.endswith("freqs_cis")
        else t
        for k, t in tiny_state().items()
    }
    path = write(tmp_path, state)
    folder = convert(path, tmp_path / "out")
    record = verify(folder, path).json
    assert record["verdict"] == "proven" and record["findings"] == []
    assert any("8 rotary tables" in n and "random phases" in n for n in record["notes"])
    assert any("random phases" in n for n in receipt(folder)["notes"])


def test_a_text_encoder_alone_has_no_tables(tmp_path):
    state = {k: torch.ones_like(t) if k.endswith("freqs_cis") else t for k, t in tiny_state().items()}
    path = write(tmp_path, state)
    folder = convert(path, tmp_path / "out", "--component", "text")
    assert verify(folder, path).json["verdict"] == "proven"


def test_explain_tells_of_the_finding():
    assert "freqs_cis" in sam3lite("explain", "V-ROTARY").out


def in_parts(state):
    """Each table as its real and imaginary parts, as newer code stores it."""
    tables = {k: t for k, t in state.items() if k.endswith("freqs_cis")}
    parts = {f"{k}_real": t.real.clone() for k, t in tables.items()}
    return tables, parts | {f"{k}_imag": t.imag.clone() for k, t in tables.items()}


@pytest.mark.parametrize("beside", [True, False])
def test_tables_in_two_parts_are_dropped_and_held_against_the_formula(beside, tmp_path):
    tables, parts = in_parts(tiny_state())
    state = {k: t for k, t in tiny_state().items() if beside or k not in tables} | parts
    path = write(tmp_path, state)
    folder = convert(path, tmp_path / "out")
    assert verify(folder, path).json["findings"] == []
    assert set(parts) <= set(receipt(folder)["dropped"])
    state[WINDOWED + "_imag"] = -state[WINDOWED + "_imag"]
    path = write(tmp_path, state)
    (finding,) = verify(folder, path).json["findings"]
    assert finding["code"] == "V-ROTARY" and "conjugated" in finding["cause"]
    assert finding["keys"] == [WINDOWED + "_real"]


def block(n):
    return f"{TRUNK}blocks.{n}.attn.freqs_cis"


# Forms in which a table cannot be compared, or only one part of its numbers: it is dropped as any other.
PARTLY = {
    "dtypes": {
        "half()": (lambda t: t.real.half(), "hold the real parts alone, which are right"),
        "bfloat16()": (lambda t: t.real.bfloat16(), "hold the real parts alone, which are right"),
        "whole numbers": (lambda t: t.real.long(), "are int64 16x32, which is not compared"),
        "float8": (lambda t: t.real.to(torch.float8_e4m3fn), "are float8_e4m3fn 16x32, which is not compared"),
        "random half()": (lambda t: torch.rand(t.shape).mul(math.tau).cos().half(), "hold random phases"),
    },
    "shapes": {
        "another size": (
            lambda t: t[:15],
            "are complex64 15x32, which is not compared with the formula for 16 patches",
        ),
        "of other heads": (lambda t: t[:, :30], "are complex64 16x30"),
        "nothing": (lambda t: t[:, :0], "are complex64 16x0"),
        "a number": (lambda t: t[0, 0].clone(), "are complex64 scalar, which is not compared"),
        "an expanded view": (
            lambda t: t[:1, :1].expand(16, 2 << 20),
            "are complex64 16x2097152, which is not compared",
        ),
    },
}


@pytest.mark.parametrize("kind", PARTLY)
def test_a_table_in_a_form_that_does_not_tell_is_dropped_with_a_note(kind, tmp_path):
    torch.manual_seed(0)
    state = tiny_state()
    for n, (change, _) in enumerate(PARTLY[kind].values()):
        state[block(n)] = change(state[block(n)])
    path = write(tmp_path, state)
    folder = convert(path, tmp_path / "out")
    record = verify(folder, path).json
    assert record["verdict"] == "proven" and record["findings"] == []
    said = Counter(says for _, says in PARTLY[kind].values())
    for notes in (record["notes"], receipt(folder)["notes"]):
        about = [n for n in notes if "freqs_cis" in n]
        assert len(about) == len(said)
        for says, count in said.items():
            (note,) = [n for n in about if says in n]
            assert note.startswith(f"{count} rotary table{'s' * (count > 1)} (freqs_cis) of the checkpoint ")


def test_tables_of_another_form_tell_the_same_architecture(tmp_path):
    state = {k: torch.view_as_real(t) if k.endswith("freqs_cis") else t for k, t in tiny_state().items()}
    plain, other = (sam3lite("inspect", write(tmp_path, s), "--json").json for s in (tiny_state(), state))
    assert plain["architecture"] == other["architecture"]


def test_cosines_and_sines_are_dropped_and_compared(tmp_path):
    tables, _ = in_parts(tiny_state())
    state = dict(tiny_state())
    for key, table in tables.items():
        state[key.replace("freqs_cis", "freqs_cos")] = table.real.clone()
        state[key.replace("freqs_cis", "freqs_sin")] = table.imag.clone()
    path = write(tmp_path, state)
    folder = convert(path, tmp_path / "out")
    assert verify(folder, path).json["verdict"] == "proven"
    state[WINDOWED.replace("freqs_cis", "freqs_sin")] *= -1
    (finding,) = verify(folder, write(tmp_path, state)).json["findings"]
    assert finding["code"] == "V-ROTARY" and "conjugated" in finding["cause"]


# Forms in which all of a table is there.
WHOLE = {
    "view_as_real": torch.view_as_real,
    "view_as_real, bfloat16": lambda t: torch.view_as_real(t).bfloat16(),
    "complex128": lambda t: t.to(torch.complex128),
    "complex32": lambda t: t.to(torch.complex32),
    "with a batch": lambda t: t[None, :, None],
    "a view": lambda t: torch.stack([t, t], 2)[..., 1],
}


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@pytest.mark.parametrize("right", [True, False])
def test_a_table_in_another_form_is_compared(right, tmp_path):
    state = tiny_state()
    for n, form in enumerate(WHOLE.values()):
        table = state[block(n)]
        state[block(n)] = form(table if right else table.conj_physical())
    path = write(tmp_path, state)
    record = verify(convert(path, tmp_path / "out"), path).json
    wrong = [] if right else [block(n) for n in range(len(WHOLE))]
    assert [key for f in record["findings"] for key in f["keys"]] == wrong
    assert all(f["cause"].startswith("is conjugated") for f in record["findings"])
    assert not [n for n in record["notes"] if "freqs_cis" in n]


@pytest.mark.parametrize(("part", "cause"), [("_imag", "conjugated"), ("_real", "not the table")])
def test_one_part_of_a_table_is_compared_alone(part, cause, tmp_path):
    tables, parts = in_parts(tiny_state())
    other = WINDOWED + {"_imag": "_real", "_real": "_imag"}[part]
    del parts[other]
    state = {k: t for k, t in tiny_state().items() if k not in tables} | parts
    path = write(tmp_path, state)
    folder = convert(path, tmp_path / "out")
    record = verify(folder, path).json
    assert record["verdict"] == "proven" and any("parts alone, which are right" in n for n in record["notes"])
    state[WINDOWED + part] = -state[WINDOWED + part]
    (finding,) = verify(folder, write(tmp_path, state)).json["findings"]
    assert finding["code"] == "V-ROTARY" and cause in finding["cause"]


def test_another_base_is_told_from_the_rounding_of_a_narrow_dtype(tmp_path):
    state = tiny_state()
    for n, dtype in enumerate((torch.float16, torch.bfloat16)):
        state[block(n)] = torch.from_numpy(axial_table(4, 32, 4, 9000.0)).real.to(dtype)
    path = write(tmp_path, state)
    (finding,) = verify(convert(path, tmp_path / "out"), path).json["findings"]
    assert finding["code"] == "V-ROTARY" and "base 10000" in finding["cause"]
    assert finding["keys"] == [block(0), block(1)]
