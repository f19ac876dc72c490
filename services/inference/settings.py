"""Settings of the inference service."""

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.common.settings import OptionalPort, Port, Positive, Seconds, ServiceSettings, home_folder


class InferenceSettings(ServiceSettings):
    """Read from `INFERENCE_*`."""

    model_config = SettingsConfigDict(env_prefix="INFERENCE_")

    port: Port = 8201
    """gRPC port."""
    metrics_port: OptionalPort = 8202
    """Port of the metrics in Prometheus form; 0 means none."""
    max_message_bytes: Positive = 256 * 1024 * 1024
    """Largest gRPC message, in and out: the tensor of a whole request of images."""
    repository: Path = Field(default_factory=lambda: home_folder() / "models")
    """Folder of models."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where graphs run; `auto` takes a GPU where one is found."""
    threads: int = Field(default=0, ge=0, le=1024)
    """Threads that one run of a graph may use; 0 means one per processor."""
    max_batch_size: Positive = 32
    """Largest dynamic batch of models whose config.pbtxt names none and whose graph takes any batch."""
    max_queue_samples: Positive = 2048
    """Samples that may wait for one version; more are refused."""
    loaded_versions: Positive = 3
    """Newest versions of each model that are kept loaded, beside those with a part in the traffic."""
    poll_seconds: Seconds = 2.0
    """How often the repository is looked at for what operators and other replicas changed; 0 means never."""
    max_memory_bytes: int = Field(default=0, ge=0)
    """Resident memory of the process beyond which no version is loaded; 0 means any."""
    max_model_bytes: Positive = 2 * 1024**3
    """Largest graph that is loaded or published, external data included."""
