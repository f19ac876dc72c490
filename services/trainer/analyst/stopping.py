"""How a long piece of work ends early."""

from collections.abc import Callable

GoOn = Callable[[], None]
"""Called between parts of a long piece of work; raises `Stopped` where the process is to end."""


class Stopped(Exception):
    """The process is to end; the piece of work is done anew another time."""
