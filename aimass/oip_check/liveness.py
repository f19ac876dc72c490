"""Checks whether the server says the truth about being alive and ready."""

import grpc

from aimass.oip_check.finding import Check, Outcome, breaks, ok, skipped, warns
from aimass.oip_check.server import SERVICE, Server
from aimass.open_inference import grpc_service_pb2 as pb

TORCHSERVE = "org.pytorch.serve.grpc.openinference.GRPCInferenceService"
HEALTH = "/grpc.health.v1.Health"
SERVING = b"\x08\x01"
"""HealthCheckResponse{status: SERVING}; its messages are so small that they need no generated code."""


def _live(server: Server) -> Outcome:
    reply = server.call("ServerLive", pb.ServerLiveRequest())
    if reply.missing and not server.call_raw(f"/{TORCHSERVE}/ServerLive", b"").missing:
        return breaks(f"the service is {TORCHSERVE}, not {SERVICE}")
    if not reply.ok:
        return breaks(str(reply))
    return ok("live") if reply.message.live else breaks("an answer that says: not live")


def _ready(server: Server) -> Outcome:
    reply = server.call("ServerReady", pb.ServerReadyRequest())
    if not reply.ok:
        return breaks(str(reply))
    states = _states(server)
    late = sorted(name for name, ready in states.items() if not ready)
    if reply.message.ready and states and len(late) == len(states):
        return breaks(f"ready, but no model is: {', '.join(late)}")
    if reply.message.ready and late:
        return warns(f"ready, but not all models are: {', '.join(late)}")
    if not reply.message.ready and states and not late:
        return breaks(f"not ready, but all models are: {', '.join(sorted(states))}")
    return ok(f"{'ready' if reply.message.ready else 'not ready'}, as {len(states)} models say")


def _states(server: Server) -> dict[str, bool]:
    """Return which models are ready; a model is if any of its versions is."""
    if not server.index.ok:
        reply = server.call("ModelReady", pb.ModelReadyRequest(name=server.model))
        return {server.model: reply.ok and reply.message.ready}
    states: dict[str, bool] = {}
    for each in server.index.message.models:
        states[each.name] = states.get(each.name, False) or each.state == "READY"
    return states


def _model_ready(server: Server) -> Outcome:
    reply = server.call("ModelReady", pb.ModelReadyRequest(name=server.model))
    if not reply.ok:
        return breaks(str(reply))
    if reply.message.ready == server.baseline.ok:
        return ok(f"{'ready' if reply.message.ready else 'not ready'}, and so it answers")
    said = "ready" if reply.message.ready else "not ready"
    return breaks(f"{said}, but ModelInfer gave {server.baseline}")


def _unknown_ready(server: Server) -> Outcome:
    reply = server.call("ModelReady", pb.ModelReadyRequest(name="oip-check-unknown"))
    if reply.ok:
        return breaks("ready, which it cannot be") if reply.message.ready else ok("not ready")
    if reply.code is grpc.StatusCode.NOT_FOUND:
        return ok(str(reply))
    return warns(str(reply))


def _health(server: Server) -> Outcome:
    reply = server.call_raw(f"{HEALTH}/Check", b"")
    if reply.missing:
        return warns("UNIMPLEMENTED")
    if not reply.ok:
        return breaks(str(reply))
    return ok("SERVING") if reply.message == SERVING else breaks("not SERVING")


def _watch(server: Server) -> Outcome:
    call = server.channel.unary_stream(f"{HEALTH}/Watch")(b"", timeout=server.timeout)
    try:
        first = next(call)
    except StopIteration:
        return breaks("a stream without a message")
    except grpc.RpcError as error:
        if error.code() is grpc.StatusCode.UNIMPLEMENTED:
            return skipped("UNIMPLEMENTED, as with Triton; gRPC's clients then take the server for healthy")
        return breaks(f"{error.code().name}: {error.details()}")
    finally:
        call.cancel()
    return ok("SERVING") if first == SERVING else breaks("not SERVING")


CHECKS = (
    Check(
        "server-live",
        "ServerLive",
        "The protocol's service is inference.GRPCInferenceService, and a process that answers is live.",
        {"tritonclient": "is_server_live is false or raises", "KServe": "the liveness probe restarts the pod"},
        _live,
    ),
    Check(
        "server-ready",
        "ServerReady, beside the models' own states",
        "Ready means that requests would be answered.",
        {
            "Kubernetes and KServe": "send requests to a server that refuses them, or none to one that could answer",
            "tritonclient": "is_server_ready misleads its caller",
        },
        _ready,
    ),
    Check(
        "model-ready",
        "ModelReady, beside what ModelInfer does",
        "A model is ready if it answers.",
        {"tritonclient": "is_model_ready misleads its caller", "KServe": "routes to a model that refuses"},
        _model_ready,
    ),
    Check(
        "model-ready-unknown",
        "ModelReady of a model that isn't there",
        "A model that isn't there is not ready; NOT_FOUND says the same.",
        {"tritonclient": "is_model_ready says that a misspelt model is there"},
        _unknown_ready,
    ),
    Check(
        "health-check",
        "grpc.health.v1.Health/Check",
        "It isn't part of the protocol, but it is what Kubernetes asks a gRPC server.",
        {"Kubernetes gRPC probes": "the pod never becomes ready", "grpc_health_probe": "exits with an error"},
        _health,
    ),
    Check(
        "health-watch",
        "grpc.health.v1.Health/Watch",
        "gRPC's client-side health checking watches a server; UNIMPLEMENTED turns it off.",
        {"gRPC client-side health checking": "takes the server out of rotation"},
        _watch,
    ),
)
