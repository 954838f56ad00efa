"""Find the text encoder in the user's checkout of EfficientSAM3 and load it with a checkpoint's weights."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib.machinery
import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sam3lite_convert.convert.text_weights import load_all
from sam3lite_convert.errors import CannotRun, UnsoundPlan
from sam3lite_convert.opened import read_small_text
from sam3lite_convert.parity.checkout.loader import CheckoutCode, installed, said_by, top_level
from sam3lite_convert.parity.checkout.stand_ins import NotHere

STUDENT = "TextStudentEncoder"
INTERFACE = ("encoder", "projector", "encoder.transformer", "encoder.final_layer_norm", "encoder.projection_layer")
MAX_FILES = 20_000
_LONGEST_LINE = 64 << 10  # bytes
_PACKED_REFS = 64 << 20  # bytes; that of a large project has some MB
SKIPPED = {"node_modules", "site-packages", "__pycache__", "build", "venv", "env"}


class RunFile(NamedTuple):
    """A file of the checkout whose code is run. ``path``: below the folder that the user gave."""

    path: Path
    sha256: str


@dataclass(frozen=True)
class OriginalRepo:
    """A checkout whose text encoder was found and whose modules were run.

    ``path``: the folder the user gave.
    ``encoder_class``: its TextStudentEncoder.
    ``commit``: the commit that is checked out, or None if unknown. Files may have been edited since.
    """

    path: Path
    encoder_class: type[nn.Module]
    commit: str | None
    _checkout: CheckoutCode

    @property
    def files(self) -> tuple[Path, ...]:
        """The files of the checkout that were run, relative to ``path``; ``build`` may add to them."""
        return tuple(map(self._checkout.shown, self._checkout.modules))

    @property
    def stood_in(self) -> tuple[str, ...]:
        """Dotted names that a placeholder was used for; ``build`` may add to them."""
        return tuple(self._checkout.stood_in)

    def build(
        self, cfg: Mapping[str, object], context_length: int, output_dim: int, state_dict: Mapping[str, Tensor]
    ) -> nn.Module:
        """The checkout's TextStudentEncoder in evaluation mode, with exactly these weights, which are not copied.

        Raises CannotRun if it cannot be constructed, if it lacks a module that the comparison reads, or if a key is
        missing, unexpected or of another shape; BatchNorm counters may be absent.
        """
        with _foreseen(self._checkout, f"{STUDENT} cannot be constructed"):
            call = _arguments(self, {"cfg": dict(cfg), "context_length": context_length, "output_dim": output_dim})
            model = self.encoder_class(*call.args, **call.kwargs)
        for name in INTERFACE:
            found: object = model
            for part in name.split("."):
                found = getattr(found, part, None)
            if not isinstance(found, Tensor if name.endswith("projection_layer") else nn.Module):
                raise self._failed(f"its {STUDENT} has no {name}, which the comparison reads", {"missing": name})
        dtype = {t.dtype for t in state_dict.values() if t.is_floating_point()}
        with _foreseen(self._checkout, f"{STUDENT} does not take its weights"):
            if len(dtype) == 1:
                model.to(dtype.pop())  # also converts buffers that are not in the state dict
            try:
                load_all(model, state_dict, STUDENT)
            except UnsoundPlan as fault:
                details = fault.details if isinstance(fault.details, dict) else {}
                keys = [f"{kind} {key}" for kind, names in details.items() if isinstance(names, list) for key in names]
                some = "; ".join(keys[:5]).replace("shapes ", "") + (f"; and {len(keys) - 5} more" if keys[5:] else "")
                raise self._failed(
                    f"its {STUDENT} does not fit this checkpoint's weights: {some}", fault.details
                ) from None
            return model.requires_grad_(False).eval()

    def running(self) -> AbstractContextManager[None]:
        """A context in which exceptions of the checkout's code become CannotRun."""
        return _foreseen(self._checkout, f"{STUDENT} does not run")

    def _failed(self, message: str, details: object = None) -> CannotRun:
        return CannotRun(f"{self.path}: {message}", "original_repo_failed", details)


