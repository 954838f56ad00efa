"""What holds of the code itself: the direction of imports, docstrings, and the map in CONTRIBUTING.md."""

from __future__ import annotations

import ast
import functools
import re

import pytest
from support.folders import ROOT

PACKAGE = ROOT / "sam3lite_convert"
MODULES = {
    ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p
    for package in ("sam3lite_convert", "original_ref")
    for p in sorted((ROOT / package).rglob("*.py"))
}


@functools.cache
def tree_of(name: str) -> ast.Module:
    """The syntax of a module: not read by the workers that test other things."""
    return ast.parse(MODULES[name].read_text(encoding="utf-8"))


GROUND = {
    "errors", "unforeseen", "figures", "quoting", "records", "workers", "opened", "json_text", "bounded", "files",
    "seen", "renames", "working_places", "swap", "progress",
}  # fmt: skip
# Room -> the rooms that it may import from, besides itself and the ground.
BELOW: dict[str, set[str]] = {
    "ground": set(),
    "checkpoint": set(),
    "plan": {"checkpoint"},
    "hub": {"checkpoint"},
    "convert": {"checkpoint", "plan", "hub"},
    "graph": {"checkpoint", "plan", "hub", "convert"},
    "verify": {"checkpoint", "plan", "hub", "convert", "graph"},
    "packed_encoder": {"checkpoint", "plan", "hub", "convert"},
    "packed_detector": {"checkpoint", "plan", "hub", "convert", "packed_encoder"},
    "parity": {"checkpoint", "plan", "hub", "convert", "graph", "verify", "packed_encoder", "packed_detector"},
    "report": set(),
}
BELOW["commands"] = BELOW["parity"] | {"parity"}
BELOW["cli"] = BELOW["commands"] | {"commands", "report"}


def room(module: str) -> str:
    """The room of a module of the package."""
    first = module.split(".")[1]
    return "ground" if first in GROUND else first


