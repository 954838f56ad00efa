"""record --script: what the script records of a model is what judge compares, wherever the model runs."""

from __future__ import annotations

import ast
import functools
import importlib.util
import json
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.folders import convert, python, sam3lite, tiny_architecture, tiny_state, write_safetensors
from support.goldens import activations, golden
from support.original_checkout import CLIP, STAND_IN, TIMM, TORCHVISION
from torch import nn

from original_ref import load_reference
from sam3lite_convert.checkpoint.reader import read_checkpoint
from sam3lite_convert.packed_detector import PackedModel
from sam3lite_convert.packed_encoder import PackedTextModel
from sam3lite_convert.parity import hooks_template
from sam3lite_convert.parity.candidates import transformers_encoder
from sam3lite_convert.parity.detector.models import reference_detector
from sam3lite_convert.parity.detector.recording import reading
from sam3lite_convert.parity.detector.stock import stock_detector
from sam3lite_convert.parity.detector.taps import taps_of
from sam3lite_convert.parity.hooks import detector_tables, hooks_script, text_tables
from sam3lite_convert.parity.hooks_template import Row, Table
from sam3lite_convert.parity.original import reference_cfg
from sam3lite_convert.plan import synthetic
from sam3lite_convert.plan.families import FAMILIES
from sam3lite_convert.plan.plan import Options, make_plan
from sam3lite_convert.plan.tables import load_mappings

TEXT = "detector.backbone.language_backbone."
IDS = torch.tensor([[510, 320, 511, *[0] * 13], [510, 7, 99, 320, 4, 511, *[0] * 10], [510, *range(1, 15), 511]])
TAPS = ["embeddings", *(f"layers.{i}" for i in range(6)), "final_layer_norm", "projected", "pooled"]


@pytest.fixture(scope="module")
def s0(tmp_path_factory):
    return write_safetensors(tmp_path_factory.mktemp("s0"), synthetic.state_dict(tiny_architecture(), text_only=True))