def open_original(path: Path, told: Callable[[tuple[RunFile, ...]], object] = lambda files: None) -> OriginalRepo:
    """Find the text encoder in a checkout and run its modules.

    ``told``: called with the files whose code will run, before any of it does. No other file of the checkout is run
    or imported by this tool.

    Raises CannotRun if the path is not a folder, if no file or more than one file in it defines TextStudentEncoder,
    if a package is missing, or if a module fails to run.
    """
    if not path.is_dir():
        what = "is a file; give the folder of the checkout" if path.exists() else "does not exist"
        raise CannotRun(f"{path} {what}", "no_original_repo")
    checkout = CheckoutCode(path)
    file = _student(path, checkout)
    files = checkout.allow(file)
    told(tuple(RunFile(checkout.shown(f), hashlib.sha256(checkout.source(f)).hexdigest()) for f in files))
    with _foreseen(checkout, f"{checkout.shown(file)} does not run"):
        found = getattr(checkout.run(file), STUDENT, None)
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise CannotRun(f"{path}: {checkout.shown(file)}: {STUDENT} is not an nn.Module", "original_repo_failed")
    return OriginalRepo(path, found, _commit(path), checkout)


def _student(path: Path, checkout: CheckoutCode) -> Path:
    """The file that defines the encoder."""
    found, faults = [], []
    for file in _python_files(path, checkout):
        try:
            if STUDENT.encode() in checkout.source(file):
                body = checkout.parse(file).body
                if any(isinstance(n, ast.ClassDef) and n.name == STUDENT for n in top_level(body)):
                    found.append(file)
        except CannotRun as fault:
            faults.append(fault)
    if not found:
        if faults:
            raise faults[0]
        raise CannotRun(
            f"{path} is not a checkout of EfficientSAM3: no file in it defines {STUDENT}. The branches sam3_litetext "
            "and main have it",
            "no_original_repo",
        )
    # Of several, prefer one whose imports all resolve and whose encoder is in the checkout.
    fit = [f for f in found if checkout.resolves(f)] or found
    fit = [f for f in fit if checkout.needs(f)] or fit
    if len({checkout.source(f) for f in fit}) > 1:
        names = [str(checkout.shown(f)) for f in fit]
        raise CannotRun(
            f"{path}: {len(fit)} files define {STUDENT}: {', '.join(names)}. Give a folder that holds only one of them",
            "no_original_repo",
            names,
        )
    return fit[0]


def _python_files(path: Path, checkout: CheckoutCode) -> list[Path]:
    """The Python files of a folder, those nearest to the top first. Links to folders are not followed."""
    found: list[Path] = []
    for folder, folders, names in os.walk(checkout.path):
        here = Path(folder)
        folders[:] = [f for f in folders if f[0] != "." and f not in SKIPPED and not (here / f / "pyvenv.cfg").exists()]
        found += [here / n for n in names if n.endswith(".py") and (here / n).is_file()]
        if len(found) > MAX_FILES:
            raise CannotRun(
                f"{path} holds more than {MAX_FILES:,} Python files; give the checkout's own folder", "no_original_repo"
            )
    return sorted(found, key=lambda f: (len(f.parts), f.parts))


class _OutsideOnly:
    """A finder in front of all others, which refuses modules that they find in the checkout: from a search path that
    leads there, or where the checkout is installed. Packages of this Python itself may lie inside it."""

    def __init__(self, checkout: CheckoutCode) -> None:
        self._root, self._looking = checkout.root, False
        self._own = {Path(p).resolve() for p in (sys.prefix, sys.base_prefix)}

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        """None, so that the other finders go on. Raises NotHere for a module that they find in the checkout."""
        if self._looking:
            return
        self._looking = True
        try:
            spec = (
                importlib.util.find_spec(name)
                if "." not in name
                else importlib.machinery.PathFinder.find_spec(
                    name,
                    path,  # type: ignore[arg-type]
                )
            )
        except (ImportError, ValueError):
            return
        finally:
            self._looking = False
        places = [] if spec is None else [spec.origin, *(spec.submodule_search_locations or ())]
        for place in places:
            if place and os.path.isabs(place) and self._inside(Path(place).resolve()):
                raise NotHere(f"it imports {name} in a way that would run {place}")

    def _inside(self, place: Path) -> bool:
        return self._root in place.parents and not any(own in place.parents for own in self._own)


