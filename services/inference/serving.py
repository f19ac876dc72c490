"""All models in memory: loads versions, resolves requests to them, publishes, moves traffic, tells who follows."""

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import structlog

from aimass.inference.v1 import lifecycle_pb2 as pb
from aimass.open_inference.model_config_pb2 import ModelConfig
from services.common.errors import Conflict, InvalidInput, NotReady
from services.common.manifest import Manifest
from services.common.statuses import status_of
from services.common.traffic import choose_version, model_not_found, ready_versions
from services.inference.model_config import read_config
from services.inference.repository import CONFIG_FILE, ModelRepository, Traffic
from services.inference.settings import InferenceSettings
from services.inference.version import LoadedVersion, load_version, read_manifest

log = structlog.get_logger(__name__)
T = TypeVar("T")


@dataclass
class ServedModel:
    """One model: its traffic and what is known of each version."""

    name: str
    traffic: Traffic = field(default_factory=Traffic)
    loaded: dict[int, LoadedVersion] = field(default_factory=dict)
    versions: dict[int, pb.ModelVersion] = field(default_factory=dict)

    def state(self) -> pb.ModelState:
        """Return what followers are told."""
        return pb.ModelState(
            model=self.name,
            traffic=traffic_message(self.traffic),
            versions=[self.versions[number] for number in sorted(self.versions)],
        )


def traffic_message(traffic: Traffic) -> pb.Traffic:
    """Return the contract's form of *traffic*."""
    return pb.Traffic(
        generation=traffic.generation,
        stable_version=traffic.stable_version,
        previous_version=traffic.previous_version,
    )


class ModelServer:
    """The models of one repository."""

    def __init__(self, settings: InferenceSettings) -> None:
        self._settings = settings
        self._repository = ModelRepository(settings.repository)
        self._models: dict[str, ServedModel] = {}
        self._states: dict[str, pb.ModelState] | None = None
        self._changed = asyncio.Condition()
        self._changing: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        """Held, per model, while versions are added or traffic moves."""

    async def start(self) -> None:
        """Load what the repository holds; a version that fails stays UNAVAILABLE with the reason."""
        self._repository.remove_leftovers()
        for name in self._repository.models():
            await self._load_model(name)
        await self._announce()

    async def close(self) -> None:
        """Free all graphs."""
        for model in self._models.values():
            for version in model.loaded.values():
                version.close()

    def states(self) -> dict[str, pb.ModelState]:
        """Return the state of all models by name; not to be changed.

        Raises:
            NotReady: The repository is still being loaded.
        """
        if self._states is None:
            raise NotReady("the models are being loaded; try again", retry_after_seconds=1.0)
        return self._states

    async def watch(self) -> AsyncIterator[list[pb.ModelState]]:
        """Yield the state of all models now and after each change; a slow reader gets the newest only."""
        seen: dict[str, pb.ModelState] | None = None
        while True:
            async with self._changed:
                while self._states is seen:  # not before the first load is complete
                    await self._changed.wait()
                seen = self.states()
            yield list(seen.values())

    def resolve(self, name: str, version: int = 0, routing_key: str = "") -> tuple[int, LoadedVersion]:
        """Return the version that serves a request.

        Raises:
            NotFound: The model or the version is unknown.
            NotReady: The version cannot serve.
        """
        state = self.states().get(name)
        if state is None:
            raise model_not_found(name, self.states())
        number = choose_version(state, version, routing_key)
        return number, self._models[name].loaded[number]

    async def publish(self, name: str, staging: Path, manifest: Manifest) -> pb.ModelVersion:
        """Add the version that lies in *staging*: load and check it, then give it a number, then announce it.

        Raises:
            InvalidInput: It does not load or does not do what its manifest says; nothing was added.
        """
        config = read_config(self._repository.model_folder(name) / CONFIG_FILE, name)
        loaded = await asyncio.to_thread(load_version, name, staging, config, self._settings, manifest)
        return await _to_the_end(self._add(name, staging, manifest, loaded))

    async def _add(self, name: str, staging: Path, manifest: Manifest, loaded: LoadedVersion) -> pb.ModelVersion:
        async with self._changing[name]:
            model = self._models.get(name) or ServedModel(name)
            try:
                serving = ready_versions(model.state())
                if serving and not model.traffic.stable_version:
                    # Without this a version that was dropped into the folder would lose its traffic to the new one.
                    await self._write_traffic(model, serving[-1])
                newest = max(model.traffic.stable_version, *model.versions, 0)
                number = await asyncio.to_thread(self._repository.commit, staging, manifest, newest)
                self._models[name] = model
                model.loaded[number] = loaded
                model.versions[number] = _ready(number, loaded)
                if not model.traffic.stable_version:
                    await self._write_traffic(model, number)
                self._unload_surplus(model)
            finally:
                await self._announce()
        log.info("version published", model=name, version=number)
        return model.versions[number]

    async def set_traffic(self, name: str, stable_version: int, expected_generation: int | None) -> pb.Traffic:
        """Make *stable_version* the one that serves, loading it where it is not loaded; on disk before this returns.

        Raises:
            NotFound: The model or the version is unknown.
            Conflict: The version cannot be loaded, or the generation is another one.
        """
        if name not in self.states():
            raise model_not_found(name, self.states())
        return await _to_the_end(self._set_traffic(self._models[name], stable_version, expected_generation))

    async def _set_traffic(self, model: ServedModel, stable_version: int, expected: int | None) -> pb.Traffic:
        async with self._changing[model.name]:
            current = model.traffic.generation
            if expected not in (None, current):
                raise Conflict(
                    f"traffic of model {model.name!r} has generation {current}, not {expected}; somebody changed it "
                    "meanwhile, look at it again",
                    reason="STALE_GENERATION",
                    details={"generation": str(current)},
                )
            await self._require_ready(model, stable_version)
            await self._write_traffic(model, stable_version)
            self._unload_surplus(model)
            await self._announce()
            log.info("traffic moved", model=model.name, stable_version=stable_version, generation=current + 1)
            return traffic_message(model.traffic)

    def stage(self, name: str) -> Path:
        """Return a new folder in which a version of the model can be made.

        Raises:
            InvalidInput: The name could not be a folder's.
            NotReady: The repository is still being loaded.
        """
        self.states()
        return self._repository.stage(name)

    def discard(self, staging: Path) -> None:
        """Remove a staged folder that came to nothing."""
        self._repository.discard(staging)

    async def _require_ready(self, model: ServedModel, version: int) -> None:
        if version == 0:
            raise InvalidInput("stable_version is missing; name a version of the model", field="stable_version")
        if version in model.versions and version not in model.loaded:
            config = read_config(self._repository.model_folder(model.name) / CONFIG_FILE, model.name)
            await self._load_version(model, version, config)
        try:
            choose_version(model.state(), version)
        except NotReady as error:
            raise Conflict(error.message, reason="VERSION_NOT_READY") from error

    async def _write_traffic(self, model: ServedModel, stable_version: int) -> None:
        traffic = model.traffic.moved_to(stable_version)
        await asyncio.to_thread(self._repository.write_traffic, model.name, traffic)
        model.traffic = traffic

    async def _load_model(self, name: str) -> None:
        model = self._models[name] = ServedModel(name)
        try:
            model.traffic = self._repository.traffic(name)
            config = read_config(self._repository.model_folder(name) / CONFIG_FILE, name)
        except Exception as error:
            reason = _reason(error, model=name)
            for number in self._repository.versions(name):
                model.versions[number] = _unavailable(number, Manifest(), reason)
            return
        wanted = self._kept(self._repository.versions(name), model.traffic)
        for number in self._repository.versions(name):
            await self._load_version(model, number, config, load=number in wanted)

    async def _load_version(
        self, model: ServedModel, number: int, config: ModelConfig | None, *, load: bool = True
    ) -> None:
        """Take one version in; whatever is wrong with it, the others shall serve."""
        folder = self._repository.version_folder(model.name, number)
        try:
            manifest = read_manifest(folder)
            if not load:
                model.versions[number] = _unavailable(number, manifest, self._surplus_reason())
                return
            loaded = await asyncio.to_thread(load_version, model.name, folder, config, self._settings, manifest)
        except Exception as error:
            reason = _reason(error, model=model.name, version=number)
            model.versions[number] = _unavailable(number, Manifest(), reason)
            return
        model.loaded[number] = loaded
        model.versions[number] = _ready(number, loaded)
        log.info("version ready", model=model.name, version=number)

    def _kept(self, versions: list[int], traffic: Traffic) -> set[int]:
        """Return which versions stay loaded: the newest, the one that serves and the one before it."""
        newest = sorted(versions)[-self._settings.loaded_versions :]
        return {*newest, traffic.stable_version, traffic.previous_version}

    def _surplus_reason(self) -> str:
        return (
            f"not loaded: only the stable, the previous and the newest {self._settings.loaded_versions} versions are "
            "(INFERENCE_LOADED_VERSIONS); SetTraffic loads it"
        )

    def _unload_surplus(self, model: ServedModel) -> None:
        kept = self._kept(list(model.versions), model.traffic)
        for number in [number for number in model.loaded if number not in kept]:
            version = model.loaded.pop(number)
            model.versions[number] = _unavailable(number, version.manifest, self._surplus_reason())
            version.close()

    async def _announce(self) -> None:
        # At once, before anything can wait: requests are resolved by it, and what was unloaded must not be in it.
        self._states = {name: self._models[name].state() for name in sorted(self._models)}
        async with self._changed:
            self._changed.notify_all()


