"""Policy files: what they give, and what is said of those that are wrong."""

import math
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar, get_args, get_origin

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from services.common.errors import SettingsError
from services.trainer.contracts.capture import _policy
from services.trainer.data.choosing import count_beside
from services.trainer.feedback.capturing import CaptureRule
from services.trainer.feedback.pace import VotePace
from services.trainer.loop import policy as module
from services.trainer.loop.guards import without_bound
from services.trainer.loop.policy import LoopPolicy, Strategy
from services.trainer.loop.policy_file import load_policy
from services.trainer.statistics.budget import error_share
from services.trainer.statistics.detectors import run_length, window_level
from tests.trainer.loop.world import Director, World

Group = TypeVar("Group", bound=BaseModel)


def written(folder: Path, text: str) -> Path:
    path = folder / "policy.toml"
    path.write_text(text)
    return path


def test_the_file_that_is_shipped_sets_every_threshold() -> None:
    policy = load_policy().default

    assert policy.gate.error == 0.05
    assert without_bound(policy.guard) == ""


def test_an_empty_file_has_no_threshold(tmp_path: Path) -> None:
    policy = load_policy(written(tmp_path, "")).default

    assert policy == LoopPolicy()
    assert policy.gate.error is None
    assert set(policy.guard.model_dump().values()) == {None}


def test_a_model_overrides_single_values_of_any_group(tmp_path: Path) -> None:
    text = """
    [gate]
    error = 0.05
    most_days = 3
    [retrain.incremental]
    epochs = 5
    [models.cats]
    gate.error = 0.01
    [models.cats.retrain]
    strategies = ["scratch"]
    incremental.freeze = ["stem"]
    """

    policies = load_policy(written(tmp_path, text))
    cats = policies.of("cats")

    assert (cats.gate.error, cats.gate.most_days) == (0.01, 3)
    assert cats.retrain.strategies == (Strategy.SCRATCH,)
    assert (cats.retrain.incremental.epochs, cats.retrain.incremental.freeze) == (5, ("stem",))
    assert policies.of("dogs") == policies.default
    assert policies.default.gate.error == 0.05


def test_the_digest_is_of_the_values_and_not_of_how_they_are_written(tmp_path: Path) -> None:
    first = load_policy(written(tmp_path, "[gate]\nmost_days = 7\n[trigger]\ndrift = true")).default
    second = load_policy(written(tmp_path, "# nothing")).default
    other = load_policy(written(tmp_path, "[gate]\nmost_days = 8")).default

    assert first.digest == second.digest != other.digest


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[gate]\nerror = 2", "gate.error is 2: input should be less than 1"),
        ("[gate]\nerror = nan", "gate.error is nan: input should be a finite number"),
        ("[gate]\nerorr = 0.1", "gate.erorr is 0.1, and there is no such key; did you mean gate.error?"),
        ("[gaurd]\nclass_drop = 0.1", "gaurd is {'class_drop': 0.1}, and there is no such key; did you mean guard?"),
        ("[retrain.incremental]\nepoch = 3", "retrain.incremental.epoch is 3, and there is no such key; did you mean"),
        ("zzz = 1", "zzz is 1, and there is no such key; the groups are capture, judging, trust"),
        ("gate = 3", "gate is 3: write its values as a table, [gate]"),
        (
            "[retrain]\nstrategies = ['refit', 'x']",
            "retrain.strategies.1 is 'x': input should be 'refit', 'incremental'",
        ),
        ("[retrain]\nstrategies = ['refit', 'refit']", "retrain: strategies refit, refit must name each one once"),
        ("[trial]\ncanary_shares = [0.5, 0.1]", "trial: canary_shares [0.5, 0.1] must rise from step to step"),
        ("[retrain]\nscratch_recipe = 'slow'", "scratch_recipe 'slow' is unknown; use one of fast, quick"),
        (
            "[capture]\nburst = 1000000000000",
            "capture.burst is 1000000000000: input should be less than or equal to 2147",
        ),
        ("[trigger]\nleast_gap_minutes = 1e300", "trigger.least_gap_minutes is 1e+300: input should be less than or e"),
        ("[deletion]\ndeadline_hours = 1e300", "deletion.deadline_hours is 1e+300: input should be less than or equal"),
        (
            f"[trust]\nvotes_per_minute = 1{'0' * 400}",
            f"is 1{'0' * 79}…: input should be less than or equal to 2147483647",
        ),
        (
            f"[alarm]\nwindow = 1{'0' * 30}",
            f"alarm.window is 1{'0' * 30}: input should be less than or equal to 2147483647",
        ),
        ("[alarm]\nper_month = 1e-320", "alarm.per_month is 1e-320: input should be greater than or equal to 0.000001"),
        (
            "[retrain]\nbase_per_new = 1e308",
            "retrain.base_per_new is 1e+308: input should be less than or equal to 1000",
        ),
        ("[gate]\nerror = 5e-324", "gate.error is 5e-324: input should be greater than or equal to 0.0000"),
        ("[trigger]\naccepted = true", "trigger.accepted is True: input should be a valid integer"),
        ("[trigger]\naccepted = '5'", "trigger.accepted is '5': input should be a valid integer"),
        ("[trigger]\naccepted = 5.0", "trigger.accepted is 5.0: input should be a valid integer"),
        ("[trigger]\ndrift = 1", "trigger.drift is 1: input should be a valid boolean"),
        ("[gate]\nmost_days = '7'", "gate.most_days is '7': input should be a valid number"),
        ("[trial]\ncanary_shares = [true]", "trial.canary_shares.0 is True: input should be a valid number"),
        ("[capture]\nrandom_share = 0.0001", "least_random_share 0.0005 must not be above random_share 0.0001"),
        ("[models.a.gate]\nerror = 2", "models.a.gate.error is 2: input should be less than 1"),
        (
            "[models.a.gate]\nerorr = 2",
            "models.a.gate.erorr is 2, and there is no such key; did you mean models.a.gate.e",
        ),
        ("models = 1", "models is 1: write a table for each model, as [models.NAME.gate]"),
        ("[models]\na = 1", "models.a is 1: write the model's groups, as [models.a.gate]"),
        ("[gate\n", "is not TOML in UTF-8: Expected ']' at the end of a table declaration (at line 1, column 6)"),
    ],
)
def test_a_mistake_is_named_with_the_key_the_value_and_what_to_change(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(SettingsError) as error:
        load_policy(written(tmp_path, text))

    assert sentence in str(error.value)
    assert str(tmp_path) in str(error.value)


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as error:
        load_policy(written(tmp_path, "[gate]\nerror = 2\nmost_dayz = 1\n[models]\na = 1"))

    assert len(str(error.value).splitlines()) == 3


@pytest.mark.parametrize("missing", [True, False])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, missing: bool) -> None:
    path = tmp_path / "none.toml" if missing else tmp_path

    with pytest.raises(SettingsError, match=r"cannot be read: .*; name another file, or none to use the one"):
        load_policy(path)


