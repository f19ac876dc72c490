"""Settings of the trainer service, and of the processes of its runs."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from services.common.settings import Names, OptionalPort, Port, Positive, ServiceSettings, home_folder


class TrainerSettings(ServiceSettings):
    """Read from `TRAINER_*`."""

    model_config = SettingsConfigDict(env_prefix="TRAINER_")

    port: Port = 8301
    """gRPC port."""
    metrics_port: OptionalPort = 8302
    """Port of the metrics in Prometheus form; 0 means none."""
    inference_address: str = "127.0.0.1:8201"
    """Where models are published."""
    database: SecretStr = Field(default_factory=lambda: SecretStr(f"sqlite:///{home_folder() / 'trainer.db'}"))
    """URL of the database, as SQLAlchemy takes it; may hold a password."""
    runs: Path = Field(default_factory=lambda: home_folder() / "runs")
    """Folder of training runs."""
    data: Path = Field(default_factory=lambda: home_folder() / "data")
    """Folder of data sets."""
    data_roots: Names = Field(default_factory=lambda: (str(home_folder() / "data"),))
    """Folders, with commas between, in which requests may name data sets; the command line may name any."""
    blobs: Path = Field(default_factory=lambda: home_folder() / "blobs")
    """Folder of samples, each under the digest of its bytes."""
    max_parallel_runs: Positive = 1
    """Runs that may be at work at once; others wait."""
    nice: Annotated[int, Field(ge=0, le=19)] = 10
    """By how much the processes of runs stand back behind others, as `nice` counts it."""
    threads: Annotated[int, Field(ge=0)] = 0
    """Most threads of a run, whatever its options say; 0 means one per core."""
    min_free_bytes: Annotated[int, Field(ge=0)] = 1024**3
    """Disk space below which no run is created or started."""
    loop: bool = True
    """Whether served models are made better by themselves: `on` or `off`."""
    policy: Path | None = None
    """TOML file of what the loop may do; by default the one that comes with the suite."""

    def environment(self) -> dict[str, str]:
        """Return the variables that say the same."""
        prefix = self.model_config["env_prefix"]
        values = {name: getattr(self, name) for name in type(self).model_fields}
        return {f"{prefix}{name}".upper(): _text(value) for name, value in values.items() if value is not None}


def _text(value: Any) -> str:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    return ",".join(value) if isinstance(value, tuple) else str(value)
