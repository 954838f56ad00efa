"""The user's checkout as the reference: found, run by file, and held against activations of the real original code."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.goldens import RUNS, agree, golden
from support.original_checkout import CLIP, LIBRARIES, OUTER, STAND_IN, STUDENT, TIMM, TOKENIZED, TORCHVISION, edit

from sam3lite_convert.errors import CannotRun
from sam3lite_convert.parity.checkout.loader import CheckoutCode
from sam3lite_convert.parity.checkout.original_repo import OriginalRepo, open_original

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ABSENT = pytest.mark.skipif(
    any(importlib.util.find_spec(name) for name in ("timm", "torchvision")),
    reason="what stands in where timm and torchvision are absent does not show beside the real ones",
)


# How the original's repository has been laid out: without sam3/__init__.py until November 2025.
LAYOUTS = pytest.mark.parametrize("checkout", ["now", "before"], indirect=True)


@pytest.fixture
def checkout(tmp_path, request):
    # A module in the stand-in may be another test's: each test has a copy.
    path = Path(shutil.copytree(STAND_IN, tmp_path / "checkout", ignore=shutil.ignore_patterns("__pycache__")))
    if getattr(request, "param", "now") == "before":
        (path / OUTER).unlink()
    return path


def write(checkout: Path, file: str, text: str) -> Path:
    (checkout / file).parent.mkdir(parents=True, exist_ok=True)
    (checkout / file).write_text(text)
    return checkout


def without_libraries(checkout: Path) -> Path:
    own = "DropPath = StochasticDepth = lambda *args, **kwargs: nn.Identity()\ntrunc_normal_ = nn.init.trunc_normal_\n"
    return edit(checkout, CLIP, (TIMM, ""), (TORCHVISION, own))


def build(repo: OriginalRepo, name: str = "tiny_mct", **changed):
    of = golden(name)
    given = {"context_length": of.cfg["context_length"], "output_dim": 256, "state_dict": of.weights()} | changed
    return repo.build(of.cfg, **given)


def refused(path: Path, *said: str, built: bool = False) -> CannotRun:
    with state_kept(), pytest.raises(CannotRun) as caught:
        repo = open_original(path)
        assert built
        build(repo)
    for part in (str(path), *said):
        assert part in caught.value.message
    assert "\n" not in caught.value.message
    assert not list(path.rglob("__pycache__"))
    return caught.value


@contextlib.contextmanager
def state_kept():
    """Nothing in it changes what the process can import, or its random numbers."""

    def state():
        ours = {k: id(m) for k, m in sys.modules.items() if k.split(".")[0] in ("sam3", "timm", "torchvision")}
        strange = [k for k in sys.modules if "original_repo:" in k]
        finders = (list(sys.path), list(sys.meta_path), list(sys.path_hooks), sys.dont_write_bytecode)
        return ours, strange, finders, __import__, sys.stdout, torch.random.get_rng_state().tolist()

    before = state()
    try:
        yield
    finally:
        assert state() == before


# ---- the original's numbers ----------------------------------------------------------------------


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("libraries", [True, False], ids=["with timm and torchvision", "without"])
def test_the_stand_in_computes_what_the_original_did(checkout, name, libraries):
    repo = open_original(checkout if libraries else without_libraries(checkout))
    model = build(repo, name)
    for run in RUNS[name]:
        agree(model, golden(name), run)


@LAYOUTS
@ABSENT
def test_only_the_two_modules_run_and_the_process_is_as_it_was(checkout, capsys):
    edit(checkout, STUDENT, ("super().__init__()", "super().__init__()\n        print('constructed')"))
    with state_kept():
        repo = open_original(checkout)
        model = build(repo)
    assert repo.path == checkout
    assert repo.files == (Path(STUDENT), Path(CLIP))
    assert repo.stood_in == (*LIBRARIES, TOKENIZED)
    assert not list(checkout.rglob("__pycache__"))
    assert capsys.readouterr().out == ""  # which may be a JSON document
    assert not any(m.training for m in model.modules())
    assert not any(p.requires_grad for p in model.parameters())
    held = model.state_dict()
    assert all(held[k].data_ptr() == t.data_ptr() for k, t in golden("tiny_mct").weights().items())


def test_without_the_libraries_nothing_stands_in_for_them(checkout):
    assert open_original(without_libraries(checkout)).stood_in == (TOKENIZED,)


def test_double_precision_and_absent_counters(checkout):
    weights = {
        k: t.double() if t.is_floating_point() else t
        for k, t in golden("tiny_mct").weights().items()
        if not k.endswith("num_batches_tracked")
    }
    buffer = "super().__init__()\n        self.register_buffer('beside', torch.ones(1), persistent=False)"
    model = build(open_original(edit(checkout, STUDENT, ("super().__init__()", buffer))), state_dict=weights)
    assert model.beside.dtype == torch.float64
    assert {t.dtype for t in model.parameters()} == {torch.float64}
    assert model.encoder(golden("tiny_mct").ids()).dtype == torch.float64


def test_a_prompt_is_not_tokenized(checkout):
    model = build(open_original(checkout))
    with pytest.raises(CannotRun, match=r"tokenizer_ve\.SimpleTokenizer was called"):
        model(["a dog"])


@ABSENT
def test_the_stand_ins_for_layers_hold_in_evaluation_only(checkout):
    weights = {k: t.clone() for k, t in golden("tiny_mct").weights().items()}  # training writes into a BatchNorm
    model = build(open_original(checkout), state_dict=weights).train()
    with pytest.raises(CannotRun, match="in evaluation mode only"):
        model.encoder(golden("tiny_mct").ids())


# ---- other ways to write the same ----------------------------------------------------------------

IMPORT = "from sam3.backbones.mobile_clip import MobileCLIPTextTransformer\n"
NORM = """class NormF32(nn.LayerNorm):
    def forward(self, x):
        wide = torch.promote_types(x.dtype, torch.float32)
        weight, bias = self.weight.to(wide), self.bias.to(wide)
        return F.layer_norm(x.to(wide), self.normalized_shape, weight, bias, self.eps).to(x.dtype)
