"""Versions answer pictures and the hold-out, asked of a real inference service."""

import asyncio
import os
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper
from PIL import Image
from sqlalchemy import delete, select

from aimass.inference.v1 import lifecycle_pb2 as pb
from aimass.inference.v1.lifecycle_pb2_grpc import ModelLifecycleServiceStub
from aimass.starter import RUN_ID, VERSION
from services.common.errors import NotReady
from services.common.manifest import GRAPH_FILE, MANIFEST_FILE, Graph, Manifest, PreprocessSpec, digest_of
from services.common.pixels import transform
from services.inference.service import InferenceComponent
from services.inference.settings import InferenceSettings
from services.trainer.analyst.analyst import Analyst
from services.trainer.analyst.answering import Inference
from services.trainer.analyst.basis import load_basis
from services.trainer.analyst.figures import last_figure
from services.trainer.analyst.surroundings import MISSING_SECONDS, Surroundings
from services.trainer.data.blobs import Blobs
from services.trainer.data.cifar10 import LABELS
from services.trainer.data.collection import digest_contents
from services.trainer.data.features import unpack
from services.trainer.data.models import Model
from services.trainer.data.observing import Role
from services.trainer.data.samples import Samples
from services.trainer.data.sources import DataSources
from services.trainer.feedback.tables import AnswerRow, EncoderRow, FindingRow, LoopModelRow
from services.trainer.loop.cycle_payloads import (
    CandidatePublished,
    CycleEnded,
    CycleStarted,
    GateDecided,
    PublicationIntended,
    RunCreated,
    RunEnded,
    SnapshotMade,
)
from services.trainer.loop.gate import decide
from services.trainer.loop.holdout import Holdout, find_holdout, read_holdout
from services.trainer.loop.kinds import HOLDOUT
from services.trainer.loop.log import EventLog, Leases
from services.trainer.loop.measuring import measure
from services.trainer.loop.payloads import Payload
from services.trainer.loop.policy import Strategy
from services.trainer.loop.policy_file import load_policy
from services.trainer.loop.reducer import fold
from services.trainer.loop.refusals import Refusal, read_refusal
from services.trainer.loop.state import LoopState
from services.trainer.loop.streams import UNREADABLE, read_live_stream
from services.trainer.loop.tables import FigureRow, SetAnswersRow
from services.trainer.loop.values import GateOutcome, GuardFigures, Outcome, Reason
from services.trainer.runs.folder import LEARNT_FILE
from services.trainer.settings import TrainerSettings
from services.trainer.storage.database import Database
from tests.conftest import Serve, Served
from tests.trainer.analyst.conftest import MODEL, SPEC, Users, observation, work_through


@pytest.fixture
async def starter(serve: Serve, tmp_path: Path, device: Literal["cpu", "cuda"]) -> Served:
    """Inference with the starter model as version 1 and 2; and as 3 with other labels."""
    for version in (1, 2, 3):
        folder = tmp_path / "models" / MODEL / str(version)
        folder.mkdir(parents=True)
        for name in (GRAPH_FILE, MANIFEST_FILE):
            shutil.copy(VERSION / name, folder / name)
    manifest = Manifest.from_json((folder / MANIFEST_FILE).read_bytes(), MANIFEST_FILE)
    changed = manifest.model_copy(update={"labels": manifest.labels[::-1]})
    (folder / MANIFEST_FILE).write_text(changed.to_json())
    settings = InferenceSettings(repository=tmp_path / "models", device=device, threads=1)
    return await serve(lambda stop: InferenceComponent(settings, stop))


@pytest.fixture
def specs() -> dict[int, PreprocessSpec]:
    """What the versions of three sizes take."""
    large = SPEC.model_copy(update={"width": 48, "height": 48, "datatype": "FP32"})
    return {1: SPEC, 2: large, 3: SPEC.model_copy(update={"mode": "crop", "shorter_side": 36})}


@pytest.fixture
def graphs(specs: dict[int, PreprocessSpec], save_graph: Callable[..., Path]) -> dict[int, Path]:
    """The starter model's, one of mean colours alone that takes 48 x 48 floats, and the starter model's once more."""
    weights = np.random.default_rng(0).normal(size=(3, len(LABELS))).astype(np.float32) / 20
    simple = save_graph(
        [
            helper.make_node("ReduceMean", ["image", "sides"], ["means"], keepdims=0),
            helper.make_node("MatMul", ["means", "weights"], ["logits"]),
            helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        ],
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", *specs[2].shape])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", len(LABELS)])],
        {"sides": np.array([1, 2]), "weights": weights},
    )
    return {1: VERSION / GRAPH_FILE, 2: simple, 3: VERSION / GRAPH_FILE}