def loaded(path):
    """A script as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def hooks(tmp_path_factory):
    path = tmp_path_factory.mktemp("script") / "sam3lite_hooks.py"
    assert sam3lite("record", "--script", path).code == 0
    return loaded(path)


# ---- the script itself ---------------------------------------------------------------------------

ROWS = (
    Row("input_ids", 'a."quoted"', at_input=True),
    Row("layers.{i}", "a.b.{i}", call=3, item=1, axes=(1, 0, 2)),
    Row("layers.norm.{i}", "norm", each=2, cut=(1, 1, None)),
    Row("plain", "", item="last_hidden_state"),
)


def test_the_rows_of_any_table_stand_in_the_script(tmp_path):
    tables = [Table("mine", "text", ROWS), Table("other", "detector", ROWS[:1])]
    (tmp_path / "made.py").write_text(hooks_script(tables))
    found = loaded(tmp_path / "made.py").TABLES
    assert [(t.name, t.component, [tuple(row) for row in t.rows]) for t in found] == [
        (t.name, t.component, [tuple(row) for row in t.rows]) for t in tables
    ]


def test_the_script_is_the_template_with_the_tables_of_taps(hooks):
    assert hooks_template.TABLES == [] and len(hooks.TABLES) == len(text_tables()) + len(detector_tables()) == 10
    assert "sam3lite-convert " in hooks.WRITTEN_BY
    text = Path(hooks.__file__).read_text()
    tree = ast.parse(text, feature_version=(3, 8))
    imports = [n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
    imports += [a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names]
    tops = {name.partition(".")[0] for name in imports}
    assert tops - sys.stdlib_module_names == {"torch", "safetensors"}
    for newer in ("removeprefix", "removesuffix", "strict=", "match ", "functools.cache"):  # than Python 3.8
        assert newer not in text.replace("match in", "").replace("match for", "")


# ---- models whose modules it knows ---------------------------------------------------------------


def weights(**changed):
    held = {k.removeprefix(TEXT): t for k, t in synthetic.state_dict(tiny_architecture(), text_only=True).items()}
    return held | {k.replace("__", "."): t for k, t in changed.items()}


def inside(module, *names):
    """A model that holds a module under a path, beside others."""
    for name in reversed(names):
        outer = nn.Module()
        outer.beside = nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(2, 2)])})
        outer.add_module(name, module)
        module = outer
    return module


def original(folder, checkpoint):
    student = load_reference(reference_cfg(tiny_architecture(), 16), weights())
    model = inside(student, "detector", "backbone", "language_backbone")
    return model, lambda: student.projector(student.encoder(IDS, return_all_tokens=True)), TAPS[:-1]


def original_encoder_alone(folder, checkpoint):
    student = load_reference(reference_cfg(tiny_architecture(), 16), weights())
    return student.encoder, lambda: student.encoder(IDS), TAPS[:-2]


def packed(folder, checkpoint):
    model = PackedTextModel.from_pretrained(convert(checkpoint, folder, "--component", "text"))
    return model, lambda: model(IDS), TAPS[:-1]


def in_transformers(folder, checkpoint):
    folder = convert(checkpoint, folder, "--component", "text", "--layout", "transformers")
    config = json.loads((folder / "config.json").read_text())
    held = {f"text_encoder.{k}": t for k, t in load_file(folder / "model.safetensors").items()}
    beside = load_file(folder / "text_projection.safetensors")
    held |= {k if k.startswith("text_projection.") else f"text_projection.{k}": t for k, t in beside.items()}
    family = next(iter(FAMILIES.values()))
    made = transformers_encoder(family, config.get("text_config", config), held, torch.float32, "eager")
    return made.model, lambda: made.run(IDS), TAPS


def transformers_text_model_alone(folder, checkpoint):
    model, call, _ = in_transformers(folder, checkpoint)
    return model["text_encoder"], call, [tap for tap in TAPS if tap != "projected"]


MODELS = [original, original_encoder_alone, packed, in_transformers, transformers_text_model_alone]


def judged(file, checkpoint):
    done = sam3lite("judge", file, checkpoint, "--json")
    assert done.code in (0, 1), done
    return done.json


@pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
def test_a_right_model_is_judged_right_at_every_tap(make, hooks, s0, tmp_path, capsys):
    model, call, taps = make(tmp_path / "out", s0)
    before = call()
    result = hooks.record(model, call, tmp_path / "mine.safetensors")
    said = capsys.readouterr().err
    assert f"wrote {tmp_path / 'mine.safetensors'}: input_ids, embeddings, layers.0" in said
    assert "not recorded" not in said
    assert torch.equal(load_file(tmp_path / "mine.safetensors")["input_ids"], IDS)
    document = judged(tmp_path / "mine.safetensors", s0)
    assert document["verdict"] in ("exact", "within_tolerance")
    assert [layer["name"] for layer in document["layers"]] == taps
    first = result if isinstance(result, torch.Tensor) else result[0]
    assert torch.equal(first, before if isinstance(before, torch.Tensor) else before[0])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("make", [original, packed, in_transformers], ids=lambda make: make.__name__)
def test_a_fault_in_a_layer_is_found_there(make, hooks, s0, tmp_path):
    model, call, _ = make(tmp_path / "out", s0)
    # The activation of layer 3: the one module whose name ends so, in all three.
    for name, module in model.named_modules():
        if name.endswith(("transformer.3.pre_norm_ffn.1", "layers.3.fc1", "layers.3.mlp.fc1")):
            module.bias = nn.Parameter(module.bias.roll(1), requires_grad=False)
            break
    else:
        pytest.fail("no such module")
    hooks.record(model, call, tmp_path / "mine.safetensors")
    document = judged(tmp_path / "mine.safetensors", s0)
    assert (document["verdict"], document["first_divergence"]) == ("differs", "layers.3")


PROGRAM = """
import json, sys

class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("sam3lite_convert", "original_ref", "transformers", "typer"):
            raise ModuleNotFoundError(name + " is not installed")

sys.meta_path.insert(0, Nothing())
import torch
from safetensors.torch import load_file
from torch import nn
from mobile_clip import MobileCLIPTextTransformer
from my_hooks import record, recording

