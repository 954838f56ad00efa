"""Tensor dtypes by their torch names: bytes per element, and their names in the two file formats."""

from __future__ import annotations

# torch name -> (bytes per element, name in a safetensors header or None where it has none)
_TABLE: dict[str, tuple[int, str | None]] = {
    "float64": (8, "F64"),
    "float32": (4, "F32"),
    "float16": (2, "F16"),
    "bfloat16": (2, "BF16"),
    "float8_e4m3fn": (1, "F8_E4M3"),
    "float8_e5m2": (1, "F8_E5M2"),
    "float8_e4m3fnuz": (1, "F8_E4M3FNUZ"),
    "float8_e5m2fnuz": (1, "F8_E5M2FNUZ"),
    "float8_e8m0fnu": (1, None),  # F8_E8M0, which the safetensors library does not load into torch
    "complex128": (16, None),
    "complex64": (8, "C64"),
    "complex32": (4, None),
    "int64": (8, "I64"),
    "int32": (4, "I32"),
    "int16": (2, "I16"),
    "int8": (1, "I8"),
    "uint64": (8, "U64"),
    "uint32": (4, "U32"),
    "uint16": (2, "U16"),
    "uint8": (1, "U8"),
    "bool": (1, "BOOL"),
}

# The classes by which a torch pickle names the element type of a storage.
STORAGE_CLASSES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "ComplexDoubleStorage": "complex128",
    "ComplexFloatStorage": "complex64",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}

NAMES = frozenset(_TABLE)
# Of one byte. torch computes with none of them, and casts them by way of float32.
FLOAT8 = ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu")
FLOATING = ("float64", "float32", "bfloat16", "float16", *FLOAT8)  # widest first
_FROM_SAFETENSORS = {code: name for name, (_, code) in _TABLE.items() if code}


def itemsize(dtype: str) -> int:
    """Bytes per element."""
    return _TABLE[dtype][0]


def safetensors_code(dtype: str) -> str | None:
    """The dtype's name in a safetensors header; None if the format does not have it."""
    return _TABLE[dtype][1]


def from_safetensors(code: str) -> str | None:
    """The torch name of a safetensors dtype; None if this tool does not know it."""
    return _FROM_SAFETENSORS.get(code)


def is_floating(dtype: str) -> bool:
    """Whether ``--dtype`` casts a tensor of this dtype; integers, booleans and complex numbers are kept."""
    return dtype in FLOATING
