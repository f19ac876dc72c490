"""What users are told about the models."""

from collections.abc import Mapping

from aimass.gateway.v1 import gateway_pb2 as pb
from aimass.inference.v1 import lifecycle_pb2
from services.common.errors import NotFound, NotReady
from services.common.traffic import choose_version, ready_versions


def describe_models(states: Mapping[str, lifecycle_pb2.ModelState]) -> list[pb.Model]:
    """Return the public description of each model, by name."""
    return [_describe(states[name]) for name in sorted(states)]


def _describe(state: lifecycle_pb2.ModelState) -> pb.Model:
    try:
        number = choose_version(state)
    except (NotFound, NotReady) as error:  # the version that shall serve was deleted, or none can
        return pb.Model(name=state.model, ready_versions=ready_versions(state), state_reason=error.message)
    version = next(each for each in state.versions if each.version == number)
    return pb.Model(
        name=state.model,
        version=number,
        ready=True,
        accepts_images=bool(version.preprocess_spec),
        labels=version.labels,
        ready_versions=ready_versions(state),
        metrics=version.metrics,
    )