@pytest.fixture
async def sizes(
    serve: Serve,
    tmp_path: Path,
    device: Literal["cpu", "cuda"],
    specs: dict[int, PreprocessSpec],
    graphs: dict[int, Path],
) -> Served:
    """Inference with three versions, each of which takes other pixels."""
    for version, spec in specs.items():
        folder = tmp_path / "models" / MODEL / str(version)
        folder.mkdir(parents=True)
        shutil.copy(graphs[version], folder / GRAPH_FILE)
        data = graphs[version].read_bytes()
        manifest = Manifest(labels=LABELS, preprocess=spec, graph=Graph(sha256=digest_of(data), size_bytes=len(data)))
        (folder / MANIFEST_FILE).write_text(manifest.to_json())
    settings = InferenceSettings(repository=tmp_path / "models", device=device, threads=1)
    return await serve(lambda stop: InferenceComponent(settings, stop))


ABANDONED = CycleEnded(outcome=Outcome.ABANDONED, stage="GATE")


def proposed(champion: int, candidate: int) -> CycleStarted:
    return CycleStarted(
        reason=Reason.PROPOSED, accepted=0, champion=champion, candidate=candidate, generation=0, policy_digest="a"
    )


def happens(database: Database, *payloads: Payload) -> None:
    """Append to the log what the loop would."""
    log = EventLog(database)
    state = log.catch_up(LoopState(MODEL))
    lease = Leases(database, "director").hold(MODEL)
    assert lease is not None
    for payload in payloads:
        event = state.next_event(payload, datetime.now(UTC))
        log.append(event, lease)
        state = fold(state, event)


async def test_versions_that_take_other_pixels_are_judged_on_the_same_pictures(
    database: Database,
    users: Users,
    sizes: Served,
    specs: dict[int, PreprocessSpec],
    graphs: dict[int, Path],
    task: Model,
    base_folder: Path,
    settings: TrainerSettings,
    slice_samples: tuple[Samples, Samples],
    make_analyst: Callable[..., Analyst],
) -> None:
    sent = slice_samples[1].images[:5]
    users.send(sent, Role.JUDGE, strategy="LOW_CONFIDENCE")
    sources = DataSources(settings.data, tuple(map(Path, settings.data_roots)), database, settings.blobs)
    test = load_basis(str(base_folder), task, sources).test
    analyst = make_analyst(inference_address=sizes.address)
    policy = load_policy().default
    guards = GuardFigures(latency_ratio=1.0, size_ratio=1.0, corrupted_drop=0.0)

    async def decision(champion: int, candidate: int) -> tuple[Holdout, GateDecided | None]:
        happens(database, proposed(champion, candidate))
        await asyncio.to_thread(work_through, analyst)
        with database.read() as session:
            holdout = read_holdout(session, MODEL, str(base_folder), champion, candidate)
            live = read_live_stream(session, MODEL, champion, candidate, 10_000)
        assert holdout is not None
        happens(database, ABANDONED)
        return holdout, decide(measure(holdout, live, 0.0, policy, LABELS, guards), 3.5, policy)

    _, refused = await decision(1, 2)
    holdout, passed = await decision(2, 3)

    with database.read() as session:
        order = find_holdout(session, MODEL, str(base_folder))
        answers = list(session.scalars(select(AnswerRow).order_by(AnswerRow.version, AnswerRow.observation)))
    assert order is not None
    for version, found in ((2, holdout.champion_probabilities), (3, holdout.candidate_probabilities)):
        run = ort.InferenceSession(graphs[version]).run
        rows = [unpack(each.probabilities) for each in answers if each.version == version]
        for images, probabilities in ((test.images[order.values["order"]], found), (sent, np.stack(rows))):
            pixels = np.stack([transform(Image.fromarray(each), specs[version]) for each in images])
            assert np.allclose(probabilities, run(None, {"image": pixels})[0], atol=2e-3)
    assert np.array_equal(holdout.labels, test.labels[order.values["order"]])
    assert refused is not None
    assert passed is not None
    assert (refused.outcome, refused.ruling.rule) == (GateOutcome.REFUSED, "WORSE_ON_HOLDOUT")
    assert (passed.outcome, passed.ruling.rule) == (GateOutcome.PASSED, "EVIDENCE")


