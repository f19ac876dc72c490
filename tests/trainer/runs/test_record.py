import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from services.common.errors import InvalidInput
from services.trainer.clock import now
from services.trainer.options import ConversionOptions, EvaluationOptions, Range, RefitOptions, TuningOptions
from services.trainer.recipes import make_options
from services.trainer.runs.folder import write_document
from services.trainer.runs.record import Options, Outcome, Request, RunKind, RunState, check_run_id

ALL_OPTIONS = {
    RunKind.TRAINING: make_options("quick", {"network_options": {"widths": [8]}}),
    RunKind.TUNING: TuningOptions(training=make_options("fast"), space={"learning_rate": Range(low=0.1, high=1)}),
    RunKind.CONVERSION: ConversionOptions(source="run:a"),
    RunKind.EVALUATION: EvaluationOptions(source="run:a", dataset="cifar10"),
    RunKind.REFIT: RefitOptions(source="run:a", dataset="cifar10"),
}


@pytest.mark.parametrize(("kind", "options"), ALL_OPTIONS.items())
def test_a_request_of_each_kind_survives_the_disk(tmp_path: Path, kind: RunKind, options: Options) -> None:
    request = Request(id="a", kind=kind, options=options, trusted=True, create_time=now())

    write_document(tmp_path / "run.json", request)

    assert Request.model_validate_json((tmp_path / "run.json").read_bytes()) == request
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_a_request_has_the_options_of_its_kind() -> None:
    fields = {"id": "a", "kind": "CONVERSION", "options": {"source": "run:b"}, "create_time": now()}

    assert Request.model_validate(fields).options == ConversionOptions(source="run:b")
    with pytest.raises(ValidationError, match="epochs"):
        Request.model_validate(fields | {"kind": "TRAINING"})


@pytest.mark.parametrize("state", [RunState.QUEUED, RunState.RUNNING, RunState.CANCELLED])
def test_no_process_writes_a_state_that_is_not_its_own(state: RunState) -> None:
    with pytest.raises(ValidationError, match=f"no process ends {state}"):
        Outcome(state=state, finish_time=now())


def test_only_three_states_are_final() -> None:
    assert {state for state in RunState if state.final} == {RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED}


def test_the_present_time_is_in_utc_to_the_millisecond() -> None:
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", now())


@pytest.mark.parametrize("run_id", ["", ".", "..", "../a", "a/b", "-a", "a\n", "a" * 129])
def test_an_id_that_is_no_name_of_a_folder_is_refused(run_id: str) -> None:
    with pytest.raises(InvalidInput, match="is not valid; use up to 128 letters"):
        check_run_id(run_id)
