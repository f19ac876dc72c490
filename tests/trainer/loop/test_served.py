"""What the loop asks of inference, of the real service with the tiny classifier."""

from pathlib import Path

import numpy as np
import pytest

from aimass.open_inference import grpc_service_pb2
from aimass.open_inference.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from services.common.errors import Conflict, NotFound, NotReady
from services.inference.service import InferenceComponent
from services.inference.settings import InferenceSettings
from services.trainer.loop.served import LEAST_EXECUTIONS, Served, traffic_fact
from services.trainer.loop.values import TrialCounts, Wanted
from tests.conftest import Classifier, Serve
from tests.conftest import Served as Running
from tests.trainer.loop.conftest import MODEL


@pytest.fixture
async def inference(serve: Serve, model_repository: Path, tiny_classifier: Classifier, device: str) -> Running:
    """The real service with two versions of model `tiny`, one of which serves."""
    tiny_classifier.install(model_repository, MODEL, 2)
    settings = InferenceSettings(repository=model_repository, device=device, threads=1)
    return await serve(lambda stop: InferenceComponent(settings, stop))


@pytest.fixture
async def served(inference: Running) -> Served:
    return Served(inference.address)


async def infer(inference: Running, version: str = "", count: int = 1, size: int = 2, routing_key: str = "") -> None:
    pixels = np.zeros((size, 4, 4, 3), np.uint8)
    tensor = grpc_service_pb2.ModelInferRequest.InferInputTensor(name="image", datatype="UINT8", shape=pixels.shape)
    request = grpc_service_pb2.ModelInferRequest(
        model_name=MODEL, model_version=version, inputs=[tensor], raw_input_contents=[pixels.tobytes()]
    )
    for _ in range(count):
        await GRPCInferenceServiceStub(inference.channel).ModelInfer(request)


async def test_a_change_of_the_traffic_is_read_back_and_needs_the_generation_that_was_seen(served: Served) -> None:
    before = traffic_fact(await served.model(MODEL))
    wanted = Wanted(stable=1, canary=2, canary_share=0.25)

    await served.set_traffic(MODEL, wanted, before.generation)
    with pytest.raises(Conflict) as caught:
        await served.set_traffic(MODEL, wanted, before.generation)

    after = traffic_fact(await served.model(MODEL))
    assert caught.value.reason == "STALE_GENERATION"
    assert (before.champion, before.ready) == (2, (1, 2))
    assert (after.champion, after.on_trial, after.fits(wanted)) == (1, 2, True)
    assert after.generation == before.generation + 1
    await served.close()


async def test_requests_and_times_are_counted_for_each_version(served: Served, inference: Running) -> None:
    assert await served.time_ratio(MODEL, 1, 2) is None
    await infer(inference, "1", count=LEAST_EXECUTIONS + 1)
    await infer(inference, "2", count=LEAST_EXECUTIONS)
    await infer(inference, "2", size=1)

    counts, ratio = await served.counts(MODEL, 1, 2), await served.time_ratio(MODEL, 1, 2)

    assert counts is not None
    assert (counts.requests, counts.stable_requests, counts.failed) == (LEAST_EXECUTIONS + 1, LEAST_EXECUTIONS + 1, 0)
    assert min(counts.seconds, counts.stable_seconds) > 0
    assert ratio is not None
    assert ratio * (await served.time_ratio(MODEL, 2, 1) or 0) == pytest.approx(1)
    assert await served.counts(MODEL, 1, 3) is None
    await served.close()


async def test_a_shadow_tells_on_how_many_samples_it_agreed(served: Served, inference: Running) -> None:
    generation = traffic_fact(await served.model(MODEL)).generation
    await served.set_traffic(MODEL, Wanted(stable=1, shadow=2), generation)
    assert await served.shadow(MODEL, 2) == TrialCounts()

    shown = None
    while not shown or not shown.requests:  # it runs after the answer has left
        await infer(inference, size=3)
        shown = await served.shadow(MODEL, 2)

    assert (shown.agreed, shown.samples, shown.failed) == (3 * shown.requests, 3 * shown.requests, 0)
    assert shown.stable_requests == shown.requests
    assert shown.seconds > 0
    assert await served.shadow(MODEL, 1) is None
    await served.close()


async def test_a_version_that_served_before_is_deleted_once_it_is_forgotten(served: Served) -> None:
    await served.set_traffic(MODEL, Wanted(stable=1), 0)
    await served.set_traffic(MODEL, Wanted(stable=2), 1)
    with pytest.raises(Conflict):
        await served.delete(MODEL, 1)

    await served.set_traffic(MODEL, Wanted(stable=2), 2, forget_previous=True)
    await served.delete(MODEL, 1)

    assert traffic_fact(await served.model(MODEL)).ready == (2,)
    with pytest.raises(NotFound):
        await served.delete(MODEL, 1)
    await served.close()


async def test_a_model_that_inference_does_not_know_has_no_versions(served: Served) -> None:
    assert traffic_fact(await served.model("other")).champion == 0
    assert set(await served.models()) == {MODEL}
    with pytest.raises(NotFound):
        await served.counts("other", 1, 2)
    await served.close()


async def test_an_inference_that_is_away_is_not_ready(served: Served, inference: Running) -> None:
    await inference.server.stop(0)

    with pytest.raises(NotReady, match="does not answer"):
        await served.models()
    await served.close()
