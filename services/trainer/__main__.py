"""Starts the trainer service as a process: `python -m services.trainer`."""

from services.common.server import StopSignal, run_process, serve
from services.trainer.service import TrainerComponent
from services.trainer.settings import TrainerSettings


async def main(settings: TrainerSettings, stop: StopSignal) -> None:
    """Serve until told to stop."""
    await serve(TrainerComponent(settings, stop), settings, settings.port, stop)


if __name__ == "__main__":
    run_process("trainer", TrainerSettings, main)
