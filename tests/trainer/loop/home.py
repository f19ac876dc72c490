"""A whole trainer around one loop: real rows, inference and supervision of runs, whose jobs only leave a model."""

import asyncio
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import onnx
from sqlalchemy import select
from sqlalchemy.orm import Session

from aimass.open_inference import grpc_service_pb2
from aimass.open_inference.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from services.common.errors import Conflict
from services.common.manifest import Dataset, Golden, GoldenTensor, Graph, Manifest, Training, digest_of
from services.trainer.clock import now
from services.trainer.data.tables import SnapshotRow
from services.trainer.loop.actions import Actions, Erased
from services.trainer.loop.director import Director
from services.trainer.loop.events import Event
from services.trainer.loop.log import EventLog, Leases
from services.trainer.loop.origins import Origins
from services.trainer.loop.policy import LoopPolicy, TrialPolicy
from services.trainer.loop.policy_file import load_policy
from services.trainer.loop.reading import Reader
from services.trainer.loop.served import Served, traffic_fact
from services.trainer.loop.state import LoopState
from services.trainer.loop.tables import LoopModelRow, PublicationRow
from services.trainer.options import TrainingOptions
from services.trainer.recipes import make_options
from services.trainer.runs.admission import Admission
from services.trainer.runs.control import RunControl
from services.trainer.runs.folder import OUTCOME_FILE, RunFolder, write_document
from services.trainer.runs.record import Options, Outcome, Request, RunKind, RunState
from services.trainer.runs.store import RunStore
from services.trainer.runs.supervisor import Supervisor
from services.trainer.storage.database import Database
from tests.conftest import Classifier
from tests.conftest import Served as Running
from tests.trainer.loop.conftest import LABELS, MODEL, SPEC, Clock
from tests.trainer.loop.rows import (
    SET,
    TIME,
    add_answers,
    add_draws,
    add_holdout,
    add_pictures,
    add_reviews,
    add_samples,
    add_set_answers,
)

GOOD, BAD = (0.15, 0.02), (0.02, 0.15)
"""Shares of the hold-out that the candidate wins and loses."""
STARTER = "starter"
"""Run that made version 1."""
_HOLDOUT = 300
_SHIPPED = load_policy().default
_NO_COST = _SHIPPED.trigger.cost.model_copy(update={"enabled": False})
POLICY = _SHIPPED.model_copy(
    update={
        "trigger": _SHIPPED.trigger.model_copy(update={"accepted": 5, "least_gap_minutes": 0.0, "cost": _NO_COST}),
        "guard": _SHIPPED.guard.model_copy(update={"latency_ratio": 1000.0}),
        "trial": TrialPolicy(
            shadow_requests=2,
            shadow_seconds=0,
            canary_requests=2,
            canary_seconds=0,
            canary_shares=(0.5,),
            latency_ratio=1000.0,
        ),
    }
)
"""The one that is shipped, with numbers that are reached in seconds and without times, which are the machine's."""


class Died(Exception):
    """The process was killed."""


class _EndedProcess:
    """What is left of a job."""

    async def wait(self) -> int | None:
        return 0

    def terminate(self) -> None:
        """It has ended."""

    def kill(self) -> None:
        """It has ended."""


class _WaitingProcess(_EndedProcess):
    """A job that goes on until it is told to stop."""

    def __init__(self) -> None:
        self._told = asyncio.Event()

    async def wait(self) -> int | None:
        await self._told.wait()
        return 75

    def terminate(self) -> None:
        self._told.set()


class ModelLauncher:
    """Lets every run leave another version of the classifier at once."""

    def __init__(self, make: Callable[[], Classifier]) -> None:
        self._make = make
        self.waits = False
        """Whether runs go on until they are told to stop."""
        self.started: list[str] = []

    async def start(self, folder: RunFolder, request: Request, lock: int) -> _EndedProcess:
        self.started.append(request.id)
        if self.waits:
            return _WaitingProcess()
        write_run(folder, request, self._make())
        return _EndedProcess()

    def find(self, folder: RunFolder) -> _EndedProcess:
        return _EndedProcess()


def write_run(folder: RunFolder, request: Request, classifier: Classifier) -> None:
    """Write what a run leaves that has made *classifier*."""
    folder.create(request)
    options = request.options
    assert isinstance(options, TrainingOptions)
    training = Training(
        run_id=request.id, recipe="quick", options=options.model_dump(mode="json"), seconds=1.0,
        dataset=Dataset(name=options.dataset, digest="sha256:" + "0" * 64, counts={"train": 1000}),
    )  # fmt: skip
    manifest = classifier.manifest.model_copy(update={"training": training})
    (folder / "model.onnx").write_bytes(classifier.path.read_bytes())
    (folder / "model.json").write_text(manifest.to_json())
    outcome = Outcome(state=RunState.SUCCEEDED, metrics=dict(manifest.metrics), finish_time=now())
    write_document(folder / OUTCOME_FILE, outcome)


@dataclass(frozen=True)
class _Made:
    digest: str
    counts: Mapping[str, int]
    newest: int