"""


def relative(checkout):
    edit(checkout, STUDENT, (IMPORT, "from ..backbones.mobile_clip import MobileCLIPTextTransformer\n"))


def as_module(checkout):
    edit(
        checkout,
        STUDENT,
        (IMPORT, "import sam3.backbones.mobile_clip as m\nm.depthwise(3)\n"),
        ("= Mobile", "= m.Mobile"),
    )


def whole_name(checkout):
    name = "sam3.backbones.mobile_clip"
    edit(checkout, STUDENT, (IMPORT, f"import {name}\n"), ("= Mobile", f"= {name}.Mobile"))


def from_package(checkout):
    edit(checkout, STUDENT, (IMPORT, "from sam3.backbones import mobile_clip\n"), ("= Mobile", "= mobile_clip.Mobile"))


def star(checkout):
    edit(checkout, STUDENT, (IMPORT, "from sam3.backbones.mobile_clip import *\n"))


def re_exported(checkout):
    edit(checkout, STUDENT, (IMPORT, "from sam3.backbones import MobileCLIPTextTransformer\n"))
    text = "raise RuntimeError('executed')\nfrom . import *\nfrom .mobile_clip import MobileCLIPTextTransformer\n"
    write(checkout, "sam3/sam3/backbones/__init__.py", text)


def re_exported_above(checkout):
    edit(checkout, STUDENT, (IMPORT, "from sam3 import MobileCLIPTextTransformer\n"))
    write(checkout, "sam3/sam3/__init__.py", "raise RuntimeError('executed')\nfrom .backbones.mobile_clip import *\n")
    if (checkout / OUTER).exists():
        edit(checkout, OUTER, ("raise ", "from .sam3 import *\n\nraise "))


def in_constructor(checkout):
    inner = f"{IMPORT}        self.encoder ="
    edit(checkout, STUDENT, (IMPORT, ""), ("self.encoder =", inner))


def from_namespace(checkout):
    from_package(checkout)
    (checkout / "sam3/sam3/backbones/__init__.py").unlink()
    write(checkout, "sam3/backbones/config.yaml", "")


def namespace_packages(checkout):
    from_package(checkout)
    for init in checkout.rglob("__init__.py"):
        init.unlink()


def other_names(checkout):
    for file in (STUDENT, CLIP):
        (checkout / file).rename((checkout / file).with_name(f"my_{Path(file).name}"))
    edit(checkout, STUDENT.replace("text_enc", "my_text_enc"), ("mobile_clip", "my_mobile_clip"))


def renamed_parameters(checkout):
    edit(checkout, STUDENT, ("self, cfg, context_length, output_dim=256, b", "self, config, length, output_dim, b"))
    edit(checkout, STUDENT, ('cfg["dim"]', 'config["dim"]'), ("cfg=cfg", "cfg=config"), ("=context_", "=length  # "))
    edit(checkout, STUDENT, ("bpe_path=bpe_path, context_length=length  # length)", "bpe_path)"))
    edit(checkout, STUDENT, ("self.context_length = context_length", "self.context_length = length"))


def path_wanted(checkout):
    edit(checkout, STUDENT, ("output_dim=256, bpe_path=None", "output_dim, bpe_path"))


def base_elsewhere(checkout):
    edit(checkout, CLIP, (NORM, "from .norms import NormF32, unused\n"))
    imports = "import torch\nimport torch.nn.functional as F\nfrom torch import nn\nfrom .other import x\n"
    norms = f"{imports}\ndef unused(): pass\n\n{NORM}"
    write(checkout, "sam3/sam3/backbones/norms.py", norms)
    write(checkout, "sam3/sam3/backbones/other.py", "raise RuntimeError('executed')\nx = 1\n")


def decorator(checkout):
    edit(checkout, CLIP, ("class Layer(", "from .kit import kept\n\n@kept()\nclass Layer("))
    write(checkout, "sam3/sam3/backbones/kit.py", "def kept():\n    return lambda made: made\n")


def mixin(checkout):
    edit(checkout, CLIP, ("class Layer(nn.Module)", "from .kit import Mixin\n\nclass Layer(Mixin, nn.Module)"))
    edit(checkout, CLIP, ("self.pre_norm_mha = nn", "self.check()\n        self.pre_norm_mha = nn"))
    write(checkout, "sam3/sam3/backbones/kit.py", "class Mixin:\n    def check(self):\n        pass\n")


def dataclass_of_strings(checkout):
    made = "from __future__ import annotations\nimport dataclasses\n\n"
    made += "@dataclasses.dataclass\nclass Sizes:\n    width: int = 1\n\n"
    edit(checkout, STUDENT, ("import torch\n", f"{made}import torch\n"))
    text = (checkout / STUDENT).read_text()
    (checkout / STUDENT).write_text(text[text.index("from __future__") :])


def optional_package(checkout):
    edit(checkout, CLIP, (TIMM, f"try:\n    import nowhere_to_be_had\nexcept ImportError:\n    pass\n{TIMM}"))


def copies(checkout):
    shutil.copy(checkout / STUDENT, checkout / "sam3/sam3/model/zz_copy.py")
    for beside in ("build/lib", "mine/lib", ".hidden"):
        shutil.copytree(checkout / "sam3", checkout / beside / "sam3")
        edit(checkout, f"{beside}/{STUDENT}", ("projector", "other"))
    write(checkout, "mine/pyvenv.cfg", "")


def one_that_does_not_resolve(checkout):
    text = (checkout / STUDENT).read_text().replace(IMPORT, f"{IMPORT}import sam3.gone\n")
    write(checkout, "sam3/sam3/model/a.py", text)


def one_without_an_encoder(checkout):
    write(checkout, "a.py", "from torch import nn\n\nclass TextStudentEncoder(nn.Module):\n    pass\n")


def link_loops(checkout):
    (checkout / "sam3/loop").symlink_to(checkout)
    (checkout / "sam3/self.py").symlink_to("self.py")
    os.mkfifo(checkout / "pipe.py")  # to read it would take forever


def folder_of_its_own_beside(checkout):
    write(checkout, "torch/__init__.py", "raise RuntimeError('executed')")
    write(checkout, "typing.py", "raise RuntimeError('executed')")
    edit(
        checkout,
        STUDENT,
        ("import torch\n", "import torch\nimport typing\nimport safetensors\nsafetensors.__version__\n"),
    )
    for file in ("safetensors/x.py", "sam3/sam3/model/safetensors.py"):
        write(checkout, file, "raise RuntimeError('executed')")


WAYS = [
    relative,
    as_module,
    whole_name,
    from_package,
    from_namespace,
    star,
    re_exported,
    re_exported_above,
    in_constructor,
    namespace_packages,
    other_names,
    renamed_parameters,
    path_wanted,
    base_elsewhere,
    decorator,
    mixin,
    dataclass_of_strings,
    optional_package,
    copies,
    one_that_does_not_resolve,
    one_without_an_encoder,
    link_loops,
    folder_of_its_own_beside,
]


@LAYOUTS
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_other_ways_to_write_it(checkout, way):
    way(checkout)
    with state_kept():
        repo = open_original(checkout)
        model = build(repo)
    agree(model, golden("tiny_mct"))
    assert TOKENIZED.rpartition(".")[2] in {name.rpartition(".")[2] for name in repo.stood_in}
    extra = {"base_elsewhere": ["norms"], "decorator": ["kit"], "mixin": ["kit"]}.get(way.__name__, [])
    ran = sorted(f.stem.removeprefix("my_") for f in repo.files)
    assert ran == sorted(["text_encoder_student", "mobile_clip", *extra])


@LAYOUTS
@pytest.mark.parametrize("part", ["sam3", "sam3/sam3", "sam3/sam3/model"])
def test_a_folder_inside_the_checkout_does_too(checkout, part):
    repo = open_original(checkout / part)
    agree(build(repo), golden("tiny_mct"))
    assert [os.path.normpath(checkout / part / f) for f in repo.files] == [
        str(checkout / STUDENT),
        str(checkout / CLIP),
    ]


@LAYOUTS
def test_a_path_by_a_link(checkout, tmp_path):
    (tmp_path / "link").symlink_to(checkout)
    repo = open_original(tmp_path / "link")
    assert repo.files == (Path(STUDENT), Path(CLIP))


# ---- the package around the package ----

HERE = "import os\nhere = os.path.dirname(__file__)\n"
# Ways to write sam3/__init__.py such that sam3 is that folder and sam3/sam3, in this order.
OUTERS = {
    "assigned": f"{HERE}__path__ = [here, os.path.join(here, 'sam3')]\n",
    "appended": f"{HERE}__path__.append(os.path.join(os.path.abspath(here), 'sam3'))\n",
    "pathlib": "from pathlib import Path\n__path__ += [str(Path(__file__).parent / 'sam3')]\n",
    "extend_path": f"{HERE}import pkgutil, sys\nsys.path.append(here)\n"
    "__path__ = pkgutil.extend_path(__path__, 'sam3')\n",
}
# What stands in the outer folder, in the inner one or in both; imported as sam3.NAME.
IN_BOTH = (
    *("sam3/sam3/__init__.py", "sam3/outer.py", "sam3/sam3/inner.py", "sam3/both.py", "sam3/sam3/both.py"),
    *("sam3/package/__init__.py", "sam3/sam3/package.py", "sam3/module.py", "sam3/sam3/module/__init__.py"),
    *("sam3/late/name.py", "sam3/sam3/late/__init__.py", "sam3/sam3/late/name.py"),
    *("sam3/spread/one.py", "sam3/sam3/spread/two.py", "sam3/spread/three.py", "sam3/sam3/spread/three.py"),
    *("sam3/hidden/__init__.py", "sam3/sam3/hidden/__init__.py", "sam3/sam3/hidden/name.py"),
)
NAMES = ["outer", "inner", "both", "package", "module", "late", "late.name", "hidden", "hidden.name"]
NAMES += ["spread.one", "spread.two", "spread.three"]


@pytest.mark.parametrize("outer", OUTERS.values(), ids=OUTERS)
def test_modules_in_two_folders_are_found_as_python_finds_them(tmp_path, outer):
    for file in IN_BOTH:
        write(tmp_path, file, "")
    write(tmp_path, OUTER, outer)
    write(tmp_path, "sam3/sam3/model/__init__.py", "")
    asked = [(f"sam3.{name}", 0) for name in NAMES] + [(f"sam3.sam3.{NAMES[1]}", 0)] + [(name, 2) for name in NAMES]
    program = (
        "import importlib\nfor name, level in ASKED:\n    try:\n        print(importlib.import_module('.' * level "
    )
    program += (
        "+ name, 'sam3.model' if level else None).__file__)\n    except ModuleNotFoundError:\n        print(None)\n"
    )
    done = subprocess.run(
        [sys.executable, "-B", "-c", program.replace("ASKED", repr(asked))],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    code = CheckoutCode(tmp_path)
    found = [code.locate(tmp_path / "sam3/sam3/model/any.py", name, level) for name, level in asked]
    files = [to and (to[1] / "__init__.py" if to[1].is_dir() else to[1]) for to in found]
    assert dict(zip(asked, map(str, files), strict=True)) == dict(zip(asked, done.stdout.split(), strict=True))
    assert {code.dotted(file) for file in files[:2]} == {"sam3.outer", "sam3.inner"}


@pytest.mark.parametrize("outer", [*OUTERS.values(), ""], ids=[*OUTERS, "empty"])
def test_the_package_around_it_is_not_run(checkout, outer):
    write(checkout, OUTER, f"{outer}import nowhere_to_be_had\nfrom .sam3 import build\nraise SystemExit\n")
    repo = open_original(checkout)
    agree(build(repo), golden("tiny_mct"))
    assert repo.files == (Path(STUDENT), Path(CLIP))


def test_of_a_module_in_both_folders_the_outer_one_is_run(checkout):
    shutil.copytree(checkout / "sam3/sam3/backbones", checkout / "sam3/backbones")
    edit(checkout, CLIP, (TIMM, "raise RuntimeError('executed')\n"))
    for way in (lambda _: None, relative):
        way(checkout)
        repo = open_original(checkout)
        agree(build(repo), golden("tiny_mct"))
        assert repo.files == (Path(STUDENT), Path("sam3/backbones/mobile_clip.py"))


# ---- timm and torchvision ------------------------------------------------------------------------

FAKES = {
    "timm": "from torch import nn\nclass DropPath(nn.Identity): real = True\ndef trunc_normal_(x, **kw): return x\n",
    "torchvision": "from torch import nn\nclass StochasticDepth(nn.Identity):\n    real = True\n",
}


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Installs a module with a text."""
    monkeypatch.syspath_prepend(tmp_path / "site")

    def install(dotted, text):
        parts = dotted.split(".")
        for n in range(1, len(parts)):
            write(tmp_path / "site", "/".join(parts[:n]) + "/__init__.py", "")
        write(tmp_path / "site", f"{'/'.join(parts)}.py", text)

    yield install
    for name in [n for n in sys.modules if n.split(".")[0] in ("timm", "torchvision", "sam3", "einops")]:
        del sys.modules[name]


