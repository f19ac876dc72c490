"""Reaches a trainer: the suite's, or one that lives in the command's own process on the same folders."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager, closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import grpc

from aimass.trainer.v1 import training_pb2 as pb
from aimass.trainer.v1.training_pb2_grpc import TrainingServiceStub
from services.common.channels import open_channel
from services.common.errors import Conflict, InvalidInput, NotReady, SettingsError
from services.common.logs import configure_logs
from services.common.server import GrpcServer, Service, StopSignal
from services.common.settings import load_settings
from services.trainer.service import TrainerComponent
from services.trainer.settings import TrainerSettings

if TYPE_CHECKING:  # exists only for type checkers
    from aimass.trainer.v1.training_pb2_grpc import TrainingServiceAsyncStub

MAX_SOCKET_PATH = 103
"""Bytes of a socket's path; Linux takes four more."""
_BREAKS = ("SIGINT", "SIGTERM", "SIGHUP")
"""Signals that break a command off: Ctrl-C, the wish of others, the end of its terminal."""


def run_command(work: Coroutine[Any, Any, None]) -> None:
    """Do *work*; a signal to stop cancels it, which gives a run of our own trainer the time to leave a checkpoint.

    Further signals change nothing: a process of a run that does not stop is killed when its time is over.

    Raises:
        KeyboardInterrupt: It was broken off.
    """

    async def breakable() -> None:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        broken_off = False

        def break_off() -> None:
            nonlocal broken_off
            if not broken_off:
                task.cancel()
            broken_off = True

        for number in (getattr(signal, name) for name in _BREAKS):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
                loop.add_signal_handler(number, break_off)
        await work

    with closing(work):  # a wrong setting is told before it begins
        # What is refused is told as a sentence.
        configure_logs("aimass", "ERROR", load_settings(TrainerSettings).log_style)
        try:
            asyncio.run(breakable())
        except asyncio.CancelledError:
            raise KeyboardInterrupt from None


@asynccontextmanager
async def trainer_channel(address: str) -> AsyncIterator[grpc.aio.Channel]:
    """Open a channel to the trainer at *address*; where that is empty, to one that this process is for as long.

    What goes wrong at the trainer is raised as a sentence. When the block ends, runs of our own trainer are told to
    leave a checkpoint and stop.

    Raises:
        SettingsError: The environment is wrong.
        NotReady: Nothing answers at *address*.
        Conflict: The trainer refuses; its sentence says why.
    """
    try:
        if address:
            async with open_channel(address) as channel:
                yield channel
        else:
            async with _own_trainer() as channel:
                yield channel
    except grpc.aio.AioRpcError as error:
        sentence = error.details() or error.code().name
        if error.code() is grpc.StatusCode.UNAVAILABLE and address:
            raise NotReady(f"the trainer at {address} does not answer ({sentence}); start it") from error
        raise Conflict(sentence) from error


@asynccontextmanager
async def _own_trainer() -> AsyncIterator[grpc.aio.Channel]:
    settings = load_settings(TrainerSettings)
    stop = StopSignal()
    # A queue of its own: the suite's trainer, which may share the database, leaves our runs alone, and we leave its.
    component = TrainerComponent(settings, stop, queue=f"command-{os.getpid()}", trusted=True)
    async with _serving(component.services, settings.max_message_bytes) as address:
        await component.start()
        try:
            async with open_channel(address) as channel:
                yield channel
        finally:
            stop.set()
            await component.close()


@asynccontextmanager
async def _serving(services: Sequence[Service], max_message_bytes: int) -> AsyncIterator[str]:
    """Serve to this user alone, who may run code of his own in it, and give the address.

    Raises:
        SettingsError: There is no folder for the socket.
    """
    with TemporaryDirectory(prefix="aimass-") as folder:  # its permissions keep others of this machine out
        path = f"{folder}/socket"
        if len(os.fsencode(path)) > MAX_SOCKET_PATH:
            raise SettingsError(
                f"a socket's path has up to {MAX_SOCKET_PATH} bytes and {path} more; set TMPDIR to a shorter folder"
            )
        server = GrpcServer(f"unix:{path}", services, max_message_bytes=max_message_bytes)
        await server.start()
        try:
            yield f"unix:{path}"
        finally:
            await server.stop(0)


def training_stub(channel: grpc.aio.Channel) -> "TrainingServiceAsyncStub":
    """Return the stub of `TrainingService` for *channel*."""
    return TrainingServiceStub(channel)


def parse_assignments(assignments: list[str]) -> dict[str, Any]:
    """Return `name=value` pairs as an object; dots in a name lead into groups, values are JSON or else text.

    Raises:
        InvalidInput: One is not such a pair.
    """
    fields: dict[str, Any] = {}
    for assignment in assignments:
        name, separator, value = assignment.partition("=")
        if not separator:
            raise InvalidInput(f"--set {assignment!r} is not name=value")
        group = fields
        *outer, last = name.split(".")
        for part in outer:
            group = group.setdefault(part, {})
            if not isinstance(group, dict):
                raise InvalidInput(f"--set {assignment!r}: {part} was set before and has no parts")
        group[last] = parse_value(value)
    return fields


def dataset_name(text: str) -> str:
    """Return what the contract calls the set *text*: the whole path, where a folder of that name is here."""
    return str(Path(text).absolute()) if Path(text).is_dir() else text


def parse_value(text: str) -> Any:
    """Return *text* as JSON means it, or where it is no JSON, as it is."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def state_name(run: pb.Run) -> str:
    """Return the state of *run* in a word."""
    return pb.Run.State.Name(run.state).removeprefix("STATE_")


def kind_name(run: pb.Run) -> str:
    """Return the kind of *run* in a word."""
    return pb.Run.Kind.Name(run.kind).removeprefix("KIND_").lower()
