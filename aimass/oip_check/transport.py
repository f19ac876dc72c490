"""Checks message sizes, compression, deadlines, cancelled calls and reflection."""

import time

import grpc

from aimass.oip_check.finding import Check, Outcome, breaks, ok, skipped, warns
from aimass.oip_check.server import SERVICE, Reply, Server
from aimass.open_inference import grpc_service_pb2 as pb

MIB = 2**20
LARGE, HUGE = 5 * MIB, 33 * MIB
PATIENCE = 4
"""Times as long as other calls a large one may take; a slow line is no fault of the server's."""
CUT_OFF = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
GIVEN_UP = 8
"""Calls: enough to use up the workers of a server that leaks them."""
LIST_SERVICES = b"\x3a\x00"
"""ServerReflectionRequest{list_services: ""}."""


def _sized(server: Server, size: int) -> Reply:
    """Send a message of *size* bytes that is wrong, so that only its size and not a model's time is asked."""
    server.need_end()
    request = server.request()
    request.raw_input_contents[0] = bytes(size)
    return server.call("ModelInfer", request, timeout=PATIENCE * server.timeout)


def _large(server: Server) -> Outcome:
    reply = _sized(server, LARGE)
    if reply.code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return warns(str(reply))
    if reply.code in (*CUT_OFF, grpc.StatusCode.RESOURCE_EXHAUSTED):
        return breaks(str(reply))
    return ok("read")


def _huge(server: Server) -> Outcome:
    reply = _sized(server, HUGE)
    if reply.code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return warns(str(reply))
    if reply.code in CUT_OFF:
        return breaks(str(reply))
    return ok(str(reply) if reply.code is grpc.StatusCode.RESOURCE_EXHAUSTED else "read")


def _gzip(server: Server) -> Outcome:
    server.need_answer()
    reply = server.call("ModelInfer", server.request(), compression=grpc.Compression.Gzip)
    return ok("an answer") if reply.ok else breaks(str(reply))


def _deadline(server: Server) -> Outcome:
    server.need_answer()
    # From so short that a call may never leave to so long that it surely arrives.
    for exponent in range(GIVEN_UP):
        server.call("ModelInfer", server.request(), timeout=2**exponent / 1e3)
    return _still_answers(server, f"{GIVEN_UP} calls that had 1 to {2 ** (GIVEN_UP - 1)} ms")


def _cancel(server: Server) -> Outcome:
    server.need_answer()
    calls = [server.stub.ModelInfer.future(server.request(), timeout=server.timeout) for _ in range(GIVEN_UP)]
    # A connection keeps its order: when this is answered, the calls above have reached the server.
    server.call("ServerLive", pb.ServerLiveRequest())
    for call in calls:
        call.cancel()
    return _still_answers(server, f"{GIVEN_UP} cancelled calls")


def _still_answers(server: Server, after: str) -> Outcome:
    start = time.monotonic()
    reply = server.call("ModelInfer", server.request())
    if not reply.ok:
        return breaks(f"after {after}: {reply}")
    return ok(f"after {after} an answer in {(time.monotonic() - start) * 1e3:.0f} ms")


def _reflection(server: Server) -> Outcome:
    for version in ("v1", "v1alpha"):
        path = f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"
        call = server.channel.stream_stream(path)(iter([LIST_SERVICES]), timeout=server.timeout)
        try:
            services = b"".join(call)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                continue
            return breaks(f"{error.code().name}: {error.details()}")
        return ok(version) if SERVICE.encode() in services else breaks(f"{version}, without {SERVICE}")
    return skipped("UNIMPLEMENTED, as with Triton; grpcurl then needs the .proto files")


CHECKS = (
    Check(
        "large-message",
        f"a message of {LARGE // MIB} MiB",
        "Stock clients have no limit of their own, and a gRPC server that sets none refuses more than 4 MB.",
        {"tritonclient and perf_analyzer": "fail with large tensors and batches"},
        _large,
    ),
    Check(
        "huge-message",
        f"a message of {HUGE // MIB} MiB",
        "What is too large is refused with RESOURCE_EXHAUSTED, not by cutting the connection.",
        {"every client": "loses the connection and all calls on it"},
        _huge,
    ),
    Check(
        "gzip",
        "a compressed request",
        "gRPC's own compression is any client's choice.",
        {"tritonclient": "compression_algorithm fails"},
        _gzip,
    ),
    Check(
        "deadline",
        "calls whose deadlines are very short, then one more",
        "A call whose caller has gone frees what it held.",
        {"every client": "waits behind calls that nobody waits for"},
        _deadline,
    ),
    Check(
        "cancel",
        "cancelled calls, then one more",
        "A call whose caller has gone frees what it held.",
        {"every client": "waits behind calls that nobody waits for"},
        _cancel,
    ),
    Check(
        "reflection",
        "gRPC server reflection",
        "It isn't part of the protocol; tools that list a server's methods use it.",
        {"grpcurl and other tools": "see another service than the protocol's"},
        _reflection,
    ),
)