class FixedSnapshots:
    """Always chooses the same samples."""

    def prepare(self, model: str, policy: LoopPolicy) -> Callable[[Session], _Made]:
        return partial(self._choose, model)

    def _choose(self, model: str, session: Session) -> _Made:
        digest = "5" * 64
        if session.get(SnapshotRow, digest) is None:
            session.add(
                SnapshotRow(
                    digest=digest, model=model, base=SET, base_digest="sha256:" + "0" * 64, base_drawn=[],
                    counts={"train": 5}, create_time=TIME,
                )
            )  # fmt: skip
            session.flush()
        return _Made(digest, {"train": 5}, 5)


@dataclass
class NothingToErase:
    """Knows which versions learnt from what is deleted, and has nothing else."""

    versions: Sequence[int] = ()
    erased: list[str] = field(default_factory=list)

    def rows(self, model: str, deletion_id: str) -> Erased:
        self.erased.append(deletion_id)
        return Erased({"observations": 1}, self.versions)

    def runs(self, model: str, deletion_id: str, versions: Sequence[int]) -> Mapping[str, int]:
        return {"runs": len(versions)}


def refit(*, source: str, dataset: str, seed: int) -> Options:
    """Return the options of a run that stands for a refit."""
    assert dataset.startswith("snapshot:")
    return make_options("quick", {"dataset": SET, "seed": seed})