class Student(nn.Module):
    def __init__(self, cfg, width):
        super().__init__()
        self.encoder = MobileCLIPTextTransformer(cfg, cfg["dim"])
        self.projector = nn.Linear(cfg["dim"], width)

    def forward(self, ids):
        embedded = self.encoder.forward_embedding(ids)
        return self.projector(self.encoder(embedded, return_all_tokens=True, input_is_embeddings=True)).transpose(0, 1)

given = load_file("given.safetensors")
ids = given.pop("ids")
student = Student(json.load(open("cfg.json")), given["projector.weight"].shape[0])
student.load_state_dict(given)
model = nn.Module()
model.backbone = nn.Module()
model.backbone.language_backbone = student.eval()
model.eval()
record(model, lambda: student(ids), "mine.safetensors")
with recording(model, "again.safetensors"), torch.inference_mode():
    student(ids)
assert not {"sam3lite_convert", "original_ref", "transformers"} & set(sys.modules)
"""


def test_it_needs_torch_and_safetensors_alone(s0, tmp_path):
    """The stand-in for the original's code is the model: it shares nothing with this tool either."""
    own = "DropPath = StochasticDepth = lambda *args, **kwargs: nn.Identity()\ntrunc_normal_ = nn.init.trunc_normal_\n"
    clip = (STAND_IN / CLIP).read_text().replace(TIMM, "").replace(TORCHVISION, own)
    (tmp_path / "mobile_clip.py").write_text(clip)
    (tmp_path / "cfg.json").write_text(json.dumps(golden("tiny_mct").cfg | reference_cfg(tiny_architecture(), 16)))
    (tmp_path / "main.py").write_text(PROGRAM)
    save_file({k: t.contiguous() for k, t in weights().items()} | {"ids": IDS}, tmp_path / "given.safetensors")
    assert sam3lite("record", "--script", tmp_path / "my_hooks.py").code == 0
    done = python("main.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "below backbone.language_backbone of Module" in done.stderr
    document = judged(tmp_path / "mine.safetensors", s0)
    assert document["verdict"] in ("exact", "within_tolerance")
    assert [layer["name"] for layer in document["layers"]] == TAPS[:-1]
    one, two = load_file(tmp_path / "mine.safetensors"), load_file(tmp_path / "again.safetensors")
    assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


# ---- what models do ------------------------------------------------------------------------------

Pair = namedtuple("Pair", "first second")


class Port(nn.Module):
    """A model of other names. ``how``: of its ways, those that a test is about."""

    def __init__(self, *how):
        super().__init__()
        self.embed = nn.Embedding(512, 8)
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(12))
        self.pair = _Returns(lambda x: Pair(x * 2, x * 3))
        self.named = _Returns(lambda x: {"a": "text", "b": [x * 5, x * 7]})
        self.each = _Returns(lambda x: (x, x))
        self.words = _Returns(lambda x: "text")
        self.unused = nn.Linear(8, 8)
        self.how = how
        self.train("training" in how)

    def forward(self, ids):
        x = self.embed(ids)
        for block in self.blocks:
            x = block(input=x) if "by name" in self.how else block(x)
            self.each(x), self.each(ids)
        pair, _ = self.pair(x), self.named(x)
        self.words(x)
        if "fails" in self.how:
            raise KeyboardInterrupt
        x.zero_()
        return self.pair(pair.second)


class _Returns(nn.Module):
    def __init__(self, made):
        super().__init__()
        self.made = made

    def forward(self, x):
        return self.made(x)


OWN = [
    Row("input_ids", "embed", at_input=True),
    Row("layers.{i}", "blocks.{i}"),
    Row("read", "blocks.0", at_input=True),
    Row("one", "pair"),
    Row("two", "pair", item=1, axes=(1, 0, 2)),
    Row("again", "pair", call=1, item="second"),
    Row("named", "named"),
    Row("seven", "named", item="b"),
    Row("layers.each.{i}", "each", each=2),
    Row("rest", "blocks.1", cut=(1, 2, None)),
]


