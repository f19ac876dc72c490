"""Request traces: Triton's trace settings, and the timestamps that they ask for, as lines in the log."""

import itertools
import time
from collections.abc import Mapping, Sequence

import structlog

from services.common.errors import InvalidInput, Unsupported
from services.inference.batching.batcher import Inference

log = structlog.get_logger(__name__)

Settings = dict[str, list[str]]

DEFAULTS: Settings = {
    "trace_file": [""],
    "trace_level": ["OFF"],
    "trace_rate": ["1000"],
    "trace_count": ["-1"],
    "log_frequency": ["0"],
    "trace_mode": ["triton"],
}
"""As Triton has them. Of every `trace_rate` requests one is traced, until `trace_count` were; -1 is without an end.

Traces are lines of the log and written at once, so `trace_file` stays empty and `log_frequency` changes nothing."""

_LEAST = {"trace_rate": 1, "trace_count": -1, "log_frequency": 0}


class Traces:
    """Which requests are traced: settings for all models, and models' own."""

    def __init__(self) -> None:
        self._own: dict[str, Settings] = {"": {}}
        """By model; "" is for all models."""
        self._plans: dict[str, _Plan] = {}

    def settings(self, model: str = "") -> Settings:
        """Return what holds for *model*, or for models that have no settings of their own."""
        return DEFAULTS | self._own[""] | self._own.get(model, {})

    def update(self, model: str, changes: Mapping[str, Sequence[str]]) -> None:
        """Change settings of *model*, or of all where it is empty; a setting without values goes back to the default.

        Raises:
            InvalidInput: A setting is unknown or its value is none of its values.
            Unsupported: It is a setting of Triton's that this server does not follow.
        """
        for name, values in changes.items():
            _check(name, values)
        if not changes:
            return
        own = self._own.get(model, {}) | {name: list(values) for name, values in changes.items()}
        self._own[model] = {name: values for name, values in own.items() if values}
        if model and not self._own[model]:
            del self._own[model]
        self._plans = {name: _Plan(self.settings(name)) for name in self._own}

    def sample(self, model: str) -> bool:
        """Whether the request to *model* that now arrives is traced."""
        if not self._plans:
            return False
        return self._plans[model if model in self._plans else ""].sample()


class _Plan:
    """Counts the requests that one set of settings is for."""

    def __init__(self, settings: Settings) -> None:
        self._on = "TIMESTAMPS" in settings["trace_level"]
        self._rate = int(settings["trace_rate"][0])
        self._left = int(settings["trace_count"][0])
        self._requests = 0

    def sample(self) -> bool:
        if not self._on or self._left == 0:
            return False
        self._requests += 1
        if self._requests % self._rate:
            return False
        self._left -= self._left > 0
        return True


def _check(name: str, values: Sequence[str]) -> None:
    if name not in DEFAULTS:
        raise InvalidInput(
            f"trace setting {name[:40]!r} is unknown; use one of {', '.join(DEFAULTS)}", field="settings"
        )
    if not values or list(values) == DEFAULTS[name]:
        return
    if name in ("trace_file", "trace_mode"):
        raise Unsupported(
            f"{name} cannot be {values[0][:40]!r}: traces go to the service's log; leave it {DEFAULTS[name][0]!r}"
        )
    if name == "trace_level":
        if not set(values) <= {"OFF", "TIMESTAMPS"}:
            raise Unsupported(f"trace_level {', '.join(values)[:80]!r} is not served; use OFF or TIMESTAMPS")
        return
    least = _LEAST[name]
    digits = values[0].removeprefix("-")
    if len(values) != 1 or not (digits.isascii() and digits.isdigit() and len(digits) < 19) or int(values[0]) < least:
        raise InvalidInput(f"{name} is {', '.join(values)[:40]!r}; give one integer from {least}", field="settings")


_numbers = itertools.count(1)


def log_trace(model: str, version: int, identity: str, start: int, executed: int, inference: Inference) -> None:
    """Log one request's timestamps in Triton's words.

    Args:
        model: Name.
        version: That answered.
        identity: The request's id.
        start: When it arrived (`time.perf_counter_ns`).
        executed: When the run's outputs were there.
        inference: What the batcher measured.
    """
    times = inference.times
    output = executed - times.compute_output
    computed = output - times.compute_infer
    begun = computed - times.compute_input
    stamps = {
        "REQUEST_START": start,
        "QUEUE_START": max(begun - inference.queue, start),
        "COMPUTE_START": begun,
        "COMPUTE_INPUT_END": computed,
        "COMPUTE_OUTPUT_START": output,
        "COMPUTE_END": executed,
        "REQUEST_END": time.perf_counter_ns(),
    }
    log.info(
        "trace",
        id=next(_numbers),
        model_name=model,
        model_version=version,
        triton_request_id=identity,
        timestamps=[{"name": name, "ns": ns} for name, ns in stamps.items()],
    )
