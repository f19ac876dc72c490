"""What is asked of a graph's file before ONNX Runtime sees it: its size, where its weights lie, its operators.

The file is walked in protobuf's wire format and weights are passed over by seeking, so that memory stays flat: the
package `onnx` would hold them once more.
"""

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import onnxruntime as ort

from services.common.errors import InvalidInput
from services.inference.engine import Operator, known_operators

MAX_FIELDS = 20_000_000
"""So that a hostile file takes half a minute at most; graphs of ten thousand nodes have some 200,000."""
MAX_MESSAGES = 4_000_000
"""So that it takes about a GB: of two bytes, an empty message, ONNX Runtime makes an object of up to 285."""
MAX_DEPTH = 100
"""Messages inside each other; protobuf's own limit."""
MAX_TEXT_BYTES = 4096
"""Of a name, or of a path, whose limit this is in Linux."""
PLAIN_FIELDS = {
    "ModelProto": (2, 3, 4, 6),
    "GraphProto": (2, 10),
    "FunctionProto": (1, 4, 5, 6, 8, 10, 13),
    "NodeProto": (1, 2, 3, 4, 6, 7, 8),
    "AttributeProto": (1, 4, 7, 8, 9, 13, 21),
    "TensorProto": (1, 4, 5, 6, 7, 8, 9, 10, 11, 12),
    "SparseTensorProto": (3,),
    "StringStringEntryProto": (1, 2),
}
"""Numbers of the fields that are text, bytes or packed numbers, and no messages, by the messages that are walked."""


def check_size(path: Path, most: int) -> None:
    """Check that the file is there, is not empty and has at most so many bytes.

    Raises:
        InvalidInput: It does not.
    """
    if not path.is_file():
        raise InvalidInput(f"{path.parent.name}/{path.name} is missing; put the graph there")
    size = path.stat().st_size
    if not size:
        raise _refusal(path, "it is empty; copy or export it again")
    _check_bytes(path, size, most)


def check_graph(path: Path, most: int) -> None:
    """Check what the file says, as far as it can be told without loading it.

    Args:
        path: The file.
        most: Bytes that it may have together with the files of its external data.

    Raises:
        InvalidInput: It is no ONNX file, its data lies outside of its folder or is not there, or it uses operators that
            ONNX Runtime does not have.
    """
    with path.open("rb") as file:
        graph = _GraphFile(path, file)
        graph.read()
    _check_bytes(path, graph.size + sum(graph.external_sizes.values()), most)
    unknown = graph.unknown_operators()
    if unknown:
        raise _refusal(
            path,
            f"ONNX Runtime {ort.__version__} does not have {'; '.join(unknown)}; export the model with standard "
            "operators, or with these as functions in the same file",
        )


def _check_bytes(path: Path, size: int, most: int) -> None:
    if size > most:
        raise _refusal(
            path,
            f"it has {size:,} bytes, external data included; at most {most:,} are loaded; make it smaller or raise "
            "INFERENCE_MAX_MODEL_BYTES",
        )


def _refusal(path: Path, text: str) -> InvalidInput:
    return InvalidInput(f"{path.name} cannot be loaded: {text}", reason="INVALID_GRAPH")


