"""Parse the Python files of a checkout without running them, and run the few that the text encoder needs.

Each file runs in a namespace with its own ``__import__``. So imports inside functions resolve the same way whenever
they run, and the names of installed packages stay unchanged. No bytecode is written, and none is read. Which files may
run is known before any of them does: those that hold an imported ``nn.Module`` class, or a base or decorator of a
class. Everything else imported from the checkout is an inert placeholder, and while its code runs no other import
finds a file of the checkout. What that code does on its own, reading and running another file for example, is its own.

Python's rules for packages hold, with one thing known beforehand: a package that holds a package of its own name is
searched in both folders, as the original's ``sam3/__init__.py`` has it since November 2025
(``__path__ = [sam3, sam3/sam3]``). No ``__init__.py`` is run for an import.
"""

from __future__ import annotations

import ast
import builtins
import importlib.util
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import NoReturn

from torch import nn

from sam3lite_convert.errors import CannotRun
from sam3lite_convert.opened import read_small
from sam3lite_convert.parity.checkout.stand_ins import STAND_INS, SUBMODULES, AskedModule, NotHere, inert

INIT = "__init__.py"
LONGEST_SOURCE = 4 << 20  # bytes of one file


def _is_package(folder: Path) -> bool:
    return (folder / INIT).is_file()


def _twofold(folder: Path) -> bool:
    """Whether this is a package inside a package of the same name."""
    return folder.name == folder.parent.name and _is_package(folder) and _is_package(folder.parent)


