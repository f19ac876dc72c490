"""Checks the bidirectional stream."""

import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from aimass.oip_check.finding import Check, Outcome, breaks, ok, warns
from aimass.oip_check.server import SERVICE, Metadata, Reply, Server, Unmet, reply_of
from aimass.open_inference import grpc_service_pb2 as pb

PATH = f"/{SERVICE}/ModelStreamInfer"
HELD_STREAMS = 16
"""perf_analyzer holds one for each concurrency slot during the whole run."""


@dataclass(frozen=True)
class Stream:
    """What came on a stream: messages as bytes, and how it ended."""

    messages: list[bytes]
    end: Reply

    @property
    def answers(self) -> list[pb.ModelInferResponse]:
        """The answers that are no errors."""
        return [each.infer_response for each in self._parsed() if not each.error_message]

    @property
    def errors(self) -> list[str]:
        """The errors that came as messages."""
        return [each.error_message for each in self._parsed() if each.error_message]

    def _parsed(self) -> list[pb.ModelStreamInferResponse]:
        return [pb.ModelStreamInferResponse.FromString(message) for message in self.messages]


def _stream(server: Server, requests: Iterable[pb.ModelInferRequest], metadata: Metadata = ()) -> Stream:
    """Send *requests*, close, and return all that comes."""
    method = server.channel.stream_stream(PATH, request_serializer=pb.ModelInferRequest.SerializeToString)
    call = method(iter(requests), timeout=server.timeout, metadata=metadata)
    messages: list[bytes] = []
    try:
        messages.extend(call)
    except grpc.RpcError as error:
        return Stream(messages, reply_of(error))
    return Stream(messages, Reply(grpc.StatusCode.OK))


def _usable(server: Server) -> Stream:
    """Return what comes for one right request, if there are streams at all."""
    request = _right(server, "oip-check-1")
    stream = _stream(server, [request])
    if stream.end.missing:
        raise Unmet("ModelStreamInfer is UNIMPLEMENTED; perf_analyzer --streaming can't be used")
    return stream


def _right(server: Server, id: str) -> pb.ModelInferRequest:
    server.need_answer()
    return server.request(id=id)


def _wrong(server: Server, id: str) -> pb.ModelInferRequest:
    request = _right(server, id)
    request.outputs.add(name="oip-check-unknown")
    return request


def _type(server: Server) -> Outcome:
    stream = _usable(server)
    if not stream.messages:
        return breaks(f"no message, then {stream.end}")
    if _is_bare(server, stream.messages[0]):
        return breaks("a bare ModelInferResponse")
    return ok("ModelStreamInferResponse") if stream.end.ok else breaks(f"an answer, then {stream.end}")


def _is_bare(server: Server, message: bytes) -> bool:
    """A bare answer is no ModelStreamInferResponse, or one whose error is the model's name."""
    try:
        return pb.ModelStreamInferResponse.FromString(message).error_message == server.model
    except DecodeError:
        return True


def _readable(server: Server) -> Stream:
    stream = _usable(server)
    if not stream.messages or _is_bare(server, stream.messages[0]) or not stream.end.ok:
        raise Unmet("needs a stream that answers: see stream-type")
    return stream


def _id(server: Server) -> Outcome:
    ids = [each.id for each in _readable(server).answers]
    return ok("the same id") if ids and set(ids) == {"oip-check-1"} else breaks(f"ids {ids}")


def _error(server: Server) -> Outcome:
    _readable(server)
    stream = _stream(server, [_right(server, "1"), _wrong(server, "2"), _right(server, "3")])
    ids = sorted(each.id for each in stream.answers)
    if not stream.end.ok:
        return breaks(f"the stream ended with {stream.end}")
    if not stream.errors:
        return breaks(f"no error_message, answers to {ids}")
    return ok(f"error_message: {stream.errors[0][:80]}") if ids == ["1", "3"] else breaks(f"answers to {ids} only")


