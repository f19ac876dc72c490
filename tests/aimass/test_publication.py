"""Where the result of a run is published to, and what is told where that fails."""

import pytest

from services.common.manifest import MANIFEST_FILE
from services.trainer.runs.record import RunState
from tests.aimass.conftest import Commands, options


@pytest.fixture
def finished(commands: Commands) -> Commands:
    code, _, complained = commands.run("train", "quick", "--run-id", "x", *options(1))
    assert code == 0, complained
    return commands


def test_a_result_goes_to_the_model_of_its_data_set_and_a_failure_says_how_it_is_sent_again(finished: Commands) -> None:
    (finished.folder / MANIFEST_FILE).write_text("{}")
    away = {"TRAINER_INFERENCE_ADDRESS": "127.0.0.1:1"}

    code, _, absent = finished.run("export", "x", "--publish", **away)
    _, _, named = finished.run("train", "--run-id", "x", "--stable", "--model", "my model", "--force", **away)
    (finished.folder / MANIFEST_FILE).unlink()
    _, _, refused = finished.run("export", "run:x", "--publish", **away)

    assert code == 1
    assert absent.startswith("error: the model could not be published: inference at 127.0.0.1:1 does not answer: ")
    assert absent.endswith(
        "; when the suite is up, `aimass train --run-id x --publish --model cifar10` tries again without training\n"
    )
    assert "; when the suite is up, `aimass train --run-id x --stable --model 'my model' --force` tries" in named
    assert refused == (
        "error: the model could not be published: run 'x' is SUCCEEDED and has no model to publish; name one that has "
        "succeeded; `aimass train --run-id x --publish --model cifar10` tries again without training\n"
    )
    assert finished.row.state is RunState.SUCCEEDED
