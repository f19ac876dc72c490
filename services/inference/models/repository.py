"""The model repository on disk: folders of models, immutable versions, desired traffic.

<root>/<model>/config.pbtxt           optional
<root>/<model>/<version>/model.onnx
<root>/<model>/<version>/model.json   optional
<root>/<model>/traffic.json           optional
<root>/.upload-<model>-<digest>       a graph of which a part has arrived, see uploads.py
"""

import contextlib
import errno
import fcntl
import json
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from services.common.errors import Conflict, InvalidInput, NotFound, Overloaded
from services.common.manifest import GRAPH_FILE, MANIFEST_FILE, Manifest
from services.inference.models.desired_traffic import Traffic

Fingerprint = tuple[tuple[str, int, int], ...]

CONFIG_FILE = "config.pbtxt"
TRAFFIC_FILE = "traffic.json"
_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_VERSION_NAME = re.compile(r"[1-9][0-9]{0,17}")


@dataclass(frozen=True)
class Look:
    """The files of one model as they were found."""

    versions: dict[int, Fingerprint]
    """By rising number."""
    config: Fingerprint


class ModelRepository:
    """Reads and writes one repository; only inference does."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._staged: dict[Path, int] = {}
        root.mkdir(parents=True, exist_ok=True)

    def models(self) -> list[str]:
        """Return the names of all models, sorted."""
        return sorted(
            path.name for path in self._root.iterdir() if _MODEL_NAME.fullmatch(path.name) and _is_model(path)
        )

    def versions(self, model: str) -> list[int]:
        """Return the version numbers of *model*, by rising number."""
        return self.versions_in(self._root / model)

    def versions_in(self, folder: Path) -> list[int]:
        """Return the version numbers of the model that lies in *folder*, by rising number."""
        names = (path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else ()
        return sorted(int(name) for name in names if _VERSION_NAME.fullmatch(name))

    def model_folder(self, model: str) -> Path:
        """Return the folder of *model*, which may not exist.

        Raises:
            InvalidInput: The name could not be a folder's.
        """
        check_model_name(model)
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
            counts = {field.name: _count(document.get(field.name, 0)) for field in fields(Traffic) if field.type is int}
            return Traffic(**counts, canary_share=_share(document.get("canary_share", 0.0)))
        except (ValueError, AttributeError, RecursionError, OSError) as error:
            raise InvalidInput(f"{path.name} is not valid: {error}; mend or remove it") from error

    def change_traffic(self, model: str, change: Callable[[Traffic], Traffic]) -> Traffic:
        """Replace the desired traffic by what *change* makes of it; on disk when this returns, and never half of it.

        Other processes that share the repository wait meanwhile. What *change* raises goes through; then nothing is
        changed.

        Raises:
            NotFound: A version that gets a part is gone, or the model is.
            Conflict: The disk does not let it.
            Overloaded: The disk is full.
        """
        with on_disk(f"the traffic of model {model!r}"), _locked(self.model_folder(model)):
            return self._change_traffic(model, change)

    def _change_traffic(self, model: str, change: Callable[[Traffic], Traffic]) -> Traffic:
        current = self.traffic(model)
        traffic = change(current)
        there = self.versions(model)
        for number in traffic.versions - {traffic.previous_version} - current.versions:
            if number not in there:  # any more: another process may have removed it
                raise NotFound(
                    f"version {number} of model {model!r} is gone; name one that it has: {', '.join(map(str, there))}",
                    reason="VERSION_NOT_FOUND",
                )
        if traffic != current:
            folder = self.model_folder(model)
            aside = folder / f".{TRAFFIC_FILE}-{uuid.uuid4().hex}"
            _write_durably(aside, json.dumps(asdict(traffic)).encode() + b"\n")
            aside.rename(folder / TRAFFIC_FILE)
            _sync_folder(folder)
        return traffic

    def stage(self, model: str) -> Path:
        """Return a new folder beside the versions of *model*, in which a version can be made.

        It is locked until `discard`, so that another process can tell it from the leftovers of one that was killed.
        """
        folder = self.model_folder(model)
        staging = folder / f".staging-{uuid.uuid4().hex}"
        with on_disk(f"a new version of model {model!r}"):
            folder.mkdir(exist_ok=True)
            staging.mkdir()
            self._staged[staging] = _lock(staging)
        return staging

    def write_aside(self, model: str, files: Mapping[str, bytes]) -> Path:
        """Write *files* to a folder that stands in for the one of *model*, outside of the repository, and return it.

        Raises:
            InvalidInput: A path leaves the folder, or the files cannot lie beside each other.
        """
        self.model_folder(model)
        folder = Path(tempfile.mkdtemp(prefix="aimass-given-")) / model
        try:
            for name, data in files.items():
                _write_given(folder, name, data)
        except BaseException:
            shutil.rmtree(folder.parent, ignore_errors=True)
            raise
        return folder

    def discard(self, staging: Path) -> None:
        """Remove a staged folder where it was not committed, and its model's where nothing else is in it."""
        descriptor = self._staged.pop(staging, None)
        if descriptor is not None:
            os.close(descriptor)
        shutil.rmtree(staging, ignore_errors=True)
        if staging.parent.is_dir() and not any(staging.parent.iterdir()):
            staging.parent.rmdir()

    def delete(self, model: str, version: int, change: Callable[[Traffic], Traffic]) -> Traffic:
        """Change the traffic and, in the same breath, remove one version; return the traffic.

        Raises:
            NotFound: The version is gone already.
            ServiceError: As `change_traffic`.
        """
        aside = self.model_folder(model) / f".staging-{uuid.uuid4().hex}"
        with on_disk(f"version {version} of model {model!r}"), _locked(self.model_folder(model)):
            traffic = self._change_traffic(model, change)
            self.version_folder(model, version).rename(aside)
            _sync_folder(aside.parent)
        shutil.rmtree(aside, ignore_errors=True)
        return traffic

    def look(self, folder: Path) -> Look:
        """Return the files of the model that lies in *folder*."""
        versions = {number: fingerprint(folder / str(number)) for number in self.versions_in(folder)}
        return Look(versions, fingerprint(folder / CONFIG_FILE))

    def remove_leftovers(self) -> None:
        """Remove what processes that live no more have left half done."""
        for path in filter(Path.is_file, self._root.glob(f"*/.{TRAFFIC_FILE}-*")):
            with _locked(path.parent):
                path.unlink(missing_ok=True)
        for path in self._root.glob("*/.staging-*"):
            with contextlib.suppress(BlockingIOError):  # somebody is at work in it
                os.close(_lock(path, fcntl.LOCK_NB))
                self.discard(path)

    def commit(self, staging: Path, manifest: Manifest, newest: int = 0) -> int:
        """Turn a staged folder into the model's next version, atomically, and return its number.

        Where a version has its `publication_id` already, that one's number is returned, and the folder is gone.

        Args:
            staging: From `stage`.
            manifest: Of the version.
            newest: Highest number that was ever given out, as far as is known; a folder may have been removed since.

        Raises:
            Conflict: There is no higher number, the disk does not let it, or a version with that `publication_id` has
                another graph.
            Overloaded: The disk is full.
        """
        model = staging.parent.name
        with on_disk(f"a new version of model {model!r}"):
            _write_durably(staging / MANIFEST_FILE, manifest.to_json().encode())
            _sync_folder(staging)
            with _locked(staging.parent):  # a replica may be giving out a number too
                published = self._published(model, manifest)
                if published is not None:
                    shutil.rmtree(staging)
                    return published
                version = max(newest, *self.versions(model), 0) + 1
                if not _VERSION_NAME.fullmatch(str(version)):
                    raise Conflict(f"model {model!r} has version {version - 1}, the highest there can be; remove it")
                staging.rename(self.version_folder(model, version))
                _sync_folder(staging.parent)
            _sync_folder(self._root)  # where the model is new
        return version

    def _published(self, model: str, manifest: Manifest) -> int | None:
        """Return the version of *model* that was published as *manifest* says, where there is one."""
        for version in self.versions(model) if manifest.publication_id else ():
            try:
                found = Manifest.from_json((self.version_folder(model, version) / MANIFEST_FILE).read_bytes(), "")
            except (OSError, InvalidInput):  # none, or a broken one
                continue
            if found.publication_id == manifest.publication_id:
                check_same_graph(model, version, found.graph.sha256 if found.graph else None, manifest)
                return version
        return None


