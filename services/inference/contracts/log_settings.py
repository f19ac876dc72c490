"""Triton's log settings over the log of this process."""

import logging
from collections.abc import Mapping, MutableMapping
from typing import Any

import structlog

from services.common.errors import InvalidInput, Unsupported

Value = bool | int | str

_LEVELS = {"log_info": logging.INFO, "log_warning": logging.WARNING, "log_error": logging.ERROR}
_METHODS = {
    "info": "log_info",
    "warning": "log_warning",
    "warn": "log_warning",
    "error": "log_error",
    "exception": "log_error",
    "critical": "log_error",
}
_FIXED = {"log_file": "", "log_format": "ISO8601"}
MAX_VERBOSE_LEVEL = 2**31


class LogSettings:
    """What is logged beside and beneath the level that the process was started with.

    `log_info`, `log_warning` and `log_error` switch these levels off and on again; a `log_verbose_level` of 1 or more
    logs each answered inference. File and format are the process's own: standard error, times in ISO 8601.
    """

    def __init__(self) -> None:
        level = structlog.get_logger().get_effective_level()
        self._started = {name: level <= own for name, own in _LEVELS.items()}
        self._values: dict[str, Value] = {**_FIXED, **self._started, "log_verbose_level": 0}

    @property
    def verbose(self) -> bool:
        """Whether each answered inference is logged."""
        return bool(self._values["log_verbose_level"])

    def values(self) -> dict[str, Value]:
        """Return all settings by name."""
        return dict(self._values)

    def update(self, changes: Mapping[str, Value]) -> None:
        """Change settings.

        Raises:
            InvalidInput: One is unknown, or has a value of another kind.
            Unsupported: It is one of Triton's that this server does not follow.
        """
        for name, value in changes.items():
            self._check(name, value)
        self._values.update(changes)
        # The list itself is changed: loggers that were used have kept it, and don't ask for another.
        processors = structlog.get_config()["processors"]
        if self._drop not in processors:
            processors.insert(0, self._drop)

    def close(self) -> None:
        """Log again as the process was started to."""
        processors = structlog.get_config()["processors"]
        if self._drop in processors:
            processors.remove(self._drop)

    def _check(self, name: str, value: Value) -> None:
        if name not in self._values:
            known = ", ".join(self._values)
            raise InvalidInput(f"log setting {name[:40]!r} is unknown; use one of {known}", field="settings")
        if type(value) is not type(self._values[name]):
            kind = {bool: "a bool_param", int: "a uint32_param", str: "a string_param"}[type(self._values[name])]
            raise InvalidInput(f"log setting {name!r} cannot be {value!r}; give it as {kind}", field="settings")
        if name in _FIXED and value != _FIXED[name]:
            raise Unsupported(
                f"{name} cannot be {str(value)[:40]!r}: the log goes to standard error, with times in ISO 8601; "
                f"leave it {_FIXED[name]!r}"
            )
        if value is True and not self._started[name]:
            raise Unsupported(f"{name} cannot be switched on under this service's LOG_LEVEL; start it with a lower one")

    def _drop(self, _logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        if self._values.get(_METHODS.get(method, ""), True):
            return event
        raise structlog.DropEvent
