"""All models in memory: brings them in line with the repository, resolves requests, publishes, moves traffic."""

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import structlog

from aimass.inference.v1 import lifecycle_pb2 as pb
from aimass.open_inference.model_config_pb2 import ModelConfig
from services.common.errors import Conflict, InvalidInput, NotFound, NotReady, Unsupported
from services.common.manifest import GRAPH_FILE, Manifest
from services.common.traffic import choose_version, model_not_found, ready_versions
from services.inference.batching.batcher import Inference
from services.inference.config.model_config import read_config
from services.inference.engine import Arrays
from services.inference.models.desired_traffic import Traffic
from services.inference.models.loading import Loader, refusal
from services.inference.models.repository import CONFIG_FILE, ModelRepository, fingerprint
from services.inference.models.served_model import ServedModel
from services.inference.models.shadowing import ShadowCounts
from services.inference.models.uploads import Upload, Uploads
from services.inference.models.version import LoadedVersion
from services.inference.settings import InferenceSettings

log = structlog.get_logger(__name__)
T = TypeVar("T")


class ModelServer:
    """The models of one repository."""

    def __init__(self, settings: InferenceSettings) -> None:
        self._settings = settings
        self._repository = ModelRepository(settings.repository)
        self._loader = Loader(settings, self._repository)
        self.uploads = Uploads(settings.repository)
        self._models: dict[str, ServedModel] = {}
        self._states: dict[str, pb.ModelState] | None = None
        self._changed = asyncio.Condition()
        self._changing: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        """Held, per model, while versions come and go or traffic moves."""
        self._polling: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Load what the repository holds; a version that fails stays UNAVAILABLE with the reason."""
        self._repository.remove_leftovers()
        self.uploads.remove_abandoned()
        for name in self._repository.models():
            await self._reconcile(name)
        await self._announce()
        if self._settings.poll_seconds:
            self._polling = asyncio.create_task(self._poll())

    async def close(self) -> None:
        """Free all graphs."""
        if self._polling is not None:
            self._polling.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._polling
        for model in self._models.values():
            model.close()

    def states(self) -> dict[str, pb.ModelState]:
        """Return the state of all models by name; not to be changed.

        Raises:
            NotReady: The repository is still being loaded.
        """
        if self._states is None:
            raise NotReady("the models are being loaded; try again", retry_after_seconds=1.0)
        return self._states

    def models(self) -> list[ServedModel]:
        """Return all models, to be looked at only."""
        return list(self._models.values())

    async def watch(self) -> AsyncIterator[list[pb.ModelState]]:
        """Yield the state of all models now and after each change; a slow reader gets the newest only."""
        seen: dict[str, pb.ModelState] | None = None
        while True:
            async with self._changed:
                while self._states is seen:  # not before the first load is complete
                    await self._changed.wait()
                seen = self.states()
            yield list(seen.values())

    def resolve(self, name: str, version: int = 0, routing_key: str | None = None) -> tuple[int, LoadedVersion]:
        """Return the version that serves a request; without a key, the stable one and never the canary.

        Raises:
            NotFound: The model or the version is unknown.
            NotReady: The version cannot serve.
        """
        state = self.states().get(name)
        if state is None:
            raise model_not_found(name, self.states())
        number = choose_version(state, version, routing_key)
        return number, self._models[name].loaded[number]

    def answered(
        self, name: str, number: int, inputs: Arrays, outputs: Sequence[str], samples: int, answer: Inference
    ) -> None:
        """Let the model's shadow have a request that the stable version has answered."""
        model = self._models.get(name)
        if model is not None and model.shadow is not None and number == model.traffic.stable_version:
            model.shadow.offer(model.loaded[number], inputs, outputs, samples, answer)

    async def publish_upload(self, name: str, upload: Upload, manifest: Manifest) -> pb.ModelVersion:
        """Add the version whose graph has been uploaded.

        The upload is finished when that is done or can never be; else the caller need not send it again.

        Raises:
            ServiceError: As `publish`.
        """
        staging = self.stage(name)
        try:
            await asyncio.to_thread(upload.copy_to, staging / GRAPH_FILE)
            return await self.publish(name, staging, manifest)
        except (InvalidInput, Unsupported):
            upload.finished = True
            raise
        finally:
            upload.finished |= not staging.exists()  # it is a version by now, though the caller may have gone
            self.discard(staging)

    async def publish(self, name: str, staging: Path, manifest: Manifest) -> pb.ModelVersion:
        """Add the version that lies in *staging*: load and check it, then give it a number, then announce it.

        Raises:
            InvalidInput: It does not load or does not do what its manifest says; nothing was added.
            Overloaded: There is no memory for it.
        """
        config = read_config(self._repository.model_folder(name) / CONFIG_FILE, name)
        loaded = await self._loader.load(name, staging, config, manifest)
        return await _to_the_end(self._add(name, staging, manifest, loaded))

    async def _add(self, name: str, staging: Path, manifest: Manifest, loaded: LoadedVersion) -> pb.ModelVersion:
        async with self._changing[name]:
            model = self._models.get(name) or self._new_model(name)
            try:
                serving = ready_versions(model.state())
                if serving and not model.traffic.stable_version:
                    # Without this a version that was dropped into the folder would lose its traffic to the new one.
                    await self._change_traffic(model, lambda traffic: traffic.moved_to(serving[-1]))
                newest = max(model.traffic.newest_version, model.traffic.stable_version, *model.versions, 0)
                number = await asyncio.to_thread(self._repository.commit, staging, manifest, newest)
                self._models[name] = model
                model.tried[number] = fingerprint(model.folder / str(number))
                model.put(number, loaded)
                if not model.traffic.stable_version:
                    await self._change_traffic(model, lambda traffic: traffic.moved_to(number))
                self._loader.unload_surplus(model)
            finally:
                await self._announce()
        log.info("version published", model=name, version=number)
        return model.versions[number]

    async def set_traffic(
        self,
        name: str,
        stable_version: int,
        expected_generation: int | None,
        *,
        canary_version: int = 0,
        canary_share: float = 0.0,
        shadow_version: int = 0,
    ) -> pb.Traffic:
        """Make the given traffic the wanted one, loading what is not loaded; on disk before this returns.

        Raises:
            InvalidInput: No stable version is named, or the share is none.
            NotFound: The model or a version is unknown.
            Conflict: A version cannot be loaded, or the generation is another one.
        """
        if stable_version == 0:
            raise InvalidInput("stable_version is missing; name a version of the model", field="stable_version")
        return await self._move(
            name,
            lambda traffic: traffic.moved_to(stable_version, canary_version, canary_share, shadow_version),
            expected_generation,
        )

    async def promote(self, name: str, version: int, expected_generation: int | None) -> pb.Traffic:
        """Make *version*, or else what is tried out, stable.

        Raises:
            ServiceError: As `set_traffic`.
        """
        return await self._move(name, lambda traffic: traffic.promoted(name, version), expected_generation)

    async def roll_back(self, name: str, expected_generation: int | None) -> pb.Traffic:
        """Take back what is tried out or, without that, the last change of the stable version.

        Raises:
            ServiceError: As `set_traffic`.
        """
        return await self._move(name, lambda traffic: traffic.rolled_back(name), expected_generation)

    async def _move(self, name: str, move: Callable[[Traffic], Traffic], expected: int | None) -> pb.Traffic:
        model = self._known(name)
        return await _to_the_end(self._move_model(model, move, expected))

    async def _move_model(
        self, model: ServedModel, move: Callable[[Traffic], Traffic], expected: int | None
    ) -> pb.Traffic:
        def change(current: Traffic) -> Traffic:
            current.expect(model.name, expected)
            return move(current)

        async with self._changing[model.name]:
            model.traffic = await asyncio.to_thread(self._repository.traffic, model.name)  # a replica may have moved it
            for number in sorted(change(model.traffic).versions):
                await self._require_ready(model, number, needed=number != model.traffic.previous_version)
            try:
                await self._change_traffic(model, change)
            finally:
                self._loader.unload_surplus(model)
                await self._announce()
            log.info("traffic moved", model=model.name, traffic=vars(model.traffic))
            return model.state().traffic

    async def delete(self, name: str, version: int) -> None:
        """Remove a version from memory and disk.

        Raises:
            NotFound: The model or the version is unknown.
            Conflict: It has a part in the traffic.
        """
        await _to_the_end(self._delete(self._known(name), version))

    async def _delete(self, model: ServedModel, version: int) -> None:
        def remember(traffic: Traffic) -> Traffic:
            serving = traffic.stable_version or max(ready_versions(model.state()), default=0)
            if version in {*traffic.versions, serving}:
                raise Conflict(
                    f"version {version} of model {model.name!r} has a part in its traffic; move that first",
                    reason="VERSION_IN_USE",
                )
            return traffic.without(max(model.versions))

        async with self._changing[model.name]:
            if version not in model.versions:
                choose_version(model.state(), version)  # says which there are
            if model.given:
                raise Conflict(
                    f"version {version} of model {model.name!r} came with the request that loaded it and is not in the "
                    "repository; load the model without files first",
                    reason="VERSION_NOT_IN_REPOSITORY",
                )
            await self._change_traffic(model, remember)
            await asyncio.to_thread(self._repository.delete, model.name, version)
            model.forget(version)
            await self._announce()
        log.info("version deleted", model=model.name, version=version)

    def shadow_counts(self, name: str) -> ShadowCounts | None:
        """Return what the shadow of a model has shown; None where it has none.

        Raises:
            NotFound: The model is unknown.
        """
        shadow = self._known(name).shadow
        return None if shadow is None else shadow.counts

    async def load(
        self, name: str, config: ModelConfig | None = None, files: Mapping[str, bytes] | None = None
    ) -> None:
        """Bring one model in line with its folder, also one that was unloaded.

        Args:
            name: Of the model.
            config: Takes the place of config.pbtxt until the next load.
            files: Path below the model's folder -> content; they take the place of the whole folder until then.

        Raises:
            NotFound: There is no such folder.
            InvalidInput: No version could be loaded, or a path leaves the folder; what served before goes on.
        """
        self.states()
        given = self._repository.write_aside(name, files) if files else None
        if given is None and not self._repository.versions(name):
            raise NotFound(
                f"failed to load {name!r}: the repository has no folder {name}/<version>/; create it",
                reason="MODEL_NOT_FOUND",
            )
        await _to_the_end(self._load(name, config, given))

    async def _load(self, name: str, config: ModelConfig | None, given: Path | None) -> None:
        async with self._changing[name]:
            model = self._models.get(name) or self._new_model(name)
            if given is not None or config is not None or model.config_given:
                model.tried.clear()
            model.stand_in(given, self._repository.model_folder(name))
            model.config, model.config_given, model.unloaded = config, config is not None, False
            model.retry_failed()
            await self._loader.bring_in_line(model, settle=False)
            self._models[name] = model
            await self._announce()
        newest = max(model.versions)
        if newest not in model.loaded or newest in model.failed_reloads:
            raise InvalidInput(
                f"failed to load {name!r}, version {newest}: {model.versions[newest].state_reason}",
                reason="LOAD_FAILED",
            )

    async def unload(self, name: str) -> None:
        """Unload all versions of a model, until it is loaded again; they finish what they have.

        Raises:
            NotFound: The model is unknown.
        """
        model = self._known(name)
        async with self._changing[name]:
            model.unloaded = True
            for number in list(model.loaded):
                model.drop(number, "unloaded by request; RepositoryModelLoad loads it")
            model.follow_shadow()
            await self._announce()
        log.info("model unloaded", model=name)

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

    def _known(self, name: str) -> ServedModel:
        if name not in self.states():
            raise model_not_found(name, self.states())
        return self._models[name]

    def _new_model(self, name: str) -> ServedModel:
        return ServedModel(name, self._repository.model_folder(name))

    async def _require_ready(self, model: ServedModel, version: int, *, needed: bool) -> None:
        if version in model.versions and version not in model.loaded:
            await self._loader.load_version(model, version)
        try:
            choose_version(model.state(), version)
        except NotReady as error:
            if needed:
                raise Conflict(error.message, reason="VERSION_NOT_READY") from error
        except NotFound:
            if needed:
                raise

    async def _change_traffic(self, model: ServedModel, change: Callable[[Traffic], Traffic]) -> None:
        model.traffic = await asyncio.to_thread(self._repository.change_traffic, model.name, change)

    async def _poll(self) -> None:
        """Follow what operators and other replicas do to the repository."""
        while True:
            await asyncio.sleep(self._settings.poll_seconds)
            before = dict(self._states or {})
            for name in {*self._repository.models(), *self._models}:
                try:
                    await self._reconcile(name, settle=True)
                except Exception as error:  # a folder that cannot be read now can be later
                    refusal(error, model=name)
            if {name: model.state() for name, model in self._models.items()} != before:
                await self._announce()

    async def _reconcile(self, name: str, *, settle: bool = False) -> None:
        async with self._changing[name]:
            model = self._models.get(name) or self._new_model(name)
            if not model.unloaded:
                await self._loader.bring_in_line(model, settle=settle)
            if model.versions or name in self._repository.models():
                self._models[name] = model
            else:
                self._models.pop(name, None)

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
