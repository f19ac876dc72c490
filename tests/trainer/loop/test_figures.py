"""Figures that operators see."""

import pytest
from prometheus_client import CollectorRegistry

from services.trainer.data.observing import State
from services.trainer.loop.figures import LoopFigures
from services.trainer.loop.state import Stage
from tests.trainer.loop.conftest import MODEL
from tests.trainer.loop.home import Home
from tests.trainer.loop.rows import add_figure, add_pictures


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
    assert [figure("accuracy", end=end) for end in ("low", "high")] == accuracy  # as it was before the cycle
    assert (figure("accuracy_estimate"), figure("accuracy_draws")) == (1, 10)
    assert (figure("pictures_quarantined"), figure("pictures_to_review"), figure("alarms")) == (2, 2, 0)
    assert accuracy[0] is not None
    assert 0 < accuracy[0] < 1  # ten of ten draws were right
    assert accuracy[1] == 1


async def test_the_newest_look_of_each_detector_is_told_on_its_own_scale_and_on_one_for_all(home: Home) -> None:
    director = home.life("only")
    add_figure(home.database, "label_shift", 1, {"last": 500}, alarm=True, level=1e-6, threshold=1e-3)
    add_figure(home.database, "label_shift", 2, {"last": 900}, alarm=False, level=0.1, threshold=1e-3)
    add_figure(home.database, "error_drift", 1, {"last": 900}, alarm=False, level=0.25, threshold=1.0)
    registry = CollectorRegistry()
    registry.register(LoopFigures(home.database, lambda: [director]))
    await director.step()

    def shift(name: str, detector: str) -> float | None:
        return registry.get_sample_value(f"aimass_loop_shift_{name}", {"model": MODEL, "detector": detector})

    names = ("level", "threshold", "nearness")
    assert [shift(name, "label_shift") for name in names] == [0.1, 1e-3, pytest.approx(1 / 3)]
    assert [shift(name, "error_drift") for name in names] == [0.25, 1, 0.25]
    assert shift("level", "softmax_shift") is None