class MortalLog(EventLog):
    """A log whose writer may die before it writes what it has done."""

    deaths: bool = False
    """Whether it dies once before each event."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self._survived: set[int] = set()

    def append_in(self, session, event, lease):  # type: ignore[no-untyped-def]
        if self.deaths and event.number not in self._survived:
            self._survived.add(event.number)
            raise Died
        super().append_in(session, event, lease)


class Home:
    """All of it.

    Args:
        folder: For files.
        database: With the task.
        inference: That serves version 1 of the task.
        classifiers: Makes the numbered classifiers; 0 is version 1.
    """

    def __init__(
        self, folder: Path, database: Database, inference: Running, classifiers: Callable[[int], Classifier]
    ) -> None:
        self.database = database
        self.inference = inference
        self.policy = POLICY
        self.quality = GOOD
        self.clock = Clock()
        """Of the leases alone."""
        self.log = MortalLog(database)
        self.store = RunStore(database)
        numbers = itertools.count(1)
        self.launcher = ModelLauncher(lambda: classifiers(next(numbers)))
        self.supervisor = Supervisor(self.store, self.launcher, folder / "runs", queue="service")
        admission = Admission(self.store, (), newest_sample=lambda model: 0)
        self.control = RunControl(self.store, self.supervisor, admission, inference.address)
        self.served = Served(inference.address)
        self.erasing = NothingToErase()
        self.origins = Origins(database, self.store, folder / "runs")
        self.reader = Reader(database, self.log, self.served, self.store, self.origins, folder / "blobs")
        self.analysed: list[str] = []
        self._keys = itertools.count()
        self._judged: set[int] = set()
        starter = Request(
            id=STARTER, kind=RunKind.TRAINING, options=make_options("quick", {"dataset": SET}), create_time=TIME
        )
        write_run(RunFolder(folder / "runs" / STARTER), starter, classifiers(0))
        with database.begin() as session:
            session.add(LoopModelRow(model=MODEL, salt="0", base=SET, create_time=TIME))
        self._pictures = add_pictures(database, 10)
        add_draws(database, self._pictures)

    async def start(self) -> None:
        """Let runs be looked after."""
        await self.supervisor.start()

    async def close(self) -> None:
        """Let go of everything."""
        await self.supervisor.stop()
        await self.served.close()

    def life(self, name: str, *, dies_before: bool = False) -> Director:
        """Return a director as another process would have it."""
        kind = _DyingActions if dies_before else Actions
        actions = kind(
            self.database, self.log, self.served, self.control, self.store, self.origins, FixedSnapshots(), refit,
            self.erasing,
        )  # fmt: skip
        return Director(
            MODEL,
            self.log,
            self.leases(name),
            self.reader,
            actions,
            lambda model: self.policy,
            self.analysed.append,
        )

    def leases(self, name: str) -> Leases:
        """Return the leases of another process."""
        return Leases(self.database, name, 10.0, self.clock)

    def accept(self, count: int = 5) -> None:
        """Let users give samples."""
        add_samples(self.database, count)

    async def turn(self) -> None:
        """Let the world go on: users ask, and what is published is answered and judged."""
        state = await self.served.model(MODEL)
        fact = traffic_fact(state)
        for version in sorted({1, *fact.ready} - self._judged):
            self._judge(version)
        for version in {fact.champion, *fact.ready[-1:]}:
            await self.infer(version, 5)
        if fact.on_trial:
            await self.infer(0, 8)
        await asyncio.sleep(0.01)

    def _judge(self, version: int) -> None:
        """Write what a version answers; all are measured against version 1, which gets a fifth wrong."""
        labels = np.arange(_HOLDOUT) % len(LABELS)
        wrong = (labels + 1) % len(LABELS)
        place = np.arange(_HOLDOUT) // len(LABELS) * 37 % (_HOLDOUT // len(LABELS)) / (_HOLDOUT // len(LABELS))
        right = place < 0.8
        if version > 1:
            wins, losses = self.quality
            right = (right & (place >= losses)) | (~right & (place < 0.8 + wins))
        else:
            add_holdout(self.database, labels.tolist())
            add_reviews(self.database, dict.fromkeys(self._pictures, 0))
        add_set_answers(self.database, version, np.where(right, labels, wrong).tolist())
        live = 1 if version == 1 or self.quality == BAD else 0
        add_answers(self.database, version, dict.fromkeys(self._pictures, live))
        self._judged.add(version)

    async def infer(self, version: int = 0, count: int = 1) -> None:
        """Send requests, each with a key of its own."""
        pixels = np.zeros((2, 4, 4, 3), np.uint8)
        tensor = grpc_service_pb2.ModelInferRequest.InferInputTensor(name="image", datatype="UINT8", shape=pixels.shape)
        for _ in range(count):
            request = grpc_service_pb2.ModelInferRequest(
                model_name=MODEL,
                model_version=str(version or ""),
                inputs=[tensor],
                raw_input_contents=[pixels.tobytes()],
            )
            request.parameters["routing_key"].string_param = str(next(self._keys))
            await GRPCInferenceServiceStub(self.inference.channel).ModelInfer(request)

    async def play(
        self, director: Director, reached: Callable[[LoopState], bool], *, deaths: bool = False, steps: int = 400
    ) -> LoopState:
        """Let *director* go on until the state is as *reached* says; after each death another process goes on."""
        lives = itertools.count()
        for _ in range(steps):
            state = self.state()
            if reached(state):
                return state
            try:
                moved = await director.step()
            except Died:
                self.clock.pass_by(11.0)
                director = self.life(f"life-{next(lives)}", dies_before=isinstance(director._actions, _DyingActions))
                continue
            except Conflict as error:
                assert error.reason == "NOT_ALONE"  # noqa: PT017
                continue
            if not moved:
                await self.turn()
        kinds = [each.kind for each in self.events()]
        raise AssertionError(f"not reached after {steps} steps: {kinds}")

    async def until(self, reached: Callable[[], bool]) -> None:
        """Wait until runs are as *reached* says."""
        for _ in range(3000):
            if reached():
                return
            await asyncio.sleep(0.01)
        raise AssertionError("not reached")

    def state(self) -> LoopState:
        """Return the state that follows from the log."""
        return self.log.catch_up(LoopState(MODEL))

    def events(self) -> list[Event]:
        """Return the log."""
        return self.log.read(MODEL)

    @property
    def kinds(self) -> list[str]:
        """Kinds of all events, measurements left out: how many there are depends on the time."""
        return [each.kind for each in self.events() if each.kind not in ("gate.measured", "policy.changed")]

    async def stable(self) -> tuple[int, int]:
        """Return which version serves, and how often the traffic has changed."""
        fact = traffic_fact(await self.served.model(MODEL))
        return fact.champion, fact.generation

    def versions_published(self) -> int:
        """Return how many publications there are."""
        with self.database.read() as session:
            return len(session.scalars(select(PublicationRow)).all())


class _DyingActions(Actions):
    """Dies once before each effect."""

    async def do(self, action, state, policy, lease):  # type: ignore[no-untyped-def]
        survived = self._events._survived  # type: ignore[attr-defined]
        if (state.number, type(action)) not in survived:
            survived.add((state.number, type(action)))
            raise Died
        await super().do(action, state, policy, lease)


def numbered_classifier(save_graph: Callable[..., Path], number: int) -> Classifier:
    """Return one with a last layer that can be cut off; each number gives another graph."""
    helper, proto = onnx.helper, onnx.TensorProto
    path = save_graph(
        [
            helper.make_node("Cast", ["image"], ["pixels"], to=proto.FLOAT),
            helper.make_node("ReduceMean", ["pixels", "sides"], ["means"], keepdims=0),
            helper.make_node("Gemm", ["means", "weight"], ["logits"], transB=1),
            helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        ],
        [helper.make_tensor_value_info("image", proto.UINT8, ["batch", 4, 4, 3])],
        [helper.make_tensor_value_info("probabilities", proto.FLOAT, ["batch", 3])],
        {"sides": np.array([1, 2]), "weight": np.eye(3, dtype=np.float32) / (50 + number)},
    )
    data = path.read_bytes()
    bare = Classifier(path, Manifest())
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), np.uint8)
    manifest = Manifest(
        labels=LABELS,
        preprocess=SPEC,
        preprocess_digest=SPEC.digest,
        graph=Graph(sha256=digest_of(data), size_bytes=len(data)),
        create_time=TIME,
        metrics={"test_accuracy": 0.8, "corrupted_accuracy": 0.6, "source_corrupted_accuracy": 0.6},
        golden=Golden(
            inputs=(GoldenTensor.from_array("image", "UINT8", images),),
            outputs=(GoldenTensor.from_array("probabilities", "FP32", bare.infer(images)),),
        ),
    )
    return Classifier(path, manifest)
