"""The present time."""

from datetime import UTC, datetime


def now() -> str:
    """Return the present time, RFC 3339 in UTC, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
