"""Which tests of a run with several workers are done by the same one."""

from pathlib import PurePosixPath

from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

_BY_FILE = ("tests/aimass", "tests/end_to_end", "tests/gateway")


class SharingScheduling(LoadScopeScheduling):  # type: ignore[misc]
    """Gives a folder to one worker, and with it the models that its tests share.

    Of folders whose tests share nothing but a running suite, which would be too much for one worker, it gives files.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = PurePosixPath(nodeid.partition("::")[0])
        folder = str(file.parent)
        return str(file) if folder in _BY_FILE else folder
