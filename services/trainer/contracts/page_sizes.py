"""How many a page of a list holds."""

from services.common.errors import InvalidInput


def page_size(asked: int, usual: int, most: int) -> int:
    """Return how many a page holds: *usual* where 0 is *asked* for, and no more than *most*.

    Raises:
        InvalidInput: It is negative.
    """
    if asked < 0:
        raise InvalidInput(f"page_size is {asked}; give 1 to {most:,}, or 0 for {usual:,}", field="page_size")
    return min(asked or usual, most)
