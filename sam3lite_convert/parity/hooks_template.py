"""Records what a model computes, module by module, for ``sam3lite judge`` to compare with the original.

Copy this one file beside your code. It needs torch 1.13 or later, safetensors, and Python 3.8 or later:

    from sam3lite_hooks import record
    record(model, lambda: model(ids), "mine.safetensors")

or around a run of yours:

    from sam3lite_hooks import recording
    with recording(model, "mine.safetensors"):
        model(ids)

Then, where sam3lite-convert is installed:

    sam3lite judge mine.safetensors CHECKPOINT --name "my port"

``model`` may be the whole model, its text encoder, or anything that holds it. The modules are found by the tables
below, under any prefix. A model with names of its own needs a table of its own:

    from sam3lite_hooks import Row, record
    rows = [Row("input_ids", "embed", at_input=True), Row("layers.{i}", "blocks.{i}"), Row("projected", "head")]
    record(model, lambda: model(ids), "mine.safetensors", rows=rows)

Nothing in the model is changed: the hooks only read, and are removed at the end. If the run fails, what was recorded
until then is written all the same.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import nn

ABOUT = "sam3lite_hooks"  # what tells a file of this script from others, in its metadata
MOST_CALLS = 8  # of one module that are kept
_KWARGS = "with_kwargs" in inspect.signature(nn.Module.register_forward_pre_hook).parameters  # since torch 2.0


class Row(NamedTuple):
    """Where a tap is: a row of a table.

    ``tap``: name in the file; ``{i}`` is the number of a layer.
    ``module``: path of the module, below the prefix that is found.
    ``call``: which of the module's calls in one run of the model it is, from 0.
    ``each``: of a module that every layer calls: how often a layer does. ``{i}`` is then in ``tap`` alone, layer ``i``
    is call ``call + i * each``, and there are as many layers as of other taps whose names begin with the same word.
    ``at_input``: whether it is the module's input, instead of its output.
    ``item``: position or key of the value, where the output is a tuple or a dict; None: the first tensor.
    ``cut``: axis, first and last index (not included) of the part of the tensor that it is; None: all of it.
    ``axes``: order of the axes in the file, as for ``torch.permute``; None: as they are.
    """

    tap: str
    module: str
    call: int = 0
    each: int = 0
    at_input: bool = False
    item: int | str | None = None
    cut: tuple[int, int, int | None] | None = None
    axes: Sequence[int] | None = None


class Table(NamedTuple):
    """Where the taps of one component are in one kind of model.

    ``name``: the kind.
    ``component``: of the model. Of each component, the table that fits best is used.
    """

    name: str
    component: str
    rows: Sequence[Row]


# ---- sam3lite record --script puts what is its own between these lines ----
WRITTEN_BY = "sam3lite-convert"
TABLES: list[Table] = []
# ---- end ----


class Fit(NamedTuple):
    """A table that was found in a model.

    ``name``: of the table.
    ``prefix``: what stands before its paths in the model.
    ``rows``: the rows that were found, one for each layer.
    ``missing``: taps whose module was not found.
    ``modules``: number of its paths that were found.
    """

    name: str
    prefix: str
    rows: list[Row]
    missing: list[str]
    modules: int


def record(
    model: nn.Module,
    call: Callable[[], object],
    path: str | os.PathLike[str],
    rows: Sequence[Row] | None = None,
    prefix: str | None = None,
    nth: int = 1,
) -> object:
    """Run ``call()``, which runs the model, without gradients, and write what its modules computed.

    Returns what ``call`` returns. The other arguments and the errors are those of ``recording``.
    """
    with recording(model, path, rows, prefix, nth), torch.no_grad():
        return call()


class recording:
    """A context in which a model is run and at whose end the activations are written.

    ``path``: the .safetensors file; one of this script is replaced, another file never.
    ``rows``: a table of your own. None: one of the tables of this file.
    ``prefix``: of the paths, where several parts of the model fit. None: the shortest of those that fit best.
    ``nth``: which run of the modules has the taps' names, from 1; other runs are named ``TAP.call2`` and so on. Of a
    module that one run calls several times, the first run alone is recorded.

    Raises ValueError if no table fits or an argument is wrong, FileExistsError for a file that is not this script's,
    and RuntimeError if none of the modules ran.
    """

    def __init__(
        self,
        model: nn.Module,
        path: str | os.PathLike[str],
        rows: Sequence[Row] | None = None,
        prefix: str | None = None,
        nth: int = 1,
    ) -> None:
        self.model = model
        self.path = os.fspath(path)
        self.nth = nth
        if not self.path.endswith(".safetensors"):
            raise ValueError(f"{self.path}: the name must end in .safetensors")
        if nth < 1:
            raise ValueError("nth is the number of a run, from 1 on")
        if os.path.exists(self.path) and not _is_ours(self.path):
            raise FileExistsError(f"{self.path} exists and was not written by this script; choose another name")
        self.fits = find(model, rows, prefix)
        self.tensors: dict[str, torch.Tensor] = {}
        self.problems: dict[str, str] = {}
        self.calls: dict[tuple[str, bool], int] = {}
        self._handles: list[Any] = []

    def __enter__(self) -> recording:
        self.tensors, self.problems, self.calls = {}, {}, {}
        places: dict[tuple[str, bool], list[Row]] = {}
        for fit in self.fits:
            for row in fit.rows:
                places.setdefault((fit.prefix + row.module, row.at_input), []).append(row)
        for place, rows in places.items():
            self.calls[place] = 0
            self._handles.append(self._hook(place, rows))
        return self

    def __exit__(self, kind: object, fault: BaseException | None, trace: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        lines = self._said()
        if self.tensors:
            _save(self.path, self.tensors, self._about(lines))
            lines.insert(0, f"wrote {self.path}: {_short(list(self.tensors))}")
            lines.append(f'next: sam3lite judge {shlex.quote(self.path)} CHECKPOINT --name "my port"')
        if fault is not None:
            lines.insert(0, f"the run ended with {type(fault).__name__}; this is what it recorded before")
        for line in lines:
            print(f"sam3lite_hooks: {line}", file=sys.stderr)
        if not self.tensors and fault is None:
            raise RuntimeError(f"nothing was recorded, and no file written: {'; '.join(lines)}")

    def _hook(self, place: tuple[str, bool], rows: list[Row]) -> Any:
        module: Any = self.model.get_submodule(place[0])
        if not place[1]:
            return module.register_forward_hook(lambda module, args, output: self._keep(place, rows, output))

        def before(module: nn.Module, args: tuple[object, ...], named: Mapping[str, object] | None = None) -> None:
            given: dict[int | str, object] = dict(enumerate(args))
            given.update(named or {})
            self._keep(place, rows, given)

        return module.register_forward_pre_hook(before, **({"with_kwargs": True} if _KWARGS else {}))

    def _keep(self, place: tuple[str, bool], rows: list[Row], value: object) -> None:
        """Copy what one call of a module gave. Whatever goes wrong here must not end the model's run."""
        number = self.calls[place]
        self.calls[place] = number + 1
        counted, run = any(row.call or row.each for row in rows), number + 1
        if not counted and run > MOST_CALLS and run != self.nth:
            return
        for row in rows:
            name = row.tap if counted or run == self.nth else f"{row.tap}.call{run}"
            if counted and row.call != number:
                continue
            if counted and self.nth > 1:
                self.problems[name] = "its module is called several times in a run, so that runs cannot be told apart"
                continue
            try:
                self.tensors[name] = _copy(value, row)
            except Exception as fault:
                self.problems[name] = f"{fault} ({type(fault).__name__})"

    def _said(self) -> list[str]:
        """What the user has to know, one line each."""
        lines = []
        for fit in self.fits:
            where = f"below {fit.prefix.rstrip('.')} of" if fit.prefix else "of"
            lines.append(f"by the table {fit.name}, {where} {type(self.model).__name__}")
            if fit.missing:
                lines.append(f"no such module, and so not recorded: {_short(fit.missing)}")
            silent = [row.tap for row in fit.rows if row.tap not in self.tensors and row.tap not in self.problems]
            if silent:
                when = "in this run" if self.nth == 1 else f"{self.nth} times"
                lines.append(f"not called {when}, and so not recorded: {_short(silent)}")
        again = sorted({name.rpartition(".")[2] for name in self.tensors if re.search(r"\.call\d+$", name)})
        if again:
            lines.append(
                f"modules were run more than once: run {self.nth} has the names of the taps, which are judged; names "
                f"of others end in .{', .'.join(again)}. nth=NUMBER chooses another run"
            )
        lines += [f"{name} was not recorded: {problem}" for name, problem in self.problems.items()]
        if self.model.training:
            lines.append("the model is in training mode; model.eval() turns dropout off")
        return lines

    def _about(self, lines: list[str]) -> dict[str, Any]:
        return {
            "version": 1,
            "written_by": WRITTEN_BY,
            "torch": str(torch.__version__),
            "python": sys.version.split()[0],
            "model": f"{type(self.model).__module__}.{type(self.model).__qualname__}",
            "tables": [{"name": fit.name, "prefix": fit.prefix, "missing": fit.missing} for fit in self.fits],
            "said": lines,
        }


