"""All models of a repository in memory: what is loaded, what is said of the rest, and what a restart finds."""

import asyncio
import shutil

import numpy as np
import pytest
from onnx import TensorProto, helper

from aimass.inference.v1.lifecycle_pb2 import ModelVersion
from aimass.open_inference.model_config_pb2 import ModelConfig
from services.common.errors import Conflict, InvalidInput, NotFound, NotReady, Overloaded
from services.common.manifest import Graph, Manifest
from services.inference.models.serving import ModelServer
from tests.end_to_end.suite import eventually

READY, UNAVAILABLE = ModelVersion.STATE_READY, ModelVersion.STATE_UNAVAILABLE


@pytest.fixture
async def start(settings):
    servers = []

    async def start(**fields) -> ModelServer:
        servers.append(ModelServer(settings(**fields)))
        await servers[-1].start()
        return servers[-1]

    yield start
    for server in servers:
        await server.close()


@pytest.fixture
def publish(tiny_classifier):
    """A function that publishes the tiny classifier once more."""

    async def publish(server: ModelServer, model: str = "tiny") -> ModelVersion:
        staging = server.stage(model)
        shutil.copy(tiny_classifier.path, staging / "model.onnx")
        return await server.publish(model, staging, tiny_classifier.manifest)

    return publish


def states_of(server: ModelServer, model: str = "tiny") -> dict[int, int]:
    return {version.version: version.state for version in server.states()[model].versions}


async def test_nothing_is_known_before_the_repository_is_loaded(settings):
    server = ModelServer(settings())

    for ask in (server.states, lambda: server.resolve("tiny"), lambda: server.stage("tiny")):
        with pytest.raises(NotReady, match="are being loaded"):
            ask()


async def test_version_is_described_to_followers(start, tiny_classifier):
    (version,) = (await start()).states()["tiny"].versions
    manifest = tiny_classifier.manifest

    assert (version.version, version.state, version.state_reason) == (1, READY, "")
    assert tuple(version.labels) == manifest.labels
    assert version.preprocess_spec == manifest.preprocess.canonical_json()
    assert version.preprocess_digest == manifest.preprocess.digest
    assert version.graph_digest == manifest.graph.sha256
    assert version.create_time.ToJsonString() == manifest.create_time
    assert dict(version.metrics) == manifest.metrics


async def test_newest_versions_and_the_stable_one_are_loaded(start, tiny_classifier, model_repository):
    for number in range(2, 6):
        tiny_classifier.install(model_repository, "tiny", number)
    (model_repository / "tiny" / "traffic.json").write_text('{"generation": 3, "stable_version": 2}')
    server = await start(loaded_versions=2)

    assert states_of(server) == {1: UNAVAILABLE, 2: READY, 3: UNAVAILABLE, 4: READY, 5: READY}
    assert server.resolve("tiny")[0] == 2
    with pytest.raises(NotReady, match=r"not loaded: only the newest 2 versions \(INFERENCE_LOADED_VERSIONS\)"):
        server.resolve("tiny", 3)


async def test_config_says_which_versions_are_loaded(start, tiny_classifier, model_repository):
    for number in range(2, 6):
        tiny_classifier.install(model_repository, "tiny", number)
    (model_repository / "tiny" / "config.pbtxt").write_text("version_policy { specific { versions: [2, 4] } }")

    assert states_of(await start()) == {1: UNAVAILABLE, 2: READY, 3: UNAVAILABLE, 4: READY, 5: UNAVAILABLE}


async def test_surplus_version_is_unloaded_when_another_is_published(start, publish):
    server = await start(loaded_versions=1)
    await publish(server)
    await publish(server)

    assert states_of(server) == {1: READY, 2: UNAVAILABLE, 3: READY}


async def test_version_that_served_before_stays_loaded_also_over_a_restart(start, publish):
    server = await start(loaded_versions=1)
    for number in (2, 3):
        await publish(server)
        await server.set_traffic("tiny", number, None)

    assert states_of(server) == {1: UNAVAILABLE, 2: READY, 3: READY}
    assert server.states()["tiny"].traffic.previous_version == 2
    assert (await start(loaded_versions=1)).states() == server.states()