@contextlib.contextmanager
def _foreseen(checkout: CheckoutCode, what: str) -> Iterator[None]:
    """Turn whatever the checkout's code raises into CannotRun.

    What the code prints goes to stderr. The caller's random state, search path, environment and torch default dtype
    are restored; patches to other packages are not. No import finds a file of the checkout but by ``CheckoutCode``.
    """
    path, variables, dtype = sys.path[:], dict(os.environ), torch.get_default_dtype()
    finders, guard = sys.meta_path[:], _OutsideOnly(checkout)
    try:
        with contextlib.redirect_stdout(sys.stderr), torch.random.fork_rng(devices=[]):
            try:
                sys.meta_path.insert(0, guard)
                yield
            finally:
                sys.path[:] = path
                sys.meta_path[:] = finders
                if os.environ != variables:
                    os.environ.clear()
                    os.environ.update(variables)
                torch.set_default_dtype(dtype)
    except CannotRun as fault:
        if fault.message.startswith(f"{checkout.given}: "):
            raise
        raise CannotRun(f"{checkout.given}: {what}: {fault.message}", fault.code, fault.details) from None
    except (Exception, SystemExit, GeneratorExit) as fault:
        message, code = f"{what}: {said_by(fault)}", "original_repo_failed"
        top = (fault.name or "").partition(".")[0] if isinstance(fault, ModuleNotFoundError) else ""
        if isinstance(fault, NotHere):
            message, code = f"{what}: {fault}", "original_repo_import"
        elif top and not installed(top):
            message = f"{what}: it needs the package {top}, which is not installed: pip install {top}"
            code = "original_repo_import"
        else:
            trace, where = fault.__traceback__, ""
            while trace:
                file = Path(trace.tb_frame.f_code.co_filename)
                where = f" ({checkout.shown(file)}, line {trace.tb_lineno})" if file in checkout.trees else where
                trace = trace.tb_next
            message += where
        raise CannotRun(f"{checkout.given}: {message}", code) from None


def _arguments(repo: OriginalRepo, given: dict[str, object]) -> inspect.BoundArguments:
    """Arguments for the constructor: by name, or by position if it has no parameter of that name.

    Raises CannotRun if the constructor requires something else, or takes no cfg.
    """
    signature = inspect.signature(repo.encoder_class)
    call = inspect.BoundArguments(signature, {})
    plain = [p for p in signature.parameters.values() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    at = list(given)
    for i, parameter in enumerate(plain):
        name, required = parameter.name, parameter.default is parameter.empty
        if name in given:
            call.arguments[name] = given[name]
        elif required and i < len(at) and at[i] not in signature.parameters:
            call.arguments[name] = given[at[i]]
        elif required and (re.search("path|file|dir", name) or parameter.annotation in (str, "str", Path, "Path")):
            call.arguments[name] = "not-read"  # the tokenizer's file; a placeholder replaces the tokenizer
        elif required:
            raise repo._failed(f"the constructor of {STUDENT} requires {name}, which sam3lite does not know")
    if given["cfg"] not in call.arguments.values():
        raise repo._failed(f"the constructor of {STUDENT} takes no cfg: it is {STUDENT}{signature}")
    return call


def _line(path: Path) -> str:
    """The one line of a file of .git."""
    return read_small_text(path, _LONGEST_LINE).strip()


def _commit(path: Path) -> str | None:
    """The commit that is checked out, read from the files of .git; None if it cannot be read."""
    try:
        git = path / ".git"
        if git.is_file():  # a worktree or a submodule
            git = path / _line(git).removeprefix("gitdir:").strip()
        common = git / _line(git / "commondir") if (git / "commondir").is_file() else git
        head = _line(git / "HEAD")
        if head.startswith("ref:"):
            ref = head.removeprefix("ref:").strip()
            if (common / ref).is_file() and ".." not in ref:
                head = _line(common / ref)
            else:
                lines = read_small_text(common / "packed-refs", _PACKED_REFS).splitlines()
                head = next((line.split()[0] for line in lines if line.split()[1:] == [ref]), "")
    except (OSError, ValueError, CannotRun):
        return None
    return head if re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", head) else None
