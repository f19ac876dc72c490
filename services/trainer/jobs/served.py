"""Versions of models as inference lists them."""

import re

import grpc

from aimass.inference.v1 import lifecycle_pb2 as pb
from aimass.inference.v1.lifecycle_pb2_grpc import ModelLifecycleServiceStub
from services.common.errors import InvalidInput, NotFound
from services.common.traffic import choose_version

_VERSION = re.compile(r"(?P<model>[^@]+)@(?P<version>[0-9]+)")
_ANSWER_SECONDS = 30


def parse_version(source: str, field: str) -> tuple[str, int]:
    """Return the model and the number in `<model>@<version>`.

    Raises:
        InvalidInput: *source*, which is neither that nor `run:<id>`, came in *field*.
    """
    match = _VERSION.fullmatch(source)
    if match is None:
        raise InvalidInput(f"{source!r} names no model; write run:<id> or <model>@<version>", field=field)
    return match["model"], int(match["version"])


def find_version(channel: grpc.Channel, model: str, version: int) -> pb.ModelVersion:
    """Return what inference says of a version.

    Raises:
        NotFound: It has none of that number.
        RpcError: It does not answer.
    """
    request = pb.ListVersionsRequest(model=model)
    listed = ModelLifecycleServiceStub(channel).ListVersions(request, timeout=_ANSWER_SECONDS).models
    for found in (found for state in listed for found in state.versions):
        if found.version == version:
            return found
    raise NotFound(f"inference has no {model}@{version}; `aimass models` lists what it serves")


def find_stable(channel: grpc.Channel, model: str) -> int:
    """Return the version that serves a model.

    Raises:
        NotFound: Inference does not know the model.
        NotReady: None of its versions can serve.
        RpcError: It does not answer.
    """
    request = pb.ListVersionsRequest(model=model)
    listed = ModelLifecycleServiceStub(channel).ListVersions(request, timeout=_ANSWER_SECONDS).models
    if not listed:
        raise NotFound(f"inference has no model {model!r}; `aimass models` lists what it serves")
    return choose_version(listed[0])
