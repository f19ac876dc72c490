"""Checks what the server says of itself and of the model."""

from collections.abc import Iterable, Sequence

from aimass.oip_check.finding import Check, Outcome, breaks, ok, skipped, warns
from aimass.oip_check.server import Server
from aimass.oip_check.tensors import DATATYPES
from aimass.open_inference import grpc_service_pb2 as pb
from aimass.open_inference.model_config_pb2 import DataType, ModelInput, ModelOutput

KNOWN_EXTENSIONS = frozenset(
    (
        "classification",
        "sequence",
        "sequence(string_id)",
        "model_repository",
        "model_repository(unload_dependents)",
        "schedule_policy",
        "model_configuration",
        "system_shared_memory",
        "cuda_shared_memory",
        "binary_tensor_data",
        "parameters",
        "statistics",
        "trace",
        "logging",
    )
)
_DATATYPES = {number: name.removeprefix("TYPE_").replace("STRING", "BYTES") for name, number in DataType.items()}
Tensor = pb.ModelMetadataResponse.TensorMetadata


def _server_metadata(server: Server) -> Outcome:
    reply = server.server_metadata
    if not reply.ok:
        return breaks(str(reply))
    came = f"{reply.message.name} {reply.message.version}".strip()
    return ok(came) if reply.message.name and reply.message.version else warns(f"name or version is empty: {came!r}")


def _extensions_known(server: Server) -> Outcome:
    if not server.server_metadata.ok:
        return skipped("needs ServerMetadata, which failed: see server-metadata")
    unknown = sorted(server.extensions - KNOWN_EXTENSIONS)
    if unknown:
        return warns(f"no client knows the extension names {', '.join(unknown)}")
    return ok(", ".join(sorted(server.extensions)) or "none")


def _extensions_complete(server: Server) -> Outcome:
    if not server.server_metadata.ok:
        return skipped("needs ServerMetadata, which failed: see server-metadata")
    answers = {
        "model_configuration": server.config_reply.ok,
        "statistics": server.statistics_reply.ok,
        "model_repository": server.index.ok,
    }
    unlisted = [name for name, answered in answers.items() if answered and name not in server.extensions]
    if unlisted:
        return warns(f"answers, but doesn't list: {', '.join(unlisted)}")
    return ok("all that answers is listed")


def _model_metadata(server: Server) -> Outcome:
    reply = server.metadata_reply
    if not reply.ok:
        return breaks(str(reply))
    metadata = reply.message
    tensors = [*metadata.inputs, *metadata.outputs]
    unknown = [f"{each.name} is {each.datatype!r}" for each in tensors if each.datatype not in DATATYPES]
    if unknown:
        return breaks(f"unknown datatypes: {', '.join(unknown)}")
    if not metadata.inputs or not metadata.outputs:
        return breaks(f"{len(metadata.inputs)} inputs and {len(metadata.outputs)} outputs")
    if metadata.name != server.model:
        return warns(f"the name {metadata.name!r} for the model {server.model!r}")
    return ok(f"{_listed(metadata.inputs)} → {_listed(metadata.outputs)}")


def _listed(tensors: Iterable[Tensor]) -> str:
    return ", ".join(f"{each.name} {each.datatype}{list(each.shape)}" for each in tensors)


def _versions(server: Server) -> Outcome:
    versions = list(server.metadata.versions)
    if server.statistics_reply.ok:
        versions += [each.version for each in server.statistics_reply.message.model_stats]
    if server.baseline.ok:
        versions.append(server.answer.model_version)
    bad = sorted({each for each in versions if not each.isdecimal()})
    if bad:
        return breaks(f"versions that are no integers: {', '.join(map(repr, bad))}")
    return ok(", ".join(sorted(set(versions), key=int))) if versions else warns("no version anywhere")


def _model_config(server: Server) -> Outcome:
    reply = server.config_reply
    if not reply.ok:
        return breaks(str(reply))
    if not reply.message.config.input or not reply.message.config.output:
        return breaks("a config without inputs or outputs")
    return ok(f"max_batch_size {reply.message.config.max_batch_size}")


def _config_names(server: Server) -> Outcome:
    missing = [each.name for each in server.config.input if each.name not in _names(server.metadata.inputs)]
    missing += [each.name for each in server.config.output if each.name not in _names(server.metadata.outputs)]
    if missing:
        return breaks(f"in the config, but not in the metadata: {', '.join(missing)}")
    return ok("all are there")