@ABSENT
def test_what_is_installed_is_used(checkout, installed):
    installed("timm.models.layers", FAKES["timm"])
    installed("torchvision.ops", FAKES["torchvision"])
    repo = open_original(checkout)
    model = build(repo)
    assert repo.stood_in == (TOKENIZED,)
    assert model.encoder.transformer[0].drop_path.real
    assert model.encoder.transformer[1].drop_path.real
    agree(model, golden("tiny_mct"))


@ABSENT
@pytest.mark.parametrize("fault", ["ImportError", "RuntimeError", "OSError"])
def test_what_is_installed_and_broken_is_stood_in_for(checkout, installed, fault):
    installed("timm.models.layers", FAKES["timm"])
    installed("torchvision.ops", f"raise {fault}('operator torchvision::nms does not exist')")
    repo = open_original(checkout)
    assert repo.stood_in == (LIBRARIES[2], TOKENIZED)
    agree(build(repo), golden("tiny_mct"))


@ABSENT
@pytest.mark.parametrize(
    ("text", "stood_in"),
    [
        ("from timm.layers import DropPath, trunc_normal_", "timm.layers.DropPath"),
        (
            "from timm.layers.weight_init import trunc_normal_\nfrom timm.layers.drop import DropPath",
            "timm.layers.drop",
        ),
        ("from timm.any.place import DropPath, trunc_normal_", "timm.any.place.DropPath"),
        ("import timm.layers as t\nDropPath, trunc_normal_ = t.DropPath, t.trunc_normal_", "timm.layers.DropPath"),
        ("import timm\nDropPath, trunc_normal_ = timm.layers.DropPath, timm.layers.trunc_normal_", "timm.layers.Dr"),
        (
            "from timm.models import layers\nfrom timm.layers import trunc_normal_\nDropPath=layers.DropPath",
            "timm.models.",
        ),
    ],
)
def test_the_names_at_any_place_of_timm(checkout, text, stood_in):
    repo = open_original(edit(checkout, CLIP, (TIMM, f"{text}\n")))
    agree(build(repo), golden("tiny_mct"))
    assert any(name.startswith(stood_in) for name in repo.stood_in)


