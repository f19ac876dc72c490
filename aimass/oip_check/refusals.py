"""Checks whether wrong requests are refused, in words that help."""

from collections.abc import Callable

import grpc

from aimass.oip_check.finding import Check, Outcome, Verdict, breaks, ok, skipped, warns
from aimass.oip_check.server import SERVICE, Reply, Server, Unmet
from aimass.oip_check.tensors import TYPED_CONTENTS, raw_zeros, size_in_bytes, typed_zeros
from aimass.open_inference import grpc_service_pb2 as pb

Code = grpc.StatusCode
SERVER_FAULTS = (Code.INTERNAL, Code.UNKNOWN, Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.DATA_LOSS)
LARGEST_REFUSED = 32 * 2**20
UNKNOWN = "oip-check-unknown"


def judged(reply: Reply, expected: Code = Code.INVALID_ARGUMENT) -> Outcome:
    """Judge how a wrong request was refused."""
    if reply.ok:
        return breaks("an answer, as if it were right")
    if reply.code in SERVER_FAULTS:
        return breaks(str(reply))
    if reply.code is not expected:
        return warns(f"{reply} (expected {expected.name})")
    if len(reply.text.split()) < 3:
        return warns(f"{reply}, which says too little")
    return ok(str(reply))


def _refuses(spoil: Callable[[Server, pb.ModelInferRequest], None]) -> Callable[[Server], Outcome]:
    """Return a check that sends a right request after *spoil* made it wrong."""

    def run(server: Server) -> Outcome:
        server.need_answer()
        request = server.request()
        spoil(server, request)
        return judged(server.call("ModelInfer", request))

    return run


def _mix(server: Server, request: pb.ModelInferRequest) -> None:
    tensor = request.inputs[0]
    if tensor.datatype not in TYPED_CONTENTS:
        raise Unmet(f"{tensor.datatype} has no typed form")
    tensor.contents.CopyFrom(typed_zeros(tensor.datatype, tensor.shape))


def _drop_input(server: Server, request: pb.ModelInferRequest) -> None:
    del request.inputs[-1], request.raw_input_contents[-1]


def _add_input(server: Server, request: pb.ModelInferRequest) -> None:
    request.inputs.add(name=UNKNOWN, datatype="FP32", shape=[1])
    request.raw_input_contents.append(raw_zeros("FP32", [1]))


def _add_raw(server: Server, request: pb.ModelInferRequest) -> None:
    request.raw_input_contents.append(request.raw_input_contents[-1])


def _add_side(server: Server, request: pb.ModelInferRequest) -> None:
    """The same bytes under one dimension more, so that only the shape is wrong."""
    request.inputs[0].shape.append(1)


def _negate_side(server: Server, request: pb.ModelInferRequest) -> None:
    if not request.inputs[0].shape:
        raise Unmet("the first input is a scalar")
    request.inputs[0].shape[0] = -1


def _change_datatype(server: Server, request: pb.ModelInferRequest) -> None:
    """The same number of bytes under another type."""
    same = {"FP32": "INT32", "INT32": "FP32", "FP64": "INT64", "INT64": "FP64", "UINT8": "INT8"}
    request.inputs[0].datatype = same.get(request.inputs[0].datatype, "UINT8")


def _cut(server: Server, request: pb.ModelInferRequest) -> None:
    request.raw_input_contents[0] = request.raw_input_contents[0][:-1]


def _name_output(server: Server, request: pb.ModelInferRequest) -> None:
    request.outputs.add(name=UNKNOWN)


def _batch(server: Server) -> Outcome:
    limit = server.config.max_batch_size
    if limit < 1:
        return skipped("max_batch_size is 0")
    shapes = zip(server.metadata.inputs, server.input_shapes, strict=True)
    size = sum(size_in_bytes(each.datatype, (limit + 1, *shape[1:])) for each, shape in shapes)
    if size > LARGEST_REFUSED:
        return skipped(f"{limit + 1} samples are {size / 2**20:.0f} MiB")
    server.need_answer()
    return judged(server.call("ModelInfer", server.request(batch=limit + 1)))


def _unknown_model(server: Server) -> Outcome:
    server.need_end()
    replies = {
        "ModelMetadata": server.call("ModelMetadata", pb.ModelMetadataRequest(name=UNKNOWN)),
        "ModelInfer": server.call("ModelInfer", pb.ModelInferRequest(model_name=UNKNOWN)),
    }
    return _worst({rpc: judged(reply, Code.NOT_FOUND) for rpc, reply in replies.items()})