def _names(tensors: Iterable[Tensor]) -> set[str]:
    return {each.name for each in tensors}


def _config_batch(server: Server) -> Outcome:
    batched = server.config.max_batch_size > 0
    wrong = [
        f"{name} has {list(shape)} in the metadata and {list(dims)} in the config"
        for name, shape, dims in _shapes(server)
        if not _same_sides(shape, [-1, *dims] if batched else dims)
    ]
    if wrong:
        return breaks(f"max_batch_size {server.config.max_batch_size}, but {'; '.join(wrong)}")
    return ok(f"max_batch_size {server.config.max_batch_size}: {'-1 leads' if batched else 'the same shapes'}")


def _shapes(server: Server) -> list[tuple[str, Sequence[int], Sequence[int]]]:
    """Return name, shape in the metadata and dims in the config of each tensor that both have."""
    config = {each.name: each.dims for each in _config_tensors(server)}
    metadata = [*server.metadata.inputs, *server.metadata.outputs]
    return [(each.name, each.shape, config[each.name]) for each in metadata if each.name in config]


def _config_tensors(server: Server) -> list[ModelInput | ModelOutput]:
    return [*server.config.input, *server.config.output]


def _same_sides(shape: Sequence[int], expected: Sequence[int]) -> bool:
    """A config may know a size that the metadata leaves open, and the reverse."""
    return len(shape) == len(expected) and (not expected or (expected[0] != -1 or shape[0] == -1))


def _config_datatypes(server: Server) -> Outcome:
    said = {each.name: each.datatype for each in (*server.metadata.inputs, *server.metadata.outputs)}
    config = {
        each.name: _DATATYPES.get(each.data_type, f"the unknown {each.data_type}") for each in _config_tensors(server)
    }
    wrong = [
        f"{name} is {said[name]} and {config[name]}" for name in config if said.get(name, config[name]) != config[name]
    ]
    return breaks(f"metadata and config differ: {'; '.join(wrong)}") if wrong else ok("the same")


CHECKS = (
    Check(
        "server-metadata",
        "ServerMetadata",
        "perf_analyzer asks it before the first request, to learn the extensions.",
        {"perf_analyzer": "ends with an error before it sends a request", "tritonclient": "get_server_metadata raises"},
        _server_metadata,
    ),
    Check(
        "extensions-known",
        "names of the extensions",
        "Clients look for the names that Triton reports; KServe's model_repository_extension is not one of them.",
        {"tritonclient and perf_analyzer": "do not use what they don't find by its name"},
        _extensions_known,
    ),
    Check(
        "extensions-complete",
        "whether what answers is listed",
        "A client asks only for what is listed.",
        {"perf_analyzer": "shows no server-side breakdown where `statistics` isn't listed"},
        _extensions_complete,
    ),
    Check(
        "model-metadata",
        "ModelMetadata",
        "It is the first call of perf_analyzer, and where every client gets names, datatypes and shapes.",
        {"perf_analyzer": "ends with an error", "tritonclient and KServe clients": "cannot know what to send"},
        _model_metadata,
    ),
    Check(
        "version-numbers",
        "version strings in metadata, statistics and answers",
        "perf_analyzer converts a version to an integer and does not catch what that throws.",
        {"perf_analyzer": "aborts with exit code 134: std::invalid_argument: stoll"},
        _versions,
    ),
    Check(
        "model-config",
        "ModelConfig",
        "It is an extension, but perf_analyzer and model_analyzer can't do without it.",
        {
            "perf_analyzer": "ends with exit code 99: failed to get model config",
            "model_analyzer": "cannot start",
            "tritonclient": "get_model_config raises",
        },
        _model_config,
    ),
    Check(
        "config-names",
        "whether the config's tensors are in the metadata",
        "perf_analyzer looks each input of the config up in the metadata.",
        {"perf_analyzer": "ends with: no metadata found for input tensor"},
        _config_names,
    ),
    Check(
        "config-batch-dimension",
        "the batch dimension in metadata and config",
        "With max_batch_size above 0, metadata shapes lead with -1, config dims leave it out; with 0 both are whole.",
        {"perf_analyzer": "drops the first side of the metadata's shape as the batch, so it sends wrong shapes"},
        _config_batch,
    ),
    Check(
        "config-datatypes",
        "datatypes in metadata and config",
        "TYPE_X in the config is X in the metadata; TYPE_STRING is BYTES.",
        {"perf_analyzer and model_analyzer": "make inputs of the wrong type"},
        _config_datatypes,
    ),
)