def find(model: object, rows: Sequence[Row] | None = None, prefix: str | None = None) -> list[Fit]:
    """The tables that fit a model: of each component the one that finds most of its modules, and more than half.

    Raises ValueError if none does, or if the model is not a module.
    """
    if not isinstance(model, nn.Module):
        held = [name for name, value in getattr(model, "__dict__", {}).items() if isinstance(value, nn.Module)]
        inside = f", such as its {' or '.join(held)}" if held else ""
        raise ValueError(f"{type(model).__name__} is not a torch.nn.Module; give the module that it runs{inside}")
    paths = {name for name, _ in model.named_modules(remove_duplicate=False)}
    tables = TABLES if rows is None else [Table("of your own", "", rows)]
    best: dict[str, tuple[tuple[int, int], Fit]] = {}
    nearest = Fit("", "", [], [], 0)
    for table in tables:
        for wanted in _variants([Row(*row) for row in table.rows]):
            every = len({_first_of(row) for row in wanted})
            starts = _prefixes(wanted, paths) if prefix is None else [prefix.rstrip(".") + "." if prefix else ""]
            for start in starts:
                fit = _fit(table.name, wanted, start, paths)
                rank = (fit.modules, -len(start))
                if 2 * fit.modules > every and (table.component not in best or rank > best[table.component][0]):
                    best[table.component] = (rank, fit)
                if fit.modules > nearest.modules:
                    nearest = fit
    if not best:
        names = ", ".join(sorted({table.name for table in tables}))
        lacks = f"; the nearest is {nearest.name}, but there is no {_short(nearest.missing)}" if nearest.name else ""
        raise ValueError(
            f"{type(model).__name__} does not have the modules of any table ({names}){lacks}. Its parts are "
            f"{_short([name for name, _ in model.named_children()]) or 'none'}. Give a table of your own: "
            'rows=[Row("layers.{i}", "path.of.layer.{i}"), ...]'
        )
    return [fit for _, fit in best.values()]


