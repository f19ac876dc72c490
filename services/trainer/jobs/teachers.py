"""Opens the models that a student learns from: another run's, or a version that inference serves."""

import json
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor

from aimass.inference.v1 import lifecycle_pb2
from aimass.open_inference import grpc_service_pb2 as pb
from aimass.open_inference.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from services.common.channels import SIBLING_OPTIONS
from services.common.errors import Conflict, InvalidInput, NotFound, NotReady, ServiceError, Unsupported
from services.common.manifest import GRAPH_FILE
from services.trainer.export.graph import INPUT, OUTPUT, open_graph, run_graph
from services.trainer.jobs.served import find_version, parse_version
from services.trainer.jobs.sources import find_run
from services.trainer.networks.weights import load_weights
from services.trainer.runs.folder import WEIGHTS_FILE
from services.trainer.settings import TrainerSettings
from services.trainer.training.distillation import Teacher
from services.trainer.training.hardware import choose_precision, computing_in

ANSWER_SECONDS = 60
"""How long a batch may take at inference; it may have to start again meanwhile."""
IN_FLIGHT = 4
"""Requests on their way at once, so that inference always has the next one."""
_GRAPH_BATCH = 64


@contextmanager
def open_teacher(
    source: str,
    labels: tuple[str, ...],
    settings: TrainerSettings,
    *,
    precision: str = "auto",
    threads: int = 0,
    allow_code: bool = False,
) -> Iterator[Teacher]:
    """Open the model that *source* names, for as long as the context lasts.

    Args:
        source: `run:<id>`, which answers in this process, or `<model>@<version>`, which inference is asked.
        labels: Of the student.
        settings: Where runs and inference are.
        precision: Of the student's training; a network that teaches in this process computes in it too.
        threads: Of a graph in this process; 0 is one per core.
        allow_code: As in `load_weights`.

    Raises:
        InvalidInput: *source* is neither, or the run's weights are damaged.
        NotFound: There is no such run or version.
        Conflict: The run has no model yet, or the model has other labels or tensors than the student needs.
        NotReady: Inference or the version does not answer.
    """
    if source.startswith("run:"):
        folder = find_run(source, settings)
        try:
            teacher = trained_teacher(folder / WEIGHTS_FILE, labels, precision, allow_code=allow_code)
        except (NotFound, Unsupported):  # it was converted and has no weights, or is code that may not run
            teacher = graph_teacher(folder / GRAPH_FILE, labels, threads)
        yield teacher
        return
    model, version = parse_version(source, "distillation.teacher")
    with grpc.insecure_channel(settings.inference_address, options=SIBLING_OPTIONS) as channel:
        yield served_teacher(channel, model, version, labels)


def trained_teacher(path: Path, labels: tuple[str, ...], precision: str, *, allow_code: bool = False) -> Teacher:
    """Return the classifier in *path* as a teacher; it answers on the device of the images.

    In the student's precision it costs the run less than its graph would: with bfloat16 a third on a processor, and on
    a GPU nothing waits for the processor.

    Raises:
        ServiceError: As `load_weights`.
        Conflict: The classifier has other labels.
    """
    model, found = load_weights(path, allow_code=allow_code)
    _check_labels(path.parent.name, found, labels)
    model.to(memory_format=torch.channels_last)

    def teach(images: Tensor) -> Tensor:
        model.to(images.device)  # moves once
        with torch.no_grad(), computing_in(choose_precision(precision, images.device), images.device):
            answers: Tensor = model(images).float()
        return answers

    return teach


def graph_teacher(path: Path, labels: tuple[str, ...], threads: int = 0) -> Teacher:
    """Return the graph at *path* as a teacher.

    Raises:
        Conflict: The graph has other labels.
    """
    session = open_graph(path, threads)
    _check_labels(path.parent.name, _labels_of(session), labels)

    def teach(images: Tensor) -> Tensor:
        answers = run_graph(session, images.cpu().numpy(), _GRAPH_BATCH)
        return torch.from_numpy(answers).to(images.device)

    return teach


