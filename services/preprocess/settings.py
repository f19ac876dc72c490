"""Settings of the preprocess service."""

import os

from pydantic_settings import SettingsConfigDict

from services.common.settings import OptionalPort, Port, Positive, ServiceSettings


class PreprocessSettings(ServiceSettings):
    """Read from `PREPROCESS_*`."""

    model_config = SettingsConfigDict(env_prefix="PREPROCESS_")

    port: Port = 8101
    """gRPC port."""
    max_message_bytes: Positive = 256 * 1024 * 1024
    """Largest gRPC message, in and out: the tensor of a whole request of images."""
    metrics_port: OptionalPort = 8102
    """Port of the metrics in Prometheus form; 0 means none."""
    inference_address: str = "127.0.0.1:8201"
    """Where the specs of all versions come from."""
    threads: Positive = os.cpu_count() or 1
    """Images decoded at the same time."""
    max_images: Positive = 256
    """Images in one request."""
    max_image_bytes: Positive = 32 * 1024 * 1024
    """Largest encoded image."""
    max_image_pixels: Positive = 64_000_000
    """Largest image, width times height."""
    max_decode_bytes: Positive = 1024**3
    """Memory that images being decoded may take together; the next one waits. One that needs more is decoded alone."""
    max_waiting_images: Positive = 1024
    """Images that may wait for a thread; more are refused."""
    max_waiting_bytes: Positive = 512 * 1024 * 1024
    """Bytes of images that may wait for a thread; more are refused."""