async def test_setting_the_stable_version_again_forgets_no_previous_one(start, publish):
    server = await start(loaded_versions=1)
    await publish(server)
    await server.set_traffic("tiny", 2, None)
    await server.set_traffic("tiny", 2, None)

    assert server.states()["tiny"].traffic.previous_version == 1
    assert states_of(server) == {1: READY, 2: READY}


async def test_traffic_can_move_to_a_version_that_is_not_loaded(start, publish):
    server = await start(loaded_versions=1)
    for number in (2, 3):
        await publish(server)
        await server.set_traffic("tiny", number, None)
    assert states_of(server)[1] == UNAVAILABLE

    await server.set_traffic("tiny", 1, None)

    assert server.resolve("tiny")[0] == 1
    assert states_of(server) == {1: READY, 2: UNAVAILABLE, 3: READY}


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("2/model.onnx", b"garbage", "publish it again, for it was damaged or exchanged"),
        ("2/model.onnx", None, "2/model.onnx is missing"),
        ("2/model.json", b"{", "model.json is not a valid manifest"),
        ("2/model.json", b'{"golden": {"inputs": [], "outputs": []}}', "golden.inputs"),
        ("2/model.json", "a folder", "internal error"),
    ],
)
async def test_version_that_fails_says_why_while_the_other_serves(
    start, tiny_classifier, model_repository, file, content, reason
):
    tiny_classifier.install(model_repository, "tiny", 2)
    path = model_repository / "tiny" / file
    path.unlink()
    if content == "a folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    server = await start()

    assert states_of(server) == {1: READY, 2: UNAVAILABLE}
    assert reason in server.states()["tiny"].versions[1].state_reason
    assert server.resolve("tiny")[0] == 1
    with pytest.raises(NotReady, match=reason):
        server.resolve("tiny", 2)


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("config.pbtxt", b"sequence_batching {}", "uses sequence_batching"),
        ("config.pbtxt", b"\xff", "cannot be read"),
        ("config.pbtxt", b"max_batch_size: -1", "negative"),
        ("traffic.json", b"{", "traffic.json is not valid"),
    ],
)
async def test_model_that_cannot_be_served_spoils_no_other(start, add_model, tiny_classifier, file, content, reason):
    folder = add_model(tiny_classifier.path, "bad")
    (folder.parent / file).write_bytes(content)
    server = await start()

    assert states_of(server, "bad") == {1: UNAVAILABLE}
    assert reason in server.states()["bad"].versions[0].state_reason
    assert server.resolve("tiny")[0] == 1


async def test_labels_come_from_the_file_that_the_config_names(start, add_model, tiny_classifier):
    config = 'output [ { name: "probabilities" data_type: TYPE_FP32 dims: [ -1, 3 ] label_filename: "labels.txt" } ]'
    folder = add_model(tiny_classifier.path, "bare", config=config)
    (folder.parent / "labels.txt").write_text("r\ng\nb\n")

    assert (await start()).resolve("bare")[1].labels == ("r", "g", "b")


async def test_published_version_survives_a_restart_with_its_traffic(start, publish):
    server = await start()
    await publish(server)
    await server.set_traffic("tiny", 2, expected_generation=1)
    await publish(server, "new")
    again = await start()

    assert again.states() == server.states()
    assert [again.resolve(name)[0] for name in ("tiny", "new")] == [2, 1]
    assert again.states()["tiny"].traffic.generation == 2


async def test_first_version_becomes_stable_and_the_second_gets_no_traffic(start, publish):
    server = await start()
    await publish(server, "new")
    await publish(server, "new")

    assert states_of(server, "new") == {1: READY, 2: READY}
    assert server.resolve("new")[0] == 1
    assert server.states()["new"].traffic.generation == 1


async def test_version_that_served_without_traffic_file_goes_on_when_another_is_published(start, publish):
    server = await start()
    assert server.states()["tiny"].traffic.generation == 0
    await publish(server)

    assert (server.resolve("tiny")[0], server.states()["tiny"].traffic.stable_version) == (1, 1)