async def test_a_hold_out_whose_pictures_are_lost_is_read_again_or_its_candidate_is_refused(
    database: Database,
    sizes: Served,
    base_folder: Path,
    tmp_path: Path,
    make_analyst: Callable[..., Analyst],
    task: Model,
) -> None:
    folder = Path(shutil.copytree(base_folder, tmp_path / "base"))
    with database.begin() as session:
        session.get_one(LoopModelRow, MODEL).base = str(folder)
    analyst = make_analyst(inference_address=sizes.address, data_roots=(str(folder),))
    pictures = sorted((folder / "test").rglob("*.png"))

    def digests() -> list[tuple[int, str]]:
        with database.read() as session:
            rows = session.execute(select(SetAnswersRow.version, SetAnswersRow.set_digest)).all()
        return sorted((version, digest) for version, digest in rows)

    await asyncio.to_thread(analyst.find)  # reads the set
    Image.new("RGB", (32, 32), "red").save(pictures[0])
    happens(database, proposed(1, 2))
    await asyncio.to_thread(work_through, analyst)

    first = digests()
    assert [version for version, _ in first] == [1, 2]
    assert len({digest for _, digest in first}) == 1
    with database.read() as session:
        assert session.query(FigureRow).filter(FigureRow.kind == HOLDOUT).count() == 2
        assert read_refusal(session, MODEL, 1, (1, 2)) is None

    # A disk that has lost what it once held: nothing tells but the content, and what was decoded is still there.
    status = pictures[1].stat()
    pictures[1].write_bytes(bytes(status.st_size))
    os.utime(pictures[1], ns=(status.st_atime_ns, status.st_mtime_ns))
    happens(database, ABANDONED, proposed(1, 3))
    await asyncio.to_thread(work_through, analyst)

    assert digests() == first
    with database.read() as session:
        assert read_refusal(session, MODEL, 2, (1, 3)) == Refusal(3, "SET_CHANGED")


async def test_pictures_are_answered_as_the_graph_answers_them(
    database: Database,
    users: Users,
    starter: Served,
    slice_samples: tuple[Samples, Samples],
    make_analyst: Callable[..., Analyst],
) -> None:
    images = slice_samples[1].images
    drawn = users.send(images[:3], version=2)
    judges = users.send(images[3:40], Role.JUDGE, strategy="LOW_CONFIDENCE")
    others = users.send(images[40:42], strategy="LOW_CONFIDENCE")

    await asyncio.to_thread(work_through, make_analyst(inference_address=starter.address))

    with database.read() as session:
        rows = list(session.scalars(select(AnswerRow).order_by(AnswerRow.version, AnswerRow.observation)))
        encoders = list(session.scalars(select(EncoderRow.run)))
        holdout = last_figure(session, MODEL, HOLDOUT)
        sets = list(session.scalars(select(SetAnswersRow)))
    # Without traffic the newest version with the model's labels is the champion; none is above it.
    assert [(row.version, row.observation) for row in rows] == [(2, number) for number in drawn + judges]
    assert not {row.observation for row in rows} & set(others)
    expected = ort.InferenceSession(VERSION / GRAPH_FILE).run(None, {"image": images[:40]})[0]
    assert np.allclose(np.stack([unpack(row.probabilities) for row in rows]), expected, atol=1e-3)
    assert [row.best for row in rows] == expected.argmax(axis=1).tolist()
    assert np.allclose([row.best_probability for row in rows], expected.max(axis=1), atol=1e-4)
    assert encoders == ["starter"]

    assert holdout is not None
    assert [(row.version, row.set_digest) for row in sets] == [(2, holdout.window["digest"])]
    best = np.frombuffer(sets[0].best, "<i2")
    assert np.mean(best == holdout.values["labels"]) > 0.9  # it has learnt them
    assert unpack(sets[0].probabilities).reshape(-1, 10).argmax(axis=1).tolist() == best.tolist()
    assert sorted(holdout.values["order"]) == list(range(len(best))) != holdout.values["order"]


async def test_pictures_that_the_version_has_learnt_and_those_that_are_lost_are_marked(
    database: Database,
    users: Users,
    blobs: Blobs,
    settings: TrainerSettings,
    starter: Served,
    slice_samples: tuple[Samples, Samples],
    make_analyst: Callable[..., Analyst],
) -> None:
    images = slice_samples[1].images[:3]
    learnt, fresh, lost = users.send(images, Role.JUDGE, strategy="LOW_CONFIDENCE")
    np.save(settings.runs / RUN_ID / LEARNT_FILE, digest_contents(images, np.arange(1)))
    blobs.remove(observation(database, lost).content_digest)

    await asyncio.to_thread(work_through, make_analyst(inference_address=starter.address))

    with database.read() as session:
        rows = session.execute(select(AnswerRow.observation, AnswerRow.learnt).order_by(AnswerRow.observation)).all()
        finding = session.get(FindingRow, (lost, UNREADABLE))
    assert [tuple(row) for row in rows] == [(learnt, True), (fresh, False)]
    assert finding is not None


