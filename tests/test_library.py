"""The package as a library: what it exports, and that importing it changes nothing in the host program."""

from __future__ import annotations

import json

import pytest
from support.folders import ROOT, python, tiny_state, write

import sam3lite_convert as s3

MODULES = [
    ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for p in sorted((ROOT / "sam3lite_convert").rglob("*.py"))
]
UNTOUCHED = """
import importlib, json, logging, os, signal, sys, warnings
import huggingface_hub.utils._http as http, torch

def state():
    loggers = [logging.getLogger(n) for n in (None, "huggingface_hub", "sam3lite_convert", "transformers")]
    return {
        "client": repr(http._GLOBAL_CLIENT_FACTORY),
        "loggers": [(l.level, l.propagate, list(map(repr, l.handlers))) for l in loggers],
        "signals": [repr(signal.getsignal(s)) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)],
        "environment": dict(os.environ),
        "threads": torch.get_num_threads(),
        "hooks": [repr(sys.excepthook), list(map(repr, sys.meta_path)), list(sys.path)],
        "warnings": list(map(repr, warnings.filters)),
        "streams": [repr(sys.stdout), repr(sys.stderr)],
        "directory": os.getcwd(),
    }

before = state()
for name in sys.argv[1:]:
    importlib.import_module(name)
after = state()
print(json.dumps({k: (before[k], after[k]) for k in before if before[k] != after[k]}))
"""


def test_importing_any_part_changes_nothing_in_the_host_program():
    names = [name for name in MODULES if not name.endswith("__main__")]
    done = python("-c", UNTOUCHED, *names)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {}


def test_what_the_package_exports():
    exported = {
        "CannotRun", "ConversionPlan", "OpenCheckpoint", "PackedModel", "PackedTextModel", "Sam3LiteError",
        "UnsoundPlan", "Untrusted", "__version__", "convert_checkpoint", "diff_checkpoints", "judge_activations",
        "make_plan", "open_checkpoint", "push_folder", "restore_folder", "run_detector_parity", "run_parity",
        "verify_folder", "write_demo_checkpoint",
    }  # fmt: skip
    assert set(s3.__all__) == exported
    assert all(getattr(s3, name) is not None for name in exported)
    with pytest.raises(AttributeError, match="nothing"):
        s3.nothing  # noqa: B018


def test_the_demo_checkpoint_is_written_from_python(tmp_path):
    checkpoint = tmp_path / "demo.pt"
    s3.write_demo_checkpoint(checkpoint)
    plan = s3.make_plan(checkpoint)
    assert repr(plan.checkpoint).endswith("demo.pt': 1,281 tensors)")
    assert repr(plan).endswith("packed: 1,281 source tensors = 912 mapped + 369 dropped; 1,188 targets)")
    for path, code in ((checkpoint, "output_exists"), (tmp_path / "nowhere" / "demo.pt", "no_such_folder")):
        with pytest.raises(s3.CannotRun) as refused:
            s3.write_demo_checkpoint(path)
        assert refused.value.code == code


def test_it_says_that_it_is_typed():
    assert (ROOT / "sam3lite_convert" / "py.typed").exists()


def test_what_the_model_and_the_plan_cannot_take_is_told_in_words(tmp_path):
    from sam3lite_convert.packed_detector.picture import pixels_of

    for picture in ("street.jpg", None):
        with pytest.raises(s3.CannotRun, match=r"this is of type \w+\. PIL\.Image\.open"):
            pixels_of(picture)
    with pytest.raises(s3.CannotRun, match=r"nope\.pt"):
        s3.open_checkpoint(tmp_path / "nope.pt")
    path = write(tmp_path, tiny_state())
    with pytest.raises(s3.CannotRun, match="dtype is 'half'; it may be float32, float16, bfloat16"):
        s3.make_plan(path, dtype="half")


