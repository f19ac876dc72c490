"""`aimass review`: which pictures wait for a reviewer, and what is decided on them."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from aimass.console import say
from aimass.suite_access import open_suite
from aimass.trainer.v1 import feedback_pb2 as pb
from services.common.errors import InvalidInput
from services.trainer.runs.folder import replacing

UNDECIDED = ("captured", "pending", "quarantined", "proposed")
"""States of pictures that are no samples yet and may become some."""
_COLOURS = {"accepted": "green", "quarantined": "red", "proposed": "yellow", "rejected": "red"}


def show_queue(
    out: Console, address: str, key: str, model: str, order: str, states: Sequence[str], label: str, limit: int
) -> None:
    """Print pictures of *model*, and how many wait for a reviewer.

    What a reviewer may not see before deciding is `hidden`.

    Args:
        out: Where to.
        address: Of the suite.
        key: Of the caller.
        model: Name of the model.
        order: `newest`, `uncertain`, `disagreement` or `drawn`; the last two leave out what a reviewer has seen.
        states: Only these; where there are none and *order* lists all pictures, those of `UNDECIDED`.
        label: Only with this one, accepted or leading; empty for any.
        limit: How many at most.

    Raises:
        PredictionError: The suite refuses it or does not answer.
    """
    if not states and order in ("newest", "uncertain"):
        states = UNDECIDED
    request = pb.ListObservationsRequest(
        model=model,
        order=pb.ListObservationsRequest.Order.Value(f"ORDER_{order.upper()}"),
        states=[pb.Observation.State.Value(f"STATE_{each.upper()}") for each in states],
        label=label,
        page_size=limit,
    )
    with open_suite(address, key) as suite:
        answer = suite.ask(suite.feedback.ListObservations, request)
    if answer.observations:
        out.print(_table(answer.observations))
    say(out, f"{answer.waiting_count} of {model} wait for a reviewer")


def decide(
    out: Console, address: str, key: str, number: int, label: str | None, reject: bool, undecidable: bool, release: bool
) -> None:
    """Decide on a picture.

    Raises:
        InvalidInput: No verdict is given, or several.
        PredictionError: The suite refuses it or does not answer.
    """
    if [label is not None, reject, undecidable, release].count(True) != 1:
        raise InvalidInput("give one of --label LABEL, --reject, --undecidable and --release")
    request = pb.ReviewObservationRequest(id=number)
    if label is not None:
        request.label = label
    else:
        setattr(request, "reject" if reject else "undecidable" if undecidable else "release", True)
    with open_suite(address, key) as suite:
        decided = suite.ask(suite.feedback.ReviewObservation, request).observation
    why = f" ({decided.state_reason})" if decided.state_reason else ""
    label_now = f" as {decided.label}" if decided.label else ""
    say(out, f"picture {decided.id} is {_state(decided)}{label_now}{why}")


def save_picture(out: Console, address: str, key: str, number: int, to: Path) -> None:
    """Write a picture to the file *to*.

    Raises:
        PredictionError: There is none of that number, or the suite does not answer.
    """
    with open_suite(address, key) as suite:
        picture = suite.ask(suite.feedback.GetObservationImage, pb.GetObservationImageRequest(id=number))
    with replacing(to) as file:
        file.write(picture.image)
    turned = "" if picture.orientation in (0, 1) else f", to be turned as EXIF's orientation {picture.orientation} says"
    say(out, f"picture {number}, {picture.format}{turned}, in {to}")


def _table(observations: Sequence[pb.Observation]) -> Table:
    table = Table("picture", "state", "said", "votes", "answered", "judged", "for", "came", box=None)
    for each in observations:
        state = _state(each)
        reason = f" {escape(each.state_reason)}" if each.state_reason else ""
        unknown = "hidden" if each.blind else "-"
        said = f"{each.label} {each.label_probability:.0%}" if each.label else unknown
        answered = f"{each.predicted_label} {each.predicted_probability:.0%}" if each.predicted_label else unknown
        table.add_row(
            str(each.id),
            f"[{_COLOURS.get(state, 'white')}]{state}[/]{reason}",
            escape(said),
            str(len(each.votes) or "-"),
            escape(answered),
            escape(f"{each.champion_label} / {each.candidate_label}") if each.candidate_label else "-",
            pb.Observation.Role.Name(each.role).removeprefix("ROLE_").lower() + (", drawn" if each.drawn else ""),
            each.create_time.ToDatetime().isoformat(" ", "minutes"),
        )
    return table


def _state(observation: pb.Observation) -> str:
    return pb.Observation.State.Name(observation.state).removeprefix("STATE_").lower()
