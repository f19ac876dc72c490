"""Channels to other services of the suite."""

import grpc


def host_and_port(host: str, port: int) -> str:
    """Return the address of *port*, as gRPC and URLs write it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def reachable(host: str) -> str:
    """Return where this machine reaches a server that listens on *host*, which may stand for all addresses."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 not bound, only asked


def open_channel(address: str) -> grpc.aio.Channel:
    """Return a channel that finds a restarted service again within a second.

    grpc's own back-off grows to two minutes, which is right for the internet and wrong for a sibling process. Sizes
    are bounded by the servers, once, in words that say what to change.
    """
    return grpc.aio.insecure_channel(
        address,
        options=[
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_send_message_length", -1),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 1000),
            ("grpc.max_reconnect_backoff_ms", 1000),
            ("grpc.enable_http_proxy", 0),
        ],
    )
