"""Suites under load: a thousand open streams, and the end amid many callers."""

import asyncio
import contextlib
import signal
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from itertools import count
from threading import Event, Semaphore

import grpc
import httpx
import pytest

from aimass.gateway.v1 import gateway_pb2
from aimass.gateway.v1.gateway_pb2_grpc import GatewayServiceStub
from aimass.open_inference import grpc_service_pb2 as pb
from aimass.open_inference.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from tests.end_to_end.pictures import cat
from tests.end_to_end.suite import MODES

STREAMS, CONNECTIONS, CALLERS = 1000, 4, 16
REFUSAL = "the server is stopping; call another one, or try again"
PREDICT = gateway_pb2.PredictRequest(model="cifar10", images=[cat()], top=1)


def sums_request(**fields) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name="sums", raw_input_contents=[bytes(16)] * 2, **fields)
    for name in ("a", "b"):
        request.inputs.add(name=name, datatype="FP32", shape=[1, 4])
    return request


async def connect(stack: AsyncExitStack, address: str) -> list[grpc.aio.Channel]:
    """Open several connections, which channels to one address share otherwise."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.aio.insecure_channel(address, options=options) for _ in range(CONNECTIONS)]
    return [await stack.enter_async_context(channel) for channel in channels]


async def test_a_thousand_open_streams_hold_no_unary_call_up(suite):
    async with AsyncExitStack() as stack:
        channels = await connect(stack, suite.address)
        stubs = [GRPCInferenceServiceStub(channel) for channel in channels]
        streams = [stubs[number % CONNECTIONS].ModelStreamInfer() for number in range(STREAMS)]
        await asyncio.gather(*(stream.write(sums_request()) for stream in streams))
        first = await asyncio.gather(*(stream.read() for stream in streams))

        tensors = await asyncio.gather(*(stubs[0].ModelInfer(sums_request(), timeout=30) for _ in range(50)))
        pictures = await asyncio.gather(*(GatewayServiceStub(channels[1]).Predict(PREDICT) for _ in range(10)))
        await asyncio.gather(*(stream.write(sums_request(id="second")) for stream in streams))
        second = await asyncio.gather(*(stream.read() for stream in streams))
        for stream in streams:
            stream.cancel()

    assert {each.infer_response.model_name for each in first} == {"sums"}
    assert len(tensors) == 50
    assert {each.results[0].prediction.labels[0].label for each in pictures} == {"cat"}
    assert {each.infer_response.id for each in second} == {"second"}


@dataclass
class Callers:
    """Callers of every kind, each of which calls again at once until it finds nobody there."""

    address: str
    url: str
    answered: Counter[str] = field(default_factory=Counter)
    """Answers by kind of call."""
    ids: set[str] = field(default_factory=set)
    """Of the tensors that were answered."""
    refused: list[str] = field(default_factory=list)
    busy: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when every kind was answered many times."""

    async def run(self) -> None:
        async with AsyncExitStack() as stack:
            channels = await connect(stack, self.address)
            http = await stack.enter_async_context(httpx.AsyncClient(base_url=self.url, trust_env=False, timeout=60))
            once = httpx.Limits(max_keepalive_connections=0)
            fresh = await stack.enter_async_context(
                httpx.AsyncClient(base_url=self.url, trust_env=False, timeout=60, limits=once)
            )
            numbers = count()
            async with asyncio.TaskGroup() as group:
                for number in range(CALLERS):
                    channel = channels[number % CONNECTIONS]
                    group.create_task(self._tensors(GRPCInferenceServiceStub(channel), numbers))
                    group.create_task(self._pictures(GatewayServiceStub(channel)))
                    group.create_task(self._http(http, "HTTP"))
                    group.create_task(self._http(fresh, "HTTP, new connections"))

    async def _tensors(self, stub: GRPCInferenceServiceStub, numbers: count) -> None:
        while True:
            try:
                answer = await stub.ModelInfer(sums_request(id=str(next(numbers))))
            except grpc.aio.AioRpcError as error:
                self._refuse("tensors", error.code().name, error.details())
                if error.details() != REFUSAL:
                    return
            else:
                self.ids.add(answer.id)
                self._count("tensors")

    async def _pictures(self, stub: GatewayServiceStub) -> None:
        while True:
            try:
                await stub.Predict(PREDICT)
            except grpc.aio.AioRpcError as error:
                self._refuse("pictures", error.code().name, error.details())
                if error.details() != REFUSAL:
                    return
            else:
                self._count("pictures")

    async def _http(self, client: httpx.AsyncClient, kind: str) -> None:
        while True:
            try:
                response = await client.post("/v1/models/cifar10/predict", content=cat())
            except httpx.ConnectError:
                return self._refuse(kind, "UNAVAILABLE", "nobody listens")
            except httpx.TransportError as error:  # the request may have been run
                return self._refuse(kind, "LOST", type(error).__name__)
            if response.status_code != 200:
                return self._refuse(kind, response.json()["error"]["code"], response.text)
            self._count(kind)

    def _count(self, kind: str) -> None:
        self.answered[kind] += 1
        if len(self.answered) == 4 and min(self.answered.values()) >= 3 * CALLERS:
            self.busy.set()

    def _refuse(self, kind: str, code: str, text: str) -> None:
        self.refused.append(f"{kind}: {code}: {text}")