def _variants(rows: list[Row]) -> list[list[Row]]:
    """The rows as they are, and those of one part of the model, which may be all that there is."""
    parts = sorted({row.module.partition(".")[0] for row in rows})
    inner = [[r._replace(module=r.module[len(p) + 1 :]) for r in rows if r.module.startswith(p + ".")] for p in parts]
    return [rows] + [part for part in inner if 2 * len(part) > len(rows)]


def _first_of(row: Row) -> str:
    """The path of a row's module in the first layer."""
    return row.module.replace("{i}", "0")


def _prefixes(rows: list[Row], paths: set[str]) -> list[str]:
    """Whatever stands in the model before the path of a row, the shortest first."""
    found = set()
    for row in rows:
        end = _first_of(row)
        found |= {path[: len(path) - len(end)] for path in paths if path == end or path.endswith("." + end)}
    return sorted(found, key=lambda prefix: (len(prefix), prefix))


def _fit(name: str, rows: list[Row], prefix: str, paths: set[str]) -> Fit:
    """The rows whose modules are in a model under a prefix, each once for every layer that has it."""
    found, missing, modules = [], [], set()
    layers: dict[str, list[str]] = {}  # first word of a tap -> numbers of its layers
    for row in sorted(rows, key=lambda row: bool(row.each)):
        pattern = re.escape(prefix + row.module).replace(re.escape("{i}"), r"(\d+)")
        matches = [match for match in (re.fullmatch(pattern, path) for path in paths) if match]
        numbers = (
            sorted((match.group(1) for match in matches), key=int) if "{i}" in row.module else ["" for _ in matches]
        )
        stage = row.tap.partition(".")[0]
        if "{i}" in row.module and len(numbers) > len(layers.get(stage, [])):
            layers[stage] = numbers
        if row.each and numbers:
            numbers = layers.get(stage, [])
        for i in numbers:
            call = row.call + row.each * int(i or 0)
            found.append(row._replace(tap=row.tap.replace("{i}", i), module=row.module.replace("{i}", i), call=call))
        if numbers:
            modules.add(_first_of(row))
        else:
            missing.append(row.tap)
    return Fit(name, prefix, found, missing, len(modules))