async def test_model_without_a_version_that_serves_can_be_mended_by_publishing(start, publish, model_repository):
    (model_repository / "tiny" / "1" / "model.onnx").write_bytes(b"garbage")
    server = await start()
    await publish(server)

    assert states_of(server) == {1: UNAVAILABLE, 2: READY}
    assert server.resolve("tiny")[0] == 2


async def test_versions_published_at_the_same_time_all_count(start, publish):
    server = await start(loaded_versions=4)
    versions = await asyncio.gather(*(publish(server, "new") for _ in range(4)))

    assert sorted(version.version for version in versions) == [1, 2, 3, 4]
    assert set(states_of(server, "new")) == {1, 2, 3, 4}
    assert server.states()["new"].traffic.generation == 1
    assert (await start(loaded_versions=4)).states() == server.states()


async def test_version_that_fails_adds_nothing(start, model_repository):
    server = await start()
    before = server.states()
    staging = server.stage("new")
    (staging / "model.onnx").write_bytes(b"garbage")

    with pytest.raises(InvalidInput, match=r"model\.onnx cannot be loaded"):
        await server.publish("new", staging, Manifest())
    server.discard(staging)
    assert server.states() == before
    assert {path.name for path in model_repository.iterdir()} == {"tiny"}


def named(tiny_classifier, publication_id: str) -> Manifest:
    return tiny_classifier.manifest.model_copy(update={"publication_id": publication_id})


async def publish_as(server: ModelServer, tiny_classifier, publication_id: str) -> ModelVersion:
    staging = server.stage("tiny")
    shutil.copy(tiny_classifier.path, staging / "model.onnx")
    return await server.publish("tiny", staging, named(tiny_classifier, publication_id))


async def test_publishing_again_with_the_same_identity_gives_the_version_that_is_there(start, tiny_classifier):
    server = await start()
    first = await publish_as(server, tiny_classifier, "cycle-0001")

    again = await publish_as(server, tiny_classifier, "cycle-0001")
    other = await publish_as(server, tiny_classifier, "cycle-0002")

    assert (again, other.version) == (first, first.version + 1)
    assert first.publication_id == "cycle-0001"
    assert server.published("tiny", named(tiny_classifier, "cycle-0001")) == first


async def test_publishing_at_the_same_time_with_the_same_identity_makes_one_version(start, tiny_classifier):
    server = await start()

    versions = await asyncio.gather(*(publish_as(server, tiny_classifier, "cycle-0001") for _ in range(4)))

    assert {version.version for version in versions} == {versions[0].version}
    assert len(server.states()["tiny"].versions) == 2


async def test_an_identity_is_known_after_a_restart_and_by_another_replica(start, tiny_classifier):
    first = await publish_as(await start(), tiny_classifier, "cycle-0001")

    assert await publish_as(await start(), tiny_classifier, "cycle-0001") == first


async def test_another_graph_with_the_same_identity_is_refused(start, tiny_classifier):
    server = await start()
    await publish_as(server, tiny_classifier, "cycle-0001")
    other = named(tiny_classifier, "cycle-0001")
    other = other.model_copy(update={"graph": Graph(size_bytes=1, sha256=f"sha256:{'0' * 64}")})

    with pytest.raises(Conflict, match="'cycle-0001' is that of version 2 of model 'tiny', which has another graph"):
        server.published("tiny", other)


async def test_publisher_that_goes_away_leaves_a_whole_version_or_none(start, tiny_classifier, model_repository):
    """Cancelled at every step in turn: memory and disk must agree each time."""
    server, steps = await start(), 0
    while True:
        staging = server.stage("new")
        shutil.copy(tiny_classifier.path, staging / "model.onnx")
        publishing = asyncio.ensure_future(server.publish("new", staging, tiny_classifier.manifest))
        for _ in range(steps):
            await asyncio.sleep(0)
        if not publishing.cancel():
            break
        await asyncio.wait((publishing,))
        server.discard(staging)
        known = set(states_of(server, "new")) if "new" in server.states() else set()
        on_disk = {path.name for path in model_repository.glob("new/*")} - {"traffic.json"}
        assert on_disk == {str(number) for number in known}
        steps = steps * 2 + 1


