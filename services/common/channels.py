"""Channels to other services of the suite."""

import grpc


def open_channel(address: str, max_message_bytes: int) -> grpc.aio.Channel:
    """Return a channel that finds a restarted service again within a second.

    grpc's own back-off grows to two minutes, which is right for the internet and wrong for a sibling process.
    """
    return grpc.aio.insecure_channel(
        address,
        options=[
            ("grpc.max_receive_message_length", max_message_bytes),
            ("grpc.max_send_message_length", max_message_bytes),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 1000),
            ("grpc.max_reconnect_backoff_ms", 1000),
            ("grpc.enable_http_proxy", 0),
        ],
    )