def served_teacher(channel: grpc.Channel, model: str, version: int, labels: tuple[str, ...]) -> Teacher:
    """Return version *version* of *model*, as inference serves it, as a teacher; the version stays the same.

    Raises:
        NotFound: There is no such version.
        NotReady: Inference does not answer, or could not load the version.
        Conflict: The version has other labels, or does not take `image` and give `probabilities`.
    """
    name = f"{model}@{version}"
    try:
        found = find_version(channel, model, version)
        if found.state != lifecycle_pb2.ModelVersion.STATE_READY:
            raise NotReady(f"teacher {name} is not ready: {found.state_reason}; load it, or name another")
        _check_labels(name, tuple(found.labels), labels)
        stub = GRPCInferenceServiceStub(channel)
        query = {"name": model, "version": str(version)}
        metadata = stub.ModelMetadata(pb.ModelMetadataRequest(**query), timeout=ANSWER_SECONDS)
        config = stub.ModelConfig(pb.ModelConfigRequest(**query), timeout=ANSWER_SECONDS).config
    except grpc.RpcError as error:
        raise _refusal(name, error) from error
    _check_tensors(name, metadata)
    size = max(1, config.max_batch_size)

    def teach(images: Tensor) -> Tensor:
        pixels = images.cpu().numpy()
        try:
            answers = list(_ask(stub, model, version, [pixels[at : at + size] for at in range(0, len(pixels), size)]))
        except grpc.RpcError as error:
            raise _refusal(name, error) from error
        return torch.from_numpy(np.concatenate(answers)).to(images.device)

    return teach


def _ask(
    stub: GRPCInferenceServiceStub, model: str, version: int, batches: list[NDArray[np.uint8]]
) -> Iterator[NDArray[np.float32]]:
    """Yield the probabilities of each of *batches*, in order."""
    waiting: deque[Any] = deque()
    for batch in batches:
        if len(waiting) == IN_FLIGHT:
            yield _probabilities(waiting.popleft().result())
        request = pb.ModelInferRequest(
            model_name=model,
            model_version=str(version),
            inputs=[pb.ModelInferRequest.InferInputTensor(name=INPUT, datatype="UINT8", shape=batch.shape)],
            outputs=[pb.ModelInferRequest.InferRequestedOutputTensor(name=OUTPUT)],
            raw_input_contents=[batch.tobytes()],
        )
        waiting.append(stub.ModelInfer.future(request, timeout=ANSWER_SECONDS, wait_for_ready=True))
    for future in waiting:
        yield _probabilities(future.result())


def _probabilities(answer: pb.ModelInferResponse) -> NDArray[np.float32]:
    return np.frombuffer(answer.raw_output_contents[0], "<f4").reshape(answer.outputs[0].shape)


def _check_labels(name: str, found: tuple[str, ...], wanted: tuple[str, ...]) -> None:
    if found != wanted:
        raise Conflict(
            f"teacher {name} tells {', '.join(found[:10]) or 'unnamed classes'} apart, the student "
            f"{', '.join(wanted[:10])}; use a teacher with the same labels in the same order"
        )


def _check_tensors(name: str, metadata: pb.ModelMetadataResponse) -> None:
    inputs = [(tensor.name, tensor.datatype) for tensor in metadata.inputs]
    outputs = [(tensor.name, tensor.datatype) for tensor in metadata.outputs]
    if inputs != [(INPUT, "UINT8")] or (OUTPUT, "FP32") not in outputs:
        raise Conflict(
            f"teacher {name} takes {', '.join(f'{a} {b}' for a, b in inputs)} and gives "
            f"{', '.join(f'{a} {b}' for a, b in outputs)}; a teacher takes {INPUT} UINT8 and gives {OUTPUT} FP32"
        )


def _labels_of(session: onnxruntime.InferenceSession) -> tuple[str, ...]:
    """Return the labels that a graph names in its metadata; empty where it does not."""
    return tuple(json.loads(session.get_modelmeta().custom_metadata_map.get("labels", "[]")))


def _refusal(name: str, error: grpc.RpcError) -> ServiceError:
    if error.code() is grpc.StatusCode.NOT_FOUND:
        return NotFound(f"inference has no {name}: {error.details()}; `aimass models` lists what it serves")
    if error.code() is grpc.StatusCode.INVALID_ARGUMENT:
        return InvalidInput(f"teacher {name} does not take the student's images: {error.details()}; use another")
    return NotReady(f"teacher {name} does not answer: {error.details()}; start inference and resume the run")