@pytest.mark.parametrize(
    ("model", "version", "generation", "error", "words"),
    [
        ("other", 1, None, NotFound, "model 'other' is unknown; name one that this suite has: tiny"),
        ("tiny", 9, None, NotFound, "has no version 9; name one that it has: 1"),
        ("tiny", 0, None, InvalidInput, "stable_version is missing"),
        ("tiny", 2, None, Conflict, "version 2 of model 'tiny' is UNAVAILABLE"),
        ("tiny", 1, 7, Conflict, "has generation 0, not 7"),
    ],
)
async def test_traffic_that_cannot_be_is_refused(
    start, tiny_classifier, model_repository, model, version, generation, error, words
):
    (tiny_classifier.install(model_repository, "tiny", 2) / "model.onnx").unlink()
    server = await start()

    with pytest.raises(error, match=words):
        await server.set_traffic(model, version, generation)
    assert server.states()["tiny"].traffic.generation == 0
    assert not (model_repository / "tiny" / "traffic.json").exists()


async def test_watcher_gets_the_whole_state_at_once_and_the_newest_after_changes(start, publish):
    server = await start()
    watch = server.watch()
    (first,) = await anext(watch)
    await publish(server)
    await publish(server)
    (second,) = await anext(watch)

    assert len(first.versions) == 1
    assert len(second.versions) == 3
    await watch.aclose()


async def test_watcher_waits_for_the_first_load(settings):
    server = ModelServer(settings())
    first = asyncio.ensure_future(anext(server.watch()))
    await asyncio.sleep(0)
    assert not first.done()

    await server.start()
    assert [state.model for state in await first] == ["tiny"]
    await server.close()


async def poll(server: ModelServer, done) -> None:
    """Wait until the server's own look at the repository has brought it to what *done* asks for."""
    async with asyncio.timeout(30):
        async for _ in server.watch():
            if done():
                return


@pytest.fixture
def start_polling(start):
    return lambda **fields: start(poll_seconds=0.05, **fields)


async def test_version_that_is_dropped_into_the_folder_is_found(start_polling, tiny_classifier, model_repository):
    server = await start_polling()
    tiny_classifier.install(model_repository, "tiny", 2)
    tiny_classifier.install(model_repository, "new", 1)

    await poll(server, lambda: "new" in server.states() and states_of(server, "new") == {1: READY})
    await poll(server, lambda: states_of(server) == {1: READY, 2: READY})


async def test_version_that_is_still_being_copied_is_tried_again_when_it_changes(
    start_polling, tiny_classifier, model_repository
):
    server = await start_polling()
    graph = tiny_classifier.install(model_repository, "tiny", 2) / "model.onnx"
    whole = graph.read_bytes()
    graph.write_bytes(whole[:-10])
    await poll(server, lambda: states_of(server) == {1: READY, 2: UNAVAILABLE})
    graph.write_bytes(whole)

    await poll(server, lambda: states_of(server) == {1: READY, 2: READY})


async def test_version_and_model_that_are_removed_are_let_go(start_polling, tiny_classifier, model_repository):
    tiny_classifier.install(model_repository, "tiny", 2)
    tiny_classifier.install(model_repository, "other", 1)
    server = await start_polling()
    shutil.rmtree(model_repository / "tiny" / "2")
    shutil.rmtree(model_repository / "other")

    await poll(server, lambda: set(server.states()) == {"tiny"} and states_of(server) == {1: READY})
    assert server.resolve("tiny")[0] == 1


async def test_changed_config_is_taken_over_without_a_gap(start_polling, model_repository):
    server = await start_polling()
    before = server.resolve("tiny")[1]
    (model_repository / "tiny" / "config.pbtxt").write_text("max_batch_size: 5")

    # Nothing is announced, since followers are told the same as before.
    await eventually(lambda: server.resolve("tiny")[1] is not before)
    assert server.resolve("tiny")[1].signature.max_batch_size == 5


async def test_version_whose_new_files_do_not_load_goes_on_as_it_was_and_says_why(
    start, model_repository, tiny_classifier
):
    server = await start()
    (model_repository / "tiny" / "1" / "model.onnx").write_bytes(b"garbage")

    with pytest.raises(InvalidInput, match=r"failed to load 'tiny', version 1: .*damaged or exchanged"):
        await server.load("tiny")
    assert server.resolve("tiny")[0] == 1
    assert "damaged or exchanged" in server.states()["tiny"].versions[0].state_reason


