"""Policies that are read again when their file changes."""

import os
from pathlib import Path

from services.trainer.loop.policies import Policies


def write(path: Path, text: str, time: int) -> None:
    path.write_text(text)
    os.utime(path, (time, time))


def test_a_file_that_changes_is_read_again_and_one_that_is_wrong_is_not_heeded(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    write(path, "[gate]\nerror = 0.01\n[models.pets.gate]\nerror = 0.02\n", 1)
    policies = Policies(path)
    first = [policies.of(model).gate.error for model in ("pets", "others")]

    write(path, "[gate]\nerror = 0.04\n", 2)
    second = policies.of("pets").gate.error
    write(path, "[gate]\nerror = 7\n", 3)
    third = policies.of("pets").gate.error
    path.unlink()

    assert first == [0.02, 0.01]
    assert (second, third, policies.of("pets").gate.error) == (0.04, 0.04, 0.04)


def test_without_a_file_the_policy_that_comes_with_the_suite_holds() -> None:
    assert Policies().of("pets").gate.error == 0.05
