"""Messages of the trainer as OpenAPI describes them: the schemas of what `message_json.plain` returns."""

from datetime import datetime
from functools import cache
from typing import Annotated, Any, Literal

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from pydantic import BaseModel, WithJsonSchema, create_model

from gateway.message_json import is_embedded, member_of, word_of

_INT32, _INT64, _UINT32, _UINT64 = (
    Annotated[int, WithJsonSchema({"type": "integer", "format": name})]
    for name in ("int32", "int64", "uint32", "uint64")
)
_SCALARS: dict[int, Any] = {
    FieldDescriptor.CPPTYPE_INT32: _INT32,
    FieldDescriptor.CPPTYPE_INT64: _INT64,
    FieldDescriptor.CPPTYPE_UINT32: _UINT32,
    FieldDescriptor.CPPTYPE_UINT64: _UINT64,
    FieldDescriptor.CPPTYPE_FLOAT: float | None,  # null is what JSON has no number for
    FieldDescriptor.CPPTYPE_DOUBLE: float | None,
    FieldDescriptor.CPPTYPE_BOOL: bool,
    FieldDescriptor.CPPTYPE_STRING: str,
}
_BASE64 = Annotated[str, WithJsonSchema({"type": "string", "contentEncoding": "base64"})]
_WELL_KNOWN: dict[str, Any] = {Timestamp.DESCRIPTOR.full_name: datetime, Duration.DESCRIPTOR.full_name: float}


def answer_model(message: type[Message]) -> type[BaseModel]:
    """Return the model of a *message* in JSON; every member is there, those that may be absent as null."""
    return _model(message.DESCRIPTOR)


@cache  # so that a message in several answers is described once
def _model(kind: Descriptor) -> type[BaseModel]:
    members: dict[str, Any] = {member_of(field.name): (_member(field), ...) for field in kind.fields}
    model: type[BaseModel] = create_model(kind.name, **members)
    return model


def _member(field: FieldDescriptor) -> Any:
    if is_embedded(field.name):
        return Any
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return dict[str, _value(field.message_type.fields_by_name["value"])]  # type: ignore[misc]
    value = _value(field)
    if field.is_repeated:
        return list[value]  # type: ignore[valid-type]
    return value | None if field.has_presence else value


def _value(field: FieldDescriptor) -> Any:
    if field.message_type is not None:
        return _WELL_KNOWN.get(field.message_type.full_name) or _model(field.message_type)
    if field.enum_type is not None:
        return _words(field.enum_type)
    return _BASE64 if field.type == FieldDescriptor.TYPE_BYTES else _SCALARS[field.cpp_type]


def _words(kind: EnumDescriptor) -> Any:
    """Return the words of an enum, or the number of one that a newer trainer has and this gateway does not know."""
    return Literal[tuple(word_of(kind, each.number) for each in kind.values)] | int