def _grpc_error(server: Server) -> Outcome:
    _readable(server)
    stream = _stream(server, [_wrong(server, "1")], (("triton_grpc_error", "true"),))
    return warns("an error_message in a stream that ends OK") if stream.end.ok else ok(str(stream.end))


def _final(server: Server) -> Outcome:
    _readable(server)
    request = _right(server, "1")
    request.parameters["triton_enable_empty_final_response"].bool_param = True
    answers = _stream(server, [request]).answers
    if not answers or not answers[-1].parameters["triton_final_response"].bool_param:
        return warns("no answer says triton_final_response")
    return ok("the last answer says so")


def _starvation(server: Server) -> Outcome:
    """Hold streams open that say nothing, as idle slots do, and ask beside them."""
    _readable(server)
    done = threading.Event()

    def held() -> Iterator[pb.ModelInferRequest]:
        yield server.request(id="held")
        done.wait()

    method = server.channel.stream_stream(PATH, request_serializer=pb.ModelInferRequest.SerializeToString)
    until = time.monotonic() + server.timeout
    calls = [method(held(), timeout=3 * server.timeout) for _ in range(HELD_STREAMS)]
    try:
        reply = server.call("ServerLive", pb.ServerLiveRequest())
        answered = sum(_answers_until(call, until) for call in calls)
    finally:
        done.set()
        for call in calls:
            _end(call)
    if not reply.ok or answered < HELD_STREAMS:
        return breaks(f"{answered} of {HELD_STREAMS} streams were answered, ServerLive beside them gave {reply}")
    return ok(f"{answered} streams and a call beside them were answered")


def _end(call: Any) -> None:
    """Wait for the end of a stream that was closed, so that the server has it no more when the next check asks."""
    with suppress(grpc.RpcError):
        for _ in call:
            pass


def _answers_until(call: Any, until: float) -> bool:
    """Whether a message comes before *until*; the call is given up then."""
    timer = threading.Timer(max(until - time.monotonic(), 0.1), call.cancel)
    timer.start()
    try:
        next(call)
    except (StopIteration, grpc.RpcError):
        return False
    finally:
        timer.cancel()
    return True


CHECKS = (
    Check(
        "stream-type",
        "ModelStreamInfer with one request",
        "A stream's messages are ModelStreamInferResponse; some servers send the bare ModelInferResponse.",
        {
            "tritonclient": "cannot decode an answer: the aio client raises, the other waits for ever",
            "perf_analyzer": "--streaming can't be used",
        },
        _type,
    ),
    Check(
        "stream-id",
        "the id of a stream's answer",
        "On a stream an answer is matched to its request by id alone.",
        {"perf_analyzer": "--streaming waits for answers that it can't match", "tritonclient": "callbacks can't match"},
        _id,
    ),
    Check(
        "stream-error",
        "a wrong request between two right ones on a stream",
        "A request's error is a message; the stream goes on and ends OK.",
        {"tritonclient": "loses the stream and all requests on it", "perf_analyzer": "--streaming ends"},
        _error,
    ),
    Check(
        "stream-grpc-error",
        "a wrong request on a stream with triton_grpc_error: true",
        "With this metadata an error is the stream's status, and ends it.",
        {"tritonclient with triton_grpc_error": "gets no status"},
        _grpc_error,
    ),
    Check(
        "stream-final-response",
        "triton_enable_empty_final_response on a stream",
        "The last answer to a request says triton_final_response.",
        {"tritonclient": "callers that wait for triton_final_response wait for ever"},
        _final,
    ),
    Check(
        "stream-concurrency",
        f"{HELD_STREAMS} streams that are held open, and a call beside them",
        "A server with fewer workers than streams has none left for anything else.",
        {"perf_analyzer": "--streaming hangs at higher concurrency", "every client": "waits until streams end"},
        _starvation,
    ),
)
