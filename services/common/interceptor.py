"""Runs something around every call of a server, whatever the call's arity."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
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
    if handler.response_streaming:
        if handler.request_streaming:
            make, behavior = grpc.stream_stream_rpc_method_handler, handler.stream_stream
        else:
            make, behavior = grpc.unary_stream_rpc_method_handler, handler.unary_stream
        wrapped: Any = _around_stream(behavior, method, around)
    else:
        if handler.request_streaming:
            make, behavior = grpc.stream_unary_rpc_method_handler, handler.stream_unary
        else:
            make, behavior = grpc.unary_unary_rpc_method_handler, handler.unary_unary
        wrapped = _around_unary(behavior, method, around)
    return make(wrapped, handler.request_deserializer, handler.response_serializer)


def _around_unary(behavior: Any, method: str, around: Around) -> Any:
    async def call(request: Any, context: Context) -> Any:
        async with around(method, context):
            return await behavior(request, context)

    return call


def _around_stream(behavior: Any, method: str, around: Around) -> Any:
    async def call(request: Any, context: Context) -> AsyncIterator[Any]:
        async with around(method, context):
            async for response in behavior(request, context):
                yield response

    return call
