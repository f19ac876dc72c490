"""Settings of the trainer service."""

from pathlib import Path

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.common.settings import OptionalPort, Port, ServiceSettings, home_folder


class TrainerSettings(ServiceSettings):
    """Read from `TRAINER_*`."""

    model_config = SettingsConfigDict(env_prefix="TRAINER_")

    port: Port = 8301
    """gRPC port."""
    metrics_port: OptionalPort = 8302
    """Port of the metrics in Prometheus form; 0 means none."""
    inference_address: str = "127.0.0.1:8201"
    """Where `aimass train --publish` sends a model."""
    runs: Path = Field(default_factory=lambda: home_folder() / "runs")
    """Folder of training runs."""
    data: Path = Field(default_factory=lambda: home_folder() / "data")
    """Folder of data sets."""
