"""Runs all checks at one server."""

from collections.abc import Callable, Mapping, Sequence

import grpc
from google.protobuf.message import DecodeError

from aimass.oip_check import (
    inference,
    liveness,
    metadata,
    metrics,
    refusals,
    reporting,
    repository,
    shared_memory,
    statistics,
    streams,
    transport,
)
from aimass.oip_check.finding import Check, Finding, Outcome, Verdict, breaks, skipped
from aimass.oip_check.server import OPTIONS, Server, Unmet

AREAS = {
    "server": liveness.CHECKS,
    "metadata": metadata.CHECKS,
    "inference": inference.CHECKS,
    "refusals": refusals.CHECKS,
    "statistics": statistics.CHECKS,
    "metrics": metrics.CHECKS,
    "streams": streams.CHECKS,
    "repository": repository.CHECKS,
    "shared memory": shared_memory.CHECKS,
    "traces and logs": reporting.CHECKS,
    "transport": transport.CHECKS,
}


class Unreachable(Exception):
    """Nothing that speaks gRPC answers there."""


def check_server(
    address: str,
    model: str = "",
    shapes: Mapping[str, Sequence[int]] | None = None,
    *,
    write: bool = False,
    timeout: float = 5,
    metrics_url: str = "",
    on_check: Callable[[str], None] = lambda id: None,
) -> list[Finding]:
    """Run all checks at *address*.

    Args:
        address: host:port.
        model: Name; the first that is ready if empty.
        shapes: Whole shapes of inputs, by name, for sides that the metadata leaves open.
        write: Whether to load the model and to register shared memory.
        timeout: Seconds that any one call may take.
        metrics_url: Of the metrics; if empty, where perf_analyzer looks for them, and `none` leaves them out.
        on_check: Told the id of each check before it runs.

    Raises:
        Unreachable: Nothing that speaks gRPC answers there.
        UnknownModel: The model is not there.
    """
    with grpc.insecure_channel(address, options=_options(address)) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout)
        except grpc.FutureTimeoutError:
            raise Unreachable(f"nothing that speaks gRPC answers at {address} within {timeout:g} s") from None
        server = Server(channel, model, shapes, write=write, timeout=timeout, address=address, metrics_url=metrics_url)
        return [_find(area, check, server, on_check) for area, checks in AREAS.items() for check in checks]


def _options(address: str) -> list[tuple[str, int]]:
    """Keep a proxy that the environment names out of the way to this machine."""
    local = address.removeprefix("[").startswith(("localhost", "127.", "::1"))
    return [*OPTIONS, ("grpc.enable_http_proxy", int(not local))]


def _find(area: str, check: Check, server: Server, on_check: Callable[[str], None]) -> Finding:
    on_check(check.id)
    outcome = _outcome(check, server)
    hit = check.clients if outcome.verdict in (Verdict.breaks, Verdict.warns) else {}
    return Finding(check.id, area, check.asked, outcome.came, outcome.verdict, check.fact, hit)


def _outcome(check: Check, server: Server) -> Outcome:
    try:
        return check.run(server)
    except Unmet as reason:
        return skipped(str(reason))
    except DecodeError:
        return breaks("a message of another type than the protocol's")
