"""Sends a finished run's model to inference."""

from collections.abc import Callable, Iterator
from pathlib import Path

import grpc

from aimass.inference.v1 import lifecycle_pb2 as pb
from aimass.inference.v1.lifecycle_pb2_grpc import ModelLifecycleServiceStub
from services.common.manifest import GRAPH_FILE, MANIFEST_FILE

CHUNK_BYTES = 1024 * 1024


def publish_version(
    channel: grpc.Channel, model: str, folder: Path, on_progress: Callable[[float], None] = lambda fraction: None
) -> pb.ModelVersion:
    """Publish the graph and the manifest in *folder* as the next version of *model*; it gets no traffic.

    Raises:
        grpc.RpcError: Inference is away or refuses the version; its sentence says why.
    """
    answer = ModelLifecycleServiceStub(channel).PublishVersion(_parts(model, folder, on_progress))
    return answer.version


def set_stable(channel: grpc.Channel, model: str, version: int) -> pb.Traffic:
    """Let *version* serve."""
    request = pb.SetTrafficRequest(model=model, stable_version=version)
    return ModelLifecycleServiceStub(channel).SetTraffic(request).traffic


def _parts(model: str, folder: Path, on_progress: Callable[[float], None]) -> Iterator[pb.PublishVersionRequest]:
    header = pb.PublishVersionHeader(model=model, manifest=(folder / MANIFEST_FILE).read_bytes())
    yield pb.PublishVersionRequest(header=header)
    size = (folder / GRAPH_FILE).stat().st_size
    with (folder / GRAPH_FILE).open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield pb.PublishVersionRequest(chunk=chunk)
            on_progress(file.tell() / size)
