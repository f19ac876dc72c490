"""Pictures of users, and what is asked of them, as the contract has them."""

from __future__ import annotations

from aimass.trainer.v1 import feedback_pb2 as pb
from services.common.errors import InvalidInput
from services.trainer.contracts.timestamps import timestamp_of
from services.trainer.data.observing import Role, State
from services.trainer.feedback.queue import ObservationFilter, Order
from services.trainer.feedback.review import Decision
from services.trainer.feedback.views import ObservationView, VoteView


def filter_of(request: pb.ListObservationsRequest) -> ObservationFilter:
    """Return which pictures are asked for.

    Raises:
        InvalidInput: A state or the role is none that is known here.
    """
    states = {pb.Observation.State.Value(f"STATE_{each}"): each for each in State}
    roles = {pb.Observation.Role.Value(f"ROLE_{each}"): each for each in Role}
    unknown = [number for number in request.states if number not in states]
    if unknown:
        raise InvalidInput(f"state {unknown[0]} is unknown here; use one that the contract names", field="states")
    if request.role and request.role not in roles:
        raise InvalidInput(f"role {request.role} is unknown here; use one that the contract names", field="role")
    wanted = frozenset(states[number] for number in request.states)
    return ObservationFilter(wanted, request.label, request.contributor, roles.get(request.role))


def order_of(request: pb.ListObservationsRequest) -> Order:
    """Return the order that is asked for.

    Raises:
        InvalidInput: It is none that is known here.
    """
    orders = {pb.ListObservationsRequest.Order.Value(f"ORDER_{each}"): each for each in Order}
    if request.order and request.order not in orders:
        raise InvalidInput(f"order {request.order} is unknown here; use one that the contract names", field="order")
    return orders.get(request.order, Order.NEWEST)


def decision_of(request: pb.ReviewObservationRequest) -> Decision:
    """Return what a reviewer says.

    Raises:
        InvalidInput: Nothing.
    """
    part = request.WhichOneof("verdict")
    if part is None or not getattr(request, part):
        raise InvalidInput(
            f"the review has {part or 'no verdict'} without a value; give label, undecidable, reject or release",
            field="verdict",
        )
    return Decision(part.upper())


def pack(found: ObservationView) -> pb.Observation:
    """Return a picture as the contract has it."""
    return pb.Observation(
        id=found.number,
        model=found.model,
        content_digest=f"sha256:{found.content_digest}",
        state=pb.Observation.State.Value(f"STATE_{found.state}"),
        state_reason=found.reason,
        state_detail=found.detail,
        role=pb.Observation.Role.Value(f"ROLE_{found.role}"),
        label=found.label,
        label_probability=found.label_probability,
        votes=[_vote(each) for each in found.votes],
        predicted_label=found.predicted_label,
        predicted_probability=found.predicted_probability,
        version=found.version,
        drawn=found.drawn,
        candidate_label=found.candidate_label,
        champion_label=found.champion_label,
        prediction_ids=found.prediction_ids,
        sample_id=found.sample or 0,
        create_time=timestamp_of(found.create_time),
        blind=found.hides_answers,
    )


def _vote(vote: VoteView) -> pb.Vote:
    return pb.Vote(
        contributor=vote.contributor,
        label=vote.label,
        trusted=vote.trusted,
        comment=vote.comment,
        time=timestamp_of(vote.time),
    )
