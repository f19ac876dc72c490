"""All loops of a process: one for each model that inference serves and that is, or can be made, a task."""

import asyncio
import time
from collections.abc import Callable

import structlog

from aimass.inference.v1 import lifecycle_pb2
from services.common.errors import NotFound, NotReady, ServiceError
from services.common.traffic import ready_versions
from services.trainer.data.models import create_model, find_model
from services.trainer.feedback.observations import ensure_loop_model
from services.trainer.loop.director import Director
from services.trainer.loop.served import Served, traffic_fact
from services.trainer.storage.database import Database

MODELS_SECONDS = 5.0
"""Between two looks at which models there are."""
SETTLE_SECONDS = 300.0
"""Between two tries to prepare what a model needs and may lack."""
STOP_SECONDS = 5.0
"""How long the steps under way may take when the process stops; what is cut off is repeated."""

log = structlog.get_logger(__name__)


class Directors:
    """Starts a director for each model, and stops them.

    Args:
        database: Migrated before `start`.
        served: Inference.
        make: Makes the director of a model.
        settle: Prepares what a model needs, before it has a director and now and then after that: called with its name,
            the version that serves and the digest of that one's graph.
        enabled: Whether there are loops at all.
    """

    def __init__(
        self,
        database: Database,
        served: Served,
        make: Callable[[str], Director],
        *,
        settle: Callable[[str, int, str], None] = lambda model, version, digest: None,
        enabled: bool = True,
    ) -> None:
        self._database = database
        self._served = served
        self._make = make
        self._settle = settle
        self._enabled = enabled
        self._directors: dict[str, tuple[Director, asyncio.Task[None]]] = {}
        self._reasons: dict[str, str] = {}
        self._settle_time: dict[str, float] = {}
        self._looking: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to drive the loops; only one component of a process may."""
        if self._enabled and self._looking is None:
            self._looking = asyncio.create_task(self._look())

    def wake(self, model: str) -> None:
        """Let the loop of a model look soon; to be called in the loop in which it was started."""
        if model in self._directors:
            self._directors[model][0].wake()

    def hurry(self, model: str) -> None:
        """Let the loop of a model look now, as a person waits; to be called in the loop in which it was started."""
        if model in self._directors:
            self._directors[model][0].hurry()

    def disabled_reason(self, model: str) -> str:
        """Return why a model has no loop; empty where it has one."""
        if not self._enabled:
            return "TRAINER_LOOP is off; set it to on and start the trainer again"
        if model in self._directors:
            return self._directors[model][0].disabled_reason
        return self._reasons.get(model, f"inference does not serve model {model!r}; publish a version of it")

    @property
    def running(self) -> list[Director]:
        """The directors of this process, by the names of their models."""
        return [self._directors[model][0] for model in sorted(self._directors)]

    async def stop(self) -> None:
        """Let the steps under way come to their end, and leave the rest to the next life."""
        if self._looking is not None:
            self._looking.cancel()
        for director, _ in self._directors.values():
            director.stop()
        tasks = [task for _, task in self._directors.values()]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=STOP_SECONDS)
            for task in late:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _look(self) -> None:
        while True:
            try:
                served = await self._served.models()
            except NotReady as error:
                log.info("loops wait for inference", reason=error.message)
                served = {}
            except Exception as error:  # whatever it is, the next look may go well
                log.error("a fault in looking for models", exc_info=error)
                served = {}
            for model, state in served.items():
                await self._look_at(model, state)
            await asyncio.sleep(MODELS_SECONDS)

    async def _look_at(self, model: str, state: lifecycle_pb2.ModelState) -> None:
        try:
            if model not in self._directors:
                await self._begin(model, state)
            elif time.monotonic() - self._settle_time[model] >= SETTLE_SECONDS:
                await self._prepare(model, state)
        except NotReady as error:
            log.info("a loop waits to begin", model=model, reason=error.message)
        except Exception as error:  # whatever it is, other models must have their loops
            log.error("a fault in looking at a model", model=model, exc_info=error)

    async def _begin(self, model: str, state: lifecycle_pb2.ModelState) -> None:
        reason = await asyncio.to_thread(adopt_model, self._database, state)
        if reason != self._reasons.get(model, ""):
            log.info("a model has no loop", model=model, reason=reason)
        self._reasons[model] = reason
        if not reason:
            await self._prepare(model, state)
            director = self._make(model)
            self._directors[model] = director, asyncio.create_task(director.run())

    async def _prepare(self, model: str, state: lifecycle_pb2.ModelState) -> None:
        self._settle_time[model] = time.monotonic()
        champion = traffic_fact(state).champion
        for each in state.versions:
            if each.version == champion:
                await asyncio.to_thread(self._settle, model, champion, each.graph_digest)


def adopt_model(database: Database, state: lifecycle_pb2.ModelState) -> str:
    """Make sure that a served model is a task, as one is that an operator has published.

    Returns:
        Why it cannot be one, as a sentence; empty where it is.

    Raises:
        NotReady: The database does not answer.
    """
    ready = ready_versions(state)
    champion = traffic_fact(state).champion
    version = next((each for each in state.versions if each.version == champion and champion in ready), None)
    if version is None:
        return f"model {state.model!r} has no version that serves; publish one"
    try:
        task = find_model(database, state.model)
        if task.labels != tuple(version.labels):
            return (
                f"model {state.model!r} is served with labels {', '.join(version.labels[:20]) or 'unknown'} and is a "
                f"task with {', '.join(task.labels[:20])}; publish it under another name"
            )
    except NotFound:
        if not (version.labels and version.preprocess_spec):
            return (
                f"version {champion} of model {state.model!r} does not say its labels and its preprocess spec; publish "
                "it with a manifest that does"
            )
        try:
            create_model(database, state.model, version.labels, version.preprocess_spec)
        except NotReady:
            raise
        except ServiceError as error:
            return error.message
    with database.begin(alone=True) as session:
        ensure_loop_model(session, state.model)
    return ""
