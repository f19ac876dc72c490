"""What versions make of pictures: whole rows of probabilities, asked of inference."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray
from sqlalchemy import select

from aimass.inference.v1 import inference_pb2, lifecycle_pb2
from aimass.inference.v1.inference_pb2_grpc import InferenceServiceStub
from aimass.inference.v1.lifecycle_pb2_grpc import ModelLifecycleServiceStub
from aimass.open_inference import grpc_service_pb2
from services.common.channels import SIBLING_OPTIONS
from services.common.errors import Conflict, NotReady
from services.common.manifest import DIGEST_PARAMETER, PreprocessSpec
from services.common.tensors import to_raw
from services.trainer.analyst.stopping import GoOn
from services.trainer.analyst.stored import StoredPictures, find_observations
from services.trainer.data.collection import digest_contents
from services.trainer.data.features import pack
from services.trainer.data.models import Model
from services.trainer.data.originals import Originals
from services.trainer.data.tables import ObservationRow
from services.trainer.feedback.tables import AnswerRow
from services.trainer.loop.tables import SetAnswersRow
from services.trainer.storage.database import Database

BATCH = 32
DOES_NOT_ANSWER, OTHER_LABELS = "DOES_NOT_ANSWER", "OTHER_LABELS"
"""Reasons of the errors by which a version cannot be judged."""
_SECONDS = 30
_LATER = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.RESOURCE_EXHAUSTED,  # the traffic comes first
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.NOT_FOUND,  # deleted since it was listed
    }
)


@dataclass(frozen=True)
class ServedVersions:
    """The versions of a model that can be asked, and which of them serves. 0 stands for none."""

    champion: int
    specs: Mapping[int, PreprocessSpec]
    """Of each version that is ready and has the labels of the model."""
    graph_digests: Mapping[int, str]
    other_labels: frozenset[int] = frozenset()
    """Those that are ready and tell other classes apart than the model, or do not say what they take."""


class Inference:
    """The inference service, asked one batch at a time.

    Args:
        address: `host:port`.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._channel = grpc.insecure_channel(address, options=SIBLING_OPTIONS)

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()

    def versions(self, task: Model) -> ServedVersions:
        """Return what is served of a model; nothing where inference does not know it.

        Raises:
            NotReady: Inference does not answer.
        """
        request = lifecycle_pb2.ListVersionsRequest(model=task.name)
        try:
            listed = ModelLifecycleServiceStub(self._channel).ListVersions(request, timeout=_SECONDS).models
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return ServedVersions(0, {}, {})
            raise self._away(error) from error
        specs, digests, others = dict[int, PreprocessSpec](), dict[int, str](), set[int]()
        for state in listed:
            for version in state.versions:
                if version.state != lifecycle_pb2.ModelVersion.STATE_READY:
                    continue
                if tuple(version.labels) != task.labels or not version.preprocess_spec:
                    others.add(version.version)
                else:
                    specs[version.version] = PreprocessSpec.model_validate_json(version.preprocess_spec)
                    digests[version.version] = version.graph_digest
        traffic = listed[0].traffic if listed else lifecycle_pb2.Traffic()
        champion = traffic.stable_version or max(specs, default=0)
        return ServedVersions(champion, specs, digests, frozenset(others))

    def ask(
        self, model: str, version: int, spec: PreprocessSpec, pixels: NDArray[Any], classes: int
    ) -> NDArray[np.float32]:
        """Return what a version makes of *pixels*, (n, *spec.shape) of its datatype, n about 32: float32 (n, classes).

        Raises:
            NotReady: Inference does not answer now.
            Conflict: The version does not take such pictures, or tells other classes apart.
        """
        if not len(pixels):
            return np.empty((0, classes), np.float32)
        tensor = grpc_service_pb2.ModelInferRequest.InferInputTensor(
            name=spec.input, datatype=spec.datatype, shape=pixels.shape
        )
        request = grpc_service_pb2.ModelInferRequest(
            model_name=model,
            model_version=str(version),
            inputs=[tensor],
            raw_input_contents=[to_raw(pixels)],
        )
        request.parameters[DIGEST_PARAMETER].string_param = spec.digest
        question = inference_pb2.ClassifyRequest(request=request)  # unlike ModelInfer, it splits what is too much
        try:
            answer = InferenceServiceStub(self._channel).Classify(question, timeout=_SECONDS)
        except grpc.RpcError as error:
            if error.code() in _LATER:
                raise self._away(error) from error
            raise Conflict(
                f"{model}@{version} does not answer about users' pictures: {error.details()}; publish it anew",
                reason=DOES_NOT_ANSWER,
            ) from error
        probabilities = np.zeros((len(pixels), classes), np.float32)
        for row, classification in enumerate(answer.classifications):
            for each in classification.classes:
                if each.index >= classes:
                    raise Conflict(
                        f"{model}@{version} tells more than the {classes} classes of the model apart; publish one "
                        "with its labels",
                        reason=OTHER_LABELS,
                    )
                probabilities[row, each.index] = each.probability
        return probabilities

    def _away(self, error: grpc.RpcError) -> NotReady:
        return NotReady(f"inference at {self._address} does not answer now: {error.details()}; start it or wait")