def test_an_argument_of_another_kind_is_told_in_words_and_asks_nobody(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoint = s3.open_checkpoint(write(tmp_path, tiny_state()))
    plan = s3.make_plan(checkpoint)
    for call, word in (
        (lambda: s3.open_checkpoint(3), "not as int"),
        (lambda: s3.open_checkpoint({"a": 1}), "not as dict"),
        (lambda: s3.open_checkpoint(""), "is empty"),
        (lambda: s3.make_plan(checkpoint, context="16"), "context is '16'"),
        (lambda: s3.convert_checkpoint(checkpoint, "out"), "takes a plan"),
        (lambda: s3.convert_checkpoint(plan, ""), "is empty"),
        (lambda: s3.verify_folder("out", plan), "plan.checkpoint"),
        (lambda: s3.verify_folder(None, checkpoint), "not as NoneType"),
        (lambda: s3.restore_folder("out", None, checkpoint), "not as NoneType"),
        (lambda: s3.run_parity(checkpoint, seed="x"), "seed is 'x'"),
    ):
        with pytest.raises(s3.CannotRun, match=word):
            call()
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.pt"]


def test_one_prompt_is_one_and_not_its_letters(tmp_path, monkeypatch):
    from sam3lite_convert.commands import parity

    seen = []
    monkeypatch.setattr(parity, "run_parity", lambda *given: seen.append(given[2].prompts))
    s3.run_parity(s3.open_checkpoint(write(tmp_path, tiny_state())), prompts="a dog")
    assert seen == [("a dog",)]


ODD_NAMES = ["a\0b", "a\ud800b", "x" * 300, "x/" * 3000, "a/b@\0", "hf://a/b@\0/x"]
NAMED = {
    "open_checkpoint": lambda name, path, plan: s3.open_checkpoint(name),
    "its tables": lambda name, path, plan: s3.open_checkpoint(path, mapping=name),
    "make_plan": lambda name, path, plan: s3.make_plan(name),
    "read": lambda name, path, plan: plan.checkpoint.read(name),
    "explain": lambda name, path, plan: plan.explain(name),
    "verify_folder": lambda name, path, plan: s3.verify_folder(name, plan.checkpoint),
    "diff_checkpoints": lambda name, path, plan: s3.diff_checkpoints(plan.checkpoint, name),
    "restore_folder": lambda name, path, plan: s3.restore_folder(name, path.with_name("back.pt")),
    "run_parity": lambda name, path, plan: s3.run_parity(plan.checkpoint, name),
    "its dtype": lambda name, path, plan: s3.run_parity(plan.checkpoint, dtype=name),
    "judge_activations": lambda name, path, plan: s3.judge_activations(name, plan.checkpoint),
    "push_folder": lambda name, path, plan: s3.push_folder(name, "me/it"),
    "write_demo_checkpoint": lambda name, path, plan: s3.write_demo_checkpoint(name),
    "PackedTextModel": lambda name, path, plan: s3.PackedTextModel.from_pretrained(name),
    "PackedModel": lambda name, path, plan: s3.PackedModel.from_pretrained(name),
}


@pytest.mark.parametrize("rare", [False, pytest.param(True, marks=pytest.mark.stress)])
def test_a_name_that_can_be_none_is_an_expected_error(rare, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    path = write(tmp_path, tiny_state())
    plan = s3.make_plan(path)
    for name in ODD_NAMES[1:] if rare else ODD_NAMES[:1]:
        for what, call in NAMED.items():
            with pytest.raises(s3.Sam3LiteError) as refused:
                call(name, path, plan)
            assert refused.value.exit_code in (2, 3, 4) and refused.value.message, what
        with pytest.raises(s3.CannotRun):
            s3.convert_checkpoint(plan, f"{'x' * 300}{name}")
    assert [p.name for p in tmp_path.iterdir()] == ["tiny.pt"]


def test_a_fault_of_the_tool_itself_keeps_its_type(tmp_path, monkeypatch):
    def broken(*_):
        raise KeyError("ours")

    monkeypatch.setattr("sam3lite_convert.commands.library.locate", broken)
    with pytest.raises(KeyError, match="ours"):
        s3.open_checkpoint(tmp_path)


def test_the_demo_checkpoint_may_have_any_name(tmp_path):
    s3.write_demo_checkpoint(tmp_path / "a\\b.pt")
    assert [p.name for p in tmp_path.iterdir()] == ["a\\b.pt"]
