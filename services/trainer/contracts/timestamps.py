"""Times as messages have them."""

from datetime import datetime

from google.protobuf.timestamp_pb2 import Timestamp


def timestamp_of(time: str | datetime) -> Timestamp:
    """Return *time*, as rows have it (RFC 3339, UTC) or with its zone, as a message."""
    timestamp = Timestamp()
    if isinstance(time, str):
        timestamp.FromJsonString(time)
    else:
        timestamp.FromDatetime(time)
    return timestamp
