"""Reads the facts that the next step depends on: from rows, from runs, and from inference."""

import asyncio
from dataclasses import dataclass
from pathlib import Path

from aimass.inference.v1 import lifecycle_pb2
from services.common.errors import NotFound, NotReady
from services.trainer.data.models import Model, find_model
from services.trainer.feedback.capturing import free_bytes
from services.trainer.loop.absences import Absences
from services.trainer.loop.alarms import last_looks, read_alarms
from services.trainer.loop.counting import Counting, Memory, Seen, look_at_rows
from services.trainer.loop.facts import Alarm, Facts, OriginFact, RunFact, TrafficFact
from services.trainer.loop.forecasts import foretell_seconds, worth_of_cycle
from services.trainer.loop.holdout import count_answers, read_holdout
from services.trainer.loop.log import Clock, EventLog, utc_now
from services.trainer.loop.measuring import measure, measure_accuracy, spoiled_drop
from services.trainer.loop.origins import Origins
from services.trainer.loop.overview import base_name, has_holdout
from services.trainer.loop.policy import LoopPolicy, Strategy
from services.trainer.loop.refusals import read_refusal
from services.trainer.loop.served import Served, traffic_fact
from services.trainer.loop.state import Cycle, LoopState, Stage
from services.trainer.loop.streams import read_judged_draws, read_live_stream
from services.trainer.loop.values import GateFigures, GuardFigures, TrialCounts
from services.trainer.runs.store import Run, RunStore
from services.trainer.statistics.intervals import Interval
from services.trainer.storage.database import Database


@dataclass(frozen=True)
class _Asked:
    """What inference says."""

    state: lifecycle_pb2.ModelState | None = None
    shadow: TrialCounts | None = None
    counts: TrialCounts | None = None
    time_ratio: float | None = None

    def version(self, number: int) -> lifecycle_pb2.ModelVersion | None:
        """Return what is known of a version."""
        versions = self.state.versions if self.state is not None else ()
        return next((each for each in versions if each.version == number), None)