async def test_what_a_version_has_learnt_is_known_once_its_run_is_here(
    database: Database, task: Model, settings: TrainerSettings, starter: Served
) -> None:
    time = 0.0
    settings = settings.model_copy(update={"inference_address": starter.address})
    surroundings = Surroundings(database, settings, task, lambda: time)

    def learnt() -> list[int]:
        surroundings.look("")
        return [int(each) for each in surroundings.learnt_by(2)]

    before = await asyncio.to_thread(learnt)
    np.save(settings.runs / RUN_ID / LEARNT_FILE, np.array([7], np.uint64))
    at_once = await asyncio.to_thread(learnt)
    time = MISSING_SECONDS
    later = await asyncio.to_thread(learnt)
    (settings.runs / RUN_ID / LEARNT_FILE).unlink()
    time *= 3
    kept = await asyncio.to_thread(learnt)
    surroundings.close()

    assert (before, at_once, later, kept) == ([], [], [7], [7])


async def test_the_stable_version_or_else_the_newest_one_is_the_champion(task: Model, starter: Served) -> None:
    inference = Inference(starter.address)

    newest = await asyncio.to_thread(inference.versions, task)
    await ModelLifecycleServiceStub(starter.channel).SetTraffic(
        pb.SetTrafficRequest(model=MODEL, stable_version=1, shadow_version=2)
    )
    stable = await asyncio.to_thread(inference.versions, task)

    assert (newest.champion, stable.champion) == (2, 1)
    assert sorted(newest.specs) == sorted(stable.specs) == [1, 2]
    inference.close()


async def test_the_versions_that_the_gate_judges_are_asked_whatever_is_newer_or_tried_out(
    database: Database,
    users: Users,
    starter: Served,
    slice_samples: tuple[Samples, Samples],
    make_analyst: Callable[..., Analyst],
) -> None:
    users.send(slice_samples[1].images[:1], Role.JUDGE, strategy="LOW_CONFIDENCE")
    analyst = make_analyst(inference_address=starter.address)

    async def asked() -> list[int]:
        """Return the versions that the hold-out was put to, and forget that it was."""
        await asyncio.to_thread(work_through, analyst)
        with database.begin() as session:
            versions = list(session.scalars(select(SetAnswersRow.version).order_by(SetAnswersRow.version)))
            session.execute(delete(SetAnswersRow))
        return versions

    started = proposed(champion=2, candidate=1)
    begun = CycleStarted(reason=Reason.BY_HAND, accepted=0, champion=1, generation=0, policy_digest="a")
    made = (
        SnapshotMade(digest="s", last_sample=0),
        RunCreated(run_id="r", attempt=0, strategy=Strategy.REFIT),
        RunEnded(run_id="r", state="SUCCEEDED"),
        PublicationIntended(publication_id="p", run_id="r"),
        CandidatePublished(version=2),
    )

    assert await asked() == [2]  # the newest serves, and nothing is judged
    happens(database, started)
    assert await asked() == [1, 2]  # the candidate is older than what serves
    happens(database, ABANDONED)
    assert await asked() == [2]
    happens(database, begun)
    assert await asked() == [1]
    happens(database, *made)
    assert await asked() == [1, 2]
    happens(database, ABANDONED, proposed(champion=2, candidate=3))
    assert await asked() == [2]
    with database.read() as session:
        assert read_refusal(session, MODEL, 3, (2, 3)) == Refusal(3, "OTHER_LABELS")


async def test_a_model_that_is_not_served_has_no_versions(task: Model, inference: Served) -> None:
    asked = Inference(inference.address)

    found = await asyncio.to_thread(asked.versions, task)

    assert (found.champion, found.specs) == (0, {})
    asked.close()


def test_where_inference_is_away_the_rest_is_done(
    task: Model,
    database: Database,
    users: Users,
    slice_samples: tuple[Samples, Samples],
    make_analyst: Callable[..., Analyst],
) -> None:
    users.send(slice_samples[1].images[:2], Role.JUDGE)
    with pytest.raises(NotReady, match=r"inference at 127\.0\.0\.1:9 does not answer now"):
        Inference("127.0.0.1:9").versions(task)

    analyst = make_analyst()
    work_through(analyst)

    with database.read() as session:
        assert session.query(AnswerRow).count() == 0
        assert last_figure(session, MODEL, "quality") is not None
