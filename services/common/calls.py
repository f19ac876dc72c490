"""What is done around every gRPC call of a server: request id, trace, count, and the status that it ends with."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc
from grpc_status import rpc_status

from services.common.logs import bind_request_id
from services.common.metrics import LabelledCounts
from services.common.statuses import log_failure, status_of
from services.common.tracing import call_span

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]

CALLS = LabelledCounts("aimass_grpc_calls", "gRPC calls that have ended.", ("method", "code"))


@asynccontextmanager
async def ending_with_status(method: str, context: Context) -> AsyncIterator[None]:
    """Bind the call's request id, trace and count it, and end a failed call with the status of its exception."""
    metadata = context.invocation_metadata()
    bind_request_id(metadata)
    code = grpc.StatusCode.CANCELLED
    try:
        with call_span(method, metadata):
            yield
        code = grpc.StatusCode.OK
    except grpc.aio.AbortError:
        raise
    except Exception as error:
        status = status_of(error)
        code = status.code
        log_failure(status, error, method=method)
        await context.abort_with_status(rpc_status.to_status(status.proto))
    finally:
        CALLS.add((method, code.name))
