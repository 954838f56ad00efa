"""The tensors of a converted folder by the names of the original, as places in the folder's files."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from sam3lite_convert.checkpoint import dtypes
from sam3lite_convert.convert.folder import Folder
from sam3lite_convert.errors import UnsoundPlan
from sam3lite_convert.plan.tables import Layout
from sam3lite_convert.plan.targets import target_of_text

Shape = tuple[int, ...]


@dataclass(frozen=True)
class StoredWeight:
    """One tensor of a folder, or the first of its elements.

    key: in the folder. file: its name there. offset: of its first byte in the file.
    transposed: whether it is stored as the transpose of the original's.
    """

    key: str
    file: str
    offset: int
    dtype: str
    shape: Shape
    transposed: bool = False

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * dtypes.itemsize(self.dtype)

    def seen_as(self, *shape: int) -> StoredWeight:
        """The same bytes, or as many of them as come first, in another shape.

        Raises UnsoundPlan if the tensor holds fewer elements.
        """
        if math.prod(shape) > math.prod(self.shape):
            raise UnsoundPlan(f"{self.key}: {self.shape} is too small for {shape}", "weights_not_loaded")
        return replace(self, shape=shape)


class Weights:
    """The tensors of a folder by the names of the original.

    folder: as its reader takes it. layout: of the folder.
    """

    def __init__(self, folder: Folder, layout: Layout) -> None:
        self._stored: dict[str, tuple[StoredWeight, ...]] = {}
        text = layout.strips_text and not any(key.startswith(layout.text_encoder) for key in folder.tensors)
        places = {target_of_text(key, layout) if text else key: key for key in folder.tensors}
        for target in places:
            found = layout.written_by(target, places)
            if found is None or found[1][0] in self._stored:
                continue
            rule, (name, *_) = found
            keys = [places[t] for t in rule.apply(name) or () if t in places]
            turned = not rule.operation.verbatim
            self._stored[name] = tuple(_stored(folder, key, turned) for key in keys)

    def __contains__(self, name: str) -> bool:
        return name in self._stored

    def names(self) -> tuple[str, ...]:
        """The original's names of all tensors of the folder."""
        return tuple(self._stored)

    def parts(self, name: str) -> tuple[StoredWeight, ...]:
        """What the folder made of a tensor of the original: itself, or its q, k and v.

        Raises UnsoundPlan if the folder has nothing of it.
        """
        found = self._stored.get(name)
        if not found:
            raise UnsoundPlan(f"the folder holds nothing of the original's {name}", "weights_not_loaded")
        return found

    def one(self, name: str) -> StoredWeight:
        """A tensor that the folder holds as one. Raises UnsoundPlan if it does not."""
        found = self.parts(name)
        if len(found) != 1:
            raise UnsoundPlan(f"the folder holds {name} in {len(found)} parts", "weights_not_loaded")
        return found[0]

    def shape(self, name: str) -> Shape:
        """The shape of a tensor, as the folder stores it. Raises UnsoundPlan as ``one`` does."""
        return self.one(name).shape


def _stored(folder: Folder, key: str, transposed: bool) -> StoredWeight:
    path, tensor = folder.tensors[key]
    if not tensor.contiguous:
        raise UnsoundPlan(f"{key} does not lie in {path.name} in one piece", "weights_not_loaded")
    return StoredWeight(folder.prefix + key, path.name, tensor.offset, tensor.dtype, tensor.shape, transposed)
