"""Checks a pickle's opcodes before it is loaded: refuses those that cost too much memory or time, or hide a tensor."""

from __future__ import annotations

import io
import pickletools
import sys

from sam3lite_convert.errors import Untrusted

MOST_OPCODES = 1_000_000  # a checkpoint of 1,300 tensors has 40,000
_MOST_HUGE_INTEGERS = 1000  # from 2**61 - 1 on; a random generator's state holds a few
_MOST_IN_A_TUPLE = 4096  # elements of a tuple and of nested tuples, counted with repetitions
_MOST_HASHED = 10_000_000  # elements of all tuples that are keys, and a thousand for each: some may collide
_PUTS = frozenset(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"))
_GETS = frozenset(("GET", "BINGET", "LONG_BINGET"))
_TUPLES = frozenset(("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "FROZENSET"))
_TEXTS = frozenset(
    ("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "UNICODE", "STRING", "BINSTRING", "SHORT_BINSTRING")
)
_SETS = frozenset(("SETITEM", "SETITEMS", "DICT"))  # of what they take, every second one is a key
_KEYS = _SETS | {"ADDITEMS", "FROZENSET"}
# These change an object and leave it on the stack.
_FILLS = frozenset(("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD"))


class _Item:
    """An item on the stack.

    ``weight``: number of elements that hashing it visits.
    ``text``: its value if it is a string.
    ``keys``: the string keys that were set in it.
    """

    __slots__ = ("keys", "text", "weight")

    def __init__(self, weight: int = 0, text: str | None = None) -> None:
        self.weight = weight
        self.text = text
        self.keys: set[str] | None = None


_MARK = _Item()
_PLAIN = _Item()


def check(data: io.BytesIO) -> None:
    """Check the next pickle of ``data`` without running it, and seek back to its beginning.

    A million empty sets are a million bytes in a pickle, and 200 MB in memory. A memo index beyond the
    pickle's own length would make the unpickler allocate. Tuples nested within tuples, each twice, would
    take hours to hash, and so would a dict of huge integers chosen to collide (Python's hash of an
    integer is public, that of a string is random in each process). If a key is set twice, the first value is lost;
    no pickler writes that.

    Raises Untrusted for all of these, ValueError for a malformed pickle.
    """
    start, size = data.tell(), len(data.getbuffer())
    stack: list[_Item] = []
    memo: dict[int, _Item] = {}
    huge = hashed = 0
    for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
        name = opcode.name
        if count >= MOST_OPCODES:
            raise Untrusted(
                f"the pickle has more than {MOST_OPCODES:,} instructions; a checkpoint needs far fewer",
                "hostile_pickle",
            )
        if name in _PUTS:
            index = len(memo) if name == "MEMOIZE" else int(argument or 0)
            if index > size:
                raise Untrusted("the pickle would allocate far more memory than its size", "hostile_pickle")
            memo[index] = stack[-1] if stack else _PLAIN
        elif name in _GETS:
            stack.append(memo.get(int(argument or 0), _PLAIN))
        elif name == "MARK":
            stack.append(_MARK)
        elif name == "DUP":
            stack.append(stack[-1] if stack else _PLAIN)
        elif name in _TEXTS:
            stack.append(_Item(text=str(argument)))
        elif name in ("EXT1", "EXT2", "EXT4"):
            raise Untrusted("the pickle uses extension codes, which no checkpoint needs", "hostile_pickle")
        else:
            if type(argument) is int and abs(argument) >= sys.hash_info.modulus:
                huge += 1
                if huge > _MOST_HUGE_INTEGERS:
                    raise Untrusted("the pickle holds too many huge integers", "hostile_pickle")
            popped = _pop(stack, opcode)
            if name in _KEYS:
                keys = popped[1::2] if name in _SETS else popped
                hashed += sum(key.weight + 1000 for key in keys if key.weight)
                if hashed > _MOST_HASHED:
                    raise Untrusted("the pickle holds keys that would take too long to hash", "hostile_pickle")
            if name in _FILLS and popped:
                filled = popped.pop()
                if name in _SETS:
                    filled = _set(filled, popped)
                stack.append(filled)
            else:
                weight = _weight(popped, name in _TUPLES)
                if type(argument) is int:
                    weight = argument.bit_length() // 64
                # A separate item for what may become a dict, to record its keys.
                made = _Item(weight) if weight or opcode.stack_before or name == "EMPTY_DICT" else _PLAIN
                stack += [made] * len(opcode.stack_after)
                if name == "DICT" and stack:
                    _set(stack[-1], popped)
    data.seek(start)


def _weight(popped: list[_Item], hashed: bool) -> int:
    weights = [item.weight for item in popped]
    weight = sum(weights) + len(weights) if hashed else max(weights, default=0)
    if weight > _MOST_IN_A_TUPLE:
        raise Untrusted("the pickle nests tuples too deeply or too often", "hostile_pickle")
    return weight


def _set(filled: _Item, popped: list[_Item]) -> _Item:
    """Record the keys that are set. ``popped``: value, key, value, key, with the last pair first."""
    if filled is _PLAIN or filled is _MARK:
        filled = _Item()
    filled.keys = filled.keys or set()
    for key in popped[1::2]:
        if key.text is None:
            continue
        if key.text in filled.keys:
            raise Untrusted(
                f"the pickle sets the key {key.text[:200]!r} twice, so one of the two values would be lost",
                "repeated_key",
            )
        filled.keys.add(key.text)
    return filled


def _pop(stack: list[_Item], opcode: pickletools.OpcodeInfo) -> list[_Item]:
    """Remove from the stack what the opcode removes, down to the mark if it uses one; the top item comes first."""
    popped: list[_Item] = []
    before = list(opcode.stack_before)
    if pickletools.markobject in before:
        while stack and (item := stack.pop()) is not _MARK:
            popped.append(item)
        before = before[: before.index(pickletools.markobject)]
    elif opcode.name == "POP" and stack and stack[-1] is _MARK:
        stack.pop()
        return popped
    for _ in before:
        if stack and stack[-1] is not _MARK:
            popped.append(stack.pop())
    return popped
