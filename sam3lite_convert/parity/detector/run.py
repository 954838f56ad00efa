"""Runs both detectors one after the other, streams their taps through the disk, and judges each tap.

In memory at any time: one model, and the activation of one tap on both sides.
"""

from __future__ import annotations

import math
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import astuple, dataclass, field, replace
from itertools import takewhile
from pathlib import Path

import torch
from torch import Tensor

from original_ref import Detector
from sam3lite_convert.errors import CannotRun, Sam3LiteError, UnsoundPlan
from sam3lite_convert.parity.compare import Difference, compare_large, greatest_and_row_mean_large
from sam3lite_convert.parity.detector.inputs import DetectorCall
from sam3lite_convert.parity.detector.models import Candidate, DetectorSide, like
from sam3lite_convert.parity.detector.port import arranged
from sam3lite_convert.parity.detector.reads import reads_of, upstream
from sam3lite_convert.parity.detector.recording import Clock, Read
from sam3lite_convert.parity.detector.store import TapStore
from sam3lite_convert.parity.detector.taps import OUTPUTS, STAGES, Stage, Tap, row_name, taps_of
from sam3lite_convert.parity.judgement import FLOORS, Floor, JudgedTap, Judgement, isolated_belongs
from sam3lite_convert.parity.noise_floor import in_float64, rounded_to
from sam3lite_convert.progress import bar

_FEW = 128  # values
_DRAWS = 8  # of rounding, where one does not tell enough
_CLOSE = 4.0  # tolerances: no further off, a tap may be off by chance


@dataclass(frozen=True)
class DetectorOutcome:
    """The result of one comparison.

    ``taps``: the taps that were compared, in the order of execution.
    ``judgement``: the verdict.
    ``outputs``: both sides' results by name, (original, candidate).
    ``seconds``: wall time of each stage of the original and the candidate; of the candidate none where it does not
        show its taps as they are computed.
    ``store``: the original's activations by tap.
    ``isolated``: the candidate's isolated activations, by tap, where they differ from the original's; of a port that
        gives none, the activation that was carried to the first divergence.
    """

    taps: dict[str, Tap]
    judgement: Judgement
    outputs: dict[str, tuple[Tensor, Tensor]]
    seconds: tuple[Mapping[Stage, float], Mapping[Stage, float]]
    store: TapStore
    isolated: TapStore


