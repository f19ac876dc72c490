"""Starts the inference service as a process: `python -m services.inference`."""

from services.common.server import StopSignal, run_process, serve
from services.inference.service import InferenceComponent
from services.inference.settings import InferenceSettings


async def main(settings: InferenceSettings, stop: StopSignal) -> None:
    """Serve until told to stop."""
    await serve(InferenceComponent(settings, stop), settings, settings.port, stop)


if __name__ == "__main__":
    run_process("inference", InferenceSettings, main)
