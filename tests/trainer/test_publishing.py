"""Publication to the real service over connections that break."""

import asyncio

import grpc
import pytest

from services.common.errors import NotReady
from services.inference.service import InferenceComponent
from services.inference.settings import InferenceSettings
from services.trainer import publishing

CHUNK_BYTES = 100


class Breaking:
    """The real lifecycle service behind a connection that breaks."""

    def __init__(self, servicer, chunks: int, answers_lost: int = 0) -> None:
        self._servicer = servicer
        self._chunks = chunks
        self._answers_lost = answers_lost
        self.offsets: list[int] = []

    def __getattr__(self, name):
        return getattr(self._servicer, name)

    async def PublishVersion(self, requests, context):
        answer = await self._servicer.PublishVersion(self._until_it_breaks(requests), context)
        if self._answers_lost:
            self._answers_lost -= 1
            raise NotReady("the connection broke")
        return answer

    async def _until_it_breaks(self, requests):
        chunks = 0
        async for request in requests:
            if request.HasField("header"):
                self.offsets.append(request.header.offset)
            elif chunks == self._chunks:
                raise NotReady("the connection broke")
            else:
                chunks += 1
            yield request


@pytest.fixture
def folder(tmp_path, tiny_classifier):
    """What a finished run holds."""
    return tiny_classifier.install(tmp_path, "run", 1)


@pytest.fixture
def publish(serve, model_repository, folder, monkeypatch, device):
    """A function that publishes through a breaking connection and returns the version and the servicer."""
    monkeypatch.setattr(publishing, "CHUNK_BYTES", CHUNK_BYTES)
    monkeypatch.setattr(publishing, "RETRY_SECONDS", 0)

    async def publish(*breaks):
        def make(stop):
            settings = InferenceSettings(repository=model_repository, device=device, threads=1)
            component = InferenceComponent(settings, stop)
            component.lifecycle = Breaking(component.lifecycle, *breaks)
            return component

        served = await serve(make)
        with grpc.insecure_channel(served.address) as channel:
            version = await asyncio.to_thread(publishing.publish_version, channel, "new", folder)
        return version, served.component.lifecycle

    return publish


async def test_upload_that_breaks_again_and_again_goes_on_each_time(publish, folder, model_repository):
    version, servicer = await publish(3)
    graph = (folder / "model.onnx").read_bytes()

    assert version.version == 1
    assert servicer.offsets == list(range(0, len(graph), 3 * CHUNK_BYTES))
    assert (model_repository / "new" / "1" / "model.onnx").read_bytes() == graph


async def test_version_whose_answer_was_lost_is_not_published_again(publish, model_repository):
    version, servicer = await publish(10_000, 1)

    assert (version.version, servicer.offsets) == (1, [0, 0])  # asked again, and told that it is there
    assert [path.name for path in model_repository.glob("new/[0-9]*")] == ["1"]


async def test_upload_that_never_gets_on_is_given_up(publish, monkeypatch):
    monkeypatch.setattr(publishing, "PATIENCE_SECONDS", 0)
    with pytest.raises(grpc.RpcError) as caught:
        await publish(0)

    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert caught.value.details() == "the connection broke"