@dataclass
class DetectorRun:
    """One comparison. Each side is built when it is run, and freed before the other is built.

    ``reference``, ``candidate``: build a side. None: there is no model to run on the candidate's side.
    ``call``: what both run on.
    ``place``: an empty folder for activations.
    ``device``: where both run.
    ``tolerance``: the user's; None to measure noise floors.
    ``name``: of the candidate, once it was built.
    ``taps``: of the original, once it was built.
    ``carried``: standard deviation of what rounding adds to the values of a row, (..., 1), by tap, once floors were
        measured.
    """

    reference: Callable[[], DetectorSide]
    candidate: Callable[[], Candidate] | None
    call: DetectorCall
    place: Path
    device: torch.device
    tolerance: float | None = None
    name: str = ""
    taps: dict[str, Tap] = field(default_factory=dict)
    carried: dict[str, Tensor] = field(default_factory=dict)

    def compare(self) -> DetectorOutcome:
        """Run both sides and judge the candidate.

        Raises CannotRun if the original itself gives NaN or infinity, UnsoundPlan if a side cannot be built or if the
        shape of an activation is not the original's.
        """
        assert self.candidate is not None
        store, apart = self._stores()
        ours, took = self.record(self.reference(), store)
        candidate = self.candidate()
        self.name = candidate.name
        differences, theirs, taken = self._propagated(candidate, store)
        same = all(d.max_abs == 0 for d in differences.values())
        # Up to the first difference every module reads what the original's reads, so both columns are the same.
        errors = dict.fromkeys(differences, (0.0, 0.0)) if same else self._isolated(candidate, store, apart)
        dtype = candidate.dtype
        del candidate
        if same or self.tolerance is not None:
            judgement = self._judge(differences, errors, None)
        else:
            judgement = self._judged_by_floors(differences, errors, self.reference(), store, dtype)
        outputs = {name: (ours[name], theirs[name]) for name in ours}
        compared = {name: self.taps[name] for name in differences}
        return DetectorOutcome(compared, judgement, outputs, (took, taken), store, apart)

    def judge(
        self, given: Mapping[str, Tensor], isolated: Mapping[str, Tensor], names: Mapping[str, str]
    ) -> tuple[DetectorOutcome, list[str]]:
        """Run the original and judge a candidate of which only activations are known; also says how they were read.

        ``given``: its activations at any taps.
        ``isolated``: those that its modules compute from the original's recorded inputs, at any of these taps.
        ``names``: by tap, what the candidate calls it, where that is spelled otherwise.

        Raises CannotRun if the original itself gives NaN or infinity, for a tap that there is not, or if no tap has the
        original's shape; UnsoundPlan if the original cannot be built.
        """
        store, apart = self._stores()
        side = self.reference()
        ours, took = self.record(side, store)
        shapes = {tap: store.read(tap).shape for tap in self.taps if tap in store and self.holds(tap)}
        empty = [tap for tap in self.taps if tap in given and tap not in shapes]
        held = {tap: value for tap, value in given.items() if tap not in empty}
        theirs, notes, misshapen = arranged(held, shapes, names)
        if misshapen and not theirs:
            besides = f"; and {len(misshapen) - 1} more taps" if len(misshapen) > 1 else ""
            raise CannotRun(f"{misshapen[0].words}, for this input{besides}", "other_shape")
        if empty:
            notes.append(f"nothing to compare for this input, which has no box: {', '.join(empty)}")
        if not theirs:
            raise CannotRun("none of the given taps holds anything for this input", "no_activations")
        alone, more, odd = arranged({tap: value for tap, value in isolated.items() if tap in theirs}, shapes, {})
        more += [f"{tap.words}: left out" for tap in odd]
        notes += [f"isolated, {note}" for note in more if note not in notes]
        if alone and not isolated_belongs(
            {tap: store.read(tap) for tap in theirs},
            {tap: value.float() for tap, value in theirs.items()},
            {tap: value.float() for tap, value in alone.items()},
        ):
            notes.append("isolated activations do not belong to this candidate, and were left out")
            alone = {}
        pairs = {tap: self._pair(tap, value, store) for tap, value in theirs.items()}
        differences = {tap: compare_large(*_of_one_dtype(*pair)) for tap, pair in pairs.items() if pair is not None}
        errors = {
            tap: greatest_and_row_mean_large(*pair)
            for tap, value in alone.items()
            if (pair := self._pair(tap, value, store)) is not None
        }
        if self.tolerance is None and any(d.max_abs != 0 for d in differences.values()):
            judgement = self._judged_by_floors(differences, errors, side, store)
        else:
            judgement = self._judge(differences, errors, None)
        judgement = replace(judgement, misshapen=tuple(misshapen))
        # At the first tap that is off by itself, the inputs agree: what was carried to it is the evidence too.
        for tap, value in (theirs | alone).items():
            if tap in errors or tap == judgement.first_divergence:
                apart.write(tap, value.float())
        outputs = {name: (ours[name], theirs[tap]) for name in ours if (tap := f"outputs.{name}") in theirs}
        compared = {name: self.taps[name] for name in differences}
        return DetectorOutcome(compared, judgement, outputs, (took, {}), store, apart), notes

    def _not_equal(self, differences: Mapping[str, Difference]) -> list[str]:
        """Taps that are not known to be equal on both sides: rounding may come in at one that was not compared too."""
        equal = {tap for tap, difference in differences.items() if difference.max_abs == 0}
        return [tap for tap in self.taps if tap not in equal and self.holds(tap)]

    def _stores(self) -> tuple[TapStore, TapStore]:
        """Places for the original's activations, and for the candidate's isolated ones."""
        for name in ("original", "isolated"):
            (self.place / name).mkdir()
        return TapStore(self.place / "original"), TapStore(self.place / "isolated")

    # ---- passes

    def record(self, side: DetectorSide, store: TapStore) -> tuple[dict[str, Tensor], Mapping[Stage, float]]:
        """The original's activations, streamed to disk; its results, and the time of each stage.

        Raises CannotRun if it gives NaN or infinity.
        """
        assert isinstance(side.model, Detector)
        self.taps = taps_of(side.model)

        def read(tap: str, value: Tensor) -> None:
            if not bool(value.isfinite().all()):
                raise CannotRun(
                    f"the original itself gives NaN or infinity at {tap}, so nothing can be compared with it; its "
                    "weights or the picture hold NaN or infinity, or values that overflow",
                    "not_finite",
                    {"tap": tap},
                )
            store.write(tap, value)

        return self._pass("original", read, lambda at: side.forward(self.call, self.taps, at))

    def _propagated(
        self, side: Candidate, store: TapStore
    ) -> tuple[dict[str, Difference], dict[str, Tensor], Mapping[Stage, float]]:
        """The candidate in a normal pass: differences by tap, its results, and the time of each stage."""
        found: dict[str, Difference] = {}

        def read(tap: str, value: Tensor) -> None:
            pair = self._pair(tap, value, store)
            if pair is not None:
                found[tap] = compare_large(*pair)

        try:
            outputs, seconds = self._pass("candidate", read, lambda at: side.propagated(self.call, self.taps, at))
        except Sam3LiteError:
            raise
        except Exception as fault:  # config.json is untrusted: the library may raise anything
            said = str(fault).strip().splitlines() or [type(fault).__name__]
            raise UnsoundPlan(f"{side.name} fails on these inputs: {said[0]}", "bad_config") from fault
        ordered = {tap: found[tap] for tap in self.taps if tap in found}
        return ordered, outputs, seconds if side.timed else {}

    def _isolated(self, side: Candidate, store: TapStore, apart: TapStore) -> dict[str, tuple[float, float]]:
        """The candidate's modules on the original's recorded inputs: the greatest error, and of a row's mean, by tap.

        What differs is kept in ``apart``.
        """
        found: dict[str, tuple[float, float]] = {}

        def read(tap: str, value: Tensor) -> None:
            pair = self._pair(tap, value, store)
            if pair is not None:
                found[tap] = greatest_and_row_mean_large(*pair)
                if found[tap][0]:
                    apart.write(tap, value)

        def recorded(tap: str) -> Tensor | None:
            return store.read(tap) if tap in store else None

        held = {name: tap for name, tap in self.taps.items() if self.holds(name)}
        self._pass("candidate, isolated", read, lambda at: side.isolated(self.call, held, at, recorded))
        return found

    def _judged_by_floors(
        self,
        differences: Mapping[str, Difference],
        errors: Mapping[str, tuple[float, float]],
        side: DetectorSide,
        store: TapStore,
        dtype: torch.dtype = torch.float32,
    ) -> Judgement:
        """The judgement by noise floors. See ``floors`` for the last three.

        Those of the first taps that are off are measured again if these are close to their tolerances: see
        ``_of_more_draws``.
        """
        moved = [tap for tap, (greatest, _) in errors.items() if greatest]
        numel = {tap: math.prod(d.shape) for tap, d in differences.items()}
        floors = self.floors(side, store, self._not_equal(differences), moved, numel, dtype)
        if self.candidate is None:
            floors = {
                tap: f if tap in errors else Floor(f.propagated, math.inf, f.mean_propagated, math.inf)
                for tap, f in floors.items()
            }
        judgement = self._judge(differences, errors, floors)
        off = (tap for tap in judgement.taps if not tap.within)
        if close := list(takewhile(lambda tap: tap.floors <= _CLOSE * FLOORS, off)):
            wanted = {_row_of_few(tap.name) for tap in close}
            again = [tap for tap in floors if _row_of_few(tap) in wanted]
            floors = self._of_more_draws(side, store, floors, again, numel, dtype)
            judgement = self._judge(differences, errors, floors)
        return judgement

    def _of_more_draws(
        self,
        side: DetectorSide,
        store: TapStore,
        floors: Mapping[str, Floor],
        wanted: Sequence[str],
        numel: Mapping[str, int],
        dtype: torch.dtype,
    ) -> dict[str, Floor]:
        """Noise floors, each the greatest of several draws of rounding.

        A floor is one draw. That of a tap of a million values says what rounding makes of it; but a tap may be a few
        numbers, or be computed from a few, as the position bias is from the edges of boxes, and then one draw can be a
        fifth of another. For each further draw every tap gives its recorded activation, moved at random by as much as
        rounding was seen to move it: what a module makes of that shows what is carried, and its distance from the same
        module in float32 what it adds.

        ``wanted``: taps whose floors are measured; the others keep theirs. See ``floors`` for the others.
        """
        found = {tap: [floors[tap]] for tap in wanted}
        runs_in, exactly = self._exactly(side, dtype)

        def moved(tap: str, value: Tensor, draw: int) -> Tensor | None:
            if tap not in store:
                return None
            recorded = store.read(tap)
            if tap in self.carried:
                generator = torch.Generator().manual_seed(zlib.crc32(f"{tap} {draw}".encode()))
                noise = torch.randn(recorded.shape, generator=generator)
                recorded = recorded + noise * self.carried[tap].to(noise.dtype)
            return like(recorded, value)

        for draw in range(_DRAWS):
            plain: dict[str, Tensor] = {}

            def in_float32(tap: str, value: Tensor, n: int = draw, plain: dict[str, Tensor] = plain) -> Tensor | None:
                if tap in found:
                    plain[tap] = value.detach().cpu().clone()
                return moved(tap, value, n)

            def exact(tap: str, value: Tensor, n: int = draw, plain: dict[str, Tensor] = plain) -> Tensor | None:
                if tap in found:
                    far, near = self._pair(tap, value, store), self.comparable(tap, plain[tap], value.detach().cpu())
                    if far is not None and near is not None:
                        (a, mean_a), (b, mean_b) = (greatest_and_row_mean_large(*pair) for pair in (far, near))
                        found[tap].append(Floor(a, b, mean_a, mean_b))
                return moved(tap, value, n)

            label = f"original, rounded otherwise, {draw + 1} of {_DRAWS}"
            with self.skipping(side, wanted, store):
                self._pass(label, in_float32, lambda at: side.forward(self.call, self.taps, at))
            with exactly(), self.skipping(side, wanted, store):
                self._pass(label, exact, lambda at: side.forward(self.call, self.taps, at, runs_in))
        drawn = {
            tap: Floor(*(max(each) for each in zip(*map(astuple, draws), strict=True))) for tap, draws in found.items()
        }
        few = {tap: _greatest(tap, store) for tap in wanted if 0 < numel[tap] < _FEW}
        every = {**floors, **drawn}
        return _of_few_values(every, few, dict.fromkeys(few, 0.0), torch.finfo(dtype).eps)

    def _exactly(
        self, side: DetectorSide, dtype: torch.dtype
    ) -> tuple[torch.dtype, Callable[[], AbstractContextManager[None]]]:
        """What rounding in a dtype is measured against: the dtype of activations, and the context that the original
        runs in."""
        if dtype is torch.float32:
            return torch.float64, lambda: in_float64(side.model)
        return torch.float32, lambda: rounded_to(side.model, dtype)

    def floors(
        self,
        side: DetectorSide,
        store: TapStore,
        differ: Sequence[str],
        apart: Sequence[str],
        numel: Mapping[str, int],
        dtype: torch.dtype = torch.float32,
    ) -> dict[str, Floor]:
        """Noise floors by tap: the original in float64 against its recorded activations; of a candidate in a shorter
        dtype, the original with weights and activations rounded to that.

        ``side``: the loaded original.
        ``differ``, ``apart``: taps whose propagated and whose isolated floor is needed; what is known to be equal on
            both sides needs none. The propagated ones are measured from the first of them on: up to there the
            original's recorded activations are read.
        ``numel``: the number of values of every tap that is judged.
        ``dtype``: that the candidate computes in.
        """
        far: dict[str, tuple[float, float]] = {}
        near: dict[str, tuple[float, float]] = {}
        order = {tap: n for n, tap in enumerate(self.taps)}
        first = min((order[tap] for tap in differ), default=len(order))

        def propagated(tap: str, value: Tensor) -> Tensor | None:
            if order[tap] < first:
                return self.recorded_like(tap, value, store)
            pair = self._pair(tap, value, store)
            if pair is not None:
                far[tap] = greatest_and_row_mean_large(*pair)
                self._keep_carried(tap, value, store)
            return None

        def isolated(tap: str, value: Tensor) -> Tensor | None:
            pair = self._pair(tap, value, store)
            if pair is not None:
                near[tap] = greatest_and_row_mean_large(*pair)
            return self.recorded_like(tap, value, store)

        runs_in, exactly = self._exactly(side, dtype)
        short = dtype is not torch.float32
        how = f"original rounded to {str(dtype).removeprefix('torch.')}" if short else "original in float64"
        passes = ((how, propagated, differ), (f"{how}, isolated", isolated, apart))
        with exactly():
            for label, read, needed in passes:
                if needed:
                    with self.skipping(side, needed, store):
                        self._pass(label, read, lambda at: side.forward(self.call, self.taps, at, runs_in))
        nothing = (0.0, 0.0)
        found = {
            tap: Floor(
                far.get(tap, nothing)[0], near.get(tap, nothing)[0], far.get(tap, nothing)[1], near.get(tap, nothing)[1]
            )
            for tap in numel
        }
        few = {tap: _greatest(tap, store) for tap, count in numel.items() if 0 < count < _FEW}
        before = {
            tap: max((far[n][0] / _greatest(n, store) for n in reads_of(tap, self.taps) if n in far), default=0.0)
            for tap in few
        }
        return _of_few_values(found, few, before, torch.finfo(dtype).eps)

    def _keep_carried(self, tap: str, value: Tensor, store: TapStore) -> None:
        """Keep how far rounding moved the rows of a tap."""
        apart = (store.read(tap).double() - value.detach().cpu().double()).abs()
        mean = apart.mean(-1, keepdim=True) if apart.dim() else apart
        self.carried[tap] = mean * math.sqrt(math.pi / 2)

    def _pass(
        self, label: str, read: Read, forward: Callable[[Read], dict[str, Tensor]]
    ) -> tuple[dict[str, Tensor], Mapping[Stage, float]]:
        """One pass, ``forward``: its results, and the time of each stage."""
        clock = Clock(self.taps)
        with bar(label, len(self.taps)) as advance:

            def at(tap: str, value: Tensor) -> Tensor | None:
                clock.at(tap)
                other = read(tap, value)
                advance(stage=STAGES[self.taps[tap].stage])
                clock.resume()
                return other

            outputs = forward(at)
            for name, value in outputs.items():
                at(f"outputs.{name}", value)
        return outputs, clock.seconds

    # ---- one tap

    def _pair(self, tap: str, value: Tensor, store: TapStore) -> tuple[Tensor, Tensor] | None:
        """The original's recorded activation and another one, valid rows alone; None if there is nothing to compare.

        Raises UnsoundPlan if their sizes differ.
        """
        if tap not in store:
            return None
        ours = store.read(tap)
        if ours.numel() != value.numel():
            times = value.numel() / ours.numel()
            level = (
                f"it has {'4 times' if times == 4 else 'a quarter of'} the cells, so another level of the neck "
                "reaches it: there is one level too many or too few"
            )
            raise UnsoundPlan(
                f"at {tap} the candidate's activation is {tuple(value.shape)}, the original's {tuple(ours.shape)}; "
                + (level if times in (4, 0.25) else "config.json does not describe this original"),
                "other_shape",
                {"tap": tap},
            )
        return self.comparable(tap, ours, value.detach().cpu())

    def holds(self, tap: str) -> bool:
        """Whether one of a tap's rows holds something: without a box, there is nothing at the taps of boxes."""
        row = self.taps[tap].row
        return row is None or row.rows == "all" or bool(self.call.valid[row.rows].any())

    def comparable(self, tap: str, ours: Tensor | None, theirs: Tensor) -> tuple[Tensor, Tensor] | None:
        """Two activations of a tap in one shape, valid rows alone; None if there is nothing to compare."""
        if ours is None or ours.numel() != theirs.numel():
            return None
        theirs = theirs.reshape(ours.shape)
        row = self.taps[tap].row
        if row is None or row.rows == "all":
            return ours, theirs
        valid = self.call.valid[row.rows].flatten()
        if not bool(valid.any()):
            return None
        # One row for each token: a convolution's output has them on the first axis.
        tokens = len(valid)
        return ours.reshape(tokens, -1)[valid], theirs.reshape(tokens, -1)[valid]

    def recorded_like(self, tap: str, value: Tensor, store: TapStore) -> Tensor | None:
        """The original's recorded activation in the shape, dtype and place of ``value``."""
        return like(store.read(tap), value) if tap in store else None

    @contextmanager
    def skipping(self, side: DetectorSide, needed: Sequence[str], store: TapStore) -> Iterator[None]:
        """Inside it, modules of the reference whose taps are not needed give their recorded activation at once."""
        with ExitStack() as stack:
            for name, tap in self.taps.items():
                if tap.row is None or name in needed or name not in store or not _is_whole(tap):
                    continue
                module = side.model.get_submodule(tap.path(tap.row.original))

                def forward(*args: Tensor, name: str = name) -> Tensor:
                    like = next((a for a in args if a.is_floating_point()), None)
                    value = store.read(name)
                    return value if like is None else value.to(like.device, like.dtype)

                module.forward = forward
                stack.callback(delattr, module, "forward")
            yield

    def _judge(
        self,
        differences: Mapping[str, Difference],
        errors: Mapping[str, tuple[float, float]],
        floors: Mapping[str, Floor] | None,
    ) -> Judgement:
        given, judged = self.tolerance, dict[str, JudgedTap]()
        held = {name: tap for name, tap in self.taps.items() if self.holds(name)}
        for tap, difference in differences.items():
            floor = None if floors is None else floors[tap]
            limits = (given, given) if given is not None else (0.0, 0.0)
            if given is None and floor is not None:
                limits = (FLOORS * floor.propagated, FLOORS * floor.isolated)
            alone, mean = errors.get(tap, (None, None))
            within = [name for name, other in judged.items() if other.within]
            judged[tap] = JudgedTap(
                tap,
                difference,
                alone,
                *limits,
                floor,
                None,
                None,
                mean,
                given is None,
                upstream(tap, held, differences.keys(), within),
                read_by_detector=True,
            )
        # A candidate's model may have no module at a tap; the next one shows its error.
        not_given = tuple(tap for tap in held if tap not in differences) if self.candidate is None else ()
        return Judgement(
            tuple(judged.values()), given, not_given, receives=tuple(f"outputs.{name}" for name in OUTPUTS)
        )


