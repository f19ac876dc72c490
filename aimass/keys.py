"""`aimass keys`: by which contributors are known, and what their word is worth."""

import asyncio
from collections.abc import Sequence
from contextlib import closing
from typing import Any, TypeVar

from google.protobuf.message import Message
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from aimass.console import say
from aimass.suite_access import open_suite
from aimass.trainer.v1 import access_pb2 as pb
from services.common.direct import direct_call
from services.common.server import StopSignal
from services.common.settings import load_settings
from services.trainer.contracts.access import AccessServicer
from services.trainer.settings import TrainerSettings
from services.trainer.storage.database import Database

Answer = TypeVar("Answer", bound=Message)


def make_key(
    out: Console, err: Console, address: str, key: str, contributor: str, scopes: Sequence[str], trusted: bool
) -> None:
    """Make a key; print its secret, and beside it what it is good for."""
    wanted = [pb.Scope.Value(f"SCOPE_{each.upper()}") for each in scopes]
    request = pb.CreateKeyRequest(contributor=contributor, scopes=wanted, trusted=trusted)
    answer = _ask(address, key, "CreateKey", request, pb.CreateKeyResponse)
    say(
        err,
        f"key {answer.key.id} of {answer.key.contributor} for {_scopes(answer.key)}; its secret is shown this once, "
        "send it in AIMASS_KEY or as `authorization: Bearer SECRET`",
    )
    say(out, answer.secret)


def list_keys(out: Console, address: str, key: str) -> None:
    """Print all keys, revoked ones too."""
    answer = _ask(address, key, "ListKeys", pb.ListKeysRequest(), pb.ListKeysResponse)
    table = Table("key", "contributor", "allows", "word", "made", "revoked", box=None)
    for each in answer.keys:
        table.add_row(
            escape(each.id),
            escape(each.contributor),
            _scopes(each),
            _worth(each),
            each.create_time.ToDatetime().isoformat(" ", "minutes"),
            each.revoke_time.ToDatetime().isoformat(" ", "minutes") if each.HasField("revoke_time") else "-",
        )
    out.print(table)


def revoke_key(out: Console, address: str, key: str, key_id: str) -> None:
    """Make a key invalid."""
    revoked = _ask(address, key, "RevokeKey", pb.RevokeKeyRequest(id=key_id), pb.RevokeKeyResponse).key
    say(out, f"key {revoked.id} of {revoked.contributor} is not valid any more")


def set_trusted(out: Console, address: str, key: str, contributor: str, trusted: bool) -> None:
    """Let a contributor's word decide, or not."""
    request = pb.UpdateContributorRequest(contributor=contributor, trusted=trusted)
    affected = _update(address, key, request)
    say(out, f"the word of {contributor} {'decides' if trusted else 'is one of several'} from now on{affected}")


def set_blocked(out: Console, address: str, key: str, contributor: str, blocked: bool) -> None:
    """Let a contributor's word count for nothing, or count again."""
    affected = _update(address, key, pb.UpdateContributorRequest(contributor=contributor, blocked=blocked))
    say(out, f"the word of {contributor} counts {'for nothing' if blocked else 'again'} from now on{affected}")


def _update(address: str, key: str, request: pb.UpdateContributorRequest) -> str:
    count = _ask(address, key, "UpdateContributor", request, pb.UpdateContributorResponse).affected_count
    return f"; {count} pictures are looked at again" if count else ""


def _ask(address: str, key: str, method: str, request: Message, kind: type[Answer]) -> Answer:
    """Call the suite at *address*; without one, do the same to this machine's database, which the owner may always.

    A suite that wants a key of everybody gets its first one so.
    """
    if address:
        with open_suite(address, key) as suite:
            answer = suite.ask(getattr(suite.access, method), request)
    else:
        answer = asyncio.run(_here(method, request))
    assert isinstance(answer, kind), method
    return answer


async def _here(method: str, request: Message) -> Any:
    with closing(Database(load_settings(TrainerSettings).database.get_secret_value())) as database:
        await asyncio.to_thread(database.migrate)
        return await direct_call(getattr(AccessServicer(database, StopSignal()), method))(request)


def _scopes(key: pb.Key) -> str:
    return ", ".join(pb.Scope.Name(each).removeprefix("SCOPE_").lower() for each in key.scopes)


def _worth(key: pb.Key) -> str:
    return "[red]blocked[/red]" if key.blocked else "[green]decides[/green]" if key.trusted else "one of several"
