"""Checks shared memory; registers a region only where writing is allowed."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import grpc

from aimass.oip_check.finding import Check, Outcome, breaks, ok, skipped, warns
from aimass.oip_check.refusals import judged
from aimass.oip_check.server import Reply, Server, Unmet
from aimass.oip_check.tensors import size_in_bytes
from aimass.open_inference import grpc_service_pb2 as pb


def _judged(server: Server, extension: str, reply: Reply) -> Outcome:
    """Judge an RPC of an extension: what isn't listed need not be there."""
    listed = extension in server.extensions
    if reply.ok:
        return ok("an answer")
    if not listed:
        return skipped(f"not listed; {reply.code.name}")
    if reply.missing or reply.code in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN):
        return breaks(f"listed, but {reply}")
    return breaks(f"listed, but {reply}") if reply.code is grpc.StatusCode.DEADLINE_EXCEEDED else warns(str(reply))


def _system_status(server: Server) -> Outcome:
    reply = server.call("SystemSharedMemoryStatus", pb.SystemSharedMemoryStatusRequest())
    return _judged(server, "system_shared_memory", reply)


def _cuda_status(server: Server) -> Outcome:
    reply = server.call("CudaSharedMemoryStatus", pb.CudaSharedMemoryStatusRequest())
    return _judged(server, "cuda_shared_memory", reply)


def _cuda_unregister(server: Server) -> Outcome:
    """Unregister a name that nobody has: an empty one would unregister what others use."""
    reply = server.call("CudaSharedMemoryUnregister", pb.CudaSharedMemoryUnregisterRequest(name=_unused_name()))
    if reply.ok or reply.code is grpc.StatusCode.NOT_FOUND:
        return ok(str(reply))
    if server.extensions.isdisjoint(("system_shared_memory", "cuda_shared_memory")):
        return skipped(f"not listed; {reply.code.name}")
    if reply.missing and "cuda_shared_memory" in server.extensions:
        return breaks(f"listed, but {reply}")
    return warns(str(reply))


def _unused_name() -> str:
    return f"oip-check-{uuid.uuid4().hex}"


def _unknown_region(server: Server) -> Outcome:
    _need_listed(server)
    request = _into_region(server, _unused_name(), 64)
    outcome = judged(server.call("ModelInfer", request))
    return outcome if "NOT_FOUND" not in outcome.came else ok(outcome.came.partition(" (")[0])


def _into_region(server: Server, region: str, size: int) -> pb.ModelInferRequest:
    request = server.request()
    parameters = request.outputs[0].parameters
    parameters["shared_memory_region"].string_param = region
    parameters["shared_memory_byte_size"].int64_param = size
    return request


def _need_listed(server: Server) -> None:
    if "system_shared_memory" not in server.extensions:
        raise Unmet("not listed")
    server.need_answer()


def _output(server: Server) -> Outcome:
    _need_listed(server)
    if not server.write:
        return skipped("registers a region; allow it with --write, on the server's machine")
    output = server.answer.outputs[0]
    size = size_in_bytes(output.datatype, output.shape)
    with _registered(server, size) as (name, registered):
        if not registered.ok:
            return _judged(server, "system_shared_memory", registered)
        reply = server.call("ModelInfer", _into_region(server, name, size))
    if not reply.ok:
        return breaks(str(reply))
    outputs, raw = len(reply.message.outputs), reply.message.raw_output_contents
    if len(raw) != outputs:
        return breaks(f"{len(raw)} raw entries for {outputs} outputs")
    return ok("an empty raw entry") if not raw[0] else breaks(f"{len(raw[0])} bytes that belong in the region")


@contextmanager
def _registered(server: Server, size: int) -> Iterator[tuple[str, Reply]]:
    """Make a region on this machine and register it; leave neither behind."""
    name = _unused_name()
    memory: Any = SharedMemory(name, create=True, size=size)
    try:
        request = pb.SystemSharedMemoryRegisterRequest(name=name, key=f"/{name}", byte_size=size)
        yield name, server.call("SystemSharedMemoryRegister", request)
    finally:
        server.call("SystemSharedMemoryUnregister", pb.SystemSharedMemoryUnregisterRequest(name=name))
        memory.close()
        memory.unlink()


CHECKS = (
    Check(
        "system-shared-memory",
        "SystemSharedMemoryStatus",
        "What is listed answers; over another address a server may refuse it in words.",
        {"perf_analyzer": "--shared-memory system can't be used", "tritonclient": "shared memory raises"},
        _system_status,
    ),
    Check(
        "cuda-shared-memory",
        "CudaSharedMemoryStatus",
        "What is listed answers.",
        {"perf_analyzer": "--shared-memory cuda can't be used", "tritonclient": "CUDA shared memory raises"},
        _cuda_status,
    ),
    Check(
        "cuda-unregister",
        "CudaSharedMemoryUnregister of a name that nobody has",
        "perf_analyzer --shared-memory system unregisters CUDA regions first and last, GPU or not.",
        {"perf_analyzer": "prints: Unable to unregister all shared memory regions"},
        _cuda_unregister,
    ),
    Check(
        "shared-memory-unknown-region",
        "an output into a region that isn't registered",
        "A region is registered before it is used.",
        {"tritonclient": "reads a region that nobody wrote to"},
        _unknown_region,
    ),
    Check(
        "shared-memory-output",
        "an output into a registered region",
        "The C++ client indexes raw_output_contents also for outputs in shared memory: they need an empty entry.",
        {"perf_analyzer": "ends with a segmentation fault, exit code 139"},
        _output,
    ),
)
