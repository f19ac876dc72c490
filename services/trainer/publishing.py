"""Sends a finished run's model to inference."""

import math
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc

from aimass.inference.v1 import lifecycle_pb2 as pb
from aimass.inference.v1.lifecycle_pb2_grpc import ModelLifecycleServiceStub
from services.common.manifest import GRAPH_FILE, MANIFEST_FILE, Manifest

CHUNK_BYTES = 1024 * 1024
PATIENCE_SECONDS = 120
"""How long a broken upload is tried again without a further byte arriving: inference may have to load its models, or
to find out that the connection before is dead."""
RETRY_SECONDS = 1.0
RESUMED_AFTER = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.CANCELLED,  # by a server that stops
        grpc.StatusCode.DEADLINE_EXCEEDED,  # it heard nothing for long, as after a laptop's sleep
        grpc.StatusCode.FAILED_PRECONDITION,  # the call before was still writing when we asked where to go on
    }
)


def publish_version(
    channel: grpc.Channel,
    model: str,
    folder: Path,
    on_progress: Callable[[float], None] = lambda fraction: None,
    *,
    publication_id: str = "",
) -> pb.ModelVersion:
    """Publish the graph and the manifest in *folder* as the next version of *model*; it gets no traffic.

    Goes on with what an earlier upload of the graph has left, also when it breaks off on the way.

    Args:
        channel: To inference.
        model: Name under which inference serves it.
        folder: With both files.
        on_progress: Told the share of the graph that has been sent.
        publication_id: Whoever publishes again with the same one gets the version that is there; empty makes a new one.

    Raises:
        grpc.RpcError: Inference is away or refuses the version; its sentence says why.
    """
    stub = ModelLifecycleServiceStub(channel)
    manifest = Manifest.from_json((folder / MANIFEST_FILE).read_bytes(), MANIFEST_FILE)
    # With an identity, a call whose answer got lost can be repeated.
    manifest = manifest.model_copy(update={"publication_id": publication_id or uuid.uuid4().hex})
    query = pb.GetUploadRequest(model=model, graph_digest=manifest.graph.sha256 if manifest.graph else "")
    received, failing_since = -1, -math.inf  # what is away from the beginning is not waited for
    while True:
        try:
            offset = stub.GetUpload(query).received_bytes
            if offset > received:
                received, failing_since = offset, math.inf
            return stub.PublishVersion(_parts(model, manifest, folder / GRAPH_FILE, offset, on_progress)).version
        except grpc.RpcError as error:
            failing_since = min(failing_since, time.monotonic())
            if error.code() not in RESUMED_AFTER or time.monotonic() - failing_since > PATIENCE_SECONDS:
                raise
            time.sleep(RETRY_SECONDS)


def set_stable(channel: grpc.Channel, model: str, version: int) -> pb.Traffic:
    """Let *version* serve."""
    request = pb.SetTrafficRequest(model=model, stable_version=version)
    return ModelLifecycleServiceStub(channel).SetTraffic(request).traffic


def _parts(
    model: str, manifest: Manifest, graph: Path, offset: int, on_progress: Callable[[float], None]
) -> Iterator[pb.PublishVersionRequest]:
    header = pb.PublishVersionHeader(model=model, manifest=manifest.to_json().encode(), offset=offset)
    yield pb.PublishVersionRequest(header=header)
    size = graph.stat().st_size
    with graph.open("rb") as file:
        file.seek(offset)
        while chunk := file.read(CHUNK_BYTES):
            yield pb.PublishVersionRequest(chunk=chunk)
            on_progress(file.tell() / size)
