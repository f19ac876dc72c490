"""Figures that operators see."""

from prometheus_client import CollectorRegistry

from services.trainer.data.observing import State
from services.trainer.loop.figures import LoopFigures
from services.trainer.loop.state import Stage
from tests.trainer.loop.conftest import MODEL
from tests.trainer.loop.home import Home
from tests.trainer.loop.rows import add_pictures


async def test_stage_evidence_and_queues_are_told_once_the_loop_is_driven_here(home: Home) -> None:
    director = home.life("only")
    registry = CollectorRegistry()
    registry.register(LoopFigures(home.database, lambda: [director]))

    def figure(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"aimass_loop_{name}", {"model": MODEL, **labels})

    assert figure("stage", stage="IDLE") is None
    await director.step()
    assert (figure("stage", stage="IDLE"), figure("stage", stage="GATE")) == (1, 0)
    assert figure("log_e") is None
    await home.turn()
    add_pictures(home.database, 2, state=State.QUARANTINED)
    home.accept()
    await director.step()
    accuracy = [figure("accuracy", end=end) for end in ("low", "high")]
    await home.play(director, lambda state: state.cycle is not None and state.cycle.stage == Stage.SHADOW)

    assert figure("stage", stage="SHADOW") == 1
    assert (figure("log_e") or 0) > 3
    assert (figure("pictures_quarantined"), figure("pictures_to_review"), figure("alarms")) == (2, 2, 0)
    assert accuracy[0] is not None
    assert 0 < accuracy[0] < 1  # ten of ten draws were right
    assert accuracy[1] == 1
