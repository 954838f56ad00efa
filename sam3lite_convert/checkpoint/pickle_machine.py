"""Runs a pickle's opcodes over inert values: there is nothing here that an opcode could call or import.

Python's own unpickler is not used. Texts, numbers, tuples, lists and dicts become themselves; everything that has a
class is made by the few makers that the caller hands in, or becomes an ``Opaque`` that remembers the class's name. A
pickle may hold what it likes as long as reading it stays within a budget of memory and time.
"""

from __future__ import annotations

import io
import pickletools  # it runs nothing  # nosec B403
import struct
from collections.abc import Callable, Iterable
from typing import NamedTuple

from sam3lite_convert.checkpoint.index import check_names
from sam3lite_convert.errors import Untrusted

PICKLE_LIMIT = 24 << 20  # bytes; a million numbers take 9 MB
_MOST_OPCODES = 4_000_000  # 150,000 entries of a log take two million; a checkpoint of 1,300 tensors 40,000
_MOST_MEMORY = 112 << 20  # bytes of the values, as Python keeps them
_MOST_MARKS = 1000
_DEEPEST_TUPLE = 100
_MOST_IN_A_KEY = 4096  # elements of a tuple that is a key, and of the tuples in it, counted with repetitions
_MOST_IN_KEYS = 10_000_000  # the same, for all keys together
_MOST_HUGE_KEYS = 1000
_HUGE = 1 << 61
_SMALL_KEY = 1 << 31


class Opaque:
    """An object that was not built. ``name``: its class, with the module. ``harmless``: whether it is one of the usual
    types that training scripts leave in checkpoints."""

    __slots__ = ("harmless", "name")

    def __init__(self, name: str, harmless: bool) -> None:
        self.name = name
        self.harmless = harmless


class OtherKey:
    """A key of a dict that is neither text nor a small whole number. Those of equal ``text`` are equal: hashes of
    numbers can be made to collide, those of texts cannot. ``held``: the key itself."""

    __slots__ = ("held", "text")

    def __init__(self, held: object, text: str | None) -> None:
        self.held = held
        self.text = text

    def __hash__(self) -> int:
        return id(self) if self.text is None else hash(self.text)

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, OtherKey) and self.text is not None and self.text == other.text)


class StateDict(dict[object, object]):
    """A dict that the pickle makes by a class: its attributes (torch's ``_metadata``) are ignored."""


class Maker(NamedTuple):
    """What the pickle may name and apply: ``make`` returns an inert record."""

    make: Callable[..., object]


class _Nested(NamedTuple):
    """Of a tuple that holds tuples: how deep, and how many elements, repetitions included."""

    depth: int
    elements: int
    pinned: tuple[object, ...]  # so that its identity stays its own


def repeated(key: object) -> Untrusted:
    """The refusal of a dict that is given one key twice."""
    named = f"the key {key[:200]!r}" if isinstance(key, str) else "a key"
    return Untrusted(f"the pickle sets {named} twice, so one of the two values would be lost", "repeated_key")


def _hostile(message: str) -> Untrusted:
    return Untrusted(message, "hostile_pickle")


