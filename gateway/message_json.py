"""Messages of the trainer as JSON: with times and words that people read, and integers as numbers."""

import base64
import math
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from pydantic_core import from_json

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
        if field.name.endswith(_EMBEDDED):
            document[field.name.removesuffix(_EMBEDDED)] = from_json(value or "null")
        else:
            document[field.name] = None if absent else _field(field, value)
    return document


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
        known = field.enum_type.values_by_number.get(value)
        return known.name.removeprefix(f"{field.enum_type.name.upper()}_").lower() if known else value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return base64.b64encode(value).decode() if isinstance(value, bytes) else value
