"""What can be done to a tensor on its way to a target."""

from __future__ import annotations


def transposed(data: bytes, shape: tuple[int, ...], width: int) -> bytes:
    """The bytes of a matrix of this shape (rows, columns), transposed."""
    import numpy as np  # here, so that a conversion is hashing before numpy is loaded

    return np.ascontiguousarray(np.frombuffer(data, dtype=f"V{width}").reshape(shape).T).tobytes()


OPERATIONS = {"keep": 1, "split": 3, "transpose": 1, "drop_class_row": 1, "drop": 0}  # name -> targets
