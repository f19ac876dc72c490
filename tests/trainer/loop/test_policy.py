"""Policy files: what they give, and what is said of those that are wrong."""

from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel

from services.common.errors import SettingsError
from services.trainer.loop import policy as module
from services.trainer.loop.guards import without_bound
from services.trainer.loop.policy import LoopPolicy, Strategy
from services.trainer.loop.policy_file import load_policy


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
        ("[capture]\nrandom_share = 0.001", "least_random_share 0.005 must not be above random_share 0.001"),
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


def test_there_is_no_value_that_nothing_reads() -> None:
    trainer = Path(module.__file__).parents[1]
    text = "\n".join(each.read_text() for each in trainer.rglob("*.py"))

    assert [name for name in names(LoopPolicy) if f".{name}" not in text and f'"{name}"' not in text] == []