def _is_model(folder: Path) -> bool:
    """Whether *folder* is one with more in it than the first version of a model that is being made."""
    try:
        names = os.listdir(folder)
    except OSError:  # no folder, or gone meanwhile; one that cannot be read is a model with a fault
        return folder.is_dir()
    return not names or any(not name.startswith(".") for name in names)


def check_same_graph(model: str, version: int, digest: str | None, manifest: Manifest) -> None:
    """Refuse a manifest whose `publication_id` is that of *version*, where the graph with *digest* is another one.

    Raises:
        Conflict: It is.
    """
    if manifest.graph is not None and manifest.graph.sha256 != digest:
        raise Conflict(
            f"publication_id {manifest.publication_id!r} is that of version {version} of model {model!r}, which has "
            "another graph; use a new one",
            reason="PUBLICATION_ID_TAKEN",
        )


def check_model_name(model: str) -> None:
    """Refuse what could not be the name of a model's folder.

    Raises:
        InvalidInput: It could not.
    """
    if not _MODEL_NAME.fullmatch(model):
        raise InvalidInput(
            f"model name {model[:150]!r} is not valid; use up to 128 letters, digits, '.', '_' and '-', "
            "and begin with a letter or a digit",
            field="model",
        )


def fingerprint(path: Path) -> Fingerprint:
    """Return names, sizes and times of the files at *path*: another one says that something was changed."""
    marks = []
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        with contextlib.suppress(OSError):  # gone meanwhile
            status = file.stat()
            marks.append((str(file.relative_to(path.parent)), status.st_size, status.st_mtime_ns))
    return tuple(marks)


