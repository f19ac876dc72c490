"""Settings of the gateway."""

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.common.settings import Names, OptionalPort, Port, Positive, ServiceSettings, home_folder


class GatewaySettings(ServiceSettings):
    """Read from `GATEWAY_*`."""

    model_config = SettingsConfigDict(env_prefix="GATEWAY_")

    http_port: Port = 8000
    """Port of the page and of the HTTP interface."""
    grpc_port: Port = 8001
    """Port of the gRPC interface and of the Open Inference Protocol."""
    metrics_port: OptionalPort = 8002
    """Port of the metrics of all services in Prometheus form; 0 means none."""
    preprocess_address: str = "127.0.0.1:8101"
    """Where the preprocess service listens."""
    inference_address: str = "127.0.0.1:8201"
    """Where the inference service listens."""
    trainer_address: str = "127.0.0.1:8301"
    """Where the trainer service listens."""
    metrics_sources: Names = ("127.0.0.1:8102", "127.0.0.1:8202", "127.0.0.1:8302")
    """Metrics of other services, with commas between, that the gateway tells beside its own."""
    request_timeout_seconds: float = Field(default=30.0, gt=0)
    """Longest time for one prediction; a caller's own deadline can only shorten it."""
    max_body_bytes: Positive = 64 * 1024 * 1024
    """Largest HTTP body."""
    max_bodies_bytes: Positive = 512 * 1024 * 1024
    """HTTP bodies that are held at the same time, together; more are refused."""
    max_images: Positive = 256
    """Images in one request."""
    stream_window: Positive = 16
    """Requests of one `PredictStream` that are worked on at once."""
    capture_queue_bytes: Positive = 64 * 1024 * 1024
    """Captured images that wait for the trainer, together; beyond that none are captured, and it is counted."""
    capture_journal: Path = Field(default_factory=lambda: home_folder() / "captured")
    """Folder where they wait, so that a gateway that is killed loses none; gateways of one machine may share it."""
    authentication: Literal["auto", "required"] = "auto"
    """Who needs a key: with `auto`, who calls from another machine and wants more than predictions; with `required`,
    everybody. A proxy on this machine must say whom it forwards for (`x-forwarded-for`), else all seem to be here."""
    allowed_hosts: Names = ()
    """Names, with commas between, under which the HTTP port may be addressed beside `localhost` and IP addresses."""
    allowed_origins: Names = ()
    """Origins, with commas between, of foreign web pages that may call the HTTP interface; others are refused."""
