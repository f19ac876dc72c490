"""What a text must not have that is kept: one rule for all databases, so that rows can move from one to another."""

from services.common.errors import InvalidInput

NUL = "\0"
"""PostgreSQL keeps it in no text."""


def check_storable(text: str, field: str) -> None:
    """Refuse a text that not every database keeps.

    Args:
        text: Of any length.
        field: Of the request.

    Raises:
        InvalidInput: It has the character U+0000.
    """
    if NUL in text:
        raise InvalidInput(
            f"{field} has the character U+0000 at position {text.index(NUL) + 1}, which is not kept; leave it out",
            reason="NOT_STORABLE",
            field=field,
        )
