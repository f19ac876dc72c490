"""Where a call comes from: this machine or another."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Any

from services.common.errors import Conflict

if TYPE_CHECKING:
    import grpc

    Context = grpc.aio.ServicerContext[Any, Any]

FORWARDED_PEER_KEY = "x-forwarded-peer"
"""Metadata in which a proxy names the peer that it answers, as grpc writes it (`ipv4:192.0.2.7:40123`).

Whoever is named must be on this machine, too: naming somebody can take rights from a call, but give it none.
"""


def check_same_machine(context: Context) -> None:
    """Refuse shared memory to clients that cannot have it.

    Raises:
        Conflict: The caller, or one that it calls for, is on another machine or does not say where it is.
    """
    # A call within the process has no connection: whoever makes it names the peer that it makes it for.
    connection = getattr(context, "peer", None)
    peers = [connection()] if connection else []
    peers += [str(value) for key, value in context.invocation_metadata() or () if key == FORWARDED_PEER_KEY]
    if not peers or not all(map(is_local, peers)):
        raise Conflict(
            f"shared memory joins processes of one machine, and this call came from {', '.join(peers) or 'nowhere'}; "
            "connect to 127.0.0.1 on the server's machine, or send tensors in the request",
            reason="NOT_THE_SAME_MACHINE",
        )


def is_local(peer: str) -> bool:
    """Whether *peer*, as grpc writes it, is on this machine: a Unix socket or a loopback address."""
    scheme, _, rest = peer.partition(":")
    if scheme in ("unix", "unix-abstract"):
        return True
    host = rest.rpartition(":")[0].replace("%5B", "").replace("%5D", "").strip("[]")
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback
