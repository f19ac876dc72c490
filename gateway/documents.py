"""JSON that callers send: parsed, and read with words for what is wrong with it."""

from collections.abc import Collection
from typing import Any, TypeVar

from pydantic_core import from_json, to_json

from services.common.errors import InvalidInput

T = TypeVar("T")

_KINDS = {str: "a string", list: "a list", dict: "an object", int: "an integer", bool: "true or false"}


def parse_object(text: bytes, what: str) -> dict[str, Any]:
    """Return the JSON object that *text* is; none gives an empty one. NaN and Infinity are numbers, as for Triton.

    Raises:
        InvalidInput: It is no JSON, or no object.
    """
    try:
        document = from_json(text or b"{}")
    except ValueError as error:
        raise InvalidInput(f"{what} is not JSON: {error}; send a JSON object") from error
    if type(document) is not dict:
        raise InvalidInput(f"{what} is {quoted(document)}; send a JSON object")
    return document


def member(document: Any, key: str, kind: type[T], where: str, default: T | None = None) -> T:
    """Return a member of *document*; *default* where it is absent.

    Raises:
        InvalidInput: *document* is no object, or the member is missing or of another kind.
    """
    if type(document) is not dict:
        raise InvalidInput(f"{where} is {quoted(document)}; give an object")
    value = document.get(key, default)
    if type(value) is not kind:  # not isinstance: true and false would be integers
        problem = f"{key!r} is {quoted(value)}" if key in document else f"{key!r} is missing"
        raise InvalidInput(f"{where}: {problem}; give {_KINDS[kind]}")
    return value


def check_members(document: dict[str, Any], known: Collection[str], where: str) -> None:
    """Refuse a member that nobody would read: its sender thinks that it says something.

    Raises:
        InvalidInput: *document* has others than *known*.
    """
    unknown = next((key for key in document if key not in known), None)
    if unknown is not None:
        raise InvalidInput(f"{where} has the member {quoted(unknown)}, which is unknown; give {', '.join(known)}")


def bounded(value: int, least: int, most: int, where: str) -> int:
    """Return *value*, where it is from *least* to *most*.

    Raises:
        InvalidInput: It is not.
    """
    if not least <= value <= most:
        raise InvalidInput(f"{where} is {quoted(value)}; give {least} to {most}")
    return value


def quoted(value: object) -> str:
    """Return *value* as JSON, where that is short."""
    if isinstance(value, dict | list):
        return _KINDS[type(value)]
    text = to_json(value, inf_nan_mode="constants").decode(errors="replace")
    return text if len(text) <= 40 else f"{text[:40]}…"