def answer_observations(
    database: Database,
    pictures: StoredPictures,
    inference: Inference,
    task: Model,
    version: tuple[int, PreprocessSpec],
    numbers: Sequence[int],
    learnt: NDArray[np.uint64],
) -> dict[int, str]:
    """Let a version answer pictures and keep the answers; those that were deleted meanwhile are passed over.

    Args:
        database: Has the rows.
        pictures: Has the files.
        inference: Is asked.
        task: The model.
        version: Its number, and what pixels it takes.
        numbers: Of the pictures.
        learnt: Stand for the pixels that the version has learnt, as `digest_contents` makes them.

    Returns:
        By number, why a picture cannot be read.

    Raises:
        ServiceError: As `Inference.ask`.
    """
    number, spec = version
    with database.read() as session:
        rows = find_observations(session, numbers)
    readable, pixels, problems = pictures.read(rows, spec)
    probabilities = inference.ask(task.name, number, spec, pixels, len(task.labels))
    known = np.isin(digest_contents(pixels, np.arange(len(pixels))), learnt)
    with database.begin(alone=True) as session:
        there = set(
            session.scalars(
                select(ObservationRow.number).where(ObservationRow.number.in_([r.number for r in readable]))
            )
        )
        for row, answer, is_learnt in zip(readable, probabilities, known, strict=True):
            if row.number in there:
                session.merge(
                    AnswerRow(
                        model=task.name,
                        version=number,
                        observation=row.number,
                        best=int(answer.argmax()),
                        best_probability=float(answer.max()),
                        probabilities=pack(answer),
                        learnt=bool(is_learnt),
                    )
                )
    return problems


def answer_set(
    database: Database,
    inference: Inference,
    task: Model,
    version: tuple[int, PreprocessSpec],
    holdout: tuple[str, Originals],
    go_on: GoOn,
) -> None:
    """Let a version answer the hold-out, in the pixels that it takes, and keep the answers.

    Args:
        database: Has the rows.
        inference: Is asked.
        task: The model.
        version: Its number, and what pixels it takes.
        holdout: Digest of its samples, whatever pixels are made for a version, and their pictures.
        go_on: As it says.

    Raises:
        Conflict: With reason `SET_CHANGED`: the version takes other pixels, and a picture is not what it was.
        ServiceError: As `Inference.ask`.
    """
    number, spec = version
    set_digest, originals = holdout
    parts = []
    for start in range(0, len(originals), BATCH):
        go_on()
        pixels = originals.pixels(slice(start, start + BATCH), spec)
        parts.append(inference.ask(task.name, number, spec, pixels, len(task.labels)))
    probabilities = np.concatenate(parts)
    with database.begin(alone=True) as session:
        session.merge(
            SetAnswersRow(
                model=task.name,
                version=number,
                set_digest=set_digest,
                best=probabilities.argmax(axis=1).astype("<i2").tobytes(),
                probabilities=pack(probabilities),
            )
        )
