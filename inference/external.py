"""Where a graph's weights lie outside its file: read from the protobuf itself, before ONNX Runtime sees the graph.

Only what can hold a tensor is entered; all else, raw weights above all, is skipped by its length. Any bytes end in
names or in SetupError, after at most ``FIELDS_MAX`` steps, and in memory that does not grow with the file: it is
mapped. A file that shrinks meanwhile ends the process (SIGBUS), so this runs in the trial's child. What ONNX Runtime
could read differently from us (groups, tags of more than 32 bits) is refused as malformed.
"""

from __future__ import annotations

import mmap
from collections.abc import Container, Iterator
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple, TypeAlias

from inference.files import check_inside, is_passed_over
from jobs.errors import SetupError

FIELDS_MAX = 5_000_000
"""Fields looked at: a graph of 100,000 nodes has about a million; five take some seconds."""
DEPTH_MAX = 100
"""Protobuf's own bound."""
LOCATIONS_MAX = 1_000
LOCATION_BYTES_MAX = 1_024

Message: TypeAlias = Literal["Model", "Training", "Function", "Graph", "Node", "Attribute", "Sparse", "Tensor"]

HOLDERS: dict[Message, dict[int, Message]] = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Function": {7: "Node", 11: "Attribute"},
    "Graph": {1: "Node", 5: "Tensor", 15: "Sparse"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "Sparse", 23: "Sparse"},
    "Sparse": {1: "Tensor", 2: "Tensor"},
    "Tensor": {},
}
"""The fields of each message that lead to a tensor (onnx.proto, by field number)."""

_EXTERNAL_DATA, _DATA_LOCATION = 13, 14
_KEY, _VALUE = 1, 2
_LOCATION = b"location"
_VARINT, _BYTES = 0, 2
_FIXED = {1: 8, 5: 4}
_VARINT_BYTES_MAX = 10
_TAG_MAX = 2**32


class _Field(NamedTuple):
    """One field: its number, its wire type, and where its bytes begin and end (a varint: its value, twice)."""

    number: int
    wire: int
    start: int
    end: int


def check_external(folder: Path, graph: str, files: Container[str]) -> None:
    """Refuse the graph of the version in ``folder`` if its external data is not among the version's own ``files``.

    SetupError that names the location, or says that the graph is malformed.
    """
    for location in locations(folder / graph):
        _check(location, folder, files)


def locations(graph: Path) -> list[str]:
    """The distinct locations of external data that the graph names, sorted; SetupError where it is malformed."""
    try:
        with graph.open("rb") as file:
            if not file.seek(0, 2):
                return []
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return sorted(_Walk(data).locations())
    except _MalformedError as error:
        raise SetupError(f"{graph}: not an ONNX graph ({error})") from None
    except OSError as error:
        raise SetupError(f"{graph}: cannot be read: {error.strerror}") from None


def _check(location: str, folder: Path, files: Container[str]) -> None:
    path = PurePosixPath(location)
    shown = ascii(location)
    if path.is_absolute():  # clients read the reason: of a path on some machine, its end is enough
        raise SetupError(f"external data at /.../{path.name!a} leaves the version's folder; put it beside the graph")
    if ".." in path.parts:
        raise SetupError(f"external data at {shown} leaves the version's folder; put the file beside the graph")
    if path.as_posix() in files:
        check_inside(folder / path, folder)
    elif any(is_passed_over(part) for part in path.parts):
        raise SetupError(f"external data at {shown}: names that begin with . or _ are passed over; rename the file")
    else:
        raise SetupError(f"external data at {shown}: no such file in the version's folder; put it beside the graph")


class _MalformedError(Exception):
    """The bytes are not such a message; the text says how."""


class _Walk:
    """One walk through one graph, depth first: what it keeps grows with the depth alone."""

    def __init__(self, data: mmap.mmap | bytes) -> None:
        self._data = data
        self._left = FIELDS_MAX

    def locations(self) -> set[str]:
        """Every location, if any tensor says that its data is external.

        Which tensor says so does not matter: a message that occurs twice is merged by those who read it, so that one
        part of a tensor could name the place and another say that it counts.
        """
        found: set[str] = set()
        external = False
        open_: list[tuple[Message, Iterator[_Field]]] = [("Model", self._fields(0, len(self._data)))]
        while open_:
            message, fields = open_[-1]
            field = next(fields, None)
            if field is None:
                open_.pop()
            elif field.wire == _BYTES and field.number in HOLDERS[message]:
                if len(open_) == DEPTH_MAX:
                    raise _MalformedError("nested too deeply")
                open_.append((HOLDERS[message][field.number], self._fields(field.start, field.end)))
            elif message == "Tensor" and (field.number, field.wire) == (_EXTERNAL_DATA, _BYTES):
                found.update(self._entry(field))
            elif message == "Tensor" and (field.number, field.wire) == (_DATA_LOCATION, _VARINT):
                external = external or field.start != 0
            if len(found) > LOCATIONS_MAX:
                raise _MalformedError(f"more than {LOCATIONS_MAX} places of external data")
        return found if external else set()

    def _entry(self, entry: _Field) -> list[str]:
        """What one entry of a tensor's external data may give as its location."""
        is_location = False
        values: list[_Field] = []
        for field in self._fields(entry.start, entry.end):
            if field.wire == _BYTES and field.number == _KEY:
                length = field.end - field.start
                is_location |= length == len(_LOCATION) and self._data[field.start : field.end] == _LOCATION
            elif field.wire == _BYTES and field.number == _VALUE:
                if len(values) == LOCATIONS_MAX:
                    raise _MalformedError("an entry of many values")
                values.append(field)
        return [self._text(each) for each in values] if is_location else []

    def _text(self, field: _Field) -> str:
        if field.end - field.start > LOCATION_BYTES_MAX:
            raise _MalformedError(f"a location of more than {LOCATION_BYTES_MAX} bytes")
        try:
            return self._data[field.start : field.end].decode()
        except UnicodeDecodeError:
            raise _MalformedError("a location that is not UTF-8") from None

    def _fields(self, at: int, end: int) -> Iterator[_Field]:
        while at < end:
            self._left -= 1
            if self._left < 0:
                raise _MalformedError(f"more than {FIELDS_MAX} fields")
            tag, at = self._varint(at, end)
            number, wire = tag >> 3, tag & 7
            if not number or tag >= _TAG_MAX:
                raise _MalformedError("a field that cannot be")
            start, at = self._skip(wire, at, end)
            if at > end:
                raise _MalformedError("it ends early")
            yield _Field(number, wire, start, start if wire == _VARINT else at)

    def _skip(self, wire: int, at: int, end: int) -> tuple[int, int]:
        """Where the content begins (a varint: its value), and where the next field does."""
        if wire == _VARINT:
            return self._varint(at, end)
        if wire == _BYTES:
            length, at = self._varint(at, end)
            return at, at + length
        if wire in _FIXED:
            return at, at + _FIXED[wire]
        raise _MalformedError("a wire type that ONNX does not use")

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        if at < end and self._data[at] < 0x80:  # noqa: PLR2004 - the bit that says "more"; nearly all have one byte
            return self._data[at], at + 1
        value = 0
        for place in range(_VARINT_BYTES_MAX):
            if at >= end:
                raise _MalformedError("it ends early")
            byte = self._data[at]
            at += 1
            value |= (byte & 0x7F) << 7 * place
            if byte < 0x80:  # noqa: PLR2004 - the bit that says "more"
                return value, at
        raise _MalformedError("a number without end")
