"""Passes the calls of a service on to a backend as bytes, unparsed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor

from gateway.access import AUTHORIZATION
from services.common.errors import NotReady
from services.common.identity import CALLER_KEY, STRANGER, bound_caller, caller_metadata
from services.common.logs import REQUEST_ID_KEY
from services.common.peers import FORWARDED_PEER_KEY
from services.common.server import Service, StopSignal
from services.common.tracing import TRACEPARENT, call_metadata

_OURS = frozenset({"user-agent", AUTHORIZATION, CALLER_KEY, REQUEST_ID_KEY, TRACEPARENT})
"""Metadata that is not passed on: keys stay at the door, and who calls and by which id is said by the gateway."""

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[bytes, bytes]


def forwarded_service(channel: grpc.aio.Channel, descriptor: ServiceDescriptor, stop: StopSignal) -> Service:
    """Return the service that *descriptor* describes, answered by what *channel* leads to.

    Only the methods' names and arities are taken from the descriptor; requests and answers pass as they are. When the
    process stops, open streams of requests are ended.
    """
    handlers = {method.name: _forward(channel, method, stop) for method in descriptor.methods}
    generic = grpc.method_handlers_generic_handler(descriptor.full_name, handlers)
    return Service(descriptor.full_name, lambda server: server.add_generic_rpc_handlers((generic,)))


def _forward(channel: grpc.aio.Channel, method: MethodDescriptor, stop: StopSignal) -> grpc.RpcMethodHandler[Any, Any]:
    path = f"/{method.containing_service.full_name}/{method.name}"
    if method.server_streaming:
        if method.client_streaming:
            return grpc.stream_stream_rpc_method_handler(_both_streams_through(channel.stream_stream(path), stop))
        return grpc.unary_stream_rpc_method_handler(_answers_through(channel.unary_stream(path), stop))
    if method.client_streaming:
        return grpc.stream_unary_rpc_method_handler(_requests_through(channel.stream_unary(path), stop))
    return grpc.unary_unary_rpc_method_handler(_unary_through(channel.unary_unary(path)))


def _unary_through(call: Any) -> Any:
    async def forward(request: bytes, context: Context) -> bytes:
        # Awaiting in this task ties both calls: when the client cancels, so is the call behind.
        response: bytes = await call(request, timeout=context.time_remaining(), metadata=_metadata(context))
        return response

    return forward


def _answers_through(call: Any, stop: StopSignal) -> Any:
    async def forward(request: bytes, context: Context) -> AsyncIterator[bytes]:
        # Whoever follows something may do so for hours: at our stop it is told to go on elsewhere.
        answers = call(request, timeout=context.time_remaining(), metadata=_metadata(context))
        async for response in stop.until(aiter(answers)):
            yield response

    return forward


def _both_streams_through(call: Any, stop: StopSignal) -> Any:
    async def forward(requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
        # Where they are cut off, the call behind takes it for their end, and answers those before.
        passed = _Requests(requests, stop, ends_whole=True)
        metadata = _metadata(context, stream=True)
        async for response in call(aiter(passed), timeout=context.time_remaining(), metadata=metadata):
            yield response
        if passed.cut is not None:
            raise passed.cut

    return forward


def _requests_through(call: Any, stop: StopSignal) -> Any:
    async def forward(requests: AsyncIterator[bytes], context: Context) -> bytes:
        # Where they are cut off, the call behind is cancelled: what has arrived must not pass for the whole.
        passed = _Requests(requests, stop, ends_whole=False)
        metadata = _metadata(context, stream=True)
        try:
            response: bytes = await call(aiter(passed), timeout=context.time_remaining(), metadata=metadata)
        except asyncio.CancelledError:
            if passed.cut is None:
                raise
            raise passed.cut from None
        return response

    return forward


class _Requests:
    """Requests on their way to the call behind, until the process stops."""

    def __init__(self, requests: AsyncIterator[bytes], stop: StopSignal, *, ends_whole: bool) -> None:
        self._requests = requests
        self._stop = stop
        self._ends_whole = ends_whole
        self.cut: NotReady | None = None
        """Why they end before their time."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for request in self._stop.until(self._requests):
                yield request
        except NotReady as stopped:
            self.cut = stopped
            if not self._ends_whole:
                raise


def _metadata(context: Context, stream: bool = False) -> list[tuple[str, str | bytes]]:
    """Return the caller's metadata without what belongs to the connection, with what only the gateway may say."""
    passed = [
        (key, value)
        for key, value in context.invocation_metadata() or ()
        if not key.startswith(("grpc-", ":")) and key not in _OURS
    ]
    caller = caller_metadata(bound_caller() or STRANGER)
    return [*passed, *call_metadata(stream=stream), caller, (FORWARDED_PEER_KEY, context.peer())]
