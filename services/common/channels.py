"""Channels to other services of the suite."""

import grpc

PING_SECONDS = 20
"""How often a channel makes sure that the other end of a silent connection is still there."""


def host_and_port(host: str, port: int) -> str:
    """Return the address of *port*, as gRPC and URLs write it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def reachable(host: str) -> str:
    """Return where this machine reaches a server that listens on *host*, which may stand for all addresses."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 not bound, only asked


SIBLING_OPTIONS = (
    # Sizes are bounded by the servers, once, in words that say what to change.
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # grpc's own back-off grows to two minutes, which is right for the internet and wrong for a sibling process.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # A machine that vanished closes no connection: without pings a stream from it would be silent for ever.
    ("grpc.keepalive_time_ms", PING_SECONDS * 1000),
    ("grpc.keepalive_timeout_ms", 5000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.enable_http_proxy", 0),
)


def open_channel(address: str) -> grpc.aio.Channel:
    """Return a channel that finds a restarted service again within a second."""
    return grpc.aio.insecure_channel(address, options=SIBLING_OPTIONS)