def top_level(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of a module, including those inside ``if`` and ``try``."""
    for node in body:
        yield node
        if isinstance(node, (ast.If, ast.Try)):
            handlers = [s for h in node.handlers for s in h.body] if isinstance(node, ast.Try) else []
            yield from top_level([*node.body, *handlers, *node.orelse])


def _bound(node: ast.stmt) -> Iterator[tuple[str, str]]:
    """The names that a statement binds, as pairs (bound name, imported name); without an import both are the same."""
    if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
        yield node.name, node.name
    elif isinstance(node, (ast.Assign, ast.AnnAssign)):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        yield from ((t.id, t.id) for t in targets if isinstance(t, ast.Name))
    elif isinstance(node, ast.ImportFrom):
        yield from ((a.asname or a.name, a.name) for a in node.names)


def _last(node: ast.expr) -> str:
    node = node.func if isinstance(node, ast.Call) else node
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def installed(top: str) -> bool:
    """Whether a package of this name is installed."""
    try:
        return top in sys.stdlib_module_names or importlib.util.find_spec(top) is not None
    except (ImportError, ValueError, NotHere):  # it is in the checkout
        return False


class CheckoutCode:
    """The parsed files of a checkout, and the modules that were run."""

    def __init__(self, path: Path) -> None:
        self.given = path  # for messages
        self.path = self.root = path.resolve()
        while _is_package(self.root) and self.root.parent != self.root:
            self.root = self.root.parent  # the folder is inside a package, whose imports start above it
        self.read: dict[Path, bytes] = {}
        self.trees: dict[Path, ast.Module | None] = {}
        self.modules: dict[Path, ModuleType] = {}
        self.allowed: dict[Path, None] = {}
        self.stood_in: dict[str, None] = {}

    def shown(self, file: Path) -> Path:
        return Path(os.path.relpath(file, self.path))

    def dotted(self, path: Path) -> str:
        """The name under which Python imports a file or folder of the checkout from the folder above its package."""
        parts, folder = [path.with_suffix("").name], path.parent
        while _is_package(folder) and folder != self.root:
            if not _twofold(folder):  # else the name of the package around it is that of both
                parts.insert(0, folder.name)
            folder = folder.parent
        return ".".join(parts)

    def search(self, folder: Path) -> tuple[Path, ...]:
        """The folders in which the modules of a package are looked for, in order: its ``__path__``."""
        if _twofold(folder):
            return folder.parent, folder
        if _twofold(folder / folder.name):
            return folder, folder / folder.name
        if _is_package(folder) or folder == self.root or self.root not in folder.parents:
            return (folder,)
        portions = [f / folder.name for f in self.search(folder.parent)]  # of a namespace package
        return tuple(f for f in portions if f.is_dir())

    def inside(self, folder: Path, name: str) -> Path | None:
        """The file or folder of the module ``name`` of a package; None if there is none.

        Of a namespace package in several folders, one of them: ``search`` leads to the others.
        """
        namespace = None
        for place in self.search(folder):
            file, package = place / f"{name}.py", place / name
            if _is_package(package):
                return package
            if file.is_file():
                return file
            if package.is_dir():
                namespace = package
        return namespace

    def source(self, file: Path) -> bytes:
        """The bytes of a file, read once: what runs is what was looked at. Raises CannotRun if it cannot be read."""
        if file not in self.read:
            self.read[file] = read_small(file, LONGEST_SOURCE)
        return self.read[file]

    def parse(self, file: Path) -> ast.Module:
        """Parse a file. Raises CannotRun if it cannot be read or is not valid Python."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # warnings about string literals in their code
                return ast.parse(self.source(file), str(file))
        except SyntaxError as fault:
            where = f"{self.shown(file)}, line {fault.lineno}"
            raise CannotRun(f"{self.given}: {where}: {fault.msg}", "original_repo_failed") from None
        except (OSError, ValueError, RecursionError, MemoryError) as fault:
            raise CannotRun(f"{self.given}: {self.shown(file)}: {said_by(fault)}", "original_repo_failed") from None

    def tree(self, file: Path) -> ast.Module | None:
        if file not in self.trees:
            try:
                self.trees[file] = self.parse(file)
            except CannotRun:
                self.trees[file] = None
        return self.trees[file]

    def locate(self, file: Path, name: str, level: int) -> tuple[Path, Path] | None:
        """The first and last file or folder on the path of a dotted name imported in ``file``.

        None if the name is not in the checkout.
        """
        parts = name.split(".") if name else []
        above = [p for p in file.parents if p == self.root or self.root in p.parents]
        if level:
            starts = above[level - 1 : level]
        elif parts[0] in sys.stdlib_module_names or parts[0] == "torch":
            return None
        else:
            starts = [p for p in reversed(above) if not _is_package(p)]
        for strict in (True, False):  # a folder without __init__.py only if nothing else matches
            if not strict and not level and installed(parts[0]):
                return None
            for start in starts:
                steps = [start]
                for part in parts:
                    if (step := self.inside(steps[-1], part)) is None:
                        break
                    steps.append(step)
                there, last = len(steps) == len(parts) + 1, steps[-1]
                code = last.is_file() or _is_package(last)
                if there and (code or (not strict and any(f for p in self.search(last) for f in p.glob("*.py")))):
                    return steps[min(1, len(parts))], last
        return None

    def origin(self, at: Path, name: str, seen: set[tuple[Path, str]] | None = None) -> tuple[Path, ast.stmt] | None:
        """The file and statement that define ``name`` of a module; re-exports are followed.

        ``seen``: the (file, name) pairs searched so far, so that circular imports end.
        """
        seen = set() if seen is None else seen
        file = at / INIT if at.is_dir() else at
        tree = self.tree(file) if file.is_file() and (file, name) not in seen else None
        seen.add((file, name))
        for node in top_level(tree.body if tree else []):
            for bound, imported in _bound(node):
                if not isinstance(node, ast.ImportFrom):
                    if bound == name:
                        return file, node
                elif bound in (name, "*") and (to := self.locate(file, node.module or "", node.level)):
                    wanted = name if bound == "*" else imported
                    if found := self.origin(to[1], wanted, seen):
                        return found
        return None

    def is_layer(self, found: tuple[Path, ast.stmt] | None, depth: int = 0) -> bool:
        """Whether the definition is a class that derives from nn.Module."""
        if found is None or not isinstance(found[1], ast.ClassDef) or depth > 20:
            return False
        for base in map(_last, found[1].bases):
            known = getattr(nn, base, None)
            if base.endswith("Module") or (isinstance(known, type) and issubclass(known, nn.Module)):
                return True
            if self.is_layer(self.origin(found[0], base), depth + 1):
                return True
        return False

    def has_layers(self, at: Path) -> bool:
        return at.is_file() and any(self.is_layer((at, node)) for node in top_level(getattr(self.tree(at), "body", [])))

    def allow(self, file: Path) -> tuple[Path, ...]:
        """Settle which files may run: this one and those that it needs, directly or not; returns them, it first."""
        self.allowed = {file: None}
        waiting = [file]
        while waiting:
            for other in sorted(self.needs(waiting.pop(0)) - self.allowed.keys()):
                if other.name != INIT:
                    self.allowed[other] = None
                    waiting.append(other)
        return tuple(self.allowed)

    def needs(self, file: Path) -> set[Path]:
        """The files of the checkout that define layers, bases or decorators imported by ``file``."""
        tree, found = self.tree(file), set()
        nodes = list(ast.walk(tree)) if tree else []
        classes = [n for n in nodes if isinstance(n, ast.ClassDef)]
        defined = classes + [n for n in nodes if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]
        used = {_last(e) for c in classes for e in c.bases} | {_last(e) for d in defined for e in d.decorator_list}
        for node in nodes:
            if isinstance(node, ast.Import):
                at = [self.locate(file, alias.name, 0) for alias in node.names]
                found |= {to[1] for to in at if to and self.has_layers(to[1])}
                for alias, to in zip(node.names, at, strict=True):
                    if to:
                        named = alias.asname or alias.name.partition(".")[0]
                        found |= self.reached(tree, named, to[1] if alias.asname else to[0])
            elif isinstance(node, ast.ImportFrom) and (to := self.locate(file, node.module or "", node.level)):
                for bound, imported in _bound(node):
                    if imported == "*" and self.has_layers(to[1]):
                        found.add(to[1])
                    elif there := self.origin(to[1], imported):
                        if bound in used or self.is_layer(there):
                            found.add(there[0])
                    elif to[1].is_dir() and (module := self.inside(to[1], imported)):
                        found |= self.reached(tree, bound, module)
        return found

    def reached(self, tree: ast.Module | None, name: str, module: Path) -> set[Path]:
        """The files that define the layers which a file reads as attributes of a module that it calls ``name``."""
        found = set()
        for node in ast.walk(tree) if tree else ():
            parts: list[str] = []
            inner: ast.expr | ast.AST = node
            while isinstance(inner, ast.Attribute):
                parts.insert(0, inner.attr)
                inner = inner.value
            if not parts or not isinstance(inner, ast.Name) or inner.id != name:
                continue
            at: Path | None = module
            for part in parts:
                if at is None:
                    break
                if self.is_layer(there := self.origin(at, part)) and there:
                    found.add(there[0])
                    break
                at = self.inside(at, part) if at.is_dir() else None
        return found

    def resolves(self, file: Path) -> bool:
        """Whether every top-level import of the file can be resolved."""
        imports = list(top_level(getattr(self.tree(file), "body", [])))
        names = [(a.name, 0) for n in imports if isinstance(n, ast.Import) for a in n.names]
        names += [(n.module or "", n.level) for n in imports if isinstance(n, ast.ImportFrom)]
        tops = {name: name.partition(".")[0] for name, _ in names}
        return all(
            self.locate(file, name, level) or (not level and (tops[name] in STAND_INS or installed(tops[name])))
            for name, level in names
        )

    # ---- running ---------------------------------------------------------------------------------

    def run(self, file: Path) -> ModuleType:
        """The module of a file, run at most once.

        Raises whatever its code raises, and CannotRun if it is not valid Python.
        """
        if file in self.modules:
            return self.modules[file]
        if file not in self.allowed:
            raise NotHere(f"{self.shown(file)} would have to run too, which its imports do not tell beforehand")
        code = compile(self.parse(file), str(file), "exec", dont_inherit=True)
        module = ModuleType(f"original_repo:{self.dotted(file)}")
        module.__file__ = str(file)
        module.__dict__["__builtins__"] = {**vars(builtins), "__import__": partial(self.serve, file)}
        self.modules[file] = module
        # dataclasses looks the module up in sys.modules while it makes a class; nothing imports it by this name.
        sys.modules[module.__name__] = module
        try:
            exec(code, module.__dict__)  # what --original-repo asks for  # nosec B102
        except BaseException:
            del self.modules[file]
            raise
        finally:
            sys.modules.pop(module.__name__, None)
        return module

    def serve(
        self,
        file: Path,
        name: str,
        globals: Mapping[str, object] | None = None,
        locals: Mapping[str, object] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        """``__import__`` for a file of the checkout."""
        if to := self.locate(file, name, level):
            if "*" in (fromlist or ()):
                return self.run(to[1]) if to[1] in self.allowed else ModuleType(name)
            return self.module(to[1] if fromlist else to[0])
        top = name.partition(".")[0]
        if level or self.locate(file, top, 0):
            raise NotHere(f"{self.shown(file)} imports {'.' * level}{name}, which is not in the checkout")
        try:
            return builtins.__import__(name, globals, locals, fromlist or (), 0)
        except (ImportError, RuntimeError, OSError):
            if top not in STAND_INS:
                raise
        return self.stand_in(name if fromlist else top)

    def stand_in(self, module: str) -> ModuleType:
        top = module.partition(".")[0]

        def get(name: str) -> object:
            if name in STAND_INS[top]:
                self.stood_in[f"{module}.{name}"] = None
                return STAND_INS[top][name]
            return self.stand_in(f"{module}.{name}") if name in SUBMODULES else self.not_stood_in(module, name)

        return AskedModule(module, get)

    def not_stood_in(self, module: str, name: str) -> NoReturn:
        top, known = module.partition(".")[0], " and ".join(STAND_INS[module.partition(".")[0]])
        raise NotHere(f"it needs {name} of {module}; without {top}, only {known} can be replaced: pip install {top}")

    def module(self, at: Path) -> ModuleType:
        """A module of the checkout, which runs only when one of its attributes is needed."""
        return AskedModule(self.dotted(at), partial(self.attribute, at))

    def attribute(self, at: Path, name: str) -> object:
        if at in self.allowed:
            return getattr(self.run(at), name)
        found = self.origin(at, name)
        # Running a package's __init__.py would run the rest of the package too.
        if found and found[0].name != INIT and (found[0] in self.allowed or self.is_layer(found)):
            return getattr(self.run(found[0]), getattr(found[1], "name", name))
        if found is None and at.is_dir() and (inside := self.inside(at, name)):
            return self.module(inside)
        if found is None and at.is_file():
            self.parse(at)  # raises if the file cannot be parsed: it may define the layers
        full = f"{self.dotted(at)}.{name}"
        self.stood_in[full] = None
        made = inert(full, name)
        return made if found and isinstance(found[1], ast.ClassDef) else made()


def said_by(fault: BaseException) -> str:
    """The type and the first line of the message of an exception."""
    try:
        lines = str(fault).strip().splitlines()
    except Exception:  # an exception class of the checkout may fail in __str__
        lines = []
    return f"{type(fault).__name__}: {lines[0]}" if lines else type(fault).__name__
