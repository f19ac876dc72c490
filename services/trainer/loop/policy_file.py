"""Reads a policy from a file, and says what is wrong with one so that it can be put right."""

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from services.common.errors import SettingsError
from services.trainer.loop.policy import LoopPolicy

SHIPPED = Path(__file__).with_name("policy.toml")
_MODELS = "models"
_LONGEST_VALUE = 80
"""Characters of a value that a sentence shows: TOML's integers may have thousands of digits."""


@dataclass(frozen=True)
class PolicyFile:
    """The policies of all models."""

    default: LoopPolicy
    models: Mapping[str, LoopPolicy]
    """Of the models that the file names."""

    def of(self, model: str) -> LoopPolicy:
        """Return the policy of *model*."""
        return self.models.get(model, self.default)


def load_policy(path: Path | None = None) -> PolicyFile:
    """Return the policies in the file at *path*; without one, those that come with the suite.

    A table `[models.NAME]` overrides single values of any group for one model: `[models.NAME.gate] error = 0.01`.

    Raises:
        SettingsError: The file cannot be read or a value in it is wrong; the text has a line for each problem.
    """
    path = path or SHIPPED
    try:
        fields = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(
            f"policy {path} cannot be read: {error.strerror}; name another file, or none to use the one that comes "
            "with the suite"
        ) from error
    except ValueError as error:  # of the encoding or of the syntax
        raise SettingsError(f"policy {path} is not TOML in UTF-8: {error}; correct the file there") from error
    overrides = fields.pop(_MODELS, {})
    problems: list[str] = []
    default = _parsed(fields, "", problems)
    models: dict[str, LoopPolicy] = {}
    if isinstance(overrides, dict):
        for name, groups in overrides.items():
            if not isinstance(groups, dict):
                problems.append(f"{_MODELS}.{name} is {groups!r}: write the model's groups, as [{_MODELS}.{name}.gate]")
            elif default is not None:
                policy = _parsed(_overridden(fields, groups), f"{_MODELS}.{name}.", problems)
                models |= {} if policy is None else {name: policy}
    else:
        problems.append(f"{_MODELS} is {overrides!r}: write a table for each model, as [{_MODELS}.NAME.gate]")
    if problems or default is None:
        raise SettingsError("\n".join(f"policy {path}: {problem}" for problem in problems))
    return PolicyFile(default, models)


def _overridden(fields: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Return *fields* with the values of *more*, table by table."""
    result = dict(fields)
    for name, value in more.items():
        old = result.get(name)
        result[name] = _overridden(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result


def _parsed(fields: Mapping[str, Any], prefix: str, problems: list[str]) -> LoopPolicy | None:
    try:
        return LoopPolicy.model_validate(fields)
    except ValidationError as error:
        problems += [_sentence(prefix, each["loc"], each["msg"], each["input"]) for each in error.errors()]
    return None


def _sentence(prefix: str, path: tuple[int | str, ...], problem: str, value: object) -> str:
    key, shown = ".".join(map(str, path)), _shown(value)
    if problem.startswith("Extra inputs"):
        known = list(_keys(LoopPolicy))
        nearest = get_close_matches(key, known, n=1, cutoff=0.5)
        meant = f"did you mean {prefix}{nearest[0]}?" if nearest else f"the groups are {', '.join(_groups())}"
        return f"{prefix}{key} is {shown}, and there is no such key; {meant}"
    if isinstance(value, BaseModel | dict):  # of a whole group, whose sentence names the values itself
        return f"{prefix}{key}: {problem.removeprefix('Value error, ')}"
    if problem.startswith("Input should be a valid dictionary"):
        return f"{prefix}{key} is {shown}: write its values as a table, [{prefix}{key}]"
    return f"{prefix}{key} is {shown}: {problem[0].lower()}{problem[1:]}"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}…"


def _groups() -> list[str]:
    return list(LoopPolicy.model_fields)


def _keys(group: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield the dotted names of all groups and values."""
    for name, field in group.model_fields.items():
        yield prefix + name
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _keys(field.annotation, f"{prefix}{name}.")
