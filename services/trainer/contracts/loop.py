"""The loop contract: how a loop stands, what has happened, and the hand on it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from aimass.trainer.v1 import loop_pb2 as pb
from aimass.trainer.v1.loop_pb2_grpc import LoopServiceServicer
from services.common.errors import Conflict, InvalidInput
from services.common.identity import Caller, Scope, allowed_caller
from services.common.server import StopSignal
from services.trainer.contracts.analysing import Analysing, read_accuracy
from services.trainer.contracts.loop_messages import (
    pack_accuracy,
    pack_alarms,
    pack_cycle,
    pack_event,
    pack_loop,
    unpack_goal,
)
from services.trainer.contracts.page_sizes import page_size
from services.trainer.contracts.provenance_messages import check_nearest, pack_deletion, pack_trace
from services.trainer.contracts.remembering import Remembered
from services.trainer.contracts.wishes import Wishes
from services.trainer.data.models import find_model
from services.trainer.feedback.pseudonyms import read_pseudonyms
from services.trainer.loop.cycle_payloads import CycleEnded, CycleStarted, Promoted, RollbackIntended, RolledBack
from services.trainer.loop.cycle_reducer import begin
from services.trainer.loop.directors import Directors
from services.trainer.loop.events import KINDS
from services.trainer.loop.log import EventLog
from services.trainer.loop.overview import read_overview
from services.trainer.loop.payloads import (
    PromotionWished,
    ProposalWished,
    RejectionWished,
    RollbackWished,
    TriggerWished,
    Wish,
)
from services.trainer.loop.policy import LoopPolicy, Strategy
from services.trainer.loop.reading import Reader
from services.trainer.loop.state import LoopState
from services.trainer.provenance.deletion import Deletion, Deletions
from services.trainer.provenance.trace import Tracer
from services.trainer.storage.database import Database

if TYPE_CHECKING:
    import grpc

    Context = grpc.aio.ServicerContext[Any, Any]

REMEMBERED_SECONDS = 1.0
"""How long an answer about a loop is given again: the page of everybody asks for it."""
_PAGE, _MOST = 100, 1000
_ALARMS = 5
_MOST_REASON = 200
_REQUEST_ID = re.compile(r"[A-Za-z0-9-]{8,64}")


class LoopServicer(LoopServiceServicer):
    """Unpacks, calls, packs.

    Args:
        database: Migrated.
        events: The log.
        reader: Reads the accuracy.
        directors: Are woken when something is asked for; those of another process find it by themselves.
        policy_of: Returns the policy of a model as it is now.
        stop: Ends streams when the process stops.
        tracer: Follows predictions.
        deletions: Takes them in.
    """

    def __init__(
        self,
        database: Database,
        events: EventLog,
        reader: Reader,
        directors: Directors,
        policy_of: Callable[[str], LoopPolicy],
        stop: StopSignal,
        tracer: Tracer,
        deletions: Deletions,
    ) -> None:
        self._tracer = tracer
        self._deletions = deletions
        self._database = database
        self._events = events
        self._reader = reader
        self._directors = directors
        self._policy_of = policy_of
        self._stop = stop
        self._wishes = Wishes(events, directors, stop)
        self._analysing = Analysing(database, events, reader)
        self._told: Remembered[pb.GetLoopResponse] = Remembered()
        self._states: dict[str, LoopState] = {}

    async def GetLoop(self, request: pb.GetLoopRequest, context: Context) -> pb.GetLoopResponse:
        """Tell how a loop stands."""
        return await self._told.of(request.model, self._look, REMEMBERED_SECONDS)

    async def ListEvents(self, request: pb.ListEventsRequest, context: Context) -> pb.ListEventsResponse:
        """List what has happened."""
        if request.kind and request.kind not in KINDS:
            raise InvalidInput(
                f"kind {request.kind[:100]!r} is none of an event; use one of {', '.join(sorted(KINDS))}", field="kind"
            )
        await self._check_model(request.model)
        size = page_size(request.page_size, _PAGE, _MOST)
        events = await asyncio.to_thread(self._events.read, request.model, max(0, request.after), size, request.kind)
        return pb.ListEventsResponse(events=map(pack_event, events))

    async def WatchEvents(
        self, request: pb.WatchEventsRequest, context: Context
    ) -> AsyncIterator[pb.WatchEventsResponse]:
        """Send what has happened and what happens."""
        await self._check_model(request.model)
        async for event in self._stop.until(self._wishes.follow(request.model, max(0, request.after))):
            yield pb.WatchEventsResponse(event=pack_event(event))

    async def TriggerCycle(self, request: pb.TriggerCycleRequest, context: Context) -> pb.TriggerCycleResponse:
        """Begin a cycle."""
        caller = allowed_caller(context, Scope.TRAIN)
        if request.strategy and request.strategy not in set(Strategy):
            raise InvalidInput(
                f"strategy {request.strategy[:50]!r} is unknown; use {', '.join(Strategy)}, or none", field="strategy"
            )
        wish = TriggerWished(
            request_id=_request_id(request.request_id),
            reason=_reason(request.reason),
            by_hash=await self._pseudonym(caller),
            strategy=Strategy(request.strategy) if request.strategy else None,
        )
        await self._check_model(request.model)
        return pb.TriggerCycleResponse(cycle=await self._begin(request.model, wish))

    async def ProposeVersion(self, request: pb.ProposeVersionRequest, context: Context) -> pb.ProposeVersionResponse:
        """Put a version to the gate."""
        caller = allowed_caller(context, Scope.TRAIN)
        wish = ProposalWished(
            request_id=_request_id(request.request_id),
            by_hash=await self._pseudonym(caller),
            version=_version(request.version),
            goal=unpack_goal(request.goal),
        )
        await self._check_model(request.model)
        return pb.ProposeVersionResponse(cycle=await self._begin(request.model, wish))

    async def PromoteCandidate(
        self, request: pb.PromoteCandidateRequest, context: Context
    ) -> pb.PromoteCandidateResponse:
        """Let a candidate serve at once."""
        caller = allowed_caller(context, Scope.ADMIN)
        wish = PromotionWished(
            request_id=_request_id(request.request_id),
            reason=_reason(request.reason),
            by_hash=await self._pseudonym(caller),
            version=_version(request.version),
        )
        await self._check_model(request.model)
        if not await asyncio.to_thread(self._events.was_asked, request.model, wish):
            await self._check_candidate(request.model, request.version)
        return pb.PromoteCandidateResponse(event=pack_event(await self._wishes.ask(request.model, wish, (Promoted,))))

    async def RejectCandidate(self, request: pb.RejectCandidateRequest, context: Context) -> pb.RejectCandidateResponse:
        """End the cycle of a candidate."""
        caller = allowed_caller(context, Scope.ADMIN)
        wish = RejectionWished(
            request_id=_request_id(request.request_id),
            reason=_reason(request.reason),
            by_hash=await self._pseudonym(caller),
            version=_version(request.version) if request.version else 0,
        )
        await self._check_model(request.model)
        return pb.RejectCandidateResponse(event=pack_event(await self._wishes.ask(request.model, wish, (CycleEnded,))))

    async def RollBack(self, request: pb.RollBackRequest, context: Context) -> pb.RollBackResponse:
        """Let the version of before serve."""
        caller = allowed_caller(context, Scope.ADMIN)
        wish = RollbackWished(
            request_id=_request_id(request.request_id),
            reason=_reason(request.reason),
            by_hash=await self._pseudonym(caller),
        )
        await self._check_model(request.model)
        event = await self._wishes.ask(request.model, wish, (RolledBack,))
        intended = await asyncio.to_thread(self._events.last, request.model, RollbackIntended.kind, _MOST)
        move = next(each.payload for each in intended if each.number < event.number)  # others may have come since
        assert isinstance(move, RollbackIntended)
        return pb.RollBackResponse(event=pack_event(event), stable_version=move.wanted.stable)

    async def GetAnalysis(self, request: pb.GetAnalysisRequest, context: Context) -> pb.GetAnalysisResponse:
        """Tell what is known of a model in use."""
        allowed_caller(context, Scope.TRAIN)
        state = await self._state(request.model)
        policy = await asyncio.to_thread(self._policy_of, request.model)
        document, page = await self._analysing.tell(state, policy)
        return pb.GetAnalysisResponse(analysis_json=document, analysis_html=page)

    async def TracePrediction(self, request: pb.TracePredictionRequest, context: Context) -> pb.TracePredictionResponse:
        """Follow a prediction to what the version had learnt."""
        allowed_caller(context, Scope.ADMIN)
        count = check_nearest(request.nearest_count)
        return pack_trace(await asyncio.to_thread(self._tracer.trace, request.prediction_id, count))

    async def DeleteSample(self, request: pb.DeleteSampleRequest, context: Context) -> pb.DeleteSampleResponse:
        """Delete a picture."""
        allowed_caller(context, Scope.ADMIN)
        request_id = _request_id(request.request_id)
        begun = await asyncio.to_thread(self._deletions.delete_sample, request.observation_id, request_id)
        return pb.DeleteSampleResponse(deletion=self._begun(begun))

    async def DeleteContributor(
        self, request: pb.DeleteContributorRequest, context: Context
    ) -> pb.DeleteContributorResponse:
        """Delete all that a contributor has given."""
        allowed_caller(context, Scope.ADMIN)
        request_id = _request_id(request.request_id)
        begun = await asyncio.to_thread(self._deletions.delete_contributor, request.contributor, request_id)
        return pb.DeleteContributorResponse(deletion=self._begun(begun))

    async def GetDeletion(self, request: pb.GetDeletionRequest, context: Context) -> pb.GetDeletionResponse:
        """Tell how far a deletion is."""
        allowed_caller(context, Scope.ADMIN)
        report = await asyncio.to_thread(self._deletions.report, request.id)
        found = await asyncio.to_thread(self._deletions.find, request.id)
        return pb.GetDeletionResponse(deletion=pack_deletion(found, report))

    def _begun(self, deletion: Deletion) -> pb.Deletion:
        for model in deletion.record.parts:
            self._directors.wake(model)
        return pack_deletion(deletion)

    async def _look(self, model: str) -> pb.GetLoopResponse:
        state = await self._state(model)
        alarms = await asyncio.to_thread(self._events.last, model, "alarm.raised", _ALARMS)

        def count() -> pb.GetLoopResponse:
            policy = self._policy_of(model)
            with self._database.read() as session:
                overview = read_overview(session, state, policy)
            told = pack_loop(state, overview, policy, self._directors.disabled_reason(model), datetime.now(UTC))
            if interval is not None:
                told.live_accuracy.CopyFrom(pack_accuracy(version, interval, overview))
            told.alarms.extend(pack_alarms(alarms))
            return told

        version, interval = await read_accuracy(self._reader, model)
        return await asyncio.to_thread(count)

    async def _pseudonym(self, caller: Caller) -> str:
        """Return what stands for a caller in the log, which names nobody; empty for one who is not known."""

        def read() -> str:
            with self._database.read() as session:
                return read_pseudonyms(session)(caller.contributor)

        return await asyncio.to_thread(read) if caller.contributor else ""

    async def _check_model(self, model: str) -> None:
        await asyncio.to_thread(find_model, self._database, model)

    async def _state(self, model: str) -> LoopState:
        await self._check_model(model)
        known = self._states.get(model) or LoopState(model)
        self._states[model] = state = await asyncio.to_thread(self._events.catch_up, known)
        return state

    async def _begin(self, model: str, wish: Wish) -> pb.Cycle:
        """Let a cycle begin, and return it as it began: what becomes of it is another question."""
        event = await self._wishes.ask(model, wish, (CycleStarted,))
        assert isinstance(event.payload, CycleStarted)
        return pack_cycle(begin(event, event.payload))

    async def _check_candidate(self, model: str, version: int) -> None:
        state = await self._state(model)
        candidates = {each.candidate for each in (state.cycle, state.last_cycle) if each is not None} - {0}
        if version not in candidates:
            raise Conflict(
                f"version {version} of model {model!r} is no candidate, and "
                f"{', '.join(map(str, sorted(candidates))) or 'none'} is; let one that never was a candidate serve "
                "with SetTraffic or `aimass promote`",
                reason="NO_CANDIDATE",
                field="version",
            )


def _request_id(text: str) -> str:
    if not _REQUEST_ID.fullmatch(text):
        raise InvalidInput(
            f"request_id {text[:100]!r} is not valid; use 8 to 64 letters, digits and '-'", field="request_id"
        )
    return text


def _reason(text: str) -> str:
    if len(text) > _MOST_REASON:
        raise InvalidInput(
            f"the reason has {len(text)} characters; use up to {_MOST_REASON}", reason="TOO_LONG", field="reason"
        )
    return text


def _version(number: int) -> int:
    if number < 1:
        raise InvalidInput(f"version {number} is none; give a number from 1", field="version")
    return number
