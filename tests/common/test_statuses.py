"""The one error table, seen by a client of a real server."""

import asyncio

import grpc
import pytest
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from services.common import errors
from services.common.statuses import CODES, ERROR_DOMAIN, status_of

ERRORS = sorted(CODES, key=lambda error: error.__name__)


@pytest.fixture
def fail_with(serve_handlers):
    """A function that lets a server raise an error and returns what its client gets."""

    async def fail(error: BaseException) -> grpc.aio.AioRpcError:
        async def behavior(request, context):
            raise error

        served = await serve_handlers(Fail=behavior)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await served.channel.unary_unary("/test.Test/Fail")(b"")
        return caught.value

    return fail


def details_of(error: grpc.aio.AioRpcError) -> dict[str, object]:
    found = {}
    for detail in rpc_status.from_call(error).details:
        message = getattr(error_details_pb2, detail.TypeName().rpartition(".")[2])()
        assert detail.Unpack(message)
        found[type(message).__name__] = message
    return found


def test_every_service_error_has_a_row_of_its_own():
    def descendants(error):
        return {error, *(each for child in error.__subclasses__() for each in descendants(child))}

    assert descendants(errors.ServiceError) - {errors.ServiceError} == set(CODES)
    assert len(set(CODES.values())) == len(CODES)


@pytest.mark.parametrize("error", ERRORS)
async def test_service_error_reaches_the_client_with_code_and_sentence(fail_with, error):
    received = await fail_with(error("a sentence, häßlich"))

    assert (received.code(), received.details()) == (CODES[error], "a sentence, häßlich")
    assert details_of(received)["ErrorInfo"].reason == error.reason


async def test_details_carry_what_a_program_can_act_on(fail_with):
    received = await fail_with(
        errors.InvalidInput(
            "too big", reason="TOO_BIG", field="images", details={"limit": "8"}, retry_after_seconds=1.5
        )
    )

    found = details_of(received)
    info, (violation,) = found["ErrorInfo"], found["BadRequest"].field_violations
    assert (info.reason, info.domain, dict(info.metadata)) == ("TOO_BIG", ERROR_DOMAIN, {"limit": "8"})
    assert (violation.field, violation.description) == ("images", "too big")
    assert found["RetryInfo"].retry_delay.ToMilliseconds() == 1500


@pytest.mark.parametrize("text", ["x" * 100_000, "ß" * 50_000, "\N{GRINNING FACE}" * 20_000], ids=["1", "2", "4 bytes"])
async def test_message_that_quotes_much_still_fits_the_trailers(fail_with, text):
    received = await fail_with(errors.Conflict(f"not {text}", field="model", details={"value": text}))

    assert received.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert received.details().startswith(f"not {text[:200]}")
    assert received.details().endswith("…")
    assert details_of(received)["ErrorInfo"].reason == "CONFLICT"


@pytest.mark.parametrize("error", [ValueError("secret"), KeyError("secret"), OSError("secret")])
async def test_unexpected_error_is_internal_and_hides_its_text(fail_with, error):
    received = await fail_with(error)

    assert (received.code(), received.details()) == (grpc.StatusCode.INTERNAL, "internal error")


@pytest.mark.parametrize(
    ("error", "code", "advice"),
    [
        (NotImplementedError(), grpc.StatusCode.UNIMPLEMENTED, "; ask its reflection for those that it has"),
        (TimeoutError(), grpc.StatusCode.DEADLINE_EXCEEDED, "; allow more time or send less"),
        (DecodeError(), grpc.StatusCode.INVALID_ARGUMENT, "; send one of that type"),
    ],
)
async def test_python_error_with_a_meaning_keeps_it_and_says_what_to_do(fail_with, error, code, advice):
    received = await fail_with(error)

    assert received.code() is code
    assert received.details().endswith(advice)


async def test_status_of_a_backend_passes_through_with_its_details(fail_with):
    backend = await fail_with(errors.NotFound("no model 'x'", reason="MODEL_NOT_FOUND", field="model"))

    received = await fail_with(backend)

    assert (received.code(), received.details()) == (backend.code(), backend.details())
    assert details_of(received) == details_of(backend)
    assert status_of(backend).reason == "MODEL_NOT_FOUND"


async def test_deadline_that_a_backend_speaks_of_keeps_its_words_and_reason(fail_with):
    backend = await fail_with(errors.DeadlineExceeded("no part came for 60 seconds; leave no gaps", reason="GAP"))

    received = await fail_with(backend)

    assert (received.code(), received.details()) == (backend.code(), "no part came for 60 seconds; leave no gaps")
    assert details_of(received)["ErrorInfo"].reason == "GAP"


async def test_deadline_at_which_grpc_ended_the_call_gets_our_words(serve_handlers, fail_with):
    async def hang(request, context):
        await asyncio.Event().wait()

    served = await serve_handlers(Hang=hang)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.channel.unary_unary("/test.Test/Hang")(b"", timeout=0.01)
    received = await fail_with(caught.value)

    assert received.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert received.details() == "the deadline passed before the answer was ready; allow more time or send less"


async def test_plain_status_of_a_foreign_backend_passes_through(serve_handlers, fail_with):
    async def abort(request, context):
        await context.abort(grpc.StatusCode.OUT_OF_RANGE, "beyond the end")

    served = await serve_handlers(Abort=abort)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.channel.unary_unary("/test.Test/Abort")(b"")
    received = await fail_with(caught.value)

    assert (received.code(), received.details()) == (grpc.StatusCode.OUT_OF_RANGE, "beyond the end")
    assert status_of(caught.value).reason == "OUT_OF_RANGE"


async def test_lost_backend_is_unavailable_without_our_addresses(fail_with):
    async with grpc.aio.insecure_channel("127.0.0.1:1") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary("/test.Test/Any")(b"")
    received = await fail_with(caught.value)

    assert received.code() is grpc.StatusCode.UNAVAILABLE
    assert "127.0.0.1" in caught.value.details()
    assert "127.0.0.1" not in received.details()


async def test_call_that_a_stopping_backend_dropped_may_be_tried_again(serve_handlers, fail_with):
    async def drop(request, context):
        await context.abort(grpc.StatusCode.CANCELLED, "CANCELLED")  # as grpc does with what it had not begun

    served = await serve_handlers(Drop=drop)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.channel.unary_unary("/test.Test/Drop")(b"")

    assert (await fail_with(caught.value)).code() is grpc.StatusCode.UNAVAILABLE


async def test_cancelled_call_stops_its_handler(serve_handlers):
    entered, left = asyncio.Event(), asyncio.Event()

    async def hang(request, context):
        entered.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            left.set()
            raise

    served = await serve_handlers(Hang=hang)
    call = served.channel.unary_unary("/test.Test/Hang")(b"")
    await entered.wait()
    call.cancel()

    await left.wait()
    assert await call.code() is grpc.StatusCode.CANCELLED
