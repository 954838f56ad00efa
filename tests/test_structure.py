"""What holds of the code itself: no cycle of imports, no module that is too long, nothing public without a word."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from folders import ROOT

MODULES = {
    ".".join(p.relative_to(ROOT).with_suffix("").parts): p
    for package in ("sam3lite_convert", "original_ref")
    for p in sorted((ROOT / package).rglob("*.py"))
}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}


def is_for_types(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def imported(tree: ast.AST, late: bool) -> set[str]:
    """Our modules that a module imports; ``late``: also those that a function imports when it is called."""
    found, waiting = set(), [tree]
    while waiting:
        node = waiting.pop()
        if is_for_types(node):  # type: ignore[arg-type]
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif late or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            waiting += list(ast.iter_child_nodes(node))
    packages = {"sam3lite_convert", "original_ref"}  # a package's own module imports nothing of ours
    return {name for name in found if name in MODULES} - packages


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


@pytest.mark.parametrize("late", [False, True], ids=["at the top", "anywhere"])
def test_no_cycle_of_imports(late):
    graph = {name: imported(tree, late) for name, tree in TREES.items()}
    assert sum(map(len, graph.values())) > 200
    assert cycle(graph) == []


def test_a_cycle_would_be_found():
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


@pytest.mark.parametrize("name", MODULES)
def test_a_module_is_short(name):
    assert len(MODULES[name].read_text(encoding="utf-8").splitlines()) < 400


@pytest.mark.parametrize("name", MODULES)
def test_what_is_public_says_what_it_is(name):
    tree = TREES[name]
    silent = [] if ast.get_docstring(tree) else [name]
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            silent += [node.name] * (ast.get_docstring(node) is None)
    assert silent == []


def test_the_table_of_modules_is_complete():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = text[text.index("| module of `sam3lite_convert` |") :].split("\n\n")[0]
    named = re.findall(r"`(\w+)`", "\n".join(line.split("|")[1] for line in table.splitlines()[2:]))
    ours = {Path(p).stem for n, p in MODULES.items() if n.startswith("sam3lite_convert.")} - {"__init__", "__main__"}
    assert sorted(named) == sorted(ours)
