"""Where files of users lie, and how they are removed."""

import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from services.common.errors import Overloaded
from services.trainer.data.blobs import Blobs
from services.trainer.feedback.pseudonyms import fingerprint
from services.trainer.feedback.retention import remove_unclaimed
from services.trainer.storage.database import Database


@dataclass(frozen=True)
class Folders:
    """The folders of the trainer that pictures of users get into."""

    blobs: Path
    """Files as they were sent, without metadata."""
    prepared: Path
    """Decoded pictures of data sets; may be removed at any time."""
    runs: Path
    """Of all runs; cards show pictures, and weights have learnt from them."""

    @property
    def all(self) -> tuple[Path, ...]:
        """All of them."""
        return self.blobs, self.prepared, self.runs

    def remove_files(self, database: Database, fingerprints: Collection[str]) -> int:
        """Remove the files of pictures that no row names any more; return how many there were.

        Args:
            database: Whose rows may name them.
            fingerprints: Of the digests of files.

        Raises:
            NotReady: The database does not answer.
        """
        wanted = frozenset(fingerprints)
        gone = [digest for digest, _ in Blobs(self.blobs).digests() if fingerprint(digest) in wanted]
        return remove_unclaimed(database, self.blobs, gone)

    def remove_prepared(self) -> int:
        """Remove all sets of decoded pictures, since none says whose it holds; return how many there were.

        Features of public sets beside them stay.

        Raises:
            Overloaded: The disk does not let them go.
        """
        sets = self.prepared.iterdir() if self.prepared.is_dir() else ()
        return sum(_remove(path) for path in sets if path.is_dir())

    def remove_run(self, run_id: str) -> bool:
        """Remove the folder of a run; return whether there was one.

        Raises:
            Overloaded: The disk does not let it go.
        """
        return _remove(self.runs / run_id)


def _remove(folder: Path) -> bool:
    if not folder.exists():
        return False
    try:
        shutil.rmtree(folder)
    except OSError as error:
        raise Overloaded(
            f"{folder} cannot be removed: {error.strerror}; let the trainer write there", reason="NOT_REMOVED"
        ) from error
    return True