@pytest.fixture
def record(tmp_path):
    """Records a port by rows; returns what was written."""

    def run(*how, rows=OWN, runs=1, **options):
        torch.manual_seed(0)
        model, path = Port(*how), tmp_path / "port.safetensors"
        hooks_template.record(model, lambda: [model(IDS) for _ in range(runs)], path, rows=rows, **options)
        return model, load_file(path)

    return run


def test_values_are_copied_as_they_were_when_their_module_ran(record):
    model, held = record()
    x = model.embed(IDS)
    assert torch.equal(held["read"], x)
    for i, block in enumerate(model.blocks):
        x = block(x)
        torch.testing.assert_close(held[f"layers.{i}"], x)
        assert torch.equal(held[f"layers.each.{i}"], held[f"layers.{i}"])
    assert torch.equal(held["rest"], held["layers.1"][:, 2:])
    assert torch.equal(held["one"], held["layers.11"] * 2)
    assert torch.equal(held["two"], (held["layers.11"] * 3).transpose(0, 1))
    assert torch.equal(held["again"], held["layers.11"] * 3 * 3)
    assert torch.equal(held["named"], held["layers.11"] * 5) and torch.equal(held["seven"], held["named"])
    assert held["input_ids"].dtype == torch.int64
    layers = {f"layers.{word}{i}" for i in range(12) for word in ("", "each.")}
    assert held.keys() == {row.tap for row in OWN if "{i}" not in row.tap} | layers


def test_inputs_that_are_given_by_name(record, capsys, monkeypatch):
    _, held = record("by name")
    assert torch.equal(held["read"], record()[1]["read"])
    monkeypatch.setattr(hooks_template, "_KWARGS", False)  # as before torch 2.0
    assert torch.equal(record()[1]["read"], held["read"])
    capsys.readouterr()
    assert "read" not in record("by name")[1]
    assert "read was not recorded: there is no tensor in its input; torch before 2.0" in capsys.readouterr().err


def test_runs_of_a_model_are_told_apart(record, capsys):
    _, held = record(runs=3)
    said = capsys.readouterr().err
    assert "modules were run more than once: run 1 has the names of the taps" in said and ".call2, .call3." in said
    assert torch.equal(held["layers.0"], held["layers.0.call2"]) and "named.call3" in held
    assert "named.call4" not in held and "input_ids.call4" not in held and "one.call2" not in held
    _, held = record(runs=3, nth=2)
    assert {"layers.0", "layers.0.call1", "layers.0.call3"} <= held.keys() and "layers.0.call2" not in held
    # Of a module that one run calls twice, no run is taken for another.
    assert not {"one", "again", "layers.each.0"} & held.keys()
    assert "one was not recorded: its module is called several times in a run" in capsys.readouterr().err
    _, held = record(runs=11, nth=10)
    assert {n for n in held if n.startswith("named")} == {"named", *(f"named.call{i}" for i in range(1, 9))}
    with pytest.raises(RuntimeError, match="not called 5 times, and so not recorded: input_ids"):
        record(nth=5, runs=0)


def test_what_is_written_of_a_run_that_fails(record, tmp_path, capsys):
    with pytest.raises(KeyboardInterrupt):
        record("fails")
    held = load_file(tmp_path / "port.safetensors")
    assert "layers.11" in held and "one" in held and "again" not in held
    said = capsys.readouterr().err
    assert "the run ended with KeyboardInterrupt; this is what it recorded before" in said
    assert "not called in this run, and so not recorded: again" in said


def test_what_is_not_there_is_said(record, capsys):
    rows = [*OWN, Row("gone", "no.such"), Row("words", "words"), Row("third", "pair", item=2), Row("silent", "unused")]
    _, held = record("training", rows=rows)
    said = capsys.readouterr().err
    assert "no such module, and so not recorded: gone\n" in said
    assert "words was not recorded: there is no tensor in str (ValueError)" in said
    assert "third was not recorded: " in said and "(IndexError)" in said
    assert "not called in this run, and so not recorded: silent\n" in said
    assert "the model is in training mode" in said
    assert not {"gone", "words", "third", "silent"} & held.keys()


