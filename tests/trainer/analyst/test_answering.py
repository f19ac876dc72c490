"""Versions answer pictures and the hold-out, asked of a real inference service."""

import asyncio
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np
import onnxruntime as ort
import pytest
from sqlalchemy import delete, select

from aimass.inference.v1 import lifecycle_pb2 as pb
from aimass.inference.v1.lifecycle_pb2_grpc import ModelLifecycleServiceStub
from aimass.starter import RUN_ID, VERSION
from services.common.errors import NotReady
from services.common.manifest import GRAPH_FILE, MANIFEST_FILE, Manifest
from services.inference.service import InferenceComponent
from services.inference.settings import InferenceSettings
from services.trainer.analyst.analyst import Analyst
from services.trainer.analyst.answering import Inference
from services.trainer.analyst.figures import HOLDOUT, last_figure
from services.trainer.analyst.spaces import unpack
from services.trainer.data.blobs import Blobs
from services.trainer.data.collection import digest_contents
from services.trainer.data.models import Model
from services.trainer.data.observing import Role
from services.trainer.data.samples import Samples
from services.trainer.feedback.tables import AnswerRow, EncoderRow, FindingRow
from services.trainer.loop.cycle_payloads import (
    CandidatePublished,
    CycleEnded,
    CycleStarted,
    PublicationIntended,
    RunCreated,
    RunEnded,
    SnapshotMade,
)
from services.trainer.loop.log import EventLog, Leases
from services.trainer.loop.payloads import Payload
from services.trainer.loop.policy import Strategy
from services.trainer.loop.reducer import fold
from services.trainer.loop.state import LoopState
from services.trainer.loop.streams import UNREADABLE
from services.trainer.loop.tables import SetAnswersRow
from services.trainer.loop.values import Outcome, Reason
from services.trainer.runs.folder import LEARNT_FILE
from services.trainer.settings import TrainerSettings
from services.trainer.storage.database import Database
from tests.conftest import Serve, Served
from tests.trainer.analyst.conftest import MODEL, Users, observation, work_through


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
    log = EventLog(database)

    async def asked() -> list[int]:
        """Return the versions that the hold-out was put to, and forget that it was."""
        await asyncio.to_thread(work_through, analyst)
        with database.begin() as session:
            versions = list(session.scalars(select(SetAnswersRow.version).order_by(SetAnswersRow.version)))
            session.execute(delete(SetAnswersRow))
        return versions

    def happens(*payloads: Payload) -> None:
        state = log.catch_up(LoopState(MODEL))
        lease = Leases(database, "director").hold(MODEL)
        assert lease is not None
        for payload in payloads:
            event = state.next_event(payload, datetime.now(UTC))
            log.append(event, lease)
            state = fold(state, event)

    started = CycleStarted(reason=Reason.PROPOSED, accepted=0, champion=2, candidate=1, generation=0, policy_digest="a")
    begun = CycleStarted(reason=Reason.BY_HAND, accepted=0, champion=1, generation=0, policy_digest="a")
    made = (
        SnapshotMade(digest="s", last_sample=0),
        RunCreated(run_id="r", attempt=0, strategy=Strategy.REFIT),
        RunEnded(run_id="r", state="SUCCEEDED"),
        PublicationIntended(publication_id="p", run_id="r"),
        CandidatePublished(version=2),
    )

    assert await asked() == [2]  # the newest serves, and nothing is judged
    happens(started)
    assert await asked() == [1, 2]  # the candidate is older than what serves
    happens(CycleEnded(outcome=Outcome.ABANDONED, stage="GATE"))
    assert await asked() == [2]
    happens(begun)
    assert await asked() == [1]
    happens(*made)
    assert await asked() == [1, 2]


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