class Machine:
    """Reads pickles one after the other from ``data``, within one budget.

    ``find``: what a name (module, name) stands for. ``persistent``: what a persistent id stands for.
    """

    def __init__(
        self, data: io.BytesIO, find: Callable[[str, str], object], persistent: Callable[[object], object]
    ) -> None:
        self._data = data
        self._find, self._persistent = find, persistent
        self._opcodes = self._memory = self._in_keys = self._huge_keys = 0
        self._nested: dict[int, _Nested] = {}
        self._set = Opaque("builtins.set", True)

    def _spend(self, nbytes: int) -> None:
        self._memory += nbytes
        if self._memory > _MOST_MEMORY:
            raise _hostile(
                f"the pickle would take more than {_MOST_MEMORY >> 20} MB of memory, which no checkpoint's index needs"
            )

    def load(self) -> object:
        """The next pickle. Leaves ``data`` behind it.

        Raises Untrusted if it is hostile or exceeds the budget. A malformed one raises nearly anything.
        """
        data, start = self._data.getbuffer(), self._data.tell()
        try:
            value, position = self._run(data, start)
        finally:
            data.release()
        self._data.seek(position)
        return value

    def _run(self, b: memoryview, i: int) -> tuple[object, int]:
        stack: list[object] = []
        marks: list[list[object]] = []
        memo: dict[int, object] = {}
        size, spend = len(b), self._spend
        count = self._opcodes
        while i < size:
            op = b[i]
            i += 1
            count += 1
            if count > _MOST_OPCODES:
                raise _hostile(f"the pickle has more than {_MOST_OPCODES:,} instructions; a checkpoint needs far fewer")
            if op == 0x71:  # BINPUT
                memo[b[i]] = stack[-1]
                i += 1
            elif op == 0x68:  # BINGET
                stack.append(memo[b[i]])
                i += 1
            elif op == 0x6A:  # LONG_BINGET
                stack.append(memo[_U4(b, i)[0]])
                i += 4
            elif op == 0x47:  # BINFLOAT
                stack.append(_F8(b, i)[0])
                spend(32)
                i += 8
            elif op == 0x4B:  # BININT1
                stack.append(b[i])
                i += 1
            elif op == 0x4D:  # BININT2
                stack.append(_U2(b, i)[0])
                spend(36)
                i += 2
            elif op == 0x4A:  # BININT
                stack.append(_I4(b, i)[0])
                spend(36)
                i += 4
            elif op == 0x28:  # MARK
                if len(marks) >= _MOST_MARKS:
                    raise _hostile("the pickle nests its values too deeply")
                marks.append(stack)
                stack = []
            elif op == 0x72 or op == 0x94:  # LONG_BINPUT, MEMOIZE
                if op == 0x72:
                    (index,) = _U4(b, i)
                    i += 4
                else:
                    index = len(memo)
                if index > size:
                    raise _hostile("the pickle would allocate far more memory than its size")
                spend(110)
                memo[index] = stack[-1]
            elif op == 0x58 or op == 0x8C:  # BINUNICODE, SHORT_BINUNICODE
                if op == 0x58:
                    (length,) = _U4(b, i)
                    i += 4
                else:
                    length = b[i]
                    i += 1
                stack.append(self._text(b, i, length))
                i += length
            elif op == 0x86:  # TUPLE2
                last = stack.pop()
                stack[-1] = self._tuple((stack[-1], last))
            elif op == 0x85:  # TUPLE1
                stack[-1] = self._tuple((stack[-1],))
            elif op == 0x87:  # TUPLE3
                last, middle = stack.pop(), stack.pop()
                stack[-1] = self._tuple((stack[-1], middle, last))
            elif op == 0x74:  # TUPLE
                items, stack = stack, marks.pop()
                stack.append(self._tuple(tuple(items)))
            elif op == 0x29:  # EMPTY_TUPLE
                stack.append(())
            elif op == 0x7D:  # EMPTY_DICT
                spend(64)
                stack.append({})
            elif op == 0x5D:  # EMPTY_LIST
                spend(56)
                stack.append([])
            elif op == 0x73:  # SETITEM
                value, key = stack.pop(), stack.pop()
                self._fill(stack[-1], (key, value))
            elif op == 0x75:  # SETITEMS
                items, stack = stack, marks.pop()
                self._fill(stack[-1], items)
            elif op == 0x61:  # APPEND
                value = stack.pop()
                self._extend(stack[-1], (value,))
            elif op == 0x65:  # APPENDS
                items, stack = stack, marks.pop()
                self._extend(stack[-1], items)
            elif op == 0x63:  # GLOBAL
                i, module = _line(b, i)
                i, name = _line(b, i)
                stack.append(self._find(module, name))
            elif op == 0x93:  # STACK_GLOBAL
                second, first = stack.pop(), stack.pop()
                if not isinstance(first, str) or not isinstance(second, str):
                    raise TypeError
                stack.append(self._find(first, second))
            elif op == 0x51:  # BINPERSID
                stack[-1] = self._persistent(stack[-1])
            elif op == 0x52 or op == 0x81:  # REDUCE, NEWOBJ
                arguments = stack.pop()
                stack[-1] = self._apply(stack[-1], arguments)
            elif op == 0x62:  # BUILD
                stack.pop()
                if not isinstance(stack[-1], Opaque | StateDict):
                    raise TypeError
            elif op == 0x4E:  # NONE
                stack.append(None)
            elif op == 0x88 or op == 0x89:  # NEWTRUE, NEWFALSE
                stack.append(op == 0x88)
            elif op == 0x2E:  # STOP
                self._opcodes = count
                if len(stack) != 1 or marks:
                    raise _hostile("the pickle leaves values behind that belong to nothing")
                return stack[0], i
            elif op == 0x30:  # POP
                if stack:
                    stack.pop()
                else:
                    stack = marks.pop()
            elif op == 0x31:  # POP_MARK
                stack = marks.pop()
            elif op == 0x32:  # DUP
                stack.append(stack[-1])
            elif op == 0x6C:  # LIST
                items, stack = stack, marks.pop()
                stack.append([])
                self._extend(stack[-1], items)
            elif op == 0x64:  # DICT
                items, stack = stack, marks.pop()
                stack.append({})
                self._fill(stack[-1], items)
            elif op == 0x8F:  # EMPTY_SET
                stack.append(self._set)
            elif op == 0x90:  # ADDITEMS
                items, stack = stack, marks.pop()
                self._hashed(items)
                if not isinstance(stack[-1], Opaque):
                    raise TypeError
            elif op == 0x91:  # FROZENSET
                items, stack = stack, marks.pop()
                self._hashed(items)
                stack.append(self._set)
            elif op == 0x6F:  # OBJ
                items, stack = stack, marks.pop()
                stack.append(self._apply(items[0], tuple(items[1:])))
            elif op == 0x69:  # INST
                i, module = _line(b, i)
                i, name = _line(b, i)
                items, stack = stack, marks.pop()
                stack.append(self._apply(self._find(module, name), tuple(items)))
            elif op == 0x92:  # NEWOBJ_EX
                stack.pop()
                arguments = stack.pop()
                stack[-1] = self._apply(stack[-1], arguments)
            else:
                i = self._rare(b, i, op, stack, memo)
        raise EOFError("it ends before its last instruction")

    def _rare(self, b: memoryview, i: int, op: int, stack: list[object], memo: dict[int, object]) -> int:
        """The opcodes that torch hardly writes; their arguments are read by Python's own description of the format."""
        opcode = _BY_CODE.get(chr(op))
        if opcode is None:
            raise ValueError(f"at position {i - 1}, opcode {op:#x} is unknown")
        argument: object = None
        if opcode.arg is not None:
            if opcode.arg.n == pickletools.TAKEN_FROM_ARGUMENT4U and _U4(b, i)[0] > len(b) - i:
                raise ValueError("a value is longer than the pickle")
            self._data.seek(i)
            argument = opcode.arg.reader(self._data)
            i = self._data.tell()
        name = opcode.name
        if name in ("PROTO", "FRAME"):
            if name == "FRAME" and int(str(argument)) > len(b) - i:
                raise ValueError("a frame is longer than the pickle")
        elif name in ("EXT1", "EXT2", "EXT4"):
            raise _hostile("the pickle uses extension codes, which no checkpoint needs")
        elif name == "GET":
            stack.append(memo[int(str(argument))])
        elif name == "PUT":
            index = int(str(argument))
            if not 0 <= index <= len(b):
                raise _hostile("the pickle would allocate far more memory than its size")
            self._spend(110)
            memo[index] = stack[-1]
        elif name == "PERSID":
            raise TypeError
        elif isinstance(argument, str | bytes | int | float):
            self._spend(56 + (len(argument) * 4 if isinstance(argument, str | bytes) else _bits(argument) // 8))
            stack.append(argument)
        elif name in ("BYTEARRAY8", "NEXT_BUFFER", "READONLY_BUFFER"):
            if name != "BYTEARRAY8":
                raise TypeError  # buffers beside the pickle: torch writes none
            self._spend(56 + len(argument) if isinstance(argument, bytearray) else 56)
            stack.append(Opaque("builtins.bytearray", True))
        else:
            raise ValueError(f"at position {i}, opcode {name} cannot stand here")
        return i

    def _text(self, b: memoryview, i: int, length: int) -> str:
        if i + length > len(b):
            raise ValueError("a text is longer than the pickle")
        text = str(b[i : i + length], "utf-8", "surrogatepass")
        self._spend(56 + (length if len(text) == length else 4 * len(text)))
        return text

    def _tuple(self, items: tuple[object, ...]) -> tuple[object, ...]:
        self._spend(56 + 8 * len(items))
        if tuple in map(type, items):
            inner = [item for item in items if type(item) is tuple]
            told = [self._nested.get(id(item)) or _Nested(1, len(item), item) for item in inner]
            depth = 1 + max(each.depth for each in told)
            if depth > _DEEPEST_TUPLE:
                raise _hostile("the pickle nests tuples too deeply")
            self._spend(200)
            elements = min(len(items) + sum(each.elements for each in told), _MOST_IN_KEYS)
            self._nested[id(items)] = _Nested(depth, elements, items)
        return items

    def _key(self, key: object) -> object:
        if type(key) is str or (type(key) is int and abs(key) < _SMALL_KEY):
            return key
        self._spend(150)
        text = None
        if type(key) is tuple:
            nested = self._nested.get(id(key))
            elements = nested.elements if nested else len(key)
            if elements > _MOST_IN_A_KEY:
                raise _hostile("the pickle holds keys that would take too long to hash")
            self._in_keys += elements
            if self._in_keys > _MOST_IN_KEYS:
                raise _hostile("the pickle holds keys that would take too long to hash")
            text = repr(key) if _plain(key) else None
            self._spend(len(text or "") * 4)
        elif type(key) is int:
            self._in_keys += _bits(key) // 64
            self._huge_keys += abs(key) >= _HUGE
            if self._huge_keys > _MOST_HUGE_KEYS or self._in_keys > _MOST_IN_KEYS:
                raise _hostile("the pickle holds too many huge integers")
            text = hex(key)
        elif key is None or isinstance(key, bool | float | bytes):
            text = repr(key)
        return OtherKey(key, text)

    def _hashed(self, items: Iterable[object]) -> None:
        for item in items:
            self._key(item)

    def _fill(self, target: object, items: list[object] | tuple[object, ...]) -> None:
        """Set ``items``, keys and values in turn, in a dict; what has another class ignores them."""
        if len(items) % 2:
            raise ValueError("a key has no value")
        if isinstance(target, Opaque):
            self._hashed(items[::2])
            return
        if not isinstance(target, dict):
            raise TypeError
        self._spend(30 * len(items) + (150 if not target else 0))  # a dict's first entry makes room for five
        for n in range(0, len(items), 2):
            key = items[n]
            if type(key) is not str:
                key = self._key(key)
            if key in target:
                raise repeated(key)
            target[key] = items[n + 1]

    def _extend(self, target: object, items: list[object] | tuple[object, ...]) -> None:
        if isinstance(target, Opaque):
            return
        if not isinstance(target, list):
            raise TypeError
        self._spend(9 * len(items))
        target += items

    def _apply(self, target: object, arguments: object) -> object:
        """What a class gives for these arguments: a record, or an object that is not built."""
        if isinstance(target, Opaque):
            return target
        if not isinstance(target, Maker) or type(arguments) is not tuple:
            raise TypeError
        self._spend(200)
        return target.make(*arguments)


def _plain(key: tuple[object, ...]) -> bool:
    """Whether a key's text says all of it. Its elements are few, as was checked."""
    return all(
        _plain(item)
        if type(item) is tuple
        else item is None or isinstance(item, str | bytes | bool | float) or (type(item) is int and _bits(item) < 4096)
        for item in key
    )


def _bits(value: float) -> int:
    return value.bit_length() if isinstance(value, int) else 64


def _line(b: memoryview, i: int) -> tuple[int, str]:
    """The text up to the end of a line, and the position behind it."""
    raw = bytes(b[i : i + 4096])
    end = raw.find(b"\n")
    if end < 0:
        check_names([raw.decode("latin-1")])
        raise EOFError("it ends within a name")
    return i + end + 1, raw[:end].decode("utf-8")


_BY_CODE = {opcode.code: opcode for opcode in pickletools.opcodes}
_U2 = struct.Struct("<H").unpack_from
_U4 = struct.Struct("<I").unpack_from
_I4 = struct.Struct("<i").unpack_from
_F8 = struct.Struct(">d").unpack_from