@ABSENT
@pytest.mark.parametrize(
    ("text", "module", "name"),
    [
        ("from timm.models.layers import to_2tuple", "timm.models.layers", "to_2tuple"),
        ("from timm.models.registry import register_model", "timm.models.registry", "register_model"),
        ("import timm\nx = timm.create_model('x')", "timm", "create_model"),
        ("from torchvision.ops import DropPath", "torchvision.ops", "DropPath"),
    ],
)
def test_another_name_of_a_missing_library(checkout, text, module, name):
    fault = refused(edit(checkout, CLIP, (TIMM, f"{TIMM}{text}\n")), f"needs {name} of {module}")
    assert f"pip install {module.split('.')[0]}" in fault.message


def test_another_missing_package(checkout):
    fault = refused(edit(checkout, CLIP, (TIMM, "from nowhere_to_be_had.x import y\n")), "package nowhere_to_be_had")
    assert "pip install nowhere_to_be_had" in fault.message
    assert fault.code == "original_repo_import"


def test_an_installed_sam3_is_neither_used_nor_shadowed(checkout, installed):
    installed("sam3.backbones.mobile_clip", "installed = True")
    import sam3.backbones.mobile_clip as before

    agree(build(open_original(checkout)), golden("tiny_mct"))
    import sam3.backbones.mobile_clip as after

    assert after is before
    assert after.installed


