"""Drives the loops: each model has a director that reads, plans, acts and records, as long as it holds the lease."""

import asyncio
import contextlib
import math
import time
from collections.abc import Callable

import structlog

from services.common.errors import Conflict, NotReady, ServiceError
from services.trainer.loop.actions import Actions
from services.trainer.loop.facts import Facts
from services.trainer.loop.log import NOT_ALONE, Clock, EventLog, Lease, Leases, utc_now
from services.trainer.loop.plan import plan
from services.trainer.loop.policy import LoopPolicy
from services.trainer.loop.reading import Reader
from services.trainer.loop.state import InvalidLog, LoopState, Stage
from services.trainer.loop.steps import Action, SetTraffic

LOOK_SECONDS = 1.0
"""How often a loop with nothing to do looks whether it has something."""
LEAST_SECONDS = 0.5
"""Between two looks that find nothing to do, however often the loop is woken: each of a thousand votes does."""
REST_PER_LOOK = 4.0
"""Seconds of rest, at least, for each second that a look took: they take longer with every picture."""
LONGEST_SECONDS = 60.0
"""Wait before something is tried again that has failed often."""
ANALYST_SECONDS = 30.0
"""After which the analyst is asked for again while its work is waited for: it may have been killed."""
_MOST_DOUBLINGS = 6

log = structlog.get_logger(__name__)


class Director:
    """Drives the loop of one model.

    Args:
        model: Name of the model, which must be a task.
        events: The log.
        leases: Of this process.
        reader: Reads facts.
        actions: Carries out what is planned.
        policy_of: Returns the policy of a model as it is now.
        analyse: Lets a model's pictures be looked at, in a process of its own; called when something came of which
            the rows that decisions need may be missing. May block.
        clock: Gives the present time.
    """

    def __init__(
        self,
        model: str,
        events: EventLog,
        leases: Leases,
        reader: Reader,
        actions: Actions,
        policy_of: Callable[[str], LoopPolicy],
        analyse: Callable[[str], None],
        clock: Clock = utc_now,
    ) -> None:
        self.model = model
        self.disabled_reason = ""
        """Why the loop stands still until the process is started again; empty where it does not."""
        self._events = events
        self._leases = leases
        self._reader = reader
        self._actions = actions
        self._policy_of = policy_of
        self._analyse = analyse
        self._clock = clock
        self.state = LoopState(model)
        self.facts: Facts | None = None
        """As they were read last; None before the first step, and while another process has the lease."""
        self._lease: Lease | None = None
        self._awake = asyncio.Event()
        self._hurried = asyncio.Event()
        """Set where even the rest after a long look is cut short."""
        self._stopping = asyncio.Event()
        self._failures = 0
        self._took = 0.0
        """Seconds of the last step."""
        self._analysed = 0
        """Number of the event after which the analysis was asked for last."""
        self._analysis_time = -math.inf

    def wake(self) -> None:
        """Look soon: something has come or changed. Rests are kept, as each of a thousand votes wakes."""
        self._awake.set()

    def hurry(self) -> None:
        """Look now: a person waits for what becomes of a wish."""
        self._hurried.set()
        self._awake.set()

    def stop(self) -> None:
        """Let the step under way be the last one."""
        self._stopping.set()
        self.hurry()

    async def run(self) -> None:
        """Take one step after the other until told to stop; then let another process go on at once."""
        try:
            while not self._stopping.is_set() and not self.disabled_reason:
                woken = self._awake.is_set()
                self._awake.clear()
                self._hurried.clear()
                if woken:
                    await self._look_at_pictures()
                if not await self._try_step():
                    await self._rest()
        finally:
            await self._let_go()

    async def step(self) -> bool:
        """Do what is next, if this process has the lease; return whether there may be more to do at once.

        Raises:
            Conflict: With reason `NOT_ALONE`: somebody else has written to the log meanwhile.
            ServiceError: Something does not answer.
            InvalidLog: The log cannot be right.
        """
        self._lease = await asyncio.to_thread(self._leases.hold, self.model)
        if self._lease is None:
            self.facts = None
            return False
        self.state = state = await asyncio.to_thread(self._events.catch_up, self.state)
        policy = await asyncio.to_thread(self._policy_of, self.model)
        self.facts = facts = await self._reader.facts(state, policy)
        action = plan(state, facts, policy, self._clock())
        if self._waits_for_analyst(state, facts):
            await self._look_at_pictures()
        if action is None:
            return False
        await self._do(action, policy, self._lease)
        self.state = await asyncio.to_thread(self._events.catch_up, state)
        return self.state.number > state.number or isinstance(action, SetTraffic)

    def _waits_for_analyst(self, state: LoopState, facts: Facts) -> bool:
        at_gate = state.cycle is not None and state.cycle.stage == Stage.GATE
        if at_gate and state.number != self._analysed:
            return True
        late = time.monotonic() - self._analysis_time >= ANALYST_SECONDS
        return late and (at_gate or facts.pictures_wait)

    async def _do(self, action: Action, policy: LoopPolicy, lease: Lease) -> None:
        """Carry out *action*, however long it takes, without losing the lease."""
        work = asyncio.create_task(self._actions.do(action, self.state, policy, lease))
        try:
            while not work.done():
                await asyncio.wait((work,), timeout=self._leases.seconds / 3)
                if not work.done():
                    await asyncio.to_thread(self._leases.hold, self.model)
        finally:
            work.cancel()
        await work

    async def _try_step(self) -> bool:
        begin = time.monotonic()
        try:
            moved = await self.step()
        except InvalidLog as error:
            self.disabled_reason = str(error)
            log.error("the loop stands still", model=self.model, reason=str(error))
            return False
        except Conflict as error:
            if error.reason == NOT_ALONE:
                return True
            self._failed(error)
            return False
        except ServiceError as error:
            self._failed(error)
            return False
        except Exception as error:  # whatever it is, the loop must not end for good
            self._failures += 1
            log.error("a fault in the loop", model=self.model, exc_info=error)
            return False
        finally:
            self._took = time.monotonic() - begin
        self._failures = 0
        return moved

    def _failed(self, error: ServiceError) -> None:
        self._failures += 1
        log.warning("the loop waits", model=self.model, reason=error.message)

    async def _rest(self) -> None:
        seconds = LOOK_SECONDS
        if self._failures:
            seconds = min(LONGEST_SECONDS, LOOK_SECONDS * 2 ** min(self._failures, _MOST_DOUBLINGS))
        least = min(LONGEST_SECONDS, max(LEAST_SECONDS, REST_PER_LOOK * self._took))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(least):
                await self._hurried.wait()
        try:
            async with asyncio.timeout(seconds):
                await self._awake.wait()
        except TimeoutError:
            return

    async def _look_at_pictures(self) -> None:
        self._analysed, self._analysis_time = self.state.number, time.monotonic()
        try:
            await asyncio.to_thread(self._analyse, self.model)
        except OSError as error:
            log.warning("pictures cannot be looked at", model=self.model, reason=str(error))

    async def _let_go(self) -> None:
        lease, self._lease = self._lease, None
        if lease is None:
            return
        try:
            await asyncio.to_thread(self._leases.release, lease)
        except NotReady as error:
            log.info("the lease of a loop runs out by itself", model=self.model, reason=error.message)
