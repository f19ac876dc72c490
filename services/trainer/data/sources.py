"""Where data lies, and which folders it may be taken from."""

from dataclasses import dataclass
from pathlib import Path

from services.common.errors import InvalidInput, NotFound
from services.trainer.sets import is_folder, lies_in, resolve_places
from services.trainer.storage.database import Database


@dataclass(frozen=True)
class DataSources:
    """Everything that a data set can be found in.

    Attributes:
        data: Folder of data sets, which `cifar10` is fetched to; decoded pictures are kept in its `prepared`.
        roots: Folders that a set given by its path must lie in.
        database: Tasks and their samples; None where only files are at hand.
        blobs: Folder of the samples' images.
    """

    data: Path
    roots: tuple[Path, ...]
    database: Database | None
    blobs: Path

    @property
    def prepared(self) -> Path:
        """Folder of decoded pictures; it may be deleted at any time between runs."""
        return self.data / "prepared"

    def folder(self, name: str) -> Path:
        """Return the folder that *name* means, with all links resolved.

        A relative path counts from the working directory or else from the folder of data sets.

        Raises:
            InvalidInput: It lies outside of the roots.
            NotFound: There is no such folder.
        """
        places = resolve_places(name, (Path.cwd(), self.data))
        allowed = [each for each in places if self.allows(each)]
        if not allowed:
            raise InvalidInput(
                f"dataset {name!r} is {places[0]}, outside of the folders that data may come from: "
                f"{', '.join(map(str, self.roots)) or 'none'}; move it into one of them, or add its folder to "
                "TRAINER_DATA_ROOTS",
                reason="OUTSIDE_ROOTS",
                field="dataset",
            )
        found = next((each for each in allowed if is_folder(each)), None)
        if found is None:
            raise NotFound(
                f"dataset {name!r} is no folder: {' and '.join(map(str, allowed))} does not exist; create it, or name "
                "cifar10, cifar10-slice or model:<name>",
                reason="DATASET_NOT_FOUND",
                field="dataset",
            )
        return found

    def allows(self, path: Path) -> bool:
        """Whether *path*, all links resolved, lies in one of the roots."""
        return lies_in(path, self.roots)
