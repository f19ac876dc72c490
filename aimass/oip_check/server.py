"""The server under check: calls that end in time, and what it says of itself, asked once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import grpc

from aimass.oip_check.tensors import DATATYPES, raw_filled
from aimass.open_inference import grpc_service_pb2 as pb
from aimass.open_inference import model_config_pb2
from aimass.open_inference.grpc_service_pb2_grpc import GRPCInferenceServiceStub

SERVICE = "inference.GRPCInferenceService"
OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
)
MAX_HANGS = 3
"""An RPC that hung so often is not asked again, so that the whole check ends in time."""

Metadata = Sequence[tuple[str, str]]


class Unmet(Exception):
    """A check cannot be made; says what it needs."""


class UnknownModel(Exception):
    """The model that was asked for is not there."""


@dataclass(frozen=True)
class Reply:
    """An answer or a status."""

    code: grpc.StatusCode
    text: str = ""
    message: Any = None

    @property
    def ok(self) -> bool:
        """Whether it is an answer."""
        return self.code is grpc.StatusCode.OK

    @property
    def missing(self) -> bool:
        """Whether the server lacks the RPC."""
        return self.code is grpc.StatusCode.UNIMPLEMENTED

    def __str__(self) -> str:
        if self.ok:
            return "an answer"
        if self.code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return "no answer in time"
        return f"{self.code.name}: {shortened(self.text)}" if self.text else f"{self.code.name} without a sentence"


def shortened(text: str, limit: int = 160) -> str:
    """Return *text* on one line that is not endless."""
    line = " ".join(text.split())
    return line if len(line) <= limit else line[:limit] + "…"


def reply_of(error: grpc.RpcError) -> Reply:
    """Return the status that *error* carries."""
    return Reply(error.code(), error.details() or "")


class Server:
    """Asks one server about one model."""

    def __init__(
        self,
        channel: grpc.Channel,
        model: str = "",
        shapes: Mapping[str, Sequence[int]] | None = None,
        *,
        write: bool = False,
        timeout: float = 5,
        address: str = "",
        metrics_url: str = "",
    ) -> None:
        self.channel: Any = channel  # its raw methods have no types to speak of
        self.stub = GRPCInferenceServiceStub(channel)
        self.write = write
        self.timeout = timeout
        self.address = address
        self.metrics_url = metrics_url
        self._asked_model = model
        self._shapes = shapes or {}
        self._hangs: Counter[str] = Counter()

    def call(self, rpc: str, request: Any, *, timeout: float = 0, **options: Any) -> Reply:
        """Call *rpc* and return what came, within the time limit."""
        if self._hangs[rpc] >= MAX_HANGS:
            raise Unmet(f"{rpc} gave no answer {MAX_HANGS} times and isn't asked again")
        try:
            return Reply(
                grpc.StatusCode.OK, message=getattr(self.stub, rpc)(request, timeout=timeout or self.timeout, **options)
            )
        except grpc.RpcError as error:
            reply = reply_of(error)
        if reply.code is grpc.StatusCode.DEADLINE_EXCEEDED and not timeout:
            self._hangs[rpc] += 1
        return reply

    def call_raw(self, path: str, data: bytes) -> Reply:
        """Call the method at *path* with bytes and return the answer's bytes."""
        method = self.channel.unary_unary(path)
        try:
            return Reply(grpc.StatusCode.OK, message=method(data, timeout=self.timeout))
        except grpc.RpcError as error:
            return reply_of(error)

    @cached_property
    def server_metadata(self) -> Reply:
        """What ServerMetadata says."""
        return self.call("ServerMetadata", pb.ServerMetadataRequest())

    @property
    def extensions(self) -> frozenset[str]:
        """Names of the extensions that the server lists."""
        return frozenset(self.server_metadata.message.extensions if self.server_metadata.ok else ())

    @cached_property
    def index(self) -> Reply:
        """What RepositoryIndex says."""
        return self.call("RepositoryIndex", pb.RepositoryIndexRequest())

    @cached_property
    def model(self) -> str:
        """The name of the model that is asked: the given one, or else the first that is ready."""
        if self._asked_model:
            return self._asked_model
        if not self.index.ok:
            raise Unmet("needs a model: RepositoryIndex names none, so name one with --model")
        ready: list[str] = [each.name for each in self.index.message.models if each.state == "READY"]
        if not ready:
            raise Unmet("needs a model: RepositoryIndex has none that is READY")
        return ready[0]

    @cached_property
    def metadata_reply(self) -> Reply:
        """What ModelMetadata says."""
        reply = self.call("ModelMetadata", pb.ModelMetadataRequest(name=self.model))
        if reply.code is grpc.StatusCode.NOT_FOUND:
            raise UnknownModel(f"the server does not know the model {self.model!r}: {reply.text}{self._known()}")
        return reply

    def _known(self) -> str:
        names = sorted({each.name for each in self.index.message.models}) if self.index.ok else ()
        return f"; it has {', '.join(names)}" if names else ""

    @property
    def metadata(self) -> pb.ModelMetadataResponse:
        """What the model takes and gives."""
        metadata: pb.ModelMetadataResponse = self._needed("ModelMetadata", self.metadata_reply, "model-metadata")
        if not metadata.inputs or not metadata.outputs:
            raise Unmet("needs inputs and outputs in the metadata: see model-metadata")
        return metadata

    @cached_property
    def config_reply(self) -> Reply:
        """What ModelConfig says."""
        return self.call("ModelConfig", pb.ModelConfigRequest(name=self.model))

    @property
    def config(self) -> model_config_pb2.ModelConfig:
        """The model's configuration."""
        config: model_config_pb2.ModelConfig = self._needed("ModelConfig", self.config_reply, "model-config").config
        return config

    @cached_property
    def statistics_reply(self) -> Reply:
        """What ModelStatistics said first."""
        return self.call("ModelStatistics", pb.ModelStatisticsRequest(name=self.model))

    @cached_property
    def baseline(self) -> Reply:
        """The answer to a request as stock clients send it."""
        if self.config_reply.ok and self.config.model_transaction_policy.decoupled:
            raise Unmet(f"{self.model} is decoupled, so it answers streams only; name another model with --model")
        return self.call("ModelInfer", self.request())

    @property
    def answer(self) -> pb.ModelInferResponse:
        """What the model answers to a request as stock clients send it."""
        answer: pb.ModelInferResponse = self._needed("ModelInfer", self.baseline, "infer-raw")
        return answer

    def need_answer(self) -> None:
        """Skip a check where right requests are not answered."""
        self._needed("ModelInfer", self.baseline, "infer-raw")

    def need_end(self) -> None:
        """Skip a check where right requests hang; a server that refuses them can still tell why."""
        if self.baseline.code is grpc.StatusCode.DEADLINE_EXCEEDED:
            self.need_answer()

    def _needed(self, rpc: str, reply: Reply, check: str) -> Any:
        if not reply.ok:
            raise Unmet(f"needs {rpc}, which failed: see {check}")
        return reply.message

    @property
    def input_shapes(self) -> list[tuple[int, ...]]:
        """The shapes that are sent, in the order of the inputs: -1 becomes 1, unless the caller gave shapes."""
        return [
            tuple(self._shapes.get(each.name) or (side if side != -1 else 1 for side in each.shape))
            for each in self.metadata.inputs
        ]

    def request(
        self,
        *,
        id: str = "",
        outputs: Iterable[str] | None = None,
        batch: int = 0,
        raw: bool = True,
        values: Sequence[int] = (),
    ) -> pb.ModelInferRequest:
        """Return a request that the model's own metadata says is right.

        Args:
            id: Of the request.
            outputs: Names; all if absent.
            batch: Samples, where the first dimension counts them.
            raw: Whether the inputs are filled.
            values: What each input is filled with, in the order of the metadata; zeros if empty.
        """
        metadata = self.metadata
        values = values or [0] * len(metadata.inputs)
        names = [each.name for each in metadata.outputs] if outputs is None else outputs
        request = pb.ModelInferRequest(model_name=self.model, id=id)
        for tensor, shape, value in zip(metadata.inputs, self.input_shapes, values, strict=True):
            if tensor.datatype not in DATATYPES:
                raise Unmet(f"input {tensor.name!r} has the unknown datatype {tensor.datatype!r}: see model-metadata")
            shape = (batch, *shape[1:]) if batch else shape
            request.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=shape)
            if raw:
                request.raw_input_contents.append(raw_filled(tensor.datatype, shape, value))
        for name in names:
            request.outputs.add(name=name)
        self._start_sequence(request)
        return request

    def _start_sequence(self, request: pb.ModelInferRequest) -> None:
        """Make the request a sequence of its own where the model keeps state."""
        if self.config_reply.ok and self.config.HasField("sequence_batching"):
            request.parameters["sequence_id"].int64_param = 2**31 - 19
            request.parameters["sequence_start"].bool_param = True
            request.parameters["sequence_end"].bool_param = True