def imported(tree: ast.AST) -> set[str]:
    """Our modules that a module imports anywhere: at the top, under TYPE_CHECKING, inside functions."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return {name for name in found if name in MODULES and name not in ("sam3lite_convert", "original_ref")}


def upwards(module: str, names: set[str]) -> list[str]:
    """Which of these imports of a module lead to a room that it may not look into."""
    own = room(module)
    return [
        n for n in sorted(names) if not n.startswith("original_ref") and room(n) not in {own, "ground", *BELOW[own]}
    ]


INSIDE = [name for name in MODULES if name.count(".") and not name.endswith("__main__")]


@pytest.mark.parametrize("name", [n for n in INSIDE if n.startswith("sam3lite_convert.")])
def test_imports_lead_down(name):
    assert upwards(name, imported(tree_of(name))) == []


def test_an_import_that_leads_up_would_be_found():
    hidden = (
        "if TYPE_CHECKING:\n    from sam3lite_convert.commands.push import push\n"
        "def f():\n    import sam3lite_convert.cli.app"
    )
    names = imported(ast.parse(hidden))
    assert upwards("sam3lite_convert.convert.card", names) == [
        "sam3lite_convert.cli.app", "sam3lite_convert.commands.push",
    ]  # fmt: skip
    assert upwards("sam3lite_convert.report.verify", {"sam3lite_convert.plan.plan", "sam3lite_convert.figures"}) == [
        "sam3lite_convert.plan.plan"
    ]


def test_every_room_is_in_the_list_and_has_no_other_name():
    rooms = {room(n) for n in INSIDE if n.startswith("sam3lite_convert.")}
    assert rooms <= BELOW.keys() and BELOW.keys() - rooms <= {"ground"}
    for own, below in BELOW.items():
        assert own not in below and all(own not in BELOW[b] for b in below)  # one direction


def test_the_original_imports_nothing_of_the_conversion():
    for name in MODULES:
        if name.startswith("original_ref"):
            assert not [n for n in imported(tree_of(name)) if n.startswith("sam3lite_convert")]


def cycle(graph: dict[str, set[str]]) -> list[str]:
    """One cycle, or nothing."""
    done: set[str] = set()

    def walk(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        for other in sorted(graph.get(name, ())):
            if found := walk(other, [*path, name]):
                return found
        done.add(name)
        return []

    return next((found for name in graph if (found := walk(name, []))), [])


def test_no_cycle_of_imports_inside_a_room_either():
    graph = {name: imported(tree_of(name)) - {name.rpartition(".")[0]} for name in MODULES}
    assert sum(map(len, graph.values())) > 200
    assert cycle(graph) == []


def test_a_cycle_would_be_found():
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


@pytest.mark.parametrize("name", MODULES)
def test_what_is_public_says_what_it_is(name):
    tree = tree_of(name)
    silent = [] if ast.get_docstring(tree) else [name]
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            silent += [node.name] * (ast.get_docstring(node) is None)
    assert silent == []


def test_a_command_is_one_name_three_times():
    names = [{p.stem for p in (PACKAGE / folder).glob("*.py")} for folder in ("cli", "commands", "report")]
    commands = "inspect convert explain tables verify diff parity judge record demo doctor"
    for command in commands.split():
        assert all(command in folder for folder in names), command


def test_tests_stand_in_the_same_folders():
    rooms = {p.name for p in PACKAGE.iterdir() if p.is_dir() and (p / "__init__.py").exists()}
    assert rooms - {p.name for p in (ROOT / "tests").iterdir() if p.is_dir()} == {"commands"}  # tested in tests/cli


def test_the_table_of_rooms_is_complete():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = text[text.index("| room |") :].split("\n\n")[0]
    named = re.findall(r"`([\w/]+)`", "\n".join(line.split("|")[1] for line in table.splitlines()[2:]))
    ours = {p.parent.relative_to(PACKAGE).as_posix() for p in PACKAGE.rglob("__init__.py")} - {"."}
    ours |= {p.stem for p in PACKAGE.glob("*.py")} - {"__init__", "__main__"}
    assert sorted(named) == sorted(ours)


# ---- files of others are opened in one place


OPENING = re.compile(
    r"(?:(?:.+\.)?(?:open|fdopen|read_text|read_bytes|fromfile|memmap|open_memmap|loadtxt|genfromtxt|load_file|safe_open|"
    r"is_zipfile|is_tarfile|ZipFile|TarFile|mmap|InferenceSession|load_external_data_for_model|FileIO)"
    r"|(?:.+\.)?[A-Z]\w+\.from_(?:pretrained|file)|(?:np|numpy|torch|onnx|pickle|tomllib|yaml)\.loads?"
    r"|json\.loads?|PIL\.Image\.open)"
)
_OWN = "a file that it has just written"
_SHIPPED = "a file of the package"
_CHECKED = "check_regular has looked at it; the library opens files by their name"
_LOOKED = "of a file that opened.py opened"
# Where else a call of these names stands, and why.
OPENED_ELSEWHERE = {
    ("checkpoint.zip_directory", "zipfile.ZipFile"): _LOOKED,
    ("cli.app", "open"): "the null device, for writing",
    ("commands.convert", "RuntimeChoice('onnx').open"): "no file",
    ("commands.detector", "options.runtime.open"): "no file",
    ("convert.safetensors_writer", "open"): "a new file, for writing",
    ("convert.torch_writer", "archive.open"): "an entry of an archive that is written",
    ("convert.torch_writer", "zipfile.ZipFile"): "an archive that is written",
    ("files", "open"): "a new file, for writing",
    ("graph.quantize", "onnx.load"): _OWN,
    ("graph.quantize", "open"): "a new file, for writing",
    ("graph.read", "np.memmap"): _CHECKED,
    ("hub.bounds", "json.loads"): "an answer of the Hub, which is bounded there; its entries are judged one by one",
    ("hub.ranges", "os.open"): "a new file",
    ("json_text", "json.loads"): "the one place where JSON is parsed",
    ("opened", "FileIO"): "the one place where files are opened",
    ("opened", "os.open"): "the one place where files are opened",
    ("packed_encoder", "nn.Embedding.from_pretrained"): "no file",
    ("parity.as_used.stock_model", "AutoTokenizer.from_pretrained"): _CHECKED,
    ("parity.as_used.stock_model", "CLIPTokenizer.from_pretrained"): _OWN,
    ("parity.detector.store", "load_file"): _OWN,
    ("parity.hooks", "resources.files(__package__).joinpath(_TEMPLATE).read_text"): _SHIPPED,
    ("parity.hooks_template", "json.loads"): "runs at a porter's, without this package",
    ("parity.hooks_template", "open"): "runs at a porter's, without this package",
    ("parity.onnx_session", "json.loads"): _OWN,
    ("parity.onnx_session", "mmap.mmap"): _LOOKED,
    ("parity.onnx_session", "onnxruntime.InferenceSession"): "takes bytes",
    ("parity.onnx_session", "profile.read_text"): _OWN,
    ("parity.openvino_session", "onnx.load_external_data_for_model"): _CHECKED,
    ("parity.picture_files", "Image.open"): _LOOKED,
    ("parity.picture_files", "numpy.load"): _CHECKED,
    ("parity.port_files", "archive.open"): "an entry of an archive",
    ("parity.port_files", "safe_open"): _CHECKED,
    ("parity.port_files", "zipfile.is_zipfile"): _LOOKED,
    ("parity.reference_file", "zipfile.is_zipfile"): _LOOKED,
    ("parity.released", "json.loads"): _SHIPPED,
    ("parity.released", "resources.files(__package__).joinpath(_RECORD).read_text"): _SHIPPED,
    ("parity.setup", "options.runtime.open"): "no file",
    ("swap", "open"): "a new file, for writing",
    ("swap", "os.open"): "a folder, without waiting",
    ("working_places", "open"): "a new file that is still empty, for writing",
    ("working_places", "os.open"): "a lock, without waiting, or a new file",
    ("report.terminal", "os.open"): "the null device, for writing",
}


def opening_calls(tree: ast.AST) -> set[str]:
    """The calls that may open a file or parse JSON, as they are written; None of ``opened.py``'s own names is one."""
    calls = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    return {call for call in calls if OPENING.fullmatch(call)}


