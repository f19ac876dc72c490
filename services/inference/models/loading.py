"""Loads what the folder, the config and the traffic of a model want, and then unloads what they no longer do."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from aimass.open_inference.model_config_pb2 import ModelConfig
from services.common.errors import Overloaded
from services.common.manifest import Manifest
from services.common.statuses import status_of
from services.inference.config.model_config import read_config, versions_to_load
from services.inference.memory import give_back_memory, resident_bytes
from services.inference.models.desired_traffic import Traffic
from services.inference.models.repository import CONFIG_FILE, Look, ModelRepository, fingerprint
from services.inference.models.served_model import ServedModel, unavailable
from services.inference.models.version import LoadedVersion, load_version, read_manifest
from services.inference.settings import InferenceSettings

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Wanted:
    """What was found on disk, all of which is loaded that can be."""

    look: Look
    traffic: Traffic | None
    """None where it cannot be read, and what is in memory stays."""


class Loader:
    """Knows what to load of a repository. Who calls it keeps others from loading the same model.

    Args:
        settings: Of the service.
        repository: Where the models lie.
        announce: Called with a model's name in the step in which one of its versions can serve, or cannot any more.
    """

    def __init__(
        self, settings: InferenceSettings, repository: ModelRepository, announce: Callable[[str], None]
    ) -> None:
        self._settings = settings
        self._repository = repository
        self._announce = announce
        self._one_at_a_time = asyncio.Lock()
        """Held while a version is loaded: what the next may take is what this one leaves."""

    async def load_wanted(self, model: ServedModel, *, settle: bool) -> Wanted:
        """Load, and load anew, what is wanted; nothing is unloaded, and the traffic is the one before.

        Args:
            model: To be changed.
            settle: Whether files must have been found as they are before: they may still be being copied.
        """
        look = await asyncio.to_thread(self._repository.look, model.folder)
        self._read_config(model, look, settle=settle)
        traffic, problem = self._read_traffic(model)
        if problem or (model.config_problem and model.config is None):
            for number in look.versions:
                model.fail(number, problem or model.config_problem)
            self._announce(model.name)
            return Wanted(look, traffic)
        wanted = self._kept(list(look.versions), model, traffic or model.traffic)
        for number, files in look.versions.items():
            settled = not settle or model.seen.get(number) == files
            model.seen[number] = files
            if number not in wanted and number not in model.loaded:
                if number not in model.versions:
                    self._describe(model, number)
            elif settled and files != model.tried.get(number):
                await self.load_version(model, number)
        return Wanted(look, traffic)

    def take_over(self, model: ServedModel, wanted: Wanted, traffic: Traffic) -> None:
        """Let the wanted traffic be the model's, and go what is gone.

        Args:
            model: To be changed.
            wanted: As it was loaded.
            traffic: As it is by now; where it was moved meanwhile, its versions need not be loaded.
        """
        for number in [number for number in model.versions if number not in wanted.look.versions]:
            model.forget(number)
        if traffic == wanted.traffic:
            model.traffic = traffic
        self.unload_surplus(model)

    async def load_version(self, model: ServedModel, number: int) -> None:
        """Take one version in; whatever is wrong with it, the others shall serve, and its predecessor too."""
        folder = model.folder / str(number)
        model.tried[number] = fingerprint(folder)
        try:
            loaded = await self.load(model.name, folder, model.config, read_manifest(folder))
        except Exception as error:
            model.fail(number, refusal(error, model=model.name, version=number))
        else:
            if model.unloaded:  # meanwhile
                loaded.close()
                return
            model.put(number, loaded)
            log.info("version ready", model=model.name, version=number)
        self._announce(model.name)

    async def load(self, name: str, folder: Path, config: ModelConfig | None, manifest: Manifest) -> LoadedVersion:
        """Return the version of model *name* that lies in *folder*, checked and warmed up, outside of the event loop.

        Raises:
            InvalidInput: It does not load or does not do what its manifest says.
            Overloaded: There is no memory for it.
        """
        async with self._one_at_a_time:
            await asyncio.to_thread(self._require_memory, folder)
            return await asyncio.to_thread(load_version, name, folder, config, self._settings, manifest)

    def unload_surplus(self, model: ServedModel) -> None:
        """Unload what need not stay loaded, and let the shadow be the one that the traffic names."""
        # Of those that are loaded: what is wanted and cannot be loaded takes nobody's place.
        loaded = set(model.loaded)
        kept = loaded & self._kept(sorted(loaded), model, model.traffic) or {max(loaded, default=0)}
        for number in loaded - kept:
            model.drop(number, self._surplus_reason())
        model.follow_shadow()

    def _read_config(self, model: ServedModel, look: Look, *, settle: bool) -> None:
        """Read the config where it has changed; one that is malformed leaves the one before in force."""
        settled = not settle or model.seen.get(CONFIG_FILE) == look.config
        model.seen[CONFIG_FILE] = look.config
        if model.config_given or not settled or look.config == model.config_mark:
            return
        model.config_mark = look.config
        try:
            model.config = read_config(model.folder / CONFIG_FILE, model.name)
        except Exception as error:
            model.config_problem = refusal(error, model=model.name)
            for number in list(model.loaded):
                model.fail(number, model.config_problem)
        else:
            model.config_problem = ""
            model.tried.clear()  # so that every version is loaded anew with it

    def _read_traffic(self, model: ServedModel) -> tuple[Traffic | None, str]:
        """Return the traffic on disk or what is wrong with it, which is logged once."""
        try:
            traffic = self._repository.traffic(model.name)
        except Exception as error:
            reason = status_of(error).message
            if reason != model.traffic_problem:
                refusal(error, model=model.name)
            model.traffic_problem = reason
            return None, reason
        model.traffic_problem = ""
        return traffic, ""

    def _describe(self, model: ServedModel, number: int) -> None:
        try:
            manifest = read_manifest(model.folder / str(number))
        except Exception as error:
            model.fail(number, refusal(error, model=model.name, version=number))
        else:
            model.versions[number] = unavailable(number, manifest, self._surplus_reason())

    def _require_memory(self, folder: Path) -> None:
        limit = self._settings.max_memory_bytes
        if not limit:
            return
        give_back_memory()  # else what unloaded versions left behind would count
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        if resident_bytes() + size > limit:
            raise Overloaded(
                f"the version has {size:,} bytes and the process {resident_bytes():,}; together that is more than "
                f"{limit:,} (INFERENCE_MAX_MEMORY_BYTES): unload a model or raise the limit",
                reason="MEMORY_LIMIT",
            )

    def _kept(self, versions: Sequence[int], model: ServedModel, traffic: Traffic) -> set[int]:
        """Return which versions stay loaded: those of the config's policy or the newest, and those with traffic."""
        chosen = versions_to_load(model.config, versions)
        newest = sorted(versions)[-self._settings.loaded_versions :]
        return {*(newest if chosen is None else chosen), *traffic.versions}

    def _surplus_reason(self) -> str:
        return (
            f"not loaded: only the newest {self._settings.loaded_versions} versions (INFERENCE_LOADED_VERSIONS), or "
            "those of the config's version_policy, and those with a part in the traffic are; SetTraffic loads it"
        )


def refusal(error: Exception, **what: object) -> str:
    """Log why something is not served, and return what callers are told."""
    status = status_of(error)
    log.warning("not served", reason=status.message, exc_info=None if status.expected else error, **what)
    return status.message
