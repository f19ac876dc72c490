"""Loads and unloads the versions of a model until memory is what its folder, config and traffic want."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import structlog

from aimass.open_inference.model_config_pb2 import ModelConfig
from services.common.errors import Overloaded
from services.common.manifest import Manifest
from services.common.statuses import status_of
from services.inference.config.model_config import read_config, versions_to_load
from services.inference.memory import give_back_memory, resident_bytes
from services.inference.models.repository import CONFIG_FILE, Fingerprint, ModelRepository, fingerprint
from services.inference.models.served_model import ServedModel, unavailable
from services.inference.models.version import LoadedVersion, load_version, read_manifest
from services.inference.settings import InferenceSettings

log = structlog.get_logger(__name__)


class Loader:
    """Knows what to load of a repository; who calls it holds the model's lock."""

    def __init__(self, settings: InferenceSettings, repository: ModelRepository) -> None:
        self._settings = settings
        self._repository = repository

    async def bring_in_line(self, model: ServedModel, *, settle: bool) -> None:
        """Load, load anew and unload versions until memory is what folder, config and traffic want.

        Args:
            model: To be changed.
            settle: Whether files must have been found as they are before: they may still be being copied.
        """
        look = await asyncio.to_thread(self._repository.look, model.folder)
        for number in [number for number in model.versions if number not in look.versions]:
            model.forget(number)
        try:
            model.traffic = self._repository.traffic(model.name)
            self._read_config(model, look.config, settle=settle)
        except Exception as error:
            reason = refusal(error, model=model.name)
            for number in look.versions:
                model.fail(number, reason)
            return
        wanted = self._kept(list(look.versions), model)
        for number, files in look.versions.items():
            settled = not settle or model.seen.get(number) == files
            model.seen[number] = files
            if number not in wanted and number not in model.loaded:
                if number not in model.versions:
                    self._describe(model, number)
            elif settled and files != model.tried.get(number):
                await self.load_version(model, number)
        self.unload_surplus(model)

    def _read_config(self, model: ServedModel, files: Fingerprint, *, settle: bool) -> None:
        settled = not settle or model.seen.get(CONFIG_FILE) == files
        model.seen[CONFIG_FILE] = files
        if model.config_given or not settled or files == model.config_mark:
            return
        model.config = read_config(model.folder / CONFIG_FILE, model.name)
        model.config_mark = files
        model.tried.clear()  # so that every version is loaded anew with it

    def _describe(self, model: ServedModel, number: int) -> None:
        try:
            manifest = read_manifest(model.folder / str(number))
        except Exception as error:
            model.fail(number, refusal(error, model=model.name, version=number))
        else:
            model.versions[number] = unavailable(number, manifest, self._surplus_reason())

    async def load_version(self, model: ServedModel, number: int) -> None:
        """Take one version in; whatever is wrong with it, the others shall serve, and its predecessor too."""
        folder = model.folder / str(number)
        model.tried[number] = fingerprint(folder)
        try:
            loaded = await self.load(model.name, folder, model.config, read_manifest(folder))
        except Exception as error:
            model.fail(number, refusal(error, model=model.name, version=number))
            return
        model.put(number, loaded)
        log.info("version ready", model=model.name, version=number)

    async def load(self, name: str, folder: Path, config: ModelConfig | None, manifest: Manifest) -> LoadedVersion:
        """Return the version of model *name* that lies in *folder*, checked and warmed up, outside of the event loop.

        Raises:
            InvalidInput: It does not load or does not do what its manifest says.
            Overloaded: There is no memory for it.
        """
        await asyncio.to_thread(self._require_memory, folder)
        return await asyncio.to_thread(load_version, name, folder, config, self._settings, manifest)

    def _require_memory(self, folder: Path) -> None:
        limit = self._settings.max_memory_bytes
        if not limit:
            return
        give_back_memory()  # else what unloaded versions left behind would count
        size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
        if resident_bytes() + size > limit:
            raise Overloaded(
                f"the version has {size:,} bytes and the process {resident_bytes():,}; together that is more than "
                f"{limit:,} (INFERENCE_MAX_MEMORY_BYTES): unload a model or raise the limit",
                reason="MEMORY_LIMIT",
            )

    def _kept(self, versions: Sequence[int], model: ServedModel) -> set[int]:
        """Return which versions stay loaded: those of the config's policy or the newest, and those with traffic."""
        chosen = versions_to_load(model.config, versions)
        newest = sorted(versions)[-self._settings.loaded_versions :]
        return {*(newest if chosen is None else chosen), *model.traffic.versions}

    def _surplus_reason(self) -> str:
        return (
            f"not loaded: only the newest {self._settings.loaded_versions} versions (INFERENCE_LOADED_VERSIONS), or "
            "those of the config's version_policy, and those with a part in the traffic are; SetTraffic loads it"
        )

    def unload_surplus(self, model: ServedModel) -> None:
        """Unload what need not stay loaded, and let the shadow be the one that the traffic names."""
        kept = self._kept(list(model.versions), model)
        for number in [number for number in model.loaded if number not in kept]:
            model.drop(number, self._surplus_reason())
        model.follow_shadow()


def refusal(error: Exception, **what: object) -> str:
    """Log why something is not served, and return what callers are told."""
    status = status_of(error)
    log.warning("not served", reason=status.message, exc_info=None if status.expected else error, **what)
    return status.message