# ---- what is refused -----------------------------------------------------------------------------


def test_an_encoder_in_a_package_file_is_not_run(checkout):
    edit(checkout, STUDENT, (IMPORT, "from sam3.backbones import MobileCLIPTextTransformer\n"))
    text = (checkout / CLIP).read_text()
    write(checkout, "sam3/sam3/backbones/__init__.py", f"raise RuntimeError('executed')\n{text}")
    refused(checkout, "has no encoder", built=True)


def test_a_path_that_is_no_folder(tmp_path):
    assert refused(tmp_path / "none", "does not exist").code == "no_original_repo"
    write(tmp_path, "file.py", "")
    assert refused(tmp_path / "file.py", "is a file").code == "no_original_repo"


def test_a_folder_without_the_encoder(tmp_path):
    write(tmp_path, "a.py", "# TextStudentEncoder\ndef f():\n    class TextStudentEncoder: pass\n")
    fault = refused(tmp_path, "is not a checkout of EfficientSAM3: no file in it defines TextStudentEncoder")
    assert fault.code == "no_original_repo"


@LAYOUTS
def test_several_encoders(checkout):
    write(
        checkout,
        "other/student.py",
        (checkout / STUDENT)
        .read_text()
        .replace("from .tokenizer_ve", "from sam3.model.tokenizer_ve")
        .replace("sam3.", "sam3.sam3."),
    )
    fault = refused(checkout, "2 files define TextStudentEncoder: other/student.py, " + STUDENT)
    assert fault.details == ["other/student.py", STUDENT]


