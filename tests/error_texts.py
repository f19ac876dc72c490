"""The texts of errors, as the code that raises them has them."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from services.common.errors import ServiceError

VALUE = "{…}"
"""Stands for what is filled in."""
_ERRORS = {each.__name__ for each in ServiceError.__subclasses__()}


@dataclass(frozen=True)
class ErrorText:
    """What one line of code tells a caller."""

    place: str
    text: str

    def __str__(self) -> str:
        return f"{self.place} {self.text}"


def raised_in(module: Path) -> Iterator[ErrorText]:
    """Yield the texts of the errors that a module makes; not those that are put together elsewhere."""
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _ERRORS and node.args:
            text = _template(node.args[0])
            if text != VALUE:
                yield ErrorText(f"{module.name}:{node.lineno}", text)


def pattern_of(error: ErrorText) -> str:
    """Return the regular expression that what callers get of *error* fits."""
    return ".*".join(map(re.escape, error.text.split(VALUE)))


def _template(text: ast.expr) -> str:
    match text:
        case ast.Constant(value=str(words)):
            return words
        case ast.JoinedStr(values=values):
            return "".join(map(_template, values))
    return VALUE
