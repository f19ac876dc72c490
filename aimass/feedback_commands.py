"""The command line of what users and reviewers say: keys, feedback, reviews."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from aimass.client import DEFAULT_ADDRESS, DEFAULT_MODEL
from aimass.console import (
    MOST_NUMBER,
    SHOW,
    Address,
    Contributor,
    Key,
    ModelName,
    PictureNumber,
    ShownIfNothingElse,
    err,
    out,
)


class KeyScope(StrEnum):
    """What a key allows."""

    predict = "predict"
    feedback = "feedback"
    train = "train"
    admin = "admin"


class Order(StrEnum):
    """In which pictures are listed."""

    newest = "newest"
    uncertain = "uncertain"
    disagreement = "disagreement"
    drawn = "drawn"


class ObservationState(StrEnum):
    """How far a picture has come."""

    captured = "captured"
    pending = "pending"
    accepted = "accepted"
    quarantined = "quarantined"
    proposed = "proposed"
    rejected = "rejected"


class Form(StrEnum):
    """Kinds of files of feedback."""

    json_lines = "json-lines"
    label_studio = "label-studio"


keys = typer.Typer(
    help="Keys, by which contributors are known; without --address those of this machine.", no_args_is_help=True
)
feedback = typer.Typer(help="What predictions should have been.", no_args_is_help=True)
review = typer.Typer(help="Pictures that wait for a reviewer.", cls=ShownIfNothingElse)

End = Annotated[bool, typer.Option("--end", help="End it.")]
KeysAddress = Annotated[
    str, typer.Option(help="A suite's gRPC address; this machine's database if absent.", envvar="AIMASS_ADDRESS")
]


@keys.command("make")
def make_key(
    contributor: Contributor,
    scopes: Annotated[
        list[KeyScope] | None, typer.Option("--scope", help="What it allows; predict and feedback if absent.")
    ] = None,
    trusted: Annotated[bool, typer.Option("--trusted", help="Their word decides.")] = False,
    address: KeysAddress = "",
    key: Key = "",
) -> None:
    """Make a key. Its secret, all that is written to standard output, is shown this once."""
    from aimass.keys import make_key

    make_key(out, err, address, key, contributor, scopes or [KeyScope.predict, KeyScope.feedback], trusted)


@keys.command("list")
def list_keys(address: KeysAddress = "", key: Key = "") -> None:
    """List all keys, without their secrets, which nobody keeps."""
    from aimass.keys import list_keys

    list_keys(out, address, key)


@keys.command("revoke")
def revoke_key(
    key_id: Annotated[str, typer.Argument(help="Of the key, see `aimass keys list`.")],
    address: KeysAddress = "",
    key: Key = "",
) -> None:
    """Make a key invalid; gateways know within a second."""
    from aimass.keys import revoke_key

    revoke_key(out, address, key, key_id)


@keys.command()
def trust(contributor: Contributor, end: End = False, address: KeysAddress = "", key: Key = "") -> None:
    """Let a contributor's word decide."""
    from aimass.keys import set_trusted

    set_trusted(out, address, key, contributor, not end)


@keys.command()
def block(contributor: Contributor, end: End = False, address: KeysAddress = "", key: Key = "") -> None:
    """Let a contributor's word count for nothing."""
    from aimass.keys import set_blocked

    set_blocked(out, address, key, contributor, not end)


@feedback.command("send")
def send_feedback(
    prediction_id: Annotated[str, typer.Argument(help="Of the prediction, see `aimass predict --json`.")],
    label: Annotated[str | None, typer.Option(help="What it should have been.")] = None,
    right: Annotated[bool, typer.Option("--right", help="The answer is right.")] = False,
    wrong: Annotated[bool, typer.Option("--wrong", help="The answer is wrong.")] = False,
    comment: Annotated[str, typer.Option(help="Kept, and never learnt from.")] = "",
    image: Annotated[
        Path | None, typer.Option(help="The image again, where it was not captured.", exists=True, dir_okay=False)
    ] = None,
    model: Annotated[str, typer.Option(help="Name of the model, with --image.")] = "",
    address: Address = DEFAULT_ADDRESS,
    key: Key = "",
) -> None:
    """Say what a prediction should have been."""
    from aimass.feedback import send_feedback

    send_feedback(out, address, key, prediction_id, label, right, wrong, comment, image, model)


@feedback.command("import")
def import_feedback(
    model: ModelName,
    file: Annotated[Path, typer.Argument(help="JSON lines, or Label Studio's JSON.", exists=True, dir_okay=False)],
    address: Address = DEFAULT_ADDRESS,
    key: Key = "",
) -> None:
    """Send what a file says of pictures."""
    from aimass.feedback import import_file

    import_file(out, address, key, model, file)


@feedback.command("export")
def export_feedback(
    model: ModelName,
    form: Annotated[Form, typer.Option("--format", help="Kind of file.")] = Form.json_lines,
    to: Annotated[Path | None, typer.Option("-o", "--to", help="File; standard output if absent.")] = None,
    images: Annotated[bool, typer.Option("--images", help="The pictures too, as base64.")] = False,
    after: Annotated[int, typer.Option(min=0, max=MOST_NUMBER, help="Only pictures of higher numbers.")] = 0,
    address: Address = DEFAULT_ADDRESS,
    key: Key = "",
) -> None:
    """Write all that was said of a model's pictures as a file."""
    from aimass.feedback import export_file

    export_file(out, address, key, model, form, images, after, to)


@review.command(SHOW)
def show_queue(
    model: ModelName = DEFAULT_MODEL,
    order: Annotated[
        Order, typer.Option(help="Of the last two, only those that no reviewer has decided on.")
    ] = Order.newest,
    states: Annotated[
        list[ObservationState] | None, typer.Option("--state", help="Only in these; all that is undecided if absent.")
    ] = None,
    label: Annotated[str, typer.Option(help="Only with this label, accepted or leading.")] = "",
    limit: Annotated[int, typer.Option(min=1, max=200, help="How many at most.")] = 20,
    address: Address = DEFAULT_ADDRESS,
    key: Key = "",
) -> None:
    """List pictures; `aimass review MODEL` does the same."""
    from aimass.review import show_queue

    show_queue(out, address, key, model, order, states or [], label, limit)


@review.command("decide")
def decide(
    number: PictureNumber,
    label: Annotated[str | None, typer.Option(help="What it is.")] = None,
    reject: Annotated[bool, typer.Option("--reject", help="It shall not be used.")] = False,
    undecidable: Annotated[bool, typer.Option("--undecidable", help="Nobody can tell.")] = False,
    release: Annotated[bool, typer.Option("--release", help="It leaves quarantine with its leading label.")] = False,
    address: Address = DEFAULT_ADDRESS,
    key: Key = "",
) -> None:
    """Decide on a picture, with the key of somebody whose word decides."""
    from aimass.review import decide

    decide(out, address, key, number, label, reject, undecidable, release)


@review.command("picture")
def save_picture(
    number: PictureNumber,
    to: Annotated[Path, typer.Option("-o", "--to", help="File.")],
    address: Address = DEFAULT_ADDRESS,
    key: Key = "",
) -> None:
    """Write a picture to a file."""
    from aimass.review import save_picture

    save_picture(out, address, key, number, to)
