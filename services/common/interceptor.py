"""Runs something around every call of a server, whatever the call's arity."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc

if TYPE_CHECKING:
    Handler = grpc.RpcMethodHandler[Any, Any] | None
    Context = grpc.aio.ServicerContext[Any, Any]
    Around = Callable[[str, Context], AbstractAsyncContextManager[None]]

GRPC_INTERNAL = "/grpc."
"""Prefix of gRPC's own services (health, reflection), which are left alone: their streams never end by themselves."""


class AroundInterceptor(grpc.aio.ServerInterceptor):
    """Enters *around*(method, context) before each call and leaves it after; it sees the call's exception."""

    def __init__(self, around: Around) -> None:
        self._around = around

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """Return the called method's handler, wrapped; an unknown method stays gRPC's UNIMPLEMENTED."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or method.startswith(GRPC_INTERNAL):
            return handler
        return _wrap(handler, method, self._around)


def _wrap(handler: grpc.RpcMethodHandler[Any, Any], method: str, around: Around) -> Handler:
    # Requests are parsed inside: grpc itself would answer one that is no message as a fault of ours.
    parse = handler.request_deserializer or _as_it_is
    if handler.request_streaming:
        parse = partial(_parse_each, parse)
    if handler.response_streaming:
        if handler.request_streaming:
            make, behavior = grpc.stream_stream_rpc_method_handler, handler.stream_stream
        else:
            make, behavior = grpc.unary_stream_rpc_method_handler, handler.unary_stream
        wrapped: Any = _around_stream(behavior, parse, method, around)
    else:
        if handler.request_streaming:
            make, behavior = grpc.stream_unary_rpc_method_handler, handler.stream_unary
        else:
            make, behavior = grpc.unary_unary_rpc_method_handler, handler.unary_unary
        wrapped = _around_unary(behavior, parse, method, around)
    return make(wrapped, None, handler.response_serializer)


def _as_it_is(request: bytes) -> bytes:
    return request


async def _parse_each(parse: Any, requests: AsyncIterable[bytes]) -> AsyncIterator[Any]:
    async for request in requests:
        yield parse(request)


def _around_unary(behavior: Any, parse: Any, method: str, around: Around) -> Any:
    async def call(request: Any, context: Context) -> Any:
        async with around(method, context):
            return await behavior(parse(request), context)

    return call


def _around_stream(behavior: Any, parse: Any, method: str, around: Around) -> Any:
    async def call(request: Any, context: Context) -> AsyncIterator[Any]:
        async with around(method, context):
            async for response in behavior(parse(request), context):
                yield response

    return call