@pytest.mark.parametrize("mode", MODES)
async def test_no_request_that_was_accepted_is_lost_when_a_suite_is_stopped_under_load(start, mode):
    suite = await asyncio.to_thread(start, mode)
    async with grpc.aio.insecure_channel(suite.address) as channel:
        verbose = {"log_verbose_level": pb.LogSettingsRequest.SettingValue(uint32_param=1)}
        await GRPCInferenceServiceStub(channel).LogSettings(pb.LogSettingsRequest(settings=verbose))

    started = len(suite.events())
    callers = Callers(suite.address, suite.url)
    running = asyncio.create_task(callers.run())
    await callers.busy.wait()
    suite.signal(signal.SIGTERM)
    await running
    code = await asyncio.to_thread(suite.wait)

    events = suite.events()[started:]
    ran = {event["id"] for event in events if event["event"] == "inference answered"}
    assert code == 0
    assert len(ran) >= 3 * CALLERS
    assert ran - callers.ids == set()  # whatever was run has reached its caller
    # A server that accepts a call and then refuses it says so in its log; callers are refused before that.
    assert [event for event in events if event["event"] in ("call refused", "call failed")] == []
    # Never CANCELLED, which grpc makes of calls that it had received, but not begun, when it was told to stop.
    assert [refused for refused in callers.refused if refused.split(": ")[1] != "UNAVAILABLE"] == []
    assert len([refused for refused in callers.refused if REFUSAL not in refused]) == 4 * CALLERS
    assert suite.new_errors() == []
    assert "Traceback" not in suite.logged


def exchange(address: str, window: int, answered: Semaphore) -> tuple[str, str]:
    """Keep *window* requests of a stream under way until it ends; return how. Answers come in order, without a gap.

    Not with grpc.aio, whose clients call it an internal error when a stream ends while they write.
    """
    room, ended, numbers, expected = Semaphore(window), Event(), count(), count()

    def requests():
        while room.acquire() and not ended.is_set():
            yield sums_request(id=str(next(numbers)))

    with grpc.insecure_channel(address) as channel:
        stream = GRPCInferenceServiceStub(channel).ModelStreamInfer(requests())
        with contextlib.suppress(grpc.RpcError):
            for answer in stream:
                assert answer.infer_response.id == str(next(expected))
                room.release()
                answered.release()
        ended.set()
        room.release()
        return stream.code().name, stream.details()


@pytest.mark.parametrize("mode", MODES)
def test_streams_that_never_pause_end_with_a_sentence_when_a_suite_is_stopped(start, mode):
    suite, answered = start(mode), Semaphore(0)
    with ThreadPoolExecutor(4) as threads:
        streams = [threads.submit(exchange, suite.address, window, answered) for window in (1, 32, 32, 32)]
        for _ in range(100):
            answered.acquire()
        suite.signal(signal.SIGTERM)
        ends = {stream.result() for stream in streams}
        code = suite.wait()

    assert code == 0
    # Not CANCELLED, with which those end that run until the grace is over.
    assert ends == {("UNAVAILABLE", "the server is stopping; send what was not answered again")}
    assert suite.new_errors() == []