def _count(value: object) -> int:
    if not isinstance(value, int) or not 0 <= value < 2**63:
        raise ValueError(f"{value!r} stands where an integer from 0 to 2^63 - 1 should")
    return value


def _share(value: object) -> float:
    if not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError(f"canary_share is {value!r}; it must be 0 to 1")
    return float(value)


def _write_durably(path: Path, data: bytes) -> None:
    try:
        with path.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError:  # such as a full disk
        path.unlink(missing_ok=True)
        raise


def _write_given(folder: Path, name: str, data: bytes) -> None:
    try:
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()) or path == folder:
            raise InvalidInput(f"file {name[:100]!r} leaves the model's folder; give a path such as 1/{GRAPH_FILE}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    except (OSError, ValueError) as error:  # a name that is too long, or at the same time a file and a folder
        raise InvalidInput(
            f"file {name[:100]!r} cannot be written: {error}; give a path such as 1/{GRAPH_FILE}"
        ) from error


@contextmanager
def on_disk(what: str) -> Iterator[None]:
    """Say in words what the disk does not let *what* have.

    Raises:
        NotFound: It is not there.
        Overloaded: The disk is full.
        Conflict: Anything else.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise NotFound(f"{what} is gone from the repository; see ListVersions for what is there") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise Overloaded(f"there is no room on the disk for {what}; remove versions that are not needed") from error
        raise Conflict(f"{what} cannot be written: {error}; see to the repository's folder") from error


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other processes out of *folder* that ask too."""
    descriptor = _lock(folder)
    try:
        yield
    finally:
        os.close(descriptor)


def _lock(folder: Path, flags: int = 0) -> int:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | flags)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