def names(group: type[BaseModel]) -> Iterator[str]:
    for name, field in group.model_fields.items():
        kinds = [each for each in (field.annotation, *get_args(field.annotation)) if isinstance(each, type)]
        yield name
        for each in kinds:
            if issubclass(each, BaseModel):
                yield from names(each)


@pytest.mark.parametrize("most", [False, True])
def test_a_policy_whose_numbers_are_all_at_their_limits_can_run(most: bool) -> None:
    policy = at_limits(LoopPolicy, most)
    now = datetime(2026, 1, 1, tzinfo=UTC)
    rate = run_length(policy.alarm.per_month, 1e9, 5)

    director = Director(World(accepted=10, newest_sample=10), policy)
    for _ in range(60):
        director.step()
    VotePace().take("ann", policy.trust.votes_per_minute)
    message = _policy(CaptureRule("m", policy.capture, (), ""))

    assert message.burst == policy.capture.burst
    assert 0 < error_share(policy.gate.error or 0, 10**6) < 1
    assert 0 < window_level(policy.alarm.per_month, policy.alarm.looks_per_day, 5) <= 1
    assert math.isfinite(rate)
    assert count_beside(10**6, policy.retrain.base_per_new, policy.retrain.base_least) < 2**63
    for days in (policy.retention.days, policy.deletion.deadline_hours / 24, policy.trigger.every_days or 0):
        assert now - timedelta(days=days) <= now <= now + timedelta(days=days)


def at_limits(group: type[Group], most: bool) -> Group:
    """Return the group with all numbers as large as they may be, or as small."""
    values: dict[str, object] = {}
    for name, field in group.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            values[name] = at_limits(kind, most)
        if (isinstance(kind, type) and kind not in (int, float)) or get_origin(kind) is tuple:
            continue
        inner = [each for each in get_args(kind) if hasattr(each, "__metadata__")]
        numbers = [kind, *(each.__origin__ for each in inner)]
        marks = [*field.metadata, *(mark for each in inner for mark in each.__metadata__)]
        limits = annotated_limits(marks)
        if limits and (int in numbers or float in numbers):
            values[name] = limits[most] if int not in numbers else int(limits[most])
    return group(**values)


def annotated_limits(marks: Sequence[object]) -> tuple[float, float] | None:
    """Return the least and the highest value that *marks* of pydantic allow; None where they limit nothing."""
    flat = [each for mark in marks for each in (mark.metadata if isinstance(mark, FieldInfo) else (mark,))]
    found = {name: getattr(each, name) for each in flat for name in ("ge", "gt", "le", "lt") if hasattr(each, name)}
    if not found:
        return None
    least = found["ge"] if "ge" in found else math.nextafter(found["gt"], math.inf)
    return least, found["le"] if "le" in found else math.nextafter(found["lt"], -math.inf)


def test_there_is_no_value_that_nothing_reads() -> None:
    trainer = Path(module.__file__).parents[1]
    text = "\n".join(each.read_text() for each in trainer.rglob("*.py"))

    assert [name for name in names(LoopPolicy) if f".{name}" not in text and f'"{name}"' not in text] == []
