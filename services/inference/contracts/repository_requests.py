"""The repository extension's messages <-> what the server of models takes: an index, and loads with overrides."""

from collections.abc import Iterable

from google.protobuf import json_format

from aimass.inference.v1 import lifecycle_pb2
from aimass.open_inference import grpc_service_pb2 as pb
from aimass.open_inference.model_config_pb2 import ModelConfig
from services.common.errors import InvalidInput, NotFound
from services.inference.config.model_config import check_config
from services.inference.models.repository import CONFIG_FILE

CONFIG_PARAMETER, FILE_PREFIX = "config", "file:"


def check_repository(name: str) -> None:
    """Refuse to speak of another repository than the one there is.

    Raises:
        NotFound: It has a name.
    """
    if name:
        raise NotFound(f"repository {name!r} is unknown; this server has one, leave repository_name out")


def index_message(states: Iterable[lifecycle_pb2.ModelState], ready_only: bool) -> pb.RepositoryIndexResponse:
    """Return an entry for each version; a model without one has an entry without a version."""
    response = pb.RepositoryIndexResponse()
    for state in states:
        for version in state.versions:
            if version.state == lifecycle_pb2.ModelVersion.STATE_READY or not ready_only:
                response.models.add(
                    name=state.model,
                    version=str(version.version),
                    state=lifecycle_pb2.ModelVersion.State.Name(version.state).removeprefix("STATE_"),
                    reason=version.state_reason,
                )
        if not (state.versions or ready_only):
            response.models.add(name=state.model, state="UNAVAILABLE", reason="the model's folder holds no version")
    return response


def load_overrides(request: pb.RepositoryModelLoadRequest) -> tuple[ModelConfig | None, dict[str, bytes]]:
    """Return the config and the files, by path below the model's folder, that a load request brings along.

    Raises:
        InvalidInput: A parameter is unknown or malformed, or files come without a config.
        Unsupported: The config asks for what is not done here.
    """
    config: ModelConfig | None = None
    files: dict[str, bytes] = {}
    for name, value in request.parameters.items():
        if name == CONFIG_PARAMETER:
            config = _parse_config(request.model_name, value.string_param)
        elif name.startswith(FILE_PREFIX):
            files[name.removeprefix(FILE_PREFIX)] = value.bytes_param
        else:
            raise InvalidInput(
                f"load parameter {name[:100]!r} is unknown; give {CONFIG_PARAMETER} and {FILE_PREFIX}<version>/<file>"
            )
    if files and config is None:
        raise InvalidInput(f"files come without their model's config; add the parameter {CONFIG_PARAMETER}")
    return config, files


def _parse_config(model: str, text: str) -> ModelConfig:
    try:
        config = json_format.Parse(text, ModelConfig())
    except json_format.ParseError as error:
        raise InvalidInput(f"parameter {CONFIG_PARAMETER} is no ModelConfig in JSON; correct it: {error}") from error
    check_config(config, model, f"parameter {CONFIG_PARAMETER}, which takes the place of {CONFIG_FILE},")
    return config
