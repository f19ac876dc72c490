"""Which version answers: the choice that the gateway makes at the door, and the stream of state it is made from."""

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterable, Callable, Iterable

import structlog

from aimass.inference.v1 import lifecycle_pb2
from services.common.errors import NotFound, NotReady
from services.common.statuses import status_of
from services.common.tasks import end

log = structlog.get_logger(__name__)

ROUTING_KEY = "routing_key"
"""Parameter of a protocol request: the same key, the same version, while traffic is split."""
READY = lifecycle_pb2.ModelVersion.STATE_READY
RECONNECT_SECONDS = 0.2
"""Wait before a follower asks again after it lost its stream."""
NEW_VERSION_SECONDS = 1.0
"""How long a version that a follower doesn't know yet is waited for: a caller may have heard of it a moment earlier."""


def ready_versions(state: lifecycle_pb2.ModelState) -> list[int]:
    """Return the versions that can serve, by rising number."""
    return [version.version for version in state.versions if version.state == READY]


def choose_version(state: lifecycle_pb2.ModelState, requested: int = 0, routing_key: str | None = None) -> int:
    """Return the version that serves a request: the *requested* one, else what the model's traffic says.

    Gateway and inference use this same function, so they agree.

    Args:
        state: Of the model.
        requested: Version that the request names; 0 means none.
        routing_key: Decides between stable and canary: the same key gets the same version. Without a key there is no
            canary, and one that is not ready gets nothing.

    Raises:
        NotFound: The requested version does not exist.
        NotReady: The version cannot serve now, or the model has none that can.
    """
    ready = ready_versions(state)
    canary = state.traffic.canary
    has_canary = not requested and routing_key is not None and canary.version in ready
    if has_canary and routing_share(state.model, routing_key or "") < canary.share:
        return canary.version
    version = requested or state.traffic.stable_version or (ready[-1] if ready else 0)
    if version in ready:
        return version
    known = {each.version: each for each in state.versions}
    if version == 0:
        raise NotReady(f"model {state.model!r} has no version that is ready; {_reasons(state)}")
    if version not in known:
        raise NotFound(
            f"model {state.model!r} has no version {version}; "
            f"name one that it has: {', '.join(map(str, known)) or 'none'}",
            reason="VERSION_NOT_FOUND",
        )
    name = lifecycle_pb2.ModelVersion.State.Name(known[version].state).removeprefix("STATE_")
    raise NotReady(
        f"version {version} of model {state.model!r} is {name}: {known[version].state_reason or 'try again'}"
    )


def routing_share(model: str, routing_key: str) -> float:
    """Return where a key stands among all, from 0 to below 1, evenly spread and the same in every process.

    A canary takes the keys below its share, so a share that grows keeps the keys that it had.
    """
    digest = hashlib.blake2b(f"{model}\0{routing_key}".encode(errors="replace"), digest_size=8).digest()
    return int.from_bytes(digest) / 2**64


def all_serve(states: Iterable[lifecycle_pb2.ModelState]) -> bool:
    """Whether there are models, and each answers requests that name no version; one unloaded on purpose need not."""
    wanted = [state for state in states if not state.unloaded]
    return bool(wanted) and all(map(_serves, wanted))


def _serves(state: lifecycle_pb2.ModelState) -> bool:
    try:
        choose_version(state)
    except (NotFound, NotReady):
        return False
    return True


def _reasons(state: lifecycle_pb2.ModelState) -> str:
    failed = [f"version {each.version}: {each.state_reason}" for each in state.versions if each.state_reason]
    return "; ".join(failed) or "publish one or wait until it is loaded"


def model_not_found(name: str, known: Iterable[str]) -> NotFound:
    """Return the error for an unknown model, with the names that would work."""
    names = ", ".join(sorted(known)) or "none"
    return NotFound(
        f"model {name!r} is unknown; name one that this suite has: {names}", reason="MODEL_NOT_FOUND", field="model"
    )


class TrafficFollower:
    """Keeps the newest state of all models, as inference streams it; survives inference's restarts."""

    def __init__(self, watch: Callable[[], AsyncIterable[lifecycle_pb2.WatchTrafficResponse]]) -> None:
        self._watch = watch
        self._models: dict[str, lifecycle_pb2.ModelState] | None = None
        self._changed = asyncio.Condition()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to follow and return when the first state is here."""
        self._task = asyncio.create_task(self._follow())
        async with self._changed:
            await self._changed.wait_for(lambda: self._models is not None)

    async def close(self) -> None:
        """Stop following; the last state stays."""
        if self._task is not None:
            await end(self._task)

    @property
    def models(self) -> dict[str, lifecycle_pb2.ModelState]:
        """All models by name.

        Raises:
            NotReady: Inference has not told yet.
        """
        if self._models is None:
            raise NotReady("the list of models has not arrived from inference yet; try again")
        return self._models

    def model(self, name: str) -> lifecycle_pb2.ModelState:
        """Return one model's state.

        Raises:
            NotFound: There is no such model.
        """
        try:
            return self.models[name]
        except KeyError:
            raise model_not_found(name, self.models) from None

    def knows(self, model: str, version: int) -> bool:
        """Whether a model has this version, as far as is known; may be asked in any thread."""
        state = (self._models or {}).get(model)
        return state is not None and any(each.version == version for each in state.versions)

    async def wait_for(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Wait until *condition* holds for a state that arrived, at most *seconds*; return whether it does."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds), self._changed:
                await self._changed.wait_for(condition)
        return condition()

    async def _follow(self) -> None:
        lost = False
        while True:
            try:
                async for response in self._watch():
                    lost = False
                    async with self._changed:
                        self._models = {state.model: state for state in response.models}
                        self._changed.notify_all()
            except Exception as error:  # whatever ends the stream, the follower must go on
                if not lost:
                    log.info("lost the traffic stream, asking again", message=status_of(error).message)
                lost = True
            await asyncio.sleep(RECONNECT_SECONDS)
