"""The model repository on disk: folders of models, immutable versions, desired traffic.

<root>/<model>/config.pbtxt           optional
<root>/<model>/<version>/model.onnx
<root>/<model>/<version>/model.json   optional
<root>/<model>/traffic.json           optional
"""

import json
import os
import re
import shutil
import uuid
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from services.common.errors import InvalidInput
from services.common.manifest import MANIFEST_FILE, Manifest

CONFIG_FILE = "config.pbtxt"
TRAFFIC_FILE = "traffic.json"
_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_VERSION_NAME = re.compile(r"[1-9][0-9]{0,17}")


@dataclass(frozen=True)
class Traffic:
    """Desired traffic of a model, as `traffic.json` has it."""

    generation: int = 0
    stable_version: int = 0
    """0 means the newest version that is ready."""
    previous_version: int = 0
    """The stable version before; stays loaded, so that rolling back loads nothing. 0 means none."""

    def moved_to(self, version: int) -> "Traffic":
        """Return the traffic after *version* became the stable one."""
        previous = self.previous_version if version == self.stable_version else self.stable_version
        return Traffic(self.generation + 1, version, previous)


class ModelRepository:
    """Reads and writes one repository; only inference does."""

    def __init__(self, root: Path) -> None:
        self._root = root
        root.mkdir(parents=True, exist_ok=True)

    def models(self) -> list[str]:
        """Return the names of all models, sorted."""
        return sorted(path.name for path in self._root.iterdir() if path.is_dir() and _MODEL_NAME.fullmatch(path.name))

    def versions(self, model: str) -> list[int]:
        """Return the version numbers of *model*, by rising number."""
        folder = self._root / model
        names = (path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else ()
        return sorted(int(name) for name in names if _VERSION_NAME.fullmatch(name))

    def model_folder(self, model: str) -> Path:
        """Return the folder of *model*, which may not exist.

        Raises:
            InvalidInput: The name could not be a folder's.
        """
        if not _MODEL_NAME.fullmatch(model):
            raise InvalidInput(
                f"model name {model[:150]!r} is not valid; use up to 128 letters, digits, '.', '_' and '-', "
                "and begin with a letter or a digit",
                field="model",
            )
        return self._root / model

    def version_folder(self, model: str, version: int) -> Path:
        """Return the folder of one version."""
        return self.model_folder(model) / str(version)

    def traffic(self, model: str) -> Traffic:
        """Return the desired traffic of *model*.

        Raises:
            InvalidInput: `traffic.json` is malformed.
        """
        path = self.model_folder(model) / TRAFFIC_FILE
        if not path.exists():
            return Traffic()
        try:
            document = json.loads(path.read_bytes())
            return Traffic(**{field.name: _count(document.get(field.name, 0)) for field in fields(Traffic)})
        except (ValueError, AttributeError) as error:
            raise InvalidInput(f"{path.name} is not valid: {error}; mend or remove it") from error

    def write_traffic(self, model: str, traffic: Traffic) -> None:
        """Make *traffic* the desired one; on disk when this returns, and never half of it."""
        folder = self.model_folder(model)
        aside = folder / f".{TRAFFIC_FILE}-{uuid.uuid4().hex}"
        _write_durably(aside, json.dumps(asdict(traffic)).encode() + b"\n")
        aside.rename(folder / TRAFFIC_FILE)
        _sync_folder(folder)

    def stage(self, model: str) -> Path:
        """Return a new folder beside the versions of *model*, in which a version can be made."""
        folder = self.model_folder(model)
        folder.mkdir(exist_ok=True)
        staging = folder / f".staging-{uuid.uuid4().hex}"
        staging.mkdir()
        return staging

    def discard(self, staging: Path) -> None:
        """Remove a staged folder, and its model's where nothing else is in it."""
        shutil.rmtree(staging, ignore_errors=True)
        if staging.parent.is_dir() and not any(staging.parent.iterdir()):
            staging.parent.rmdir()

    def remove_leftovers(self) -> None:
        """Remove what an earlier process left half done."""
        for path in filter(Path.is_file, self._root.glob(f"*/.{TRAFFIC_FILE}-*")):
            path.unlink()
        for path in self._root.glob("*/.staging-*"):
            self.discard(path)

    def commit(self, staging: Path, manifest: Manifest, newest: int = 0) -> int:
        """Turn a staged folder into the model's next version, atomically, and return its number.

        Args:
            staging: From `stage`.
            manifest: Of the version.
            newest: Highest number that was ever given out, as far as is known; a folder may have been removed since.
        """
        _write_durably(staging / MANIFEST_FILE, manifest.to_json().encode())
        _sync_folder(staging)
        model = staging.parent.name
        version = max(newest, *self.versions(model), 0) + 1
        staging.rename(self.version_folder(model, version))
        _sync_folder(staging.parent)
        _sync_folder(self._root)  # where the model is new
        return version


def _count(value: object) -> int:
    if not isinstance(value, int) or not 0 <= value < 2**63:
        raise ValueError(f"{value!r} stands where an integer from 0 to 2^63 - 1 should")
    return value


def _write_durably(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