def test_files_of_others_are_opened_in_one_place():
    found = {
        (name.removeprefix("sam3lite_convert."), call)
        for name in MODULES
        if name.startswith("sam3lite_convert.")
        for call in opening_calls(tree_of(name))
    }
    assert sorted(found - OPENED_ELSEWHERE.keys()) == []
    assert sorted(OPENED_ELSEWHERE.keys() - found) == []  # no reason is kept for a call that went


@pytest.mark.parametrize(
    "code",
    [
        "open(p)", "p.open('rb')", "p.read_text()", "(a / b).read_bytes()", "np.load(p)", "torch.load(p)",
        "json.load(f)",
        "safe_open(p, 'pt')", "zipfile.ZipFile(p)", "os.open(p, 0)", "Image.open(p)", "gzip.open(p)", "io.open(p)",
        "AutoTokenizer.from_pretrained(p)", "np.fromfile(p)", "mmap.mmap(f, 0)", "Tokenizer.from_file(p)",
        "with open(p) as f: pass", "tarfile.open(p)", "safetensors.torch.load_file(p)", "json.loads(t)",
    ],
)  # fmt: skip
def test_a_file_that_is_opened_elsewhere_would_be_found(code):
    assert opening_calls(ast.parse(code))
    assert not opening_calls(ast.parse("open_regular(p); read_small(p, 1); store.load(x); parse_json(t)"))
