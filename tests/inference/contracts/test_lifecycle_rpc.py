"""Publishing, listing, moving and following traffic over a real channel."""

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
from grpc_status import rpc_status

from aimass.inference.v1 import lifecycle_pb2 as pb
from aimass.inference.v1.lifecycle_pb2_grpc import ModelLifecycleServiceStub
from aimass.open_inference.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from services.common.manifest import Golden, GoldenTensor, Manifest
from services.inference.contracts import lifecycle
from services.inference.models.desired_traffic import Traffic
from tests.end_to_end.suite import eventually


@pytest.fixture
def stub(inference):
    return ModelLifecycleServiceStub(inference.channel)


@pytest.fixture
def good(tiny_classifier):
    """Manifest and bytes of the tiny classifier."""
    return tiny_classifier.manifest, tiny_classifier.path.read_bytes()


def files(repository) -> set[str]:
    return {path.relative_to(repository).as_posix() for path in repository.rglob("*") if path.is_file()}


async def test_published_version_is_ready_and_complete(stub, good, upload, model_repository):
    manifest, graph = good
    version = (await stub.PublishVersion(iter(upload("new", manifest, graph)))).version

    assert (version.version, version.state) == (1, pb.ModelVersion.STATE_READY)
    assert tuple(version.labels) == manifest.labels
    folder = model_repository / "new" / "1"
    assert (folder / "model.onnx").read_bytes() == graph
    assert Manifest.from_json((folder / "model.json").read_bytes(), "model.json") == manifest
    assert files(model_repository / "new") == {"1/model.onnx", "1/model.json", "traffic.json"}


async def test_published_version_serves_only_when_traffic_says_so(stub, good, upload, inference, images, infer_request):
    infer = GRPCInferenceServiceStub(inference.channel).ModelInfer
    await stub.PublishVersion(iter(upload("tiny", *good)))
    assert (await infer(infer_request(images))).model_version == "1"
    assert (await infer(infer_request(images, model_version="2"))).model_version == "2"

    traffic = (
        await stub.SetTraffic(pb.SetTrafficRequest(model="tiny", stable_version=2, expected_generation=1))
    ).traffic
    assert (traffic.generation, traffic.stable_version) == (2, 2)
    assert (await infer(infer_request(images))).model_version == "2"
    assert (await infer(infer_request(images, model_version="1"))).model_version == "1"


def wrong_golden(manifest: Manifest) -> Manifest:
    outputs = (GoldenTensor.from_array("probabilities", "FP32", np.ones((2, 3), np.float32)),)
    return manifest.model_copy(update={"golden": Golden(inputs=manifest.golden.inputs, outputs=outputs)})


@pytest.mark.parametrize(
    ("words", "make"),
    [
        ("must be its header", lambda up, m, g: []),
        ("must be its header", lambda up, m, g: up("new", m, g)[1:]),
        ("must be its header", lambda up, m, g: [pb.PublishVersionRequest()]),
        ("after the header must be a chunk", lambda up, m, g: up("new", m, g)[:1] * 2),
        ("bytes of the graph arrived; the manifest states", lambda up, m, g: up("new", m, g + b"0")),
        ("the graph that arrived has digest sha256:", lambda up, m, g: up("new", m, g[:-1] + b"0")),
        ("manifest is not a valid manifest", lambda up, m, g: up("new", b"{", g)),
        ("does not state size and SHA-256", lambda up, m, g: up("new", b"{}", g)),
        ("golden output 'probabilities' differs by", lambda up, m, g: up("new", wrong_golden(m), g)),
        ("has 1 labels", lambda up, m, g: up("new", m.model_copy(update={"labels": ("a",)}), g)),
        ("model name '../new' is not valid", lambda up, m, g: up("../new", m, g)),
        ("model name '' is not valid", lambda up, m, g: up("", m, g)),
    ],
)
async def test_publication_that_is_not_right_adds_nothing(stub, good, upload, model_repository, words, make):
    before = files(model_repository)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.PublishVersion(iter(make(upload, *good)))

    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert words in caught.value.details()
    assert files(model_repository) == before
    assert [path.name for path in model_repository.iterdir()] == ["tiny"]
    assert [state.model for state in (await stub.ListVersions(pb.ListVersionsRequest())).models] == ["tiny"]