async def test_two_replicas_on_one_folder_converge(start, start_polling, publish):
    one, other = await start(), await start_polling()
    await publish(one)
    await one.set_traffic("tiny", 2, None)
    await poll(other, lambda: states_of(other).get(2) == READY and other.resolve("tiny")[0] == 2)
    assert other.resolve("tiny")[0] == 2

    await other.roll_back("tiny", None)
    with pytest.raises(Conflict, match="has generation 3, not 2"):
        await one.set_traffic("tiny", 2, expected_generation=2)


async def test_canary_gets_its_share_of_the_keys_and_each_key_stays(start, publish):
    server = await start()
    await publish(server)
    await server.set_traffic("tiny", 1, None, canary_version=2, canary_share=0.3)
    chosen = {str(key): server.resolve("tiny", routing_key=str(key))[0] for key in range(2000)}

    assert 0.25 < list(chosen.values()).count(2) / len(chosen) < 0.35
    assert all(server.resolve("tiny", routing_key=key)[0] == version for key, version in chosen.items())
    assert server.resolve("tiny")[0] == 1
    assert server.resolve("tiny", 2)[0] == 2

    await server.set_traffic("tiny", 1, None, canary_version=2, canary_share=0.6)
    assert all(server.resolve("tiny", routing_key=key)[0] == 2 for key, version in chosen.items() if version == 2)


async def test_canary_that_cannot_serve_is_refused_and_one_that_is_gone_gets_nothing(start, publish, model_repository):
    server = await start()
    with pytest.raises(NotFound, match="has no version 7"):
        await server.set_traffic("tiny", 1, None, canary_version=7, canary_share=1.0)
    await publish(server)
    await server.set_traffic("tiny", 1, None, canary_version=2, canary_share=1.0)
    assert server.resolve("tiny", routing_key="any")[0] == 2
    shutil.rmtree(model_repository / "tiny" / "2")
    await server.load("tiny")

    assert server.resolve("tiny", routing_key="any")[0] == 1


async def test_promoting_and_rolling_back_load_nothing(start, publish):
    server = await start(loaded_versions=1)
    await publish(server)
    await server.set_traffic("tiny", 1, None, canary_version=2, canary_share=0.1)
    both = dict(server._models["tiny"].loaded)

    await server.promote("tiny", 0, None)
    assert server.resolve("tiny")[0] == 2
    await server.roll_back("tiny", None)
    assert server.resolve("tiny")[0] == 1
    assert server._models["tiny"].loaded == both


async def test_version_that_serves_while_the_traffic_names_none_is_not_deleted(start, add_model, tiny_classifier):
    add_model(tiny_classifier.path, "bare", 1)
    add_model(tiny_classifier.path, "bare", 2)
    server = await start()

    await server.delete("bare", 1)
    with pytest.raises(Conflict, match="version 2 of model 'bare' has a part in its traffic"):
        await server.delete("bare", 2)

    assert states_of(server, "bare") == {2: READY}


async def test_version_with_a_part_in_the_traffic_is_not_deleted_and_a_deleted_number_is_not_given_out_again(
    start, publish, model_repository
):
    server = await start()
    await publish(server)
    with pytest.raises(Conflict, match="version 1 of model 'tiny' has a part in its traffic"):
        await server.delete("tiny", 1)
    await server.delete("tiny", 2)
    with pytest.raises(NotFound, match="has no version 2"):
        await server.delete("tiny", 2)

    assert states_of(server) == {1: READY}
    assert not (model_repository / "tiny" / "2").exists()
    assert (await publish(await start())).version == 3


async def test_unloaded_model_stays_so_until_it_is_loaded(start_polling, tiny_classifier, model_repository):
    server = await start_polling()
    await server.unload("tiny")
    with pytest.raises(NotReady, match="unloaded by request"):
        server.resolve("tiny", 1)
    tiny_classifier.install(model_repository, "other", 1)
    await poll(server, lambda: "other" in server.states())
    assert states_of(server) == {1: UNAVAILABLE}

    await server.load("tiny")
    assert server.resolve("tiny")[0] == 1