def test_the_file_says_what_it_is_of(record, tmp_path):
    record()
    with safe_open(tmp_path / "port.safetensors", "pt") as held:
        about = json.loads(held.metadata()["sam3lite_hooks"])
    assert about["model"].endswith("test_hooks.Port") and about["torch"] == torch.__version__
    assert about["tables"] == [{"name": "of your own", "prefix": "", "missing": []}]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_dtype_is_the_models_own(dtype, tmp_path):
    model = Port().to(dtype)
    with hooks_template.recording(model, tmp_path / "a.safetensors", rows=OWN):
        model(IDS)
    assert {t.dtype for n, t in load_file(tmp_path / "a.safetensors").items() if n != "input_ids"} == {dtype}


def test_a_file_of_somebody_else_is_not_overwritten(record, tmp_path):
    path = tmp_path / "port.safetensors"
    record()
    first = path.read_bytes()
    record(rows=OWN[:3])
    assert path.read_bytes() != first and sorted(p.name for p in tmp_path.iterdir()) == ["port.safetensors"]
    for other in (b"", b"precious", (2**60).to_bytes(8, "little") + b"{}"):
        path.write_bytes(other)
        with pytest.raises(FileExistsError, match="choose another name"):
            record()
        assert path.read_bytes() == other
    save_file({"a": torch.ones(1)}, path)
    with pytest.raises(FileExistsError):
        record()


def test_a_run_is_without_gradients_and_its_ids_may_be_of_any_width(tmp_path):
    model = Port()
    made = hooks_template.record(model, lambda: model(IDS.int()), tmp_path / "a.safetensors", rows=OWN)
    assert not made.first.requires_grad and model(IDS).first.requires_grad
    ids = load_file(tmp_path / "a.safetensors")["input_ids"]
    assert ids.dtype == torch.int64 and torch.equal(ids, IDS)


# ---- which table fits ----------------------------------------------------------------------------


@functools.cache
def student():
    return load_reference(reference_cfg(tiny_architecture(), 16), weights())


def test_of_two_that_fit_the_nearer_one_is_taken_and_the_other_by_its_prefix(hooks):
    model = nn.Module()
    model.ema = inside(student(), "text")
    model.text = student()
    assert [fit.prefix for fit in hooks.find(model)] == ["text."]
    assert [fit.prefix for fit in hooks.find(model, prefix="ema.text")] == ["ema.text."]
    with pytest.raises(ValueError, match="does not have the modules of any table"):
        hooks.find(model, prefix="ema")


def test_of_each_component_there_is_a_table(monkeypatch):
    other = Table("mine", "detector", [Row("neck", "convs.0"), Row("scale", "convs.1")])
    monkeypatch.setattr(hooks_template, "TABLES", [*text_tables(), other])
    model = inside(student(), "language_backbone")
    model.neck = nn.ModuleDict({"convs": nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])})
    found = [(fit.name, fit.prefix, len(fit.rows)) for fit in hooks_template.find(model)]
    assert found == [("original", "language_backbone.", 10), ("mine", "neck.", 2)]


def test_layers_are_in_order_and_a_small_part_is_no_fit():
    rows = [Row("layers.{i}", "blocks.{i}"), Row("one", "few.one"), Row("two", "few.two"), Row("three", "few.three")]
    (fit,) = hooks_template.find(Port(), [*rows[:1], Row("input_ids", "embed", at_input=True)])
    assert [row.tap for row in fit.rows] == [*(f"layers.{i}" for i in range(12)), "input_ids"]
    part = nn.ModuleDict({"one": nn.Linear(2, 2), "two": nn.Linear(2, 2), "three": nn.Linear(2, 2)})
    (fit,) = hooks_template.find(part, rows)
    assert (fit.missing, len(fit.rows)) == ([], 3)
    with pytest.raises(ValueError, match="does not have the modules"):
        hooks_template.find(part, [*rows, *(Row(f"tap{i}", f"others{i}") for i in range(4))])