async def test_graph_over_the_limit_is_refused_before_it_is_sent(start_inference, good, upload):
    served = await start_inference(max_model_bytes=100)
    call = ModelLifecycleServiceStub(served.channel).PublishVersion()
    await call.write(upload("new", *good)[0])

    assert await call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "at most 100 are accepted; publish a smaller one or raise INFERENCE_MAX_MODEL_BYTES" in await call.details()


def rest(manifest: Manifest, graph: bytes, offset: int) -> list[pb.PublishVersionRequest]:
    """Return the messages of an upload that goes on at *offset*."""
    header = pb.PublishVersionHeader(model="new", manifest=manifest.to_json().encode(), offset=offset)
    return [pb.PublishVersionRequest(header=header), pb.PublishVersionRequest(chunk=graph[offset:])]


async def received(stub, manifest: Manifest) -> int:
    query = pb.GetUploadRequest(model="new", graph_digest=manifest.graph.sha256)
    return (await stub.GetUpload(query)).received_bytes


async def publish_when_free(stub, messages) -> pb.ModelVersion:
    """Publish as soon as the server has noticed that the call before is over."""
    while True:
        try:
            return (await stub.PublishVersion(iter(messages))).version
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise


@pytest.fixture
def begin(good, upload):
    """A function that sends the header and two chunks of 100 bytes, and returns the call when they are on disk."""

    async def begin(stub):
        call = stub.PublishVersion()
        for message in upload("new", *good)[:3]:
            await call.write(message)
        while await received(stub, good[0]) < 200:  # as long as it takes
            pass
        return call

    return begin


async def test_upload_that_the_client_breaks_off_goes_on_where_it_was(stub, good, begin, model_repository):
    (await begin(stub)).cancel()
    version = await publish_when_free(stub, rest(*good, 200))

    assert (version.version, version.state) == (1, pb.ModelVersion.STATE_READY)
    assert (model_repository / "new" / "1" / "model.onnx").read_bytes() == good[1]
    assert files(model_repository / "new") == {"1/model.onnx", "1/model.json", "traffic.json"}
    assert await received(stub, good[0]) == 0


async def test_upload_goes_on_at_another_process(start_inference, good, begin):
    first, second = [ModelLifecycleServiceStub((await start_inference()).channel) for _ in range(2)]
    call = await begin(first)

    assert await received(second, good[0]) == 200
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await second.PublishVersion(iter(rest(*good, 200)))
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "is being uploaded by another call; try again when that has ended" in caught.value.details()
    call.cancel()
    assert (await publish_when_free(second, rest(*good, 200))).version == 1


@pytest.mark.parametrize("offset", [-1, 1, 199, 201])
async def test_upload_that_goes_on_elsewhere_is_refused(stub, good, begin, offset):
    (await begin(stub)).cancel()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await publish_when_free(stub, rest(*good, offset))

    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert f"offset is {offset}, but 200 bytes of the graph are kept; set offset to that" in caught.value.details()
    assert await received(stub, good[0]) == 200


async def test_upload_may_begin_anew(stub, good, begin):
    (await begin(stub)).cancel()

    assert (await publish_when_free(stub, rest(*good, 0))).version == 1


async def test_upload_that_is_too_short_is_kept(stub, good, upload, model_repository):
    manifest, graph = good
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.PublishVersion(iter(upload("new", manifest, graph)[:3]))

    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert f"the manifest states {len(graph)}; upload it again from offset 200 on" in caught.value.details()
    assert await received(stub, manifest) == 200
    assert [state.model for state in (await stub.ListVersions(pb.ListVersionsRequest())).models] == ["tiny"]


async def test_upload_whose_earlier_part_is_damaged_is_removed(stub, good, upload, model_repository):
    manifest, graph = good
    damaged = upload("new", manifest, b"0" + graph[1:])[:3]
    with pytest.raises(grpc.aio.AioRpcError, match="200 bytes of the graph arrived"):
        await stub.PublishVersion(iter(damaged))
    with pytest.raises(grpc.aio.AioRpcError, match="the graph that arrived has digest"):
        await stub.PublishVersion(iter(rest(manifest, graph, 200)))

    assert await received(stub, manifest) == 0
    assert {path.name for path in model_repository.iterdir()} == {"tiny"}


async def test_upload_for_which_there_is_no_memory_need_not_be_sent_again(start_inference, good):
    manifest, graph = good
    stub = ModelLifecycleServiceStub((await start_inference(max_memory_bytes=1)).channel)
    for offset in (0, len(graph)):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.PublishVersion(iter(rest(manifest, graph, offset)))

        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await received(stub, manifest) == len(graph)


async def test_upload_of_which_nothing_more_comes_is_ended_and_kept(stub, good, upload, begin, monkeypatch):
    call = await begin(stub)
    monkeypatch.setattr(lifecycle, "IDLE_SECONDS", 1)  # from the next read on, which the third part is there for
    await call.write(upload("new", *good)[3])

    assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "no part of the upload came for 1 seconds; ask GetUpload where to go on" in await call.details()
    assert await received(stub, good[0]) == 300


async def test_upload_is_ended_and_kept_when_the_service_stops(stub, good, begin, inference):
    call = await begin(stub)
    inference.stop.set_drained()

    assert await call.code() is grpc.StatusCode.UNAVAILABLE
    assert "the server is stopping" in await call.details()
    assert await received(stub, good[0]) == 200


class Threads(ThreadPoolExecutor):
    """Threads that know what they were asked to do."""

    def __init__(self) -> None:
        super().__init__(max_workers=1)
        self.asked = []

    def submit(self, work, /, *args, **named):
        self.asked.append(work)
        return super().submit(work, *args, **named)


async def test_manifest_is_parsed_beside_the_event_loop(stub, upload):
    threads = Threads()
    asyncio.get_running_loop().set_default_executor(threads)

    assert await stub.PublishVersion(iter(upload("new", b"{", b""))).code() is grpc.StatusCode.INVALID_ARGUMENT
    assert Manifest.from_json in [work.args[0] for work in threads.asked]


async def test_upload_of_which_only_the_header_came_leaves_nothing(stub, good, upload, model_repository):
    call = stub.PublishVersion()
    await call.write(upload("new", *good)[0])
    while not any(model_repository.glob(".upload-new-*")):  # until the server has begun
        await stub.ListVersions(pb.ListVersionsRequest())
    call.cancel()

    while any(model_repository.glob(".upload-*")):
        await stub.ListVersions(pb.ListVersionsRequest())
    assert {path.name for path in model_repository.iterdir()} == {"tiny"}


@pytest.mark.parametrize(
    ("model", "digest", "words"),
    [
        ("../new", "sha256:" + "0" * 64, "model name '../new' is not valid"),
        ("new", "", "graph digest '' is not valid; give sha256: and 64 hexadecimal digits"),
        ("new", "sha256:" + "0" * 63 + "/", "is not valid; give sha256: and 64"),
    ],
)
async def test_upload_of_a_malformed_name_is_not_looked_for(stub, model, digest, words):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.GetUpload(pb.GetUploadRequest(model=model, graph_digest=digest))

    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert words in caught.value.details()


async def test_reason_of_a_refused_publication_is_machine_readable(stub, good, upload):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.PublishVersion(iter(upload("new", wrong_golden(good[0]), good[1])))

    assert b"GOLDEN_MISMATCH" in rpc_status.from_call(caught.value).details[0].value


async def test_versions_are_listed_by_model(stub, good, upload):
    await stub.PublishVersion(iter(upload("another", *good)))
    listed = (await stub.ListVersions(pb.ListVersionsRequest())).models
    one = (await stub.ListVersions(pb.ListVersionsRequest(model="tiny"))).models

    assert [state.model for state in listed] == ["another", "tiny"]
    assert list(one) == [listed[1]]
    assert [version.version for version in one[0].versions] == [1]


async def test_unknown_model_is_not_listed(stub):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.ListVersions(pb.ListVersionsRequest(model="other"))

    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert caught.value.details() == "model 'other' is unknown; name one that this suite has: tiny"


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"model": "other", "stable_version": 1}, "NOT_FOUND"),
        ({"model": "tiny", "stable_version": 2}, "NOT_FOUND"),
        ({"model": "tiny"}, "INVALID_ARGUMENT"),
        ({"model": "tiny", "stable_version": 1, "expected_generation": 5}, "FAILED_PRECONDITION"),
    ],
)
async def test_traffic_that_cannot_be_is_refused(stub, fields, code):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.SetTraffic(pb.SetTrafficRequest(**fields))

    assert caught.value.code().name == code


async def test_only_the_first_of_two_who_saw_the_same_generation_moves_traffic(stub, good, upload):
    await stub.PublishVersion(iter(upload("tiny", *good)))
    change = pb.SetTrafficRequest(model="tiny", stable_version=2, expected_generation=1)
    codes = [await call.code() for call in (stub.SetTraffic(change), stub.SetTraffic(change))]

    assert sorted(code.name for code in codes) == ["FAILED_PRECONDITION", "OK"]


async def test_traffic_is_on_disk_when_the_answer_comes(stub, model_repository):
    await stub.SetTraffic(pb.SetTrafficRequest(model="tiny", stable_version=1))

    written = json.loads((model_repository / "tiny" / "traffic.json").read_text())
    assert written == vars(Traffic(generation=1, stable_version=1))


async def test_watcher_gets_the_whole_state_at_once_and_after_each_change(stub, good, upload):
    watch = stub.WatchTraffic(pb.WatchTrafficRequest())
    first = await watch.read()
    await stub.SetTraffic(pb.SetTrafficRequest(model="tiny", stable_version=1))
    second = await watch.read()
    await stub.PublishVersion(iter(upload("new", *good)))
    third = await watch.read()

    assert [state.traffic.generation for state in first.models] == [0]
    assert [state.traffic.generation for state in second.models] == [1]
    assert [state.model for state in third.models] == ["new", "tiny"]
    assert third.models[1].versions == first.models[0].versions


async def test_watch_ends_in_order_when_the_service_stops(stub, inference):
    watch = stub.WatchTraffic(pb.WatchTrafficRequest())
    await watch.read()
    inference.stop.set_drained()

    assert await watch.code() is grpc.StatusCode.UNAVAILABLE


async def test_serving_goes_on_while_versions_come_and_go(stub, good, upload, inference, images, infer_request):
    """Each of many callers gets an answer of the version that was in charge, whatever is published and moved."""
    infer = GRPCInferenceServiceStub(inference.channel).ModelInfer
    done = asyncio.Event()

    async def call() -> set[str]:
        seen = set()
        while not done.is_set():
            seen.add((await infer(infer_request(images))).model_version)
        return seen

    callers = [asyncio.ensure_future(call()) for _ in range(4)]
    for version in range(2, 8):
        await stub.PublishVersion(iter(upload("tiny", *good)))
        await stub.SetTraffic(pb.SetTrafficRequest(model="tiny", stable_version=version))
    done.set()

    assert set.union(*await asyncio.gather(*callers)) <= {str(number) for number in range(1, 8)}
    assert (await infer(infer_request(images))).model_version == "7"