def _copy(value: object, row: Row) -> torch.Tensor:
    """The tensor of a row in a value, on the CPU, in its own dtype (whole numbers as int64), as a copy."""
    if row.item is not None:
        held: Any = value
        attribute = isinstance(row.item, str) and not isinstance(value, Mapping)
        value = getattr(held, str(row.item)) if attribute else held[row.item]
    tensor = _first(value)
    if tensor is None:
        hidden = row.at_input and not _KWARGS
        why = "; torch before 2.0 does not show what is given by name" if hidden else ""
        raise ValueError(f"there is no tensor in {'its input' if row.at_input else type(value).__name__}{why}")
    copy = tensor.detach().to("cpu", copy=True)
    if row.cut is not None:
        axis, start, end = row.cut
        copy = copy[(slice(None),) * axis + (slice(start, end),)]
    if row.axes is not None:
        copy = copy.permute(*row.axes)
    return (copy if copy.is_floating_point() else copy.long()).contiguous()


def _first(value: object) -> torch.Tensor | None:
    """The first tensor in a value that may be nested."""
    if isinstance(value, torch.Tensor):
        return value
    inner: list[object] = []
    if isinstance(value, Mapping):
        inner = list(value.values())
    elif isinstance(value, (list, tuple)):
        inner = list(value)
    for item in inner:
        tensor = _first(item)
        if tensor is not None:
            return tensor
    return None


def _save(path: str, tensors: dict[str, torch.Tensor], about: dict[str, Any]) -> None:
    """Write the file as a whole."""
    beside = f"{path}.part"
    try:
        save_file(tensors, beside, {"format": "pt", ABOUT: json.dumps(about)})
        os.replace(beside, path)
    finally:
        if os.path.exists(beside):
            os.remove(beside)


def _is_ours(path: str) -> bool:
    """Whether a file was written by this script, so that it may be replaced."""
    if not os.path.isfile(path):  # a pipe would be waited for
        return False
    try:
        with open(path, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
            return size < 10_000_000 and ABOUT in json.loads(file.read(size)).get("__metadata__", {})
    except (OSError, ValueError, AttributeError):
        return False


def _short(names: Sequence[str]) -> str:
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return ", ".join(names[:20]) + more
