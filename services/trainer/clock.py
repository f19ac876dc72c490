"""The present time."""

from datetime import UTC, datetime


def now() -> str:
    """Return the present time as rows have it."""
    return as_row(datetime.now(UTC))


def as_row(time: datetime) -> str:
    """Return a time as rows have it: RFC 3339 in UTC, to the millisecond, so that texts are ordered as times are."""
    return time.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