async def test_trial_is_told_to_followers_promoted_and_taken_back(stub, good, upload):
    for _ in range(2):
        await stub.PublishVersion(iter(upload("tiny", *good)))
    canary = pb.Canary(version=2, share=0.25)
    tried = await stub.SetTraffic(
        pb.SetTrafficRequest(model="tiny", stable_version=1, canary=canary, shadow_version=3, expected_generation=1)
    )
    told = (await stub.WatchTraffic(pb.WatchTrafficRequest()).read()).models[0].traffic
    promoted = (await stub.Promote(pb.PromoteRequest(model="tiny", expected_generation=2))).traffic
    back = (await stub.Rollback(pb.RollbackRequest(model="tiny"))).traffic
    got = await stub.GetTraffic(pb.GetTrafficRequest(model="tiny"))

    assert told == tried.traffic == pb.Traffic(generation=2, stable_version=1, canary=canary, shadow_version=3)
    assert promoted == pb.Traffic(generation=3, stable_version=2, previous_version=1)
    assert back == got.traffic == pb.Traffic(generation=4, stable_version=1, previous_version=2)
    assert not got.HasField("shadow")


@pytest.mark.parametrize(
    ("method", "request_message", "code", "words"),
    [
        ("Promote", pb.PromoteRequest(model="tiny"), "FAILED_PRECONDITION", "neither canary nor shadow"),
        ("Promote", pb.PromoteRequest(model="tiny", version=9), "NOT_FOUND", "has no version 9"),
        ("Promote", pb.PromoteRequest(model="no"), "NOT_FOUND", "model 'no' is unknown"),
        ("Rollback", pb.RollbackRequest(model="tiny"), "FAILED_PRECONDITION", "has had no version in it yet"),
        ("Rollback", pb.RollbackRequest(model="tiny", expected_generation=3), "FAILED_PRECONDITION", "not 3"),
        ("GetTraffic", pb.GetTrafficRequest(model="no"), "NOT_FOUND", "model 'no' is unknown"),
        ("DeleteVersion", pb.DeleteVersionRequest(model="tiny", version=2), "NOT_FOUND", "has no version 2"),
        (
            "SetTraffic",
            pb.SetTrafficRequest(model="tiny", stable_version=1, canary=pb.Canary(share=0.5)),
            "INVALID_ARGUMENT",
            "canary names no version",
        ),
        (
            "SetTraffic",
            pb.SetTrafficRequest(model="tiny", stable_version=1, canary=pb.Canary(version=1, share=0.5)),
            "INVALID_ARGUMENT",
            "the stable version itself",
        ),
        (
            "SetTraffic",
            pb.SetTrafficRequest(model="tiny", stable_version=1, canary=pb.Canary(version=2, share=1.5)),
            "INVALID_ARGUMENT",
            "share is 1.5; give 0 to 1",
        ),
    ],
)
async def test_move_that_cannot_be_is_refused_with_a_sentence(stub, method, request_message, code, words):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await getattr(stub, method)(request_message)

    assert caught.value.code().name == code
    assert words in caught.value.details()


async def test_deleted_version_is_gone(stub, good, upload):
    await stub.PublishVersion(iter(upload("tiny", *good)))
    await stub.DeleteVersion(pb.DeleteVersionRequest(model="tiny", version=2))

    (state,) = (await stub.ListVersions(pb.ListVersionsRequest())).models
    assert [version.version for version in state.versions] == [1]


async def test_shadow_runs_what_was_answered_and_is_compared(stub, good, upload, inference, images, infer_request):
    infer = GRPCInferenceServiceStub(inference.channel).ModelInfer
    await stub.PublishVersion(iter(upload("tiny", *good)))
    await stub.SetTraffic(pb.SetTrafficRequest(model="tiny", stable_version=1, shadow_version=2))

    async def report():
        return (await stub.GetTraffic(pb.GetTrafficRequest(model="tiny"))).shadow

    answers = [await infer(infer_request(images)) for _ in range(20)]
    await eventually(report_is_complete(report, 20))
    shown = await report()

    assert {answer.model_version for answer in answers} == {"1"}
    assert shown.version == 2
    assert shown.compared == shown.agreed > 0
    assert shown.failed == shown.skipped == 0
    assert shown.shadow_time.ToNanoseconds() > 0


def report_is_complete(report, offered):
    async def complete() -> bool:
        shown = await report()
        return shown.compared + shown.dropped == offered

    return complete