def _unknown_version(server: Server) -> Outcome:
    server.need_end()
    version = str(1 + max((int(each) for each in server.metadata.versions if each.isdecimal()), default=0) + 10**6)
    request = server.request()
    request.model_version = version
    metadata = pb.ModelMetadataRequest(name=server.model, version=version)
    replies = {
        "ModelMetadata": server.call("ModelMetadata", metadata),
        "ModelInfer": server.call("ModelInfer", request),
    }
    return _worst({rpc: judged(reply, Code.NOT_FOUND) for rpc, reply in replies.items()})


def _worst(outcomes: dict[str, Outcome]) -> Outcome:
    """Return the worse of several RPCs' outcomes, led by its RPC's name."""
    ranks = (Verdict.breaks, Verdict.warns, Verdict.ok)
    rpc, outcome = min(outcomes.items(), key=lambda pair: ranks.index(pair[1].verdict))
    return Outcome(outcome.verdict, f"{rpc}: {outcome.came}")


def _malformed(server: Server) -> Outcome:
    """Half a message: a field that says 100 bytes and has 3."""
    reply = server.call_raw(f"/{SERVICE}/ModelInfer", b"\x0a\x64abc")
    if reply.ok or reply.code in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED):
        return breaks("an answer" if reply.ok else str(reply))
    live = server.call("ServerLive", pb.ServerLiveRequest())
    return ok(str(reply)) if live.ok else breaks(f"{reply}; then ServerLive gave {live}")


MISLED = {
    "tritonclient": "raises a fault of the server's, so its caller retries or alarms instead of mending the request"
}
WRONG = {"every client": "takes an answer to a wrong request for a right one, or a server's fault for its own"}

CHECKS = (
    Check(
        "refuse-mixed-contents",
        "raw and typed contents in one request",
        "A request holds raw or typed contents, never both.",
        WRONG,
        _refuses(_mix),
    ),
    Check(
        "refuse-missing-input",
        "a request without the last input",
        "All inputs are needed.",
        MISLED,
        _refuses(_drop_input),
    ),
    Check(
        "refuse-unknown-input",
        "a request with an input too many",
        "An input that the model hasn't is an error of the caller's.",
        WRONG,
        _refuses(_add_input),
    ),
    Check(
        "refuse-raw-count",
        "a raw entry too many",
        "There is one raw entry for each input.",
        WRONG,
        _refuses(_add_raw),
    ),
    Check(
        "refuse-shape",
        "a shape with a dimension too many",
        "Shapes fit the metadata.",
        MISLED,
        _refuses(_add_side),
    ),
    Check(
        "refuse-negative-shape",
        "a shape with -1 in it",
        "-1 is for metadata; in a request every size is known.",
        MISLED,
        _refuses(_negate_side),
    ),
    Check(
        "refuse-datatype",
        "another datatype",
        "Datatypes are the metadata's.",
        WRONG,
        _refuses(_change_datatype),
    ),
    Check(
        "refuse-byte-count",
        "a byte too few",
        "Raw contents are as long as datatype and shape say.",
        MISLED,
        _refuses(_cut),
    ),
    Check(
        "refuse-batch",
        "a sample more than max_batch_size",
        "Clients send what they are told to, so the server must refuse it.",
        {"perf_analyzer": "-b above the limit measures what the server says that it can't do"},
        _batch,
    ),
    Check(
        "refuse-unknown-output",
        "an output that isn't there",
        "An output that the model hasn't can't be left out silently.",
        {"tritonclient": "as_numpy returns None, or the error is taken for a server's fault"},
        _refuses(_name_output),
    ),
    Check(
        "refuse-unknown-model",
        "a model that isn't there",
        "NOT_FOUND tells a misspelt name from a broken server.",
        MISLED,
        _unknown_model,
    ),
    Check(
        "refuse-unknown-version",
        "a version that isn't there",
        "NOT_FOUND tells a version that isn't there from a broken server.",
        MISLED,
        _unknown_version,
    ),
    Check(
        "refuse-malformed",
        "bytes that are no message",
        "The call ends with a status and the server stays.",
        {"every client": "of the same server is cut off by one broken client"},
        _malformed,
    ),
)
