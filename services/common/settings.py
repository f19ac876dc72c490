"""Settings of a process: environment variables -> one frozen object, every problem reported at once."""

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import BeforeValidator, Field, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from services.common.errors import SettingsError

Port = Annotated[int, Field(ge=1, le=65535)]
OptionalPort = Annotated[int, Field(ge=0, le=65535)]
Positive = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


def _split(value: object) -> object:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
"""Written with commas between."""

HOME_VARIABLE = "AIMASS_HOME"
"""Folder that holds models, data and runs; `~/.aimass` when not set."""


def home_folder(environ: Mapping[str, str] | None = None) -> Path:
    """Return the folder of the suite's own files."""
    given = (os.environ if environ is None else environ).get(HOME_VARIABLE)
    return Path(given).expanduser().resolve() if given else Path.home() / ".aimass"


class ServiceSettings(BaseSettings):
    """What every service process can be told; the prefix is the service's name."""

    model_config = SettingsConfigDict(frozen=True, use_attribute_docstrings=True)

    host: str = "127.0.0.1"
    """Address to listen on; only this machine can reach the default."""
    max_message_bytes: Positive = 64 * 1024 * 1024
    """Largest gRPC message, in and out."""
    max_concurrent_calls: Positive = 2048
    """gRPC calls, streams among them, that may be in flight; more are refused with RESOURCE_EXHAUSTED."""
    drain_seconds: Seconds = 0.0
    """After SIGTERM: how long the service says NOT_SERVING and still accepts calls. Behind a load balancer, a few."""
    stop_grace_seconds: Seconds = 30.0
    """After that: how long calls in flight may take to finish."""
    metrics_port: OptionalPort = 0
    """Port on which `GET /metrics` answers in Prometheus form; 0 means that it does not."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """Least level that is logged."""
    log_style: Literal["auto", "json", "console"] = "auto"
    """`auto` writes colours on a terminal and JSON lines elsewhere."""

    @classmethod
    def service(cls) -> str:
        """Return the name of the service, as the prefix has it."""
        return cls.model_config["env_prefix"].rstrip("_").lower()


S = TypeVar("S", bound=ServiceSettings)


def load_settings(settings: type[S]) -> S:
    """Read *settings* from the environment.

    Raises:
        SettingsError: Values are malformed, or a variable with the service's prefix is unknown (most often a typo).
    """
    prefix = settings.model_config["env_prefix"]
    known = {f"{prefix}{name}".upper() for name in settings.model_fields}
    problems = [_unknown(name, known) for name in sorted(os.environ) if name.startswith(prefix) and name not in known]
    try:
        loaded = settings()
    except ValidationError as error:
        problems += [_malformed(prefix, problem) for problem in error.errors()]
    if problems:
        raise SettingsError("\n".join(problems))
    return loaded


def _unknown(name: str, known: set[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"{name} is not a setting" + (f"; did you mean {close[0]}?" if close else "")


def _malformed(prefix: str, problem: Mapping[str, object]) -> str:
    location = problem["loc"]
    name = str(location[0]) if isinstance(location, tuple) and location else ""
    return f"{prefix}{name.upper()}={problem['input']!r}: {problem['msg']}"