def _of_one_dtype(ours: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float64 if they are of two dtypes."""
    return (ours, theirs) if ours.dtype == theirs.dtype else (ours.double(), theirs.double())


def _greatest(tap: str, store: TapStore) -> float:
    """The greatest absolute value of a recorded activation; next to nothing where all are zero."""
    return max(float(store.read(tap).abs().max()), torch.finfo(torch.float32).tiny)


def _of_few_values(
    floors: Mapping[str, Floor], few: Mapping[str, float], before: Mapping[str, float], ulp: float = 2.0**-23
) -> dict[str, Floor]:
    """The floors, where a tap of few values has the greatest of its row, isolated or propagated: the rounding of a
    single number can be next to nothing by chance, and that of the same number in the other layers tells what it can
    be. It is no less than two units in the last place of the number itself, as a sum is rounded more than once; and
    what is carried to it is, in proportion to its size, no less than what is carried to the many numbers that it is
    computed from.

    ``few``: the greatest absolute value of each tap that has few.
    ``ulp``: the last place of a number of about one.
    ``before``: for each of these the greatest propagated floor of the taps that it reads, as a share of their greatest
        absolute value.
    """
    rows: dict[str, list[Floor]] = defaultdict(list)
    carried_to: dict[str, float] = defaultdict(float)
    for tap, floor in floors.items():
        row = _row_of_few(tap)
        rows[row].append(floor)
        if tap in few:
            carried_to[row] = max(carried_to[row], few[tap] * before[tap])

    def widened(tap: str) -> Floor:
        row, own, far = rows[_row_of_few(tap)], few[tap] * 2 * ulp, carried_to[_row_of_few(tap)]
        alone = max(own, *(floor.isolated for floor in row))
        mean_alone = max(own, *(floor.mean_isolated for floor in row))
        carried = max(alone, far, *(floor.propagated for floor in row))
        return Floor(carried, alone, max(mean_alone, far, *(floor.mean_propagated for floor in row)), mean_alone)

    return {tap: widened(tap) if tap in few else floor for tap, floor in floors.items()}


def _row_of_few(tap: str) -> str:
    """The row of a tap. Of the result, some entries are what a tap has of the last layer."""
    return _OF_LAST_LAYER.get(tap) or row_name(tap)


_OF_LAST_LAYER = {
    "outputs.presence_logit_dec": "decoder.presence_logit.{i}",
    "outputs.pred_logits": "scoring.logits",
}


def _is_whole(tap: Tap) -> bool:
    """Whether the tap is all that its module gives, in one call: such a module may be skipped."""
    place = tap.row.original if tap.row else None
    return (
        place is not None
        and tap.stage in ("trunk", "neck", "text", "geometry", "encoder")
        and place.part is None
        and not place.at_input
        and not place.fixed_call
        and (tap.row is not None and tap.row.rows == "all")
    )
