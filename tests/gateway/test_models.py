"""What users are told about models whose traffic points to versions in every state."""

import pytest

from aimass.inference.v1 import lifecycle_pb2 as pb
from gateway.models import describe_models

READY, UNAVAILABLE = pb.ModelVersion.STATE_READY, pb.ModelVersion.STATE_UNAVAILABLE


def state_of(stable, **versions):
    return pb.ModelState(
        model="cats",
        traffic=pb.Traffic(generation=1, stable_version=stable),
        versions=[
            pb.ModelVersion(version=int(name[1:]), state=state, labels=[f"label of {name}"], metrics={"accuracy": 0.5})
            for name, state in versions.items()
        ],
    )


def test_a_model_is_described_by_the_version_that_serves():
    (model,) = describe_models({"cats": state_of(1, v1=READY, v2=READY, v3=UNAVAILABLE)})

    assert (model.name, model.version, model.ready) == ("cats", 1, True)
    assert model.labels == ["label of v1"]
    assert model.metrics == {"accuracy": 0.5}
    assert model.ready_versions == [1, 2]


@pytest.mark.parametrize(
    "state",
    [state_of(0), state_of(0, v1=UNAVAILABLE), state_of(1, v1=UNAVAILABLE, v2=READY), state_of(7, v1=READY)],
    ids=["no version", "none ready", "stable not ready", "stable deleted"],
)
def test_a_model_that_cannot_serve_is_listed_as_not_ready(state):
    (model,) = describe_models({"cats": state})

    assert (model.name, model.version, model.ready) == ("cats", 0, False)


def test_models_are_described_by_name():
    states = {name: pb.ModelState(model=name) for name in ("zebras", "ants")}

    assert [model.name for model in describe_models(states)] == ["ants", "zebras"]
