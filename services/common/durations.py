"""Nanoseconds as the contracts carry them."""

from google.protobuf.duration_pb2 import Duration


def duration_of(ns: int) -> Duration:
    """Return *ns* nanoseconds as a `Duration`."""
    seconds, nanos = divmod(ns, 1_000_000_000)
    return Duration(seconds=seconds, nanos=nanos)
