"""The protocol's other messages as JSON: what describes the server, and what changes it."""

import base64
import binascii
from typing import Any

from google.protobuf.message import Message

from aimass.open_inference import grpc_service_pb2 as pb
from gateway.documents import bounded, member, quoted
from services.common.errors import InvalidInput

_FILE_PREFIX = "file:"
_LISTED = "trace_level"
"""The one trace setting that has several values."""


def document_of(message: Message, *, whole: bool = False) -> dict[str, Any]:
    """Return *message* with its own field names, and integers as numbers: protobuf's JSON has neither.

    Args:
        message: Any.
        whole: Whether messages in it that are absent are written, empty: readers of statistics expect all of them.
    """
    document = {}
    for field in message.DESCRIPTOR.fields:
        optional = field.has_presence and not (whole and field.containing_oneof is None)
        if not optional or message.HasField(field.name):
            document[field.name] = _field(field, getattr(message, field.name), whole)
    return document


def _field(field: Any, value: Any, whole: bool) -> Any:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        kind = field.message_type.fields_by_name["value"]
        return {str(key): _value(kind, each, whole) for key, each in value.items()}
    if field.is_repeated:
        return [_value(field, each, whole) for each in value]
    return _value(field, value, whole)


def _value(field: Any, value: Any, whole: bool) -> Any:
    if field.message_type is not None:
        return document_of(value, whole=whole)
    if field.enum_type is not None:
        known = field.enum_type.values_by_number.get(value)
        return known.name if known else value
    return base64.b64encode(value).decode() if isinstance(value, bytes) else value


def index_documents(response: pb.RepositoryIndexResponse) -> list[dict[str, Any]]:
    """Return the models of the repository; what is not known of one is left out, as Triton does."""
    return [{key: value for key, value in document_of(each).items() if value} for each in response.models]


def load_request(model: str, document: dict[str, Any]) -> pb.RepositoryModelLoadRequest:
    """Return the request to load a model, with files that come in base64.

    Raises:
        InvalidInput: It is malformed.
    """
    request = pb.RepositoryModelLoadRequest(model_name=model)
    _set_repository_parameters(request.parameters, document)
    return request


def unload_request(model: str, document: dict[str, Any]) -> pb.RepositoryModelUnloadRequest:
    """Return the request to unload a model.

    Raises:
        InvalidInput: It is malformed.
    """
    request = pb.RepositoryModelUnloadRequest(model_name=model)
    _set_repository_parameters(request.parameters, document)
    return request


def _set_repository_parameters(target: Any, document: dict[str, Any]) -> None:
    for key, value in member(document, "parameters", dict, "the request", {}).items():
        where = f"parameter {key[:100]!r}"
        if type(value) is bool:
            target[key].bool_param = value
        elif type(value) is int:
            target[key].int64_param = bounded(value, -(2**63), 2**63 - 1, where)
        elif type(value) is not str:
            raise InvalidInput(f"{where} is {quoted(value)}; give a string, an integer, or true or false")
        elif key.startswith(_FILE_PREFIX):
            target[key].bytes_param = _from_base64(value, where)
        else:
            target[key].string_param = value


def trace_request(model: str, document: dict[str, Any]) -> pb.TraceSettingRequest:
    """Return the request to change trace settings; null takes a setting back to what it was, as an empty list does.

    Raises:
        InvalidInput: It is malformed.
    """
    request = pb.TraceSettingRequest(model_name=model)
    for key, value in document.items():
        values = value if type(value) is list else [] if value is None else [value]
        if not all(type(each) in (str, int) for each in values):
            raise InvalidInput(f"trace setting {key[:100]!r} is {quoted(value)}; give a string, strings, or null")
        request.settings[key].value.extend(map(str, values))
    return request


def trace_document(response: pb.TraceSettingResponse) -> dict[str, Any]:
    """Return the trace settings, each a string but for the levels."""
    settings = {key: list(each.value) for key, each in sorted(response.settings.items())}
    return {key: values if key == _LISTED else ",".join(values) for key, values in settings.items()}


def log_request(document: dict[str, Any]) -> pb.LogSettingsRequest:
    """Return the request to change log settings; null leaves one as it is.

    Raises:
        InvalidInput: It is malformed.
    """
    request = pb.LogSettingsRequest()
    for key, value in document.items():
        where = f"log setting {key[:100]!r}"
        if type(value) is bool:
            request.settings[key].bool_param = value
        elif type(value) is int:
            request.settings[key].uint32_param = bounded(value, 0, 2**32 - 1, where)
        elif type(value) is str:
            request.settings[key].string_param = value
        elif value is not None:
            raise InvalidInput(f"{where} is {quoted(value)}; give a string, an integer, or true or false")
    return request


def log_document(response: pb.LogSettingsResponse) -> dict[str, Any]:
    """Return the log settings."""
    return {
        key: getattr(each, each.WhichOneof("parameter_choice") or "string_param")
        for key, each in sorted(response.settings.items())
    }


def system_region(name: str, document: dict[str, Any]) -> pb.SystemSharedMemoryRegisterRequest:
    """Return the request to register system shared memory.

    Raises:
        InvalidInput: It is malformed.
    """
    return pb.SystemSharedMemoryRegisterRequest(
        name=name,
        key=member(document, "key", str, "the region"),
        offset=_size(document, "offset", 0),
        byte_size=_size(document, "byte_size"),
    )


def cuda_region(name: str, document: dict[str, Any]) -> pb.CudaSharedMemoryRegisterRequest:
    """Return the request to register memory of a GPU.

    Raises:
        InvalidInput: It is malformed.
    """
    handle = member(document, "raw_handle", dict, "the region")
    return pb.CudaSharedMemoryRegisterRequest(
        name=name,
        raw_handle=_from_base64(member(handle, "b64", str, "raw_handle"), "raw_handle"),
        device_id=bounded(member(document, "device_id", int, "the region"), 0, 2**31 - 1, "device_id"),
        byte_size=_size(document, "byte_size"),
    )


def _size(document: dict[str, Any], key: str, default: int | None = None) -> int:
    return bounded(member(document, key, int, "the region", default), 0, 2**64 - 1, key)


def _from_base64(text: str, where: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidInput(f"{where} is not base64: {error}; send its bytes in base64") from error