class _WireFile:
    """A file in protobuf's wire format, from front to back."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        self.size = os.fstat(file.fileno()).st_size
        self._file = file
        self._at = 0
        self._depth = 0
        self._fields_left = MAX_FIELDS
        self._messages_left = MAX_MESSAGES

    def fields(self, end: int, kind: str) -> Iterator[tuple[int, int]]:
        """Yield number and end of each message or text of the message up to *end*; the file stands at its begin.

        How much of it is read meanwhile is left to the caller. Numbers are passed over. What is not plain in a message
        of this *kind* counts as a message, with as many in it as there can be where it is not read.
        """
        plain = PLAIN_FIELDS[kind]
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise _refusal(self.path, f"its messages nest deeper than {MAX_DEPTH}; export a flatter graph")
        while self._at < end:
            self._fields_left -= 1
            if self._fields_left < 0:
                raise _refusal(self.path, f"it has more than {MAX_FIELDS:,} fields; export a smaller graph")
            number, form = divmod(self._varint(), 8)
            if form == 0:
                self._varint()
                continue
            length = self._varint() if form == 2 else {1: 8, 5: 4}.get(form)
            if length is None or not number or length > end - self._at:
                raise self._malformed()
            stop = self._at + length
            if form == 2:
                yield number, stop
                if number not in plain:
                    self._count_messages(1 + (stop - self._at) // 2)
            if self._at != stop:
                self._at = self._file.seek(stop)
        if self._at > end:
            raise self._malformed()
        self._depth -= 1

    def _count_messages(self, count: int) -> None:
        self._messages_left -= count
        if self._messages_left < 0:
            raise _refusal(
                self.path,
                f"it has room for more than {MAX_MESSAGES:,} messages beside its weights and texts; export a smaller "
                "graph",
            )

    def text(self, end: int) -> str:
        """Return the text from here to *end*."""
        length = end - self._at
        if length > MAX_TEXT_BYTES:
            raise _refusal(self.path, f"a name in it has {length:,} bytes; use at most {MAX_TEXT_BYTES:,}")
        self._at = end
        try:
            return self._file.read(length).decode()
        except UnicodeDecodeError:
            raise self._malformed() from None

    def _varint(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self._file.read(1)
            if not byte:
                break
            self._at += 1
            value |= (byte[0] & 127) << shift
            if byte[0] < 128:
                return value
        raise self._malformed()

    def _malformed(self) -> InvalidInput:
        self._file.seek(0)
        return _refusal(
            self.path,
            f"it is no ONNX file, or one that was cut off or damaged: it begins with {self._file.read(20)!r} and can't "
            f"be read from byte {self._at:,} of {self.size:,} on; copy or export it again",
        )


class _GraphFile(_WireFile):
    """An ONNX file, of which is kept what is worth a check. The numbers are those of fields in `onnx.proto`.

    Where a field that can be there once comes twice, protobuf merges both; here both are checked.
    """

    def __init__(self, path: Path, file: BinaryIO) -> None:
        super().__init__(path, file)
        self.external_sizes: dict[str, int] = {}
        """Of each file of external data, by location."""
        self._foreign: dict[Operator, str] = {}
        """Operators of the graph that are not ONNX Runtime's, with the name of a node."""
        self._functions: dict[Operator, dict[Operator, str]] = {}
        """Such operators, of each of the model's own functions."""

    def read(self) -> None:
        """Read the model."""
        has_graph = False
        for number, end in self.fields(self.size, "ModelProto"):
            if number == 7:
                has_graph = True
                self._graph(end, self._foreign)
            elif number == 25:
                self._function(end)
            elif number == 14:
                self._entry(end)
        if not has_graph:
            raise self._malformed()

    def unknown_operators(self) -> list[str]:
        """Return those that are used and that neither ONNX Runtime nor the model has; a few where there are many."""
        unknown: list[str] = []
        scopes, seen = [self._foreign], set[Operator]()
        for scope in scopes:  # functions that nobody calls don't matter
            for operator, node in scope.items():
                if operator in seen:
                    continue
                seen.add(operator)
                if operator in self._functions:
                    scopes.append(self._functions[operator])
                else:
                    domain, name = operator
                    unknown.append(f"operator {name!r} of domain {domain!r} (node {node!r})")
        return unknown[:10]

    def _graph(self, end: int, foreign: dict[Operator, str]) -> None:
        for number, stop in self.fields(end, "GraphProto"):
            match number:
                case 1:
                    self._node(stop, foreign)
                case 5:
                    self._tensor(stop)
                case 15:
                    self._sparse_tensor(stop)
                case 16:
                    self._entry(stop)

    def _function(self, end: int) -> None:
        domain = name = ""
        foreign: dict[Operator, str] = {}
        for number, stop in self.fields(end, "FunctionProto"):
            match number:
                case 1:
                    name = self.text(stop)
                case 7:
                    self._node(stop, foreign)
                case 10:
                    domain = self.text(stop)
                case 11:
                    self._attribute(stop, foreign)
                case 14:
                    self._entry(stop)
        self._functions[_operator(domain, name)] = foreign

    def _node(self, end: int, foreign: dict[Operator, str]) -> None:
        domain = operator = name = ""
        for number, stop in self.fields(end, "NodeProto"):
            match number:
                case 3:
                    name = self.text(stop)
                case 4:
                    operator = self.text(stop)
                case 5:
                    self._attribute(stop, foreign)
                case 7:
                    domain = self.text(stop)
                case 9:
                    self._entry(stop)
        key = _operator(domain, operator)
        if key not in known_operators():
            foreign.setdefault(key, name)

    def _attribute(self, end: int, foreign: dict[Operator, str]) -> None:
        for number, stop in self.fields(end, "AttributeProto"):
            match number:
                case 5 | 10:
                    self._tensor(stop)
                case 6 | 11:
                    self._graph(stop, foreign)
                case 22 | 23:
                    self._sparse_tensor(stop)

    def _sparse_tensor(self, end: int) -> None:
        for number, stop in self.fields(end, "SparseTensorProto"):
            if number in (1, 2):
                self._tensor(stop)

    def _tensor(self, end: int) -> None:
        name = ""
        data: dict[str, str] = {}
        for number, stop in self.fields(end, "TensorProto"):
            match number:
                case 8:
                    name = self.text(stop)
                case 13:
                    fields = self.fields(stop, "StringStringEntryProto")
                    entry = {number: self.text(stop) for number, stop in fields}
                    data[entry.get(1, "")] = entry.get(2, "")
                case 16:
                    self._entry(stop)
        if "location" in data:
            self._external_data(name, data["location"], data.get("offset", "0"), data.get("length", "0"))

    def _entry(self, end: int) -> None:
        """Pass over an entry of metadata: its texts may be long."""
        for _ in self.fields(end, "StringStringEntryProto"):
            pass

    def _external_data(self, tensor: str, location: str, offset: str, length: str) -> None:
        of = f"tensor {tensor!r} has its data in {location!r}, "
        folder = self.path.parent.resolve()
        way = PurePosixPath(location)
        if way.is_absolute() or ".." in way.parts or "\0" in location:
            raise _refusal(self.path, of + "which leaves the folder; name a file beside the graph")
        if location not in self.external_sizes:
            file = (folder / way).resolve()
            if not file.is_relative_to(folder):
                raise _refusal(self.path, of + "a link that leaves the folder; put the file itself there")
            if not file.is_file():
                raise _refusal(self.path, of + "which is no file there; put it beside the graph, under that name")
            self.external_sizes[location] = file.stat().st_size
        size = self.external_sizes[location]
        if not all(text.isascii() and text.isdigit() and len(text) < 20 for text in (offset, length)):
            raise _refusal(self.path, of + f"offset {offset!r}, length {length!r}; use integers from 0")
        if int(offset) + int(length) > size:
            raise _refusal(
                self.path,
                of + f"bytes {int(offset):,} to {int(offset) + int(length):,}, but the file has {size:,}; copy it "
                "again, or export graph and data together",
            )


def _operator(domain: str, name: str) -> Operator:
    return ("" if domain == "ai.onnx" else domain, name)
