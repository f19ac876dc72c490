"""A loop service that answers as it was told to, and writes down what it is asked."""

import json

from aimass.trainer.v1 import loop_pb2 as pb
from aimass.trainer.v1.loop_pb2_grpc import LoopServiceServicer, add_LoopServiceServicer_to_server
from services.common.errors import Conflict
from services.common.server import Service

START, END = 1_700_000_000, 1_700_000_600
"""14 November 2023, 22:13 and 22:23."""


def standing() -> pb.GetLoopResponse:
    """Return how a loop stands in which there is all that there can be."""
    loop = pb.GetLoopResponse(
        enabled=True,
        cycle=pb.Cycle(
            number=7,
            stage=pb.Cycle.STAGE_GATE,
            goal=pb.Cycle.GOAL_BETTER,
            reason="DRIFT",
            strategy="refit",
            run_id="loop-7",
            champion_version=3,
            candidate_version=4,
            gate=pb.GateFigures(
                holdout=pb.Paired(wins=9, ties=80, losses=2),
                live=pb.Paired(wins=3, ties=10, losses=1),
                log_e=1.25,
                log_e_bound=3.5,
                labels_wanted=12,
            ),
        ),
        last_cycle=pb.Cycle(
            number=6,
            stage=pb.Cycle.STAGE_ENDED,
            reason="BY_HAND",
            champion_version=3,
            refusal=pb.Refusal(rule="CLASS_DROP", figure=3.5, bound=2.0, message="it loses more on one class"),
        ),
        live_accuracy=pb.Accuracy(
            version=3, estimate=0.781, low=0.74, high=0.819, confidence=0.95, draw_count=312, lost_draw_count=4
        ),
        reported_accuracy=0.4,
        accepted_count=250,
        accepted_since_snapshot=40,
        pending_count=6,
        quarantined_count=5,
        proposed_count=2,
        to_judge_count=12,
        alarms=[
            pb.Alarm(
                kind="label_shift", level=0.1, threshold=0.2, message="label_shift is at 0.1, and its threshold is 0.2"
            )
        ],
        next_trigger="40 of 200 new samples, or an alarm of drift",
        policy_json='{"a": 1}',
        policy_digest="abc",
    )
    for time, seconds in (
        (loop.cycle.start_time, END),
        (loop.last_cycle.start_time, START),
        (loop.last_cycle.end_time, END),
        (loop.alarms[0].time, START),
    ):
        time.FromSeconds(seconds)
    return loop


def analysed() -> dict[str, object]:
    """Return what of an analysis the command line shows."""
    version = {"version": 3, "serves": True, "estimate": 0.781, "low": 0.74, "high": 0.819, "judged": 312, "drawn": 900}
    return {
        "accuracy": [
            {**version, "version": 2, "serves": False, "estimate": None, "low": None, "high": None, "dropped": {}},
            {**version, "dropped": {"QUEUE_FULL": 3, "TRAINER_AWAY": 1}},
        ],
        "reported": {"agreed": 4, "said": 10},
        "detectors": [
            {"kind": "label_shift", "looks": [{"alarm": False, "level": 0.0123, "threshold": 0.00034}]},
            {"kind": "error_drift", "looks": [{"alarm": True, "level": 1.0, "threshold": 1.0}]},
        ],
        "queue": {"quarantined": {"NEIGHBOURS_DISAGREE": 5, "NEAR_COPY": 1}, "to_review": 12},
        "contributors": [
            {"name": "ada", "accuracy": 0.95, "labels": 40},
            {"name": "[b]", "accuracy": 0.4, "labels": 9},
        ],
        "cost": {"value": 10.0, "cost": 1.706, "pays": True},
    }


def happened(number: int, kind: str, payload: str = "{}", cycle: int = 7) -> pb.Event:
    """Return an event."""
    event = pb.Event(number=number, cycle=cycle, kind=kind, payload_json=payload)
    event.time.FromSeconds(START + number)
    return event


class ToldLoop(LoopServiceServicer):
    """The service as a component."""

    collectors = ()

    def __init__(self) -> None:
        self.loop = standing()
        self.events: list[pb.Event] = []
        self.deletion = pb.Deletion(id="forget-1", state=pb.Deletion.STATE_RETRAINING)
        self.analysis = analysed()
        self.trace = pb.TracePredictionResponse()
        self.asked: list[object] = []

    @property
    def services(self) -> tuple[Service, ...]:
        """The contract."""
        descriptor = pb.DESCRIPTOR.services_by_name["LoopService"]
        return (Service.of(descriptor, add_LoopServiceServicer_to_server, self),)

    async def start(self) -> None:
        """Nothing to load."""

    async def close(self) -> None:
        """Nothing to free."""

    async def GetLoop(self, request, context):
        """Tell how it stands."""
        self.asked.append(request)
        return self.loop

    async def ListEvents(self, request, context):
        """List events, at most as many as the contract allows."""
        self.asked.append(request)
        found = [each for each in self.events if each.number > request.after and request.kind in ("", each.kind)]
        return pb.ListEventsResponse(events=found[: min(request.page_size or 100, 1000)])

    async def WatchEvents(self, request, context):
        """Send the events, and end."""
        self.asked.append(request)
        for each in self.events:
            if each.number > request.after:
                yield pb.WatchEventsResponse(event=each)

    async def GetAnalysis(self, request, context):
        """Tell what is known."""
        self.asked.append(request)
        return pb.GetAnalysisResponse(analysis_json=json.dumps(self.analysis).encode(), analysis_html=b"<p>fine</p>")

    async def TriggerCycle(self, request, context):
        """Begin."""
        self.asked.append(request)
        if request.reason == "again":
            raise Conflict("the loop of model 'pets' declines a new cycle: a cycle is under way; wait for its end")
        return pb.TriggerCycleResponse(cycle=self.loop.cycle)

    async def ProposeVersion(self, request, context):
        """Begin."""
        self.asked.append(request)
        return pb.ProposeVersionResponse(cycle=self.loop.cycle)

    async def PromoteCandidate(self, request, context):
        """Do it."""
        self.asked.append(request)
        return pb.PromoteCandidateResponse(event=pb.Event(number=9))

    async def RejectCandidate(self, request, context):
        """Do it."""
        self.asked.append(request)
        return pb.RejectCandidateResponse(event=pb.Event(number=9, cycle=7))

    async def RollBack(self, request, context):
        """Do it."""
        self.asked.append(request)
        return pb.RollBackResponse(event=pb.Event(number=9), stable_version=2)

    async def TracePrediction(self, request, context):
        """Say where it comes from."""
        self.asked.append(request)
        return self.trace

    async def DeleteSample(self, request, context):
        """Begin."""
        self.asked.append(request)
        return pb.DeleteSampleResponse(deletion=self.deletion)

    async def DeleteContributor(self, request, context):
        """Begin."""
        self.asked.append(request)
        return pb.DeleteContributorResponse(deletion=self.deletion)

    async def GetDeletion(self, request, context):
        """Say how far it is."""
        self.asked.append(request)
        return pb.GetDeletionResponse(deletion=self.deletion)
