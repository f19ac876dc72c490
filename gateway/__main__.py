"""Starts the gateway as a process: `python -m gateway`."""

from gateway.backends import connected_backends
from gateway.service import GatewayComponent
from gateway.settings import GatewaySettings
from services.common.server import StopSignal, run_process, serve


async def main(settings: GatewaySettings, stop: StopSignal) -> None:
    """Serve until told to stop."""
    async with connected_backends(settings, stop) as backends:
        await serve(GatewayComponent(settings, backends, stop), settings, settings.grpc_port, stop)


if __name__ == "__main__":
    run_process("gateway", GatewaySettings, main)