async def test_files_that_come_with_a_load_take_the_folders_place_until_the_next(start, tiny_classifier):
    server = await start()
    files = {"5/model.onnx": tiny_classifier.path.read_bytes()}
    await server.load("tiny", ModelConfig(max_batch_size=3), files)
    await server.load("fresh", ModelConfig(max_batch_size=2), files)

    assert states_of(server) == {5: READY}
    assert server.resolve("tiny")[1].signature.max_batch_size == 3
    assert server.resolve("fresh")[0] == 5
    await server.unload("fresh")
    with pytest.raises(Conflict, match="model 'fresh' is served from files that came with a request"):
        await server.delete("fresh", 5)
    await server.load("tiny")
    assert states_of(server) == {1: READY}
    assert server.resolve("tiny")[1].signature.max_batch_size == 32


async def test_load_of_what_is_not_there_is_refused(start):
    server = await start()

    with pytest.raises(NotFound, match=r"failed to load 'nothing': the repository has no folder nothing/<version>/"):
        await server.load("nothing")
    assert set(server.states()) == {"tiny"}


async def test_version_that_does_not_fit_into_the_memory_is_refused(start, publish):
    server = await start(max_memory_bytes=1)

    assert "INFERENCE_MAX_MEMORY_BYTES" in server.states()["tiny"].versions[0].state_reason
    with pytest.raises(Overloaded, match="more than 1 "):
        await publish(server)


@pytest.fixture(scope="session")
def slow_graph(save_graph):
    """A graph that takes about a second to be loaded: it is run four times, and each run works."""
    body = helper.make_graph(
        [helper.make_node("MatMul", ["matrix", "identity"], ["product"]), helper.make_node("Identity", ["go"], ["on"])],
        "round",
        [
            helper.make_tensor_value_info("round", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("matrix", TensorProto.FLOAT, [256, 256]),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("product", TensorProto.FLOAT, [256, 256]),
        ],
    )
    return save_graph(
        [
            helper.make_node("Loop", ["rounds", "", "identity"], ["worked"], body=body),
            helper.make_node("ReduceMax", ["worked"], ["one"], keepdims=0),
            helper.make_node("Mul", ["x", "one"], ["y"]),
        ],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 1])],
        {"identity": np.eye(256, dtype=np.float32), "rounds": np.array(500, np.int64)},
    )


async def serve_meanwhile(server: ModelServer, work, model: str = "tiny") -> int:
    """Resolve requests while *work* goes on, and return how many; each finds a version, or this raises."""
    task, resolved = asyncio.ensure_future(work), 0
    while not task.done():
        server.resolve(model)
        resolved += 1
        await asyncio.sleep(0)
    await task
    return resolved


async def test_requests_are_served_while_pushed_files_are_loaded(start, slow_graph):
    server = await start()

    assert await serve_meanwhile(server, server.load("tiny", files={"5/model.onnx": slow_graph.read_bytes()})) > 0

    assert server.resolve("tiny").number == 5


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"5/model.onnx": b"garbage"}, "version 5: model.onnx cannot be loaded"),
        ({"labels.txt": b"a"}, "there is no version of it; give a file such as 1/model.onnx"),
    ],
)
async def test_pushed_files_that_cannot_be_served_leave_what_is(start, files, words):
    server = await start()
    before = server.resolve("tiny")

    with pytest.raises(InvalidInput, match=words):
        await server.load("tiny", files=files)

    assert server.resolve("tiny") == before
    assert states_of(server) == {1: READY}


async def test_a_published_model_is_not_loaded_again(start_polling, publish):
    server = await start_polling()
    await publish(server, "new")
    version = server.resolve("new").version
    for _ in range(3):  # by now it is settled
        await server._reconcile("new", settle=True)

    assert server.resolve("new").version is version


async def test_nothing_is_published_to_a_model_that_is_not_the_repositorys(start, publish, tiny_classifier):
    server = await start()
    await server.load("tiny", files={"1/model.onnx": tiny_classifier.path.read_bytes()})

    with pytest.raises(Conflict, match="served from files that came with a request"):
        await publish(server)
    with pytest.raises(Conflict, match="served from files that came with a request"):
        await server.set_traffic("tiny", 1, None)