def test_too_many_files(checkout, monkeypatch):
    monkeypatch.setattr("sam3lite_convert.parity.checkout.original_repo.MAX_FILES", 3)
    refused(checkout, "more than 3 Python files")


def raises(what):
    return ("import torch\n", f"import torch\n{what}\n")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (raises("def ("), f"{STUDENT}, line 4: "),
        (raises("raise ValueError('first\\nsecond')"), "ValueError: first ("),
        (raises("raise SystemExit(3)"), "SystemExit: 3"),
        (raises("import os\nos.nothing"), f"has no attribute 'nothing' ({STUDENT}, line 5)"),
        (raises("from torch import nothing"), "cannot import name 'nothing'"),
        (raises("import torch.nothing"), "No module named 'torch.nothing'"),
        (raises("from .nothing import x"), "imports .nothing, which is not in the checkout"),
        (raises("from ....... import x"), "imports ......., which is not in the checkout"),
        (raises("import sam3.nothing"), "imports sam3.nothing, which is not in the checkout"),
        (raises("from .tokenizer_ve import f\nf()\n"), "tokenizer_ve.f was called"),
        (("nn.Module", "object"), "is not an nn.Module"),
    ],
)
def test_a_module_that_does_not_run(checkout, change, said):
    refused(edit(checkout, STUDENT, change), said)


