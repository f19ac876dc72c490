"""The Open Inference Protocol over HTTP, Triton's dialect: reads requests, calls the service, writes answers."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from fastapi import Request, Response
from pydantic_core import to_json
from starlette.requests import ClientDisconnect
from starlette.routing import Route

from aimass.open_inference import grpc_service_pb2 as pb
from gateway import control_json
from gateway.bodies import BodyBudget
from gateway.callers import ROUTING_KEY_HEADER, TIMEOUT_HEADER, peer_of, stated_timeout, unless_disconnected
from gateway.compression import chosen_encoding, compressed, read_body
from gateway.control_json import document_of
from gateway.documents import member, parse_object
from gateway.failures import PROTOCOL_CODES
from gateway.generate_json import generate_answer, generate_request
from gateway.inference_json import Wanted, format_response, parse_request, raw_request
from gateway.prediction import Deadline, Predictor
from services.common.direct import UnaryCall
from services.common.errors import REFUSED_BY_GRAPH, InvalidInput, NotReady
from services.common.peers import FORWARDED_PEER_KEY
from services.common.statuses import Status, log_failure, status_of
from services.common.tensors import numpy_dtype
from services.common.tracing import call_metadata
from services.common.traffic import ROUTING_KEY

if TYPE_CHECKING:
    from aimass.open_inference.grpc_service_pb2_grpc import GRPCInferenceServiceAsyncStub

T = TypeVar("T")
Endpoint = Callable[[Request], Awaitable[Response]]

JSON_SIZE_HEADER = "Inference-Header-Content-Length"
"""How much of a body is JSON; binary tensors follow."""
JSON_WEIGHT = 7
"""Further bytes of memory that a byte of JSON takes while it is numbers in lists: `0,` becomes a pointer of eight."""
LARGE_BYTES = 32 * 1024
"""Bodies above are converted in a thread, so that the loop goes on with others."""
FAILED_AT_WORK = frozenset({"INTERNAL", "UNKNOWN", "DEADLINE_EXCEEDED"})
"""Codes of requests that were taken on; others were refused before."""


class InferenceRoutes:
    """The protocol's paths. They are not in our OpenAPI document: the protocol has one of its own."""

    def __init__(
        self, stub: GRPCInferenceServiceAsyncStub, predictor: Predictor, bodies: BodyBudget, max_body_bytes: int
    ) -> None:
        self._stub = stub
        self._predictor = predictor
        self._bodies = bodies
        self._max_body_bytes = max_body_bytes

    def all(self) -> list[Route]:
        """Return the routes; where two fit a path, the first is meant."""
        reads: list[tuple[str, Endpoint]] = [
            ("", self._server),
            ("/models/stats", self._statistics),
            *_versioned("/models/{model}", self._model),
            *_versioned("/models/{model}", self._ready, "/ready"),
            *_versioned("/models/{model}", self._config, "/config"),
            *_versioned("/models/{model}", self._statistics, "/stats"),
            *_optional("/systemsharedmemory", "/region/{region}", "/status", self._system_regions),
            *_optional("/cudasharedmemory", "/region/{region}", "/status", self._cuda_regions),
            *_optional("", "/models/{model}", "/trace/setting", self._trace),
            ("/logging", self._logging),
        ]
        writes: list[tuple[str, Endpoint]] = [
            *_versioned("/models/{model}", self._infer, "/infer"),
            *_versioned("/models/{model}", self._generate, "/generate"),
            *_versioned("/models/{model}", self._generate_stream, "/generate_stream"),
            ("/repository/index", self._index),
            ("/repository/models/{model}/load", self._load),
            ("/repository/models/{model}/unload", self._unload),
            ("/systemsharedmemory/region/{region}/register", self._register_system),
            ("/cudasharedmemory/region/{region}/register", self._register_cuda),
            *_optional("/systemsharedmemory", "/region/{region}", "/unregister", self._unregister_system),
            *_optional("/cudasharedmemory", "/region/{region}", "/unregister", self._unregister_cuda),
            *_optional("", "/models/{model}", "/trace/setting", self._trace),
            ("/logging", self._logging),
        ]
        methods: dict[str, tuple[Endpoint, list[str]]] = {}
        for method, table in (("GET", reads), ("POST", writes)):
            for path, endpoint in table:
                methods.setdefault(path, (endpoint, []))[1].append(method)
        return [Route(f"/v2{path}", endpoint, methods=names) for path, (endpoint, names) in methods.items()]

    async def _infer(self, request: Request) -> Response:
        """Run a model on tensors."""
        deadline = self._deadline(request)
        with self._bodies.holding() as take:
            message, wanted = await self._message(request, take, deadline)
            response = await self._run(request, message, deadline)
            body, json_size = await _convert(_size(response), format_response, response, wanted)
            headers = {} if json_size is None else {JSON_SIZE_HEADER: str(json_size)}
            kind = "application/json" if json_size is None else "application/octet-stream"
            return await _response(request, body, kind, headers=headers)

    async def _generate(self, request: Request) -> Response:
        """Run a model on the members of one JSON object."""
        deadline = self._deadline(request)
        with self._bodies.holding() as take:
            message = await self._generate_message(request, take, deadline)
            response = await self._run(request, message, deadline)
            body = await _convert(_size(response), generate_answer, response)
            return await _response(request, body, "application/json")

    async def _generate_stream(self, request: Request) -> Response:
        """Do the same, and answer with an event: one, as models here answer once, so that its status is known too."""
        deadline, code = self._deadline(request), 200
        with self._bodies.holding() as take:
            message = await self._generate_message(request, take, deadline)
            try:
                response = await self._run(request, message, deadline)
                body = await _convert(_size(response), generate_answer, response)
            except ClientDisconnect:
                raise
            except Exception as error:
                status = status_of(error)
                if not _failed_at_work(status):
                    raise
                log_failure(status, error, path=request.url.path)
                body, code = to_json({"error": status.message}), PROTOCOL_CODES.get(status.code.name, 400)
            return await _response(request, b"data: " + body + b"\n\n", "text/event-stream", code)

    async def _run(self, request: Request, message: pb.ModelInferRequest, deadline: Deadline) -> pb.ModelInferResponse:
        if (key := request.headers.get(ROUTING_KEY_HEADER)) and ROUTING_KEY not in message.parameters:
            message.parameters[ROUTING_KEY].string_param = key
        return await self._call(request, self._stub.ModelInfer, message, deadline.remaining())

    async def _generate_message(
        self, request: Request, take: Callable[[int], None], deadline: Deadline
    ) -> pb.ModelInferRequest:
        """Read the body here, as `_message` does."""
        model, version = _model_of(request)
        body = await self._body(request, take, deadline)
        take(len(body) * JSON_WEIGHT)
        return await _convert(
            len(body), generate_request, model, version, body, await self._metadata(request, model, version, deadline)
        )

    async def _message(
        self, request: Request, take: Callable[[int], None], deadline: Deadline
    ) -> tuple[pb.ModelInferRequest, Wanted]:
        """Read the body here, so that nothing holds it any longer while the message, a copy of it, is worked on."""
        model, version = _model_of(request)
        body = await self._body(request, take, deadline)
        json_size = _json_size(request, body)
        if json_size:
            take(json_size * JSON_WEIGHT)
            return await _convert(json_size, parse_request, model, version, body, json_size)
        return raw_request(model, version, body, await self._metadata(request, model, version, deadline))

    async def _body(self, request: Request, take: Callable[[int], None], deadline: Deadline) -> bytes:
        async with asyncio.timeout(deadline.remaining()):  # for the upload, which may come in slowly, too
            return await read_body(request, self._max_body_bytes, take)

    async def _metadata(
        self, request: Request, model: str, version: str, deadline: Deadline
    ) -> pb.ModelMetadataResponse:
        asked = pb.ModelMetadataRequest(name=model, version=version)
        return await self._call(request, self._stub.ModelMetadata, asked, deadline.remaining())

    async def _server(self, request: Request) -> Response:
        """Describe the server."""
        return _json(document_of(await self._ask(request, self._stub.ServerMetadata, pb.ServerMetadataRequest())))

    async def _model(self, request: Request) -> Response:
        """Describe a model."""
        name, version = _model_of(request)
        asked = pb.ModelMetadataRequest(name=name, version=version)
        return _json(document_of(await self._ask(request, self._stub.ModelMetadata, asked)))

    async def _ready(self, request: Request) -> Response:
        """Say whether a model can serve: 200, or what it lacks."""
        name, version = _model_of(request)
        asked = pb.ModelReadyRequest(name=name, version=version)
        if (await self._ask(request, self._stub.ModelReady, asked)).ready:
            return Response()
        await self._model(request)  # fails with the reason
        raise NotReady(f"model {name!r} is not ready; try again")

    async def _config(self, request: Request) -> Response:
        """Return a model's configuration."""
        name, version = _model_of(request)
        asked = pb.ModelConfigRequest(name=name, version=version)
        return _json(document_of((await self._ask(request, self._stub.ModelConfig, asked)).config))

    async def _statistics(self, request: Request) -> Response:
        """Return the counters of one model or of all."""
        name, version = _model_of(request)
        asked = pb.ModelStatisticsRequest(name=name, version=version)
        return _json(document_of(await self._ask(request, self._stub.ModelStatistics, asked), whole=True))

    async def _index(self, request: Request) -> Response:
        """List the models of the repository."""
        ready = member(await self._document(request), "ready", bool, "the request", default=False)
        asked = pb.RepositoryIndexRequest(ready=ready)
        return _json(control_json.index_documents(await self._ask(request, self._stub.RepositoryIndex, asked)))

    async def _load(self, request: Request) -> Response:
        """Load a model."""
        asked = control_json.load_request(request.path_params["model"], await self._document(request))
        return await self._change(request, self._stub.RepositoryModelLoad, asked)

    async def _unload(self, request: Request) -> Response:
        """Unload a model."""
        asked = control_json.unload_request(request.path_params["model"], await self._document(request))
        return await self._change(request, self._stub.RepositoryModelUnload, asked)

    async def _system_regions(self, request: Request) -> Response:
        """List registered regions of system memory."""
        asked = pb.SystemSharedMemoryStatusRequest(name=_region_of(request))
        return _regions(await self._ask(request, self._stub.SystemSharedMemoryStatus, asked))

    async def _cuda_regions(self, request: Request) -> Response:
        """List registered regions of a GPU's memory."""
        asked = pb.CudaSharedMemoryStatusRequest(name=_region_of(request))
        return _regions(await self._ask(request, self._stub.CudaSharedMemoryStatus, asked))

    async def _register_system(self, request: Request) -> Response:
        """Register a region of system memory."""
        asked = control_json.system_region(_region_of(request), await self._document(request))
        return await self._change(request, self._stub.SystemSharedMemoryRegister, asked)

    async def _register_cuda(self, request: Request) -> Response:
        """Register a region of a GPU's memory."""
        asked = control_json.cuda_region(_region_of(request), await self._document(request))
        return await self._change(request, self._stub.CudaSharedMemoryRegister, asked)

    async def _unregister_system(self, request: Request) -> Response:
        """Forget one region of system memory, or all."""
        asked = pb.SystemSharedMemoryUnregisterRequest(name=_region_of(request))
        return await self._change(request, self._stub.SystemSharedMemoryUnregister, asked)

    async def _unregister_cuda(self, request: Request) -> Response:
        """Forget one region of a GPU's memory, or all."""
        asked = pb.CudaSharedMemoryUnregisterRequest(name=_region_of(request))
        return await self._change(request, self._stub.CudaSharedMemoryUnregister, asked)

    async def _trace(self, request: Request) -> Response:
        """Return trace settings, after the changes that a POST brings."""
        document = await self._document(request) if request.method == "POST" else {}
        asked = control_json.trace_request(request.path_params.get("model", ""), document)
        return _json(control_json.trace_document(await self._ask(request, self._stub.TraceSetting, asked)))

    async def _logging(self, request: Request) -> Response:
        """Return log settings, after the changes that a POST brings."""
        asked = control_json.log_request(await self._document(request) if request.method == "POST" else {})
        return _json(control_json.log_document(await self._ask(request, self._stub.LogSettings, asked)))

    async def _document(self, request: Request) -> dict[str, Any]:
        with self._bodies.holding() as take:
            return parse_object(await self._body(request, take, self._deadline(request)), "the request")

    async def _ask(self, request: Request, call: UnaryCall[Any, T], message: object) -> T:
        return await self._call(request, call, message, self._deadline(request).remaining())

    async def _change(self, request: Request, call: UnaryCall[Any, Any], message: object) -> Response:
        """Call without a deadline of ours: a large model may take longer to load than a prediction may take."""
        stated = stated_timeout(request.headers.get(TIMEOUT_HEADER))
        await self._call(request, call, message, None if stated is None else Deadline(stated).remaining())
        return Response()

    async def _call(self, request: Request, call: UnaryCall[Any, T], message: object, timeout: float | None) -> T:
        metadata = (*call_metadata(), (FORWARDED_PEER_KEY, peer_of(request)))
        return await unless_disconnected(request, call(message, timeout=timeout, metadata=metadata))

    def _deadline(self, request: Request) -> Deadline:
        return self._predictor.deadline(stated_timeout(request.headers.get(TIMEOUT_HEADER)))