async def test_replicas_agree_that_a_version_is_gone(start, publish):
    one = await start()
    await publish(one)
    other = await start()
    await one.delete("tiny", 2)

    with pytest.raises(NotFound, match="version 2 of model 'tiny' is gone"):
        await other.set_traffic("tiny", 2, None)
    assert other.resolve("tiny").number == 1


async def test_a_version_that_gives_way_serves_until_all_is_loaded(
    start_polling, tiny_classifier, slow_graph, add_model
):
    server = await start_polling(loaded_versions=1)
    add_model(tiny_classifier.path, "bare", 1)
    await poll(server, lambda: "bare" in server.states())
    add_model(tiny_classifier.path, "bare", 2)
    add_model(slow_graph, "bare", 3)
    add_model(slow_graph, "other", 1)

    changes = poll(server, lambda: states_of(server, "bare").get(3) == READY)
    assert await serve_meanwhile(server, changes, "bare") > 0

    assert server.resolve("bare").number == 3


async def test_rolling_back_does_not_wait_for_a_version_that_is_being_loaded(
    start_polling, publish, slow_graph, add_model
):
    server = await start_polling()
    await publish(server)
    await server.set_traffic("tiny", 1, None)
    await server.set_traffic("tiny", 2, None)
    add_model(slow_graph, "tiny", 3)
    await eventually(lambda: 3 in server._models["tiny"].tried)

    traffic = await server.roll_back("tiny", None)

    assert traffic.stable_version == 1
    assert server.resolve("tiny").number == 1
    assert 3 not in states_of(server)  # it is not over
    await poll(server, lambda: states_of(server).get(3) == READY)


async def test_a_model_that_loads_does_not_keep_others_from_following_their_traffic(
    start_polling, publish, slow_graph, add_model
):
    server = await start_polling()
    await publish(server)
    replica = await start_polling()
    add_model(slow_graph, "other")
    await eventually(lambda: server._loader._one_at_a_time.locked())

    await replica.set_traffic("tiny", 2, None)

    await poll(server, lambda: server.resolve("tiny").number == 2)


async def test_polling_goes_on_after_the_repository_could_not_be_read(
    start_polling, tiny_classifier, model_repository, capfd
):
    server = await start_polling()
    aside = model_repository.with_name("aside")
    model_repository.rename(aside)
    await eventually(lambda: "not served" in "".join(capfd.readouterr()))
    aside.rename(model_repository)
    tiny_classifier.install(model_repository, "new", 1)

    await poll(server, lambda: "new" in server.states())


async def test_a_malformed_config_is_told_once_and_the_one_before_holds(
    start_polling, tiny_classifier, model_repository, add_model, capfd
):
    server = await start_polling()
    folder = add_model(tiny_classifier.path, "bare", 1, config="max_batch_size: 3")
    await poll(server, lambda: "bare" in server.states())
    (folder.parent / "config.pbtxt").write_text("nonsense {")
    await poll(server, lambda: "config.pbtxt" in server.states()["bare"].versions[0].state_reason)
    add_model(tiny_classifier.path, "bare", 2)
    await poll(server, lambda: states_of(server, "bare").get(2) == READY)

    assert server.resolve("bare", 2).version.signature.max_batch_size == 3
    assert "".join(capfd.readouterr()).count("cannot be read") == 1


async def test_an_answer_reaches_its_caller_though_its_version_is_gone(start, publish, model_repository):
    server = await start()
    await publish(server)
    await server.set_traffic("tiny", 1, None, shadow_version=2)
    resolved = server.resolve("tiny")
    image = {"image": np.zeros((1, 4, 4, 3), np.uint8)}
    answer = await resolved.version.batcher.infer(image, ["probabilities"], 1, float("inf"))
    shutil.rmtree(model_repository / "tiny" / "1")
    await server._reconcile("tiny")

    server.answered("tiny", resolved, image, ["probabilities"], 1, answer)

    assert 1 not in states_of(server)
