"""Starts the preprocess service as a process: `python -m services.preprocess`."""

from aimass.inference.v1 import lifecycle_pb2
from aimass.inference.v1.lifecycle_pb2_grpc import ModelLifecycleServiceStub
from services.common.channels import open_channel
from services.common.server import StopSignal, run_process, serve
from services.preprocess.service import PreprocessComponent
from services.preprocess.settings import PreprocessSettings


async def main(settings: PreprocessSettings, stop: StopSignal) -> None:
    """Serve until told to stop."""
    async with open_channel(settings.inference_address) as channel:
        lifecycle = ModelLifecycleServiceStub(channel)
        component = PreprocessComponent(settings, lambda: lifecycle.WatchTraffic(lifecycle_pb2.WatchTrafficRequest()))
        await serve(component, settings, settings.port, stop)


if __name__ == "__main__":
    run_process("preprocess", PreprocessSettings, main)
