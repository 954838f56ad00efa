"""Which tensors a name means: in any spelling, and in any layout that there is for the checkpoint."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from sam3lite_convert.plan.apart import other_attention
from sam3lite_convert.plan.names import spelled_key
from sam3lite_convert.plan.tables import Layout, Mappings
from sam3lite_convert.plan.targets import target_of_text

Place = tuple[Layout, str]  # a layout, with a component


@dataclass(frozen=True)
class Meaning:
    """What a name may mean.

    name: as it is read: without wrappers, or in another form of attention.
    sources: the canonical names of the tensors that it is made of, in the order of their rows.
    place: where it is the name of a target; None if it is a name of the original's.
    """

    name: str
    sources: tuple[str, ...]
    place: Place | None = None


def forms(name: str, mappings: Mappings) -> list[str]:
    """The name as it stands, as the spelling rules write it, and without what frameworks put around modules."""
    around = tuple(rule for rule in mappings.spellings if rule.repeat)
    some = [name]
    for rules in (around, mappings.spellings):
        some.append(spelled_key(name, rules).name)
    return list(dict.fromkeys(some))


def meanings(name: str, mappings: Mappings, places: Sequence[Place]) -> Iterator[Meaning]:
    """What a name may mean, the closest first: a name of the original's, or of a target in one of these places, as it
    stands or in another form. Whether the checkpoint holds the sources is for the caller to see."""
    plain = forms(name, mappings)
    for some in (plain, [form for other in other_attention(name) for form in forms(other, mappings)]):
        for form in some:
            yield Meaning(form, (form,))
        for others in (False, True):
            for form, place in itertools.product(some, places):
                for target in _others(form, *place) if others else (form,):
                    for _, sources in place[0].writers(target):
                        yield Meaning(form, sources, place)


def _others(name: str, layout: Layout, component: str) -> Iterable[str]:
    """The targets that a name may be where it is not that of one: as other classes of the layout's library name them,
    or a text encoder that was written without its prefix."""
    some = [name, spelled_key(name, layout.spellings).name]
    if layout.loader.library:
        library = layout.family.library
        for prefix in (library.prefix, library.text_prefix, library.video_prefix):
            some += [one.removeprefix(f"{prefix}.") for one in some]
        some += [layout.inside + one for one in some]
    if component == "text" and layout.strips_text:
        some += [target_of_text(one, layout) for one in some]
    return dict.fromkeys(some)