async def _to_the_end(work: Coroutine[Any, Any, T]) -> T:
    """Run *work* as a whole: a caller that goes away meanwhile is let go when it is done."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait((task,))
        raise


def _reason(error: Exception, **what: object) -> str:
    """Log why something is not served, and return what callers are told."""
    status = status_of(error)
    log.warning("not served", reason=status.message, exc_info=None if status.expected else error, **what)
    return status.message


def _version_message(number: int, manifest: Manifest, state: pb.ModelVersion.State.ValueType) -> pb.ModelVersion:
    spec = manifest.preprocess
    message = pb.ModelVersion(
        version=number,
        state=state,
        labels=manifest.labels,
        preprocess_spec=spec.canonical_json() if spec else b"",
        preprocess_digest=spec.digest if spec else "",
        graph_digest=manifest.graph.sha256 if manifest.graph else "",
        metrics=manifest.metrics,
    )
    if manifest.create_time:
        with contextlib.suppress(ValueError):  # a foreign manifest's time in another form is no reason to refuse it
            message.create_time.FromJsonString(manifest.create_time)
    return message


def _ready(number: int, loaded: LoadedVersion) -> pb.ModelVersion:
    message = _version_message(number, loaded.manifest, pb.ModelVersion.STATE_READY)
    message.graph_digest = loaded.graph_digest
    message.labels[:] = loaded.labels
    return message


def _unavailable(number: int, manifest: Manifest, reason: str) -> pb.ModelVersion:
    message = _version_message(number, manifest, pb.ModelVersion.STATE_UNAVAILABLE)
    message.state_reason = reason
    return message