def _optional(prefix: str, part: str, suffix: str, endpoint: Endpoint) -> list[tuple[str, Endpoint]]:
    return [(f"{prefix}{each}{suffix}", endpoint) for each in ("", part)]


def _versioned(prefix: str, endpoint: Endpoint, suffix: str = "") -> list[tuple[str, Endpoint]]:
    return _optional(prefix, "/versions/{version}", suffix, endpoint)


def _model_of(request: Request) -> tuple[str, str]:
    return request.path_params.get("model", ""), request.path_params.get("version", "")


def _region_of(request: Request) -> str:
    region: str = request.path_params.get("region", "")
    return region


def _json_size(request: Request, body: bytes) -> int:
    """Return how many bytes of *body* are JSON; 0 where it is the data of one input."""
    text = request.headers.get(JSON_SIZE_HEADER)
    if text is None:
        if not body:
            raise InvalidInput("the body is empty; send a JSON object with the inputs")
        return len(body)
    if not (text.isascii() and text.isdigit() and len(text) < 20 and int(text) <= len(body)):
        raise InvalidInput(
            f"{JSON_SIZE_HEADER} is {text[:40]!r}, and the body has {len(body)} bytes; give the length of its JSON, or "
            "0 where it is the data of the model's one input"
        )
    return int(text)


def _failed_at_work(status: Status) -> bool:
    return status.code.name in FAILED_AT_WORK or status.reason == REFUSED_BY_GRAPH


def _size(response: pb.ModelInferResponse) -> int:
    """Return how many bytes the outputs have, by their shapes: to look at the contents themselves copies them."""
    return sum(math.prod(each.shape) * numpy_dtype(each.datatype).itemsize for each in response.outputs)


async def _response(
    request: Request, body: bytes, kind: str, code: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Return the answer, compressed where the client likes that."""
    headers = dict(headers or {})
    if encoding := chosen_encoding(request.headers.get("accept-encoding", "")):
        headers["Content-Encoding"] = encoding
        body = await compressed(body, encoding)
    return Response(body, code, headers, kind)


async def _convert(size: int, convert: Callable[..., T], *arguments: object) -> T:
    if size <= LARGE_BYTES:
        return convert(*arguments)
    return await asyncio.to_thread(convert, *arguments)


def _regions(response: pb.SystemSharedMemoryStatusResponse | pb.CudaSharedMemoryStatusResponse) -> Response:
    return _json([document_of(response.regions[name]) for name in sorted(response.regions)])


def _json(document: Any) -> Response:
    return Response(to_json(document), media_type="application/json")