class Reader:
    """Reads facts; remembers what takes long to find, until the rows that it depends on change.

    Args:
        database: Migrated.
        log: Of events.
        served: Inference.
        store: The table of runs.
        origins: Finds runs of versions.
        blobs: Folder of pictures.
        clock: Gives the present time.
    """

    def __init__(
        self,
        database: Database,
        log: EventLog,
        served: Served,
        store: RunStore,
        origins: Origins,
        blobs: Path,
        clock: Clock = utc_now,
    ) -> None:
        self._database = database
        self._log = log
        self._served = served
        self._store = store
        self._origins = origins
        self._blobs = blobs
        self._clock = clock
        self._absences = Absences()
        self._counting = Counting(database, log, clock)
        self._memory = Memory()

    async def facts(self, state: LoopState, policy: LoopPolicy) -> Facts:
        """Return all facts about a model; what inference would have to say is unknown while it is away.

        Raises:
            NotFound: There is no such model.
            NotReady: The database does not answer.
        """
        asked = await self._ask(state)
        return await asyncio.to_thread(self._facts, state, policy, asked)

    async def accuracy(self, model: str) -> tuple[int, Interval | None]:
        """Return the version that serves, and its accuracy on the traffic; None without draws that were judged.

        Raises:
            NotFound: There is no such model.
            NotReady: The database or inference does not answer.
        """
        asked = _Asked(await self._served.model(model))
        assert asked.state is not None
        champion = traffic_fact(asked.state).champion
        return champion, await asyncio.to_thread(self._accuracy_of, model, champion)

    async def _ask(self, state: LoopState) -> _Asked:
        cycle = state.cycle
        try:
            found = await self._served.model(state.model)
            if cycle is None or cycle.stage not in (Stage.GATE, Stage.SHADOW, Stage.CANARY):
                return _Asked(found)
            versions = (state.model, cycle.champion, cycle.candidate)
            if cycle.stage == Stage.GATE:
                return _Asked(found, time_ratio=await self._served.time_ratio(*versions))
            if cycle.stage == Stage.SHADOW:
                return _Asked(found, shadow=await self._served.shadow(state.model, cycle.candidate))
            return _Asked(found, counts=await self._served.counts(*versions))
        except (NotReady, NotFound):
            return _Asked()

    def _facts(self, state: LoopState, policy: LoopPolicy, asked: _Asked) -> Facts:
        task, cycle = self._task(state.model), state.cycle
        traffic = self._traffic(state, asked)
        champion = cycle.champion if cycle else traffic.champion if traffic else 0
        with self._database.read() as session:
            seen = look_at_rows(session, state.model, champion)
            judgeable = has_holdout(session, state.model, policy)
            base = base_name(session, state.model)
        accepted, since = self._counting.accepted(state)
        run = self._champion_run(state.model, champion, asked)
        origin, seconds, accuracy, worth = None, dict[Strategy, float](), None, None
        if cycle is None or cycle.stage in (Stage.SNAPSHOT, Stage.RUN):
            origin = self._origin(task, run, state)
            seconds = self._seconds(state, origin, accepted, policy)
        if cycle is None:
            accuracy = self._accuracy(task, champion, seen)
            if since:
                version = asked.version(champion)
                tested = version.metrics.get("test_accuracy") if version is not None else None
                worth = worth_of_cycle(
                    self._counting.requests_per_day(task.name),
                    policy,
                    accuracy,
                    tested,
                    seconds,
                    self._counting.fixed(state),
                )
        gate, refusal = None, None
        if cycle is not None and cycle.stage == Stage.GATE:
            gate = self._gate(task, cycle, policy, asked, seen)
            with self._database.read() as session:
                refusal = read_refusal(session, task.name, cycle.number, (cycle.champion, cycle.candidate))
        return Facts(
            traffic=traffic,
            accepted=accepted,
            accepted_since=since,
            has_holdout=judgeable,
            has_base=bool(base),
            accuracy=accuracy,
            alarms=self._alarms(state.model),
            worth=worth,
            origin=origin,
            seconds=seconds,
            run=self._run(cycle),
            gate=gate,
            refusal=refusal,
            absence=self._absences.look(task.name, cycle, asked.state, self._clock()),
            shadow=asked.shadow,
            comparable=_comparable(cycle, asked),
            canary=asked.counts,
            pictures_wait=self._counting.pictures_wait(state.model, policy, judgeable),
            free_bytes=free_bytes(self._blobs),
            stored_bytes=self._counting.stored_bytes(state.model),
        )

    def _traffic(self, state: LoopState, asked: _Asked) -> TrafficFact | None:
        """Return what serves; unknown for a while where inference had the model and does not list it any more."""
        if asked.state is None or self._absences.may_come_back(state, asked.state, self._clock()):
            return None
        return traffic_fact(asked.state)

    def _task(self, model: str) -> Model:
        return self._memory.of("task", model, None, lambda: find_model(self._database, model))

    def _champion_run(self, model: str, champion: int, asked: _Asked) -> Run | None:
        version = asked.version(champion)
        digest = version.graph_digest if version is not None else ""
        return self._origins.run_of(model, champion, digest) if champion else None

    def _origin(self, task: Model, run: Run | None, state: LoopState) -> OriginFact | None:
        tainted = self._origins.tainted_runs(task.name, state.tainted) if state.tainted else ()
        return self._origins.origin(task, run, tainted)

    def _seconds(
        self, state: LoopState, origin: OriginFact | None, accepted: int, policy: LoopPolicy
    ) -> dict[Strategy, float]:
        if origin is None:
            return {}
        return self._memory.of(
            "seconds",
            state.model,
            (state.number, origin.run_id, accepted, policy.digest),
            lambda: foretell_seconds(
                self._log, self._store, self._origins, state.model, origin.run_id, accepted, policy
            ),
        )

    def _accuracy_of(self, model: str, champion: int) -> Interval | None:
        with self._database.read() as session:
            seen = look_at_rows(session, model, champion)
        return self._accuracy(self._task(model), champion, seen)

    def _accuracy(self, task: Model, champion: int, seen: Seen) -> Interval | None:
        def find() -> Interval | None:
            with self._database.read() as session:
                return measure_accuracy(read_judged_draws(session, task, champion, asked=True))

        return self._memory.of("accuracy", task.name, (champion, seen), find) if champion else None

    def _gate(self, task: Model, cycle: Cycle, policy: LoopPolicy, asked: _Asked, seen: Seen) -> GateFigures | None:
        """Return the figures of the gate; the time ratio, which never rests, is looked at when others have changed."""
        gate = cycle.gate
        if gate is None:
            return None
        margin = gate.begun.margin
        versions = (cycle.champion, cycle.candidate)
        with self._database.read() as session:
            name = policy.judging.holdout or base_name(session, task.name)
            answers = count_answers(session, task.name, name, versions)

        def find() -> GateFigures:
            guards = self._guards(task.name, cycle, asked)
            with self._database.read() as session:
                holdout = read_holdout(session, task.name, name, *versions)
                live = read_live_stream(session, task.name, *versions, policy.gate.most_labels)
            return measure(holdout, live, margin, policy, task.labels, guards)

        fingerprint = (versions, seen, answers, margin, policy.digest, asked.time_ratio is None)
        return self._memory.of("gate", task.name, fingerprint, find)

    def _guards(self, model: str, cycle: Cycle, asked: _Asked) -> GuardFigures:
        """Return what is compared beside the answers; None where one of the versions does not say."""
        ours, theirs = asked.version(cycle.champion), asked.version(cycle.candidate)
        if ours is None or theirs is None:
            return GuardFigures()
        runs = [self._origins.run_of(model, each.version, each.graph_digest) for each in (ours, theirs)]
        manifests = [self._origins.manifest(run.id) if run else None for run in runs]
        sizes = [each.graph.size_bytes if each and each.graph else 0 for each in manifests]
        beside = bool(cycle.snapshot) or self._origins.is_made_from(runs[1], model, cycle.champion, runs[0])
        sets = [each.training.dataset.digest if each and each.training else "" for each in manifests]
        alike = sets[0] != "" and sets[0] == sets[1]
        size_ratio = sizes[1] / sizes[0] if all(sizes) else None
        corrupted_drop = spoiled_drop(ours.metrics, theirs.metrics, beside=beside, alike=alike)
        kept = {"size_ratio": size_ratio, "corrupted_drop": corrupted_drop}
        return GuardFigures(
            latency_ratio=asked.time_ratio,
            size_ratio=size_ratio,
            corrupted_drop=corrupted_drop,
            impossible=tuple(name for name, figure in kept.items() if figure is None),
        )

    def _run(self, cycle: Cycle | None) -> RunFact | None:
        run = self._store.find(cycle.running, "") if cycle and cycle.running else None
        return RunFact(run.id, run.state, run.metrics) if run else None

    def _alarms(self, model: str) -> tuple[Alarm, ...]:
        def find() -> tuple[Alarm, ...]:
            with self._database.read() as session:
                return read_alarms(session, model)

        with self._database.read() as session:
            looks = last_looks(session, model)
        return self._memory.of("alarms", model, looks, find)


def _comparable(cycle: Cycle | None, asked: _Asked) -> bool:
    """Whether candidate and champion take the same pixels, so that one can answer what the other was asked."""
    ours, theirs = (asked.version(each) for each in (cycle.champion, cycle.candidate)) if cycle else (None, None)
    return ours is None or theirs is None or ours.preprocess_spec == theirs.preprocess_spec