def test_parts_that_are_missing_are_named(hooks):
    model = inside(student().encoder, "encoder")
    assert [(fit.name, fit.prefix, fit.missing) for fit in hooks.find(model)] == [("original", "", ["projected"])]
    half = nn.Module()
    half.text_encoder = nn.Module()
    half.text_encoder.layers = nn.ModuleList([nn.Linear(2, 2)])
    half.text_projection = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"the nearest is packed, but there is no input_ids, final_layer_norm\. Its"):
        hooks.find(half)


def test_what_is_no_model_of_these_is_refused(hooks, tmp_path):
    path = tmp_path / "a.safetensors"

    class Predictor:
        def __init__(self):
            self.model = student()

    for model, options, said in [
        (nn.Linear(2, 2), {}, r"Linear does not have the modules of any table \("),
        (Port(), {}, "Its parts are embed, blocks, pair, named, each, words, unused"),
        (Predictor(), {}, "Predictor is not a torch.nn.Module; give the module that it runs, such as its model"),
        (student(), {"nth": 0}, "from 1 on"),
    ]:
        with pytest.raises(ValueError, match=said):
            hooks.record(model, lambda: None, path, **options)
    with pytest.raises(ValueError, match=r"must end in \.safetensors"):
        hooks.record(student(), lambda: None, tmp_path / "a.npz")
    with pytest.raises(RuntimeError, match="nothing was recorded, and no file written"):
        hooks.record(student(), lambda: None, path)
    assert list(tmp_path.iterdir()) == []


def test_the_activations_are_those_of_the_goldens_helper(hooks, tmp_path):
    model = student()
    hooks.record(model, lambda: model.projector(model.encoder(IDS, return_all_tokens=True)), tmp_path / "a.safetensors")
    held, wanted = load_file(tmp_path / "a.safetensors"), activations(model, IDS)
    assert all(torch.equal(held[tap], wanted[tap]) for tap in TAPS[:-1])


# ---- the whole detector --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["original", "packed", "transformers"])
def test_the_detectors_taps_are_those_that_parity_reads(kind, tmp_path):
    path = write_safetensors(tmp_path, tiny_state())
    plan = make_plan(read_checkpoint(path), load_mappings(), Options())
    reference = reference_detector(plan, 16, 112, torch.device("cpu")).model
    image, box, label = torch.randn(1, 3, 112, 112), torch.tensor([[[0.5, 0.5, 0.4, 0.2]]]), torch.tensor([[1]])
    model, given = reference, {"image": image, "input_ids": IDS[:1], "boxes": box, "box_labels": label}
    if kind == "packed":
        model = PackedModel.from_pretrained(convert(path, tmp_path / "out"))
    elif kind == "transformers":
        folder = convert(path, tmp_path / "out", "--layout", kind)
        config = json.loads((folder / "config.json").read_text())
        held = load_file(folder / "model.safetensors")
        model = stock_detector(next(iter(FAMILIES.values())), config, held, torch.float32, image_size=112)
        given = {"pixel_values": image, "input_ids": IDS[:1], "input_boxes": box, "input_boxes_labels": label}
    side = "original" if kind == "original" else "converted"
    call = functools.partial(model, **given)
    wanted: dict[str, torch.Tensor] = {}
    with torch.no_grad(), reading(model, taps_of(reference), side, lambda tap, x: wanted.update({tap: x.clone()})):
        call()
    (tmp_path / "detector_hooks.py").write_text(hooks_script(detector_tables()))
    script = loaded(tmp_path / "detector_hooks.py")
    outer = inside(model, "detector")
    script.record(outer, call, tmp_path / "mine.safetensors")
    held = load_file(tmp_path / "mine.safetensors")
    for name, value in {"input_ids": IDS[:1], "image": image, "boxes": box, "box_labels": label}.items():
        assert torch.equal(held.pop(name), value), name
    assert held.keys() - {"neck.3"} == wanted.keys() and len(wanted) > 60  # a level that nothing reads
    assert [tap for tap in wanted if not torch.equal(held[tap], wanted[tap])] == []
    assert [(fit.name, fit.prefix, fit.missing) for fit in script.find(outer)] == [(kind, "detector.", [])]
