"""The figures of loaded versions as Prometheus reads them."""

import asyncio
import math

import pytest

from services.inference.contracts.execution import execute
from services.inference.metrics import ModelFigures
from services.inference.models.serving import ModelServer
from services.inference.models.shadowing import Shadow


@pytest.fixture
async def models(settings, add_model, tiny_classifier):
    """The models of a repository whose tiny classifier has a bare graph as its version 2."""
    add_model(tiny_classifier.path, "twin", 1)
    add_model(tiny_classifier.path, "twin", 2)
    models = ModelServer(settings())
    await models.start()
    yield models
    await models.close()


def figures(models: ModelServer) -> dict[str, list]:
    return {metric.name: metric.samples for metric in ModelFigures(models).collect()}


async def test_each_request_that_a_shadow_is_offered_counts_once_and_compared_ones_are_timed(
    models, infer_request, images
):
    await models.set_traffic("twin", 1, None, shadow_version=2)
    (model,) = (each for each in models.models() if each.name == "twin")
    for _ in range(3):
        await execute(models, infer_request(images, model_name="twin"), math.inf)
        await _settled(model.shadow)
    found = figures(models)

    outcomes = {sample.labels["outcome"]: sample.value for sample in found["aimass_shadow_requests"]}
    assert sum(outcomes.values()) == 3
    assert outcomes.keys() == {"agreed", "disagreed", "failed", "dropped", "skipped"}
    counted = {
        sample.labels["graph"]: sample.value
        for sample in found["aimass_shadow_graph_seconds"]
        if sample.name.endswith("_count")
    }
    assert counted == {"shadow": outcomes["agreed"], "stable": outcomes["agreed"]}
    assert outcomes["agreed"] > 0


async def _settled(shadow: Shadow) -> None:
    if shadow._running is not None:
        await asyncio.wait((shadow._running,))


async def test_runs_of_the_graph_are_counted_by_batch_size(models, infer_request, images):
    for _ in range(2):
        await execute(models, infer_request(images, model_name="twin"), math.inf)

    (sample,) = (each for each in figures(models)["aimass_inference_batches"] if each.name.endswith("_total"))
    assert (sample.labels, sample.value) == ({"model": "twin", "version": "2", "samples": "5"}, 2)
