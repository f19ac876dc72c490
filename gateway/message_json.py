"""Messages of the trainer as JSON: with times and words that people read, and integers as numbers."""

import base64
import math
from typing import Any

from google.protobuf.descriptor import EnumDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from pydantic_core import from_json

from gateway.documents import quoted
from services.common.errors import InvalidInput

_EMBEDDED = "_json"
"""End of the names of fields that hold a document of their own."""


def plain(message: Message) -> dict[str, Any]:
    """Return *message* with its own field names.

    Messages that are absent are null, times are text, durations seconds, enums lower-case words without their prefix;
    what a field `x_json` holds is the member `x`.
    """
    document = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        absent = field.has_presence and not message.HasField(field.name)
        if is_embedded(field.name):
            document[member_of(field.name)] = from_json(value or "null")
        else:
            document[member_of(field.name)] = None if absent else _field(field, value)
    return document


def is_embedded(field: str) -> bool:
    """Whether the field of this name holds a document of its own."""
    return field.endswith(_EMBEDDED)


def member_of(field: str) -> str:
    """Return the name of the member that the field of this name is."""
    return field.removesuffix(_EMBEDDED)


def word_of(kind: EnumDescriptor, number: int) -> str | int:
    """Return the word of a value of an enum; its number where it is unknown."""
    known = kind.values_by_number.get(number)
    return known.name.removeprefix(f"{kind.name.upper()}_").lower() if known else number


def words_of(kind: EnumDescriptor) -> dict[str, int]:
    """Return the values of an enum by their words, without the one that is not set."""
    return {str(word_of(kind, each.number)): each.number for each in kind.values if each.number}


def number_of(kind: EnumDescriptor, word: str) -> Any:
    """Return the value of an enum that *word* stands for.

    Raises:
        InvalidInput: There is none.
    """
    words = words_of(kind)
    if word not in words:
        raise InvalidInput(f"{kind.name.lower()} is {quoted(word)}; give one of {', '.join(words)}")
    return words[word]


def _field(field: Any, value: Any) -> Any:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        kind = field.message_type.fields_by_name["value"]
        return {str(key): _value(kind, each) for key, each in value.items()}
    return [_value(field, each) for each in value] if field.is_repeated else _value(field, value)


def _value(field: Any, value: Any) -> Any:
    if isinstance(value, Timestamp):
        return value.ToJsonString()
    if isinstance(value, Duration):
        return value.ToNanoseconds() / 1e9
    if field.message_type is not None:
        return plain(value)
    if field.enum_type is not None:
        return word_of(field.enum_type, value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return base64.b64encode(value).decode() if isinstance(value, bytes) else value
