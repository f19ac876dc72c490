"""The lifecycle contract: publish versions, list them, move traffic, follow it."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aimass.inference.v1 import lifecycle_pb2 as pb
from aimass.inference.v1.lifecycle_pb2_grpc import ModelLifecycleServiceServicer
from services.common.durations import duration_of
from services.common.errors import InvalidInput, Overloaded
from services.common.manifest import GRAPH_FILE, Graph, Manifest
from services.common.server import StopSignal
from services.common.traffic import model_not_found
from services.inference.models.serving import ModelServer
from services.inference.models.shadowing import ShadowCounts

if TYPE_CHECKING:
    import grpc

    Context = grpc.aio.ServicerContext[Any, Any]

MAX_MANIFEST_BYTES = 16 * 1024 * 1024
"""Parsing stalls the event loop for about 10 ms a megabyte."""


class LifecycleServicer(ModelLifecycleServiceServicer):
    """Unpacks, calls, packs."""

    def __init__(self, models: ModelServer, stop: StopSignal, max_model_bytes: int) -> None:
        self._models = models
        self._stop = stop
        self._max_model_bytes = max_model_bytes

    async def PublishVersion(
        self, request_iterator: AsyncIterator[pb.PublishVersionRequest], context: Context
    ) -> pb.PublishVersionResponse:
        """Receive a graph into a staged folder, then let it be loaded, checked and added."""
        header = await _receive_header(request_iterator)
        if len(header.manifest) > MAX_MANIFEST_BYTES:
            raise InvalidInput(
                f"the manifest has {len(header.manifest):,} bytes; at most {MAX_MANIFEST_BYTES:,} are accepted; "
                "use fewer golden vectors",
                field="manifest",
            )
        manifest = Manifest.from_json(header.manifest, "manifest")
        graph = self._stated_graph(manifest)
        staging = self._models.stage(header.model)
        try:
            await _receive_graph(request_iterator, staging / GRAPH_FILE, graph)
            version = await self._models.publish(header.model, staging, manifest)
        finally:
            self._models.discard(staging)
        return pb.PublishVersionResponse(version=version)

    def _stated_graph(self, manifest: Manifest) -> Graph:
        if manifest.graph is None:
            raise InvalidInput("the manifest does not state size and SHA-256 of the graph; add graph", field="manifest")
        if manifest.graph.size_bytes > self._max_model_bytes:
            raise Overloaded(
                f"the graph has {manifest.graph.size_bytes} bytes; at most {self._max_model_bytes} are accepted "
                "(INFERENCE_MAX_MODEL_BYTES)",
                reason="MODEL_TOO_LARGE",
            )
        return manifest.graph

    async def ListVersions(self, request: pb.ListVersionsRequest, context: Context) -> pb.ListVersionsResponse:
        """List one model's versions or all."""
        states = self._models.states()
        if request.model and request.model not in states:
            raise model_not_found(request.model, states)
        return pb.ListVersionsResponse(models=[states[request.model]] if request.model else states.values())

    async def WatchTraffic(
        self, request: pb.WatchTrafficRequest, context: Context | None = None
    ) -> AsyncIterator[pb.WatchTrafficResponse]:
        """Send the whole state now and after each change; UNAVAILABLE says that the process stops."""
        async for states in self._stop.until(self._models.watch()):
            yield pb.WatchTrafficResponse(models=states)

    async def SetTraffic(self, request: pb.SetTrafficRequest, context: Context) -> pb.SetTrafficResponse:
        """Replace the traffic by the given one."""
        return pb.SetTrafficResponse(
            traffic=await self._models.set_traffic(
                request.model,
                request.stable_version,
                _expected(request),
                canary_version=_canary_version(request),
                canary_share=request.canary.share,
                shadow_version=request.shadow_version,
            )
        )

    async def GetTraffic(self, request: pb.GetTrafficRequest, context: Context) -> pb.GetTrafficResponse:
        """Return the traffic and what the shadow has shown."""
        counts = self._models.shadow_counts(request.model)
        return pb.GetTrafficResponse(
            traffic=self._models.states()[request.model].traffic, shadow=_report(counts) if counts else None
        )

    async def Promote(self, request: pb.PromoteRequest, context: Context) -> pb.PromoteResponse:
        """Make what is tried out stable."""
        return pb.PromoteResponse(
            traffic=await self._models.promote(request.model, request.version, _expected(request))
        )

    async def Rollback(self, request: pb.RollbackRequest, context: Context) -> pb.RollbackResponse:
        """Go back."""
        return pb.RollbackResponse(traffic=await self._models.roll_back(request.model, _expected(request)))

    async def DeleteVersion(self, request: pb.DeleteVersionRequest, context: Context) -> pb.DeleteVersionResponse:
        """Remove a version."""
        await self._models.delete(request.model, request.version)
        return pb.DeleteVersionResponse()


def _expected(request: pb.SetTrafficRequest | pb.PromoteRequest | pb.RollbackRequest) -> int | None:
    return request.expected_generation if request.HasField("expected_generation") else None


def _canary_version(request: pb.SetTrafficRequest) -> int:
    if request.HasField("canary") and request.canary.version < 1:
        raise InvalidInput("canary names no version; name one, or leave canary out", field="canary.version")
    return request.canary.version


def _report(counts: ShadowCounts) -> pb.ShadowReport:
    return pb.ShadowReport(
        version=counts.version,
        compared=counts.compared,
        agreed=counts.agreed,
        failed=counts.failed,
        dropped=counts.dropped,
        skipped=counts.skipped,
        shadow_time=duration_of(counts.shadow_ns),
        stable_time=duration_of(counts.stable_ns),
    )


async def _receive_header(requests: AsyncIterator[pb.PublishVersionRequest]) -> pb.PublishVersionHeader:
    first = await anext(aiter(requests), None)
    if first is None or first.WhichOneof("part") != "header":
        raise InvalidInput("the first message of an upload must be its header", field="header")
    return first.header


async def _receive_graph(requests: AsyncIterator[pb.PublishVersionRequest], path: Path, graph: Graph) -> None:
    """Write the chunks to *path* and refuse what is not the stated graph."""
    digest, received = hashlib.sha256(), 0

    def store(chunk: bytes) -> None:
        digest.update(chunk)
        file.write(chunk)

    with path.open("wb") as file:
        async for request in requests:
            if request.WhichOneof("part") != "chunk":
                raise InvalidInput("every message after the header must be a chunk", field="chunk")
            received += len(request.chunk)
            if received > graph.size_bytes:
                break
            await asyncio.to_thread(store, request.chunk)
        file.flush()
        await asyncio.to_thread(os.fsync, file.fileno())
    if received != graph.size_bytes:
        raise InvalidInput(
            f"{received} bytes of the graph arrived; the manifest states {graph.size_bytes}; upload it again",
            reason="INCOMPLETE_UPLOAD",
        )
    if (found := f"sha256:{digest.hexdigest()}") != graph.sha256:
        raise InvalidInput(
            f"the graph that arrived has digest {found}; the manifest states {graph.sha256}; upload it again",
            reason="DIGEST_MISMATCH",
        )
