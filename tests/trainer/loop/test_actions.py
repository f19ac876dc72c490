"""Effects that may be repeated, and what the log says of those that fail."""

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy.orm import Session

from services.common.errors import Conflict, InvalidInput
from services.trainer.data.tables import SnapshotRow
from services.trainer.loop.actions import Actions
from services.trainer.loop.cycle_payloads import ActionFailed, RunCreated, RunEnded
from services.trainer.loop.log import Lease
from services.trainer.loop.policy import LoopPolicy, Strategy
from services.trainer.loop.state import LoopState, Stage
from services.trainer.loop.steps import Action, CancelRun, CreateRun, MakeSnapshot, SetTraffic
from services.trainer.loop.tables import PublicationRow
from services.trainer.loop.values import Wanted
from services.trainer.runs.store import RunFilter
from tests.trainer.loop.conftest import MODEL
from tests.trainer.loop.home import STARTER, FixedSnapshots, Home, refit

SNAPSHOT = "5" * 64


def actions_of(home: Home, snapshots: FixedSnapshots | None = None) -> Actions:
    return Actions(
        home.database,
        home.log,
        home.served,
        home.control,
        home.store,
        home.origins,
        snapshots or FixedSnapshots(),
        refit,
        home.erasing,
    )


async def begun(home: Home, stage: Stage = Stage.SNAPSHOT) -> tuple[LoopState, Lease]:
    """Return the state of a cycle at *stage*, and the lease of another process that has taken over."""
    home.accept()
    await home.play(home.life("before"), lambda state: state.cycle is not None and state.cycle.stage == stage)
    home.clock.pass_by(11.0)
    lease = home.leases("now").hold(MODEL)
    assert lease is not None
    return home.state(), lease


async def do(home: Home, action: Action, state: LoopState, lease: Lease) -> None:
    await actions_of(home).do(action, state, home.policy, lease)


def create(strategy: Strategy = Strategy.REFIT, source: str = STARTER) -> CreateRun:
    return CreateRun(1, 0, strategy, SNAPSHOT, source)


async def test_a_run_is_known_again_whatever_the_policy_says_by_then(home: Home) -> None:
    state, _ = await begun(home, Stage.RUN)
    first = await actions_of(home)._carry_out(create(), state, home.policy)

    again = await actions_of(home)._carry_out(create(Strategy.SCRATCH), state, home.policy)

    assert isinstance(first, RunCreated)
    assert isinstance(again, RunCreated)
    assert again.run_id == first.run_id
    assert len(home.store.list(RunFilter(recipe="quick"))) == 2  # with that of version 1


async def test_a_run_that_cannot_be_created_is_one_that_failed_with_its_strategy(home: Home) -> None:
    state, lease = await begun(home, Stage.RUN)

    await do(home, create(Strategy.INCREMENTAL, source="unknown"), state, lease)

    failed = home.events()[-1].payload
    assert failed == ActionFailed(action="CreateRun", rule="NO_OPTIONS", strategy=Strategy.INCREMENTAL)
    cycle = home.state().cycle
    assert cycle is not None
    assert cycle.ending is None  # another strategy may do


async def test_a_snapshot_that_is_not_recorded_leaves_no_rows(home: Home) -> None:
    state, lease = await begun(home)

    with pytest.raises(Conflict, match="taken over"):
        await do(home, MakeSnapshot(1), state, Lease(MODEL, lease.fence - 1))
    with home.database.read() as session:
        assert session.get(SnapshotRow, SNAPSHOT) is None

    await do(home, MakeSnapshot(1), state, lease)
    with home.database.read() as session:
        assert session.get(SnapshotRow, SNAPSHOT) is not None
    assert home.events()[-1].kind == "snapshot.made"


async def test_samples_that_cannot_be_learnt_from_fail_the_cycle(home: Home) -> None:
    class OneClass(FixedSnapshots):
        def prepare(self, model: str, policy: LoopPolicy) -> Callable[[Session], Any]:
            raise InvalidInput("one class alone has samples; accept some of another", reason="ONE_CLASS")

    state, lease = await begun(home)
    await actions_of(home, OneClass()).do(MakeSnapshot(1), state, home.policy, lease)

    assert home.events()[-1].payload == ActionFailed(action="MakeSnapshot", rule="ONE_CLASS")
    cycle = home.state().cycle
    assert cycle is not None
    assert cycle.ending is not None


async def test_a_change_of_the_traffic_that_comes_late_says_nothing(home: Home) -> None:
    state, lease = await begun(home)
    number = state.number

    await do(home, SetTraffic(Wanted(stable=1), 7, withdrawal=False), state, lease)

    assert home.state().number == number
    assert await home.stable() == (1, 0)


async def test_a_withdrawal_that_fails_is_left_to_be_tried_again(home: Home) -> None:
    state, lease = await begun(home)
    number = state.number
    withdrawal = SetTraffic(Wanted(stable=9), 0, withdrawal=True)

    with pytest.raises(Exception, match="9"):
        await do(home, withdrawal, state, lease)

    assert home.state().number == number


async def test_a_cancelled_run_is_recorded_once_it_has_ended_and_as_it_has(home: Home) -> None:
    home.launcher.waits = True
    director = home.life("only")
    home.accept()
    state = await home.play(director, lambda state: state.cycle is not None and bool(state.cycle.running))
    cycle = state.cycle
    assert cycle is not None
    await home.until(lambda: bool(home.launcher.started))
    actions = actions_of(home)

    running = await actions._carry_out(CancelRun(cycle.running, "TOO_LONG"), state, home.policy)
    await home.until(lambda: home.store.get(cycle.running).state.final)
    ended = await actions._carry_out(CancelRun(cycle.running, "TOO_LONG"), state, home.policy)
    succeeded = await actions._carry_out(CancelRun(STARTER, "TOO_LONG"), state, home.policy)
    gone = await actions._carry_out(CancelRun("no-such-run", "TOO_LONG"), state, home.policy)

    assert running is None
    assert ended == RunEnded(run_id=cycle.running, state="CANCELLED", rule="TOO_LONG")
    assert isinstance(succeeded, RunEnded)
    assert isinstance(gone, RunEnded)
    assert (succeeded.state, gone.state) == ("SUCCEEDED", "CANCELLED")


async def test_a_publication_is_known_by_its_run_and_samples(home: Home) -> None:
    home.accept()
    state = await home.play(
        home.life("only"), lambda state: state.cycle is not None and state.cycle.stage == Stage.GATE
    )
    cycle = state.cycle
    assert cycle is not None
    assert cycle.attempt is not None

    with home.database.read() as session:
        row = session.get(PublicationRow, cycle.publication_id)
        assert row is not None
        assert (row.version, row.run, row.snapshot) == (2, cycle.attempt.run_id, SNAPSHOT)
