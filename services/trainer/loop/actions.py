"""Carries out what the plan says; each action may be repeated, as when the process died before it was recorded."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import structlog
from sqlalchemy.orm import Session

from services.common.errors import Conflict, InvalidInput, NotFound, Unsupported
from services.common.manifest import MANIFEST_FILE, Manifest
from services.trainer.loop.cycle_payloads import ActionFailed, CandidatePublished, RunCreated, RunEnded, SnapshotMade
from services.trainer.loop.log import NOT_ALONE, Clock, EventLog, Lease, utc_now
from services.trainer.loop.origins import Origins
from services.trainer.loop.payloads import DeletionCompleted, DeletionErased, Payload
from services.trainer.loop.policy import LoopPolicy
from services.trainer.loop.requests import RefitRequest, client_id, run_options
from services.trainer.loop.served import STALE_GENERATION, Served, traffic_fact
from services.trainer.loop.state import LoopState
from services.trainer.loop.steps import (
    Action,
    CancelRun,
    CreateRun,
    EraseRows,
    EraseVersions,
    MakeSnapshot,
    PublishCandidate,
    Record,
    SetTraffic,
)
from services.trainer.loop.tables import PublicationRow
from services.trainer.loop.values import Wanted
from services.trainer.runs.control import RunControl
from services.trainer.runs.record import RunState
from services.trainer.runs.store import RunStore
from services.trainer.storage.database import Database

_PERMANENT = (InvalidInput, NotFound, Conflict, Unsupported)

log = structlog.get_logger(__name__)


class MadeSnapshot(Protocol):
    """Samples that were chosen."""

    @property
    def digest(self) -> str:
        """SHA-256 over contents, labels and parts."""

    @property
    def counts(self) -> Mapping[str, int]:
        """Samples of each part."""

    @property
    def newest(self) -> int:
        """Highest number of a sample that was there to be chosen."""


class Snapshots(Protocol):
    """Chooses samples."""

    def prepare(self, model: str, policy: LoopPolicy) -> Callable[[Session], MadeSnapshot]:
        """Read what takes long, and return what then chooses of the samples that are accepted.

        That is called with a session whose transaction is alone; the same samples give the same rows.

        Raises:
            ServiceError: The base set cannot be read, or the samples cannot be learnt from; also when choosing.
        """


@dataclass(frozen=True)
class Erased:
    """What a deletion has removed, and what had learnt from it."""

    counts: Mapping[str, int]
    versions: Sequence[int]


class Erasing(Protocol):
    """Removes what must be forgotten."""

    def rows(self, model: str, deletion_id: str) -> Erased:
        """Remove rows and pictures, and find out which versions have learnt from them; repeated, the same is found."""

    def runs(self, model: str, deletion_id: str, versions: Sequence[int]) -> Mapping[str, int]:
        """Remove the runs of tainted versions, and return the counts of what was removed."""


class Actions:
    """Carries actions out, and records them.

    Args:
        database: Migrated.
        events: The log.
        served: Inference.
        control: The runs.
        store: Their table.
        origins: Finds runs of versions.
        snapshots: Chooses samples.
        refit: Makes the options of a refit.
        erasing: Removes what must be forgotten.
        clock: Gives the present time.
    """

    def __init__(
        self,
        database: Database,
        events: EventLog,
        served: Served,
        control: RunControl,
        store: RunStore,
        origins: Origins,
        snapshots: Snapshots,
        refit: RefitRequest,
        erasing: Erasing,
        clock: Clock = utc_now,
    ) -> None:
        self._database = database
        self._events = events
        self._served = served
        self._control = control
        self._store = store
        self._origins = origins
        self._snapshots = snapshots
        self._refit = refit
        self._erasing = erasing
        self._clock = clock

    async def do(self, action: Action, state: LoopState, policy: LoopPolicy, lease: Lease) -> None:
        """Carry out *action* and append what has come of it; of what may succeed later, nothing is appended.

        Args:
            action: As `plan` gives it.
            state: That it was planned from.
            policy: Of the model.
            lease: Of the model.

        Raises:
            Conflict: With reason `NOT_ALONE`: the log has gone on meanwhile.
            ServiceError: It may succeed later, or it is one that must be tried until it does.
        """
        if isinstance(action, MakeSnapshot):
            work = asyncio.to_thread(self._make_snapshot, state, policy, lease)
        else:
            work = self._do(action, state, policy, lease)
        try:
            await work
        except _PERMANENT as error:
            if error.reason == STALE_GENERATION:
                return  # the next look at the traffic tells
            if error.reason == NOT_ALONE or _must_succeed(action):
                raise
            name = type(action).__name__
            log.warning("the loop cannot do this", model=state.model, action=name, reason=error.message)
            strategy = action.strategy if isinstance(action, CreateRun) else None
            await self._append(ActionFailed(action=name, rule=error.reason, strategy=strategy), state, lease)

    async def _do(self, action: Action, state: LoopState, policy: LoopPolicy, lease: Lease) -> None:
        payload = await self._carry_out(action, state, policy)
        if payload is not None:
            await self._append(payload, state, lease)

    async def _append(self, payload: Payload, state: LoopState, lease: Lease) -> None:
        await asyncio.to_thread(self._events.append, state.next_event(payload, self._clock()), lease)

    async def _carry_out(self, action: Action, state: LoopState, policy: LoopPolicy) -> Payload | None:
        match action:
            case Record():
                return action.payload
            case CreateRun():
                return await self._create_run(action, state.model, policy)
            case CancelRun():
                return await self._cancel_run(action)
            case PublishCandidate():
                return await self._publish(action, state)
            case SetTraffic():
                await self._served.set_traffic(state.model, action.wanted, action.generation)
                return None
            case EraseRows():
                erased = await asyncio.to_thread(self._erasing.rows, state.model, action.deletion_id)
                versions = tuple(sorted(erased.versions))
                return DeletionErased(deletion_id=action.deletion_id, counts=dict(erased.counts), versions=versions)
            case EraseVersions():
                return await self._erase_versions(action, state.model)
        raise AssertionError(f"{action} is none that is carried out here")

    def _make_snapshot(self, state: LoopState, policy: LoopPolicy, lease: Lease) -> None:
        choose = self._snapshots.prepare(state.model, policy)
        with self._database.begin(alone=True) as session:
            made = choose(session)
            payload = SnapshotMade(digest=made.digest, counts=dict(made.counts), last_sample=made.newest)
            self._events.append_in(session, state.next_event(payload, self._clock()), lease)

    async def _create_run(self, action: CreateRun, model: str, policy: LoopPolicy) -> RunCreated:
        name = client_id(model, action)
        run = await asyncio.to_thread(self._store.find, "", name)
        if run is None:  # else it was created, whatever the policy says by now
            options = await asyncio.to_thread(run_options, action, policy, self._store, self._origins, self._refit)
            run = await self._control.create(options, name)
        return RunCreated(run_id=run.id, attempt=action.attempt, strategy=action.strategy, source=action.source)

    async def _cancel_run(self, action: CancelRun) -> RunEnded | None:
        """Cancel a run; its end is recorded once its process is gone."""
        run = await asyncio.to_thread(self._store.find, action.run_id, "")
        if run is not None and not run.state.final:
            try:
                run = await self._control.cancel(action.run_id)
            except Conflict:  # it has ended by itself
                run = await asyncio.to_thread(self._store.get, action.run_id)
        if run is None:
            return RunEnded(run_id=action.run_id, state=RunState.CANCELLED, rule=action.rule)
        if not run.state.final:
            return None
        return RunEnded(run_id=run.id, state=run.state, rule=action.rule, metrics=run.metrics)

    async def _publish(self, action: PublishCandidate, state: LoopState) -> CandidatePublished:
        cycle = state.cycle
        snapshot = cycle.snapshot if cycle else ""
        await asyncio.to_thread(self._note_publication, action, state.model, snapshot, None)
        version = await self._control.publish(action.run_id, state.model, publication_id=action.publication_id)
        await asyncio.to_thread(self._note_publication, action, state.model, snapshot, version)
        data = await asyncio.to_thread((self._control.folder(action.run_id) / MANIFEST_FILE).read_bytes)
        graph = Manifest.from_json(data, MANIFEST_FILE).graph
        return CandidatePublished(version=version, graph_digest=graph.sha256 if graph else "")

    def _note_publication(self, action: PublishCandidate, model: str, snapshot: str, version: int | None) -> None:
        """Keep which run and samples a version comes from, before there is such a version."""
        with self._database.begin(alone=True) as session:
            row = session.get(PublicationRow, action.publication_id)
            if row is None:
                row = PublicationRow(
                    id=action.publication_id, model=model, run=action.run_id, snapshot=snapshot or None
                )
                session.add(row)
            row.version = version or row.version

    async def _erase_versions(self, action: EraseVersions, model: str) -> DeletionCompleted:
        """Remove versions that have no traffic; that one of them has served before is forgotten first."""
        state = await self._served.model(model)
        traffic = traffic_fact(state)
        generation = 0
        if traffic.previous in action.versions:
            wanted = Wanted(
                stable=traffic.champion,
                canary=traffic.canary,
                canary_share=traffic.canary_share,
                shadow=traffic.shadow,
            )
            await self._served.set_traffic(model, wanted, traffic.generation, forget_previous=True)
            generation = traffic.generation + 1
        for version in {each.version for each in state.versions} & set(action.versions):
            await self._served.delete(model, version)
        counts = await asyncio.to_thread(self._erasing.runs, model, action.deletion_id, action.versions)
        return DeletionCompleted(deletion_id=action.deletion_id, counts=dict(counts), generation=generation)


def _must_succeed(action: Action) -> bool:
    """Whether the log has no word for the failure of *action*: it is tried again for as long as it takes."""
    if isinstance(action, SetTraffic):
        return action.withdrawal
    return isinstance(action, Record | CancelRun | EraseRows | EraseVersions)