@pytest.mark.parametrize("text", ["def (", "raise OSError('a GPU is wanted')"])
def test_the_other_module_does_not_run(checkout, text):
    refused(edit(checkout, CLIP, (TIMM, f"{TIMM}{text}\n")), "line " if "def" in text else f"wanted ({CLIP}, line ")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("output_dim=256, ", "output_dim, tokens, "), "requires tokens"),
        (("self, cfg, context_length, output_dim=256, bpe_path=None", "self"), "takes no cfg"),
        (
            ("super().__init__()", "super().__init__()\n        cfg['missing']"),
            f"KeyError: 'missing' ({STUDENT}, line ",
        ),
        (("super().__init__()", "super().__init__()\n        import nowhere_to_be_had"), "package nowhere_to_be_had"),
        (("super().__init__()", "super().__init__()\n        raise SystemExit"), "constructed: SystemExit"),
        (("self.projector", "self.projection"), "has no projector"),
        (("self.encoder = Mobile", "self.encoder = None and Mobile"), "has no encoder"),
        (
            ("256, bpe_path=None):", "256, bpe_path=None):\n        output_dim += 1"),
            "projector.weight is (256, 64)",
        ),
    ],
)
def test_a_constructor_that_does_not_fit(checkout, change, said):
    refused(edit(checkout, STUDENT, change), said, built=True)


@pytest.mark.parametrize("part", ["transformer", "final_layer_norm", "projection_layer"])
def test_an_encoder_that_lacks_what_is_read(checkout, part):
    refused(edit(checkout, CLIP, (f"self.{part}", "self.other")), f"has no encoder.{part}", built=True)


def test_weights_that_do_not_fit(checkout):
    repo, weights = open_original(checkout), golden("tiny_mct").weights()
    for changed, said in [
        ({k: t for k, t in weights.items() if k != "projector.bias"}, "missing projector.bias"),
        (weights | {"encoder.extra": torch.zeros(1)}, "unexpected encoder.extra"),
        (weights | {"projector.bias": torch.zeros(3)}, "projector.bias is (3,) where the model has (256,)"),
        ({}, "; and "),
    ]:
        with pytest.raises(CannotRun, match=re.escape(said)) as caught:
            build(repo, state_dict=changed)
        assert len(caught.value.message) < 800


def test_messages_say_the_path_as_it_was_given(checkout, monkeypatch):
    monkeypatch.chdir(checkout.parent)
    with pytest.raises(CannotRun, match=r"^checkout: its TextStudentEncoder does not fit"):
        build(open_original(Path("checkout")), state_dict={})
    edit(checkout, STUDENT, raises("1 / 0"))
    with pytest.raises(CannotRun, match=r"^checkout: sam3/sam3/model/text_encoder_student\.py does not run: Zero"):
        open_original(Path("checkout"))


def test_a_model_can_be_copied(checkout):
    agree(copy.deepcopy(build(open_original(checkout))), golden("tiny_mct"))


def test_an_interrupt_passes(checkout):
    with state_kept(), pytest.raises(KeyboardInterrupt):
        open_original(edit(checkout, CLIP, (TIMM, "raise KeyboardInterrupt\n")))


# ---- the commit ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "commit"),
    [
        ({"HEAD": COMMIT}, COMMIT),
        ({"HEAD": "ref: refs/heads/main\n", "refs/heads/main": f"{COMMIT}\n"}, COMMIT),
        ({"HEAD": "ref: refs/heads/a/b", "packed-refs": f"# pack-refs\n{COMMIT} refs/heads/a/b\n"}, COMMIT),
        ({"HEAD": "ref: refs/heads/a", "packed-refs": f"{COMMIT} refs/heads/a/b\n"}, None),
        ({"HEAD": "ref: refs/heads/a"}, None),
        ({"HEAD": "ref: ../secret", "../secret": COMMIT}, None),
        ({"HEAD": "\xff"}, None),
        ({"other": ""}, None),
    ],
)
def test_the_commit(checkout, files, commit):
    for name, text in files.items():
        write(checkout, f".git/{name}", text)
    assert open_original(checkout).commit == commit


def test_the_commit_of_a_worktree(checkout, tmp_path):
    write(checkout, ".git", f"gitdir: {tmp_path}/main/worktrees/w\n")
    write(tmp_path, "main/worktrees/w/HEAD", "ref: refs/heads/w")
    write(tmp_path, "main/worktrees/w/commondir", "../..\n")
    write(tmp_path, "main/refs/heads/w", COMMIT)
    assert open_original(checkout).commit == COMMIT
