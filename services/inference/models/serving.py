"""All models in memory: brings them in line with the repository, resolves requests, publishes, moves traffic."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

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
from services.inference.models.loading import Loader, Wanted, refusal
from services.inference.models.repository import (
    CONFIG_FILE,
    Fingerprint,
    ModelRepository,
    check_same_graph,
    fingerprint,
)
from services.inference.models.served_model import ServedModel
from services.inference.models.shadowing import ShadowCounts
from services.inference.models.uploads import Upload, Uploads
from services.inference.models.version import LoadedVersion
from services.inference.settings import InferenceSettings

log = structlog.get_logger(__name__)
T = TypeVar("T")


class Resolved(NamedTuple):
    """What serves a request."""

    number: int
    """Of the version."""
    version: LoadedVersion
    generation: int
    """Of the traffic that chose it."""


class ModelServer:
    """The models of one repository."""

    def __init__(self, settings: InferenceSettings) -> None:
        self._settings = settings
        self._repository = ModelRepository(settings.repository)
        self._loader = Loader(settings, self._repository, self._announce)
        self.uploads = Uploads(settings.repository)
        self._models: dict[str, ServedModel] = {}
        self._states: dict[str, pb.ModelState] | None = None
        self._changed = asyncio.Event()
        """Set, and exchanged for another one, when the states change."""
        self._loading: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        """Held, per model, while versions come and go; taken before `_changing`."""
        self._changing: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        """Held, per model, while traffic moves, which must not wait for versions that are being loaded."""
        self._polling: asyncio.Task[None] | None = None
        self._following: dict[str, asyncio.Task[None]] = {}
        """By model: a look at its folder that is not over."""

    async def start(self) -> None:
        """Load what the repository holds; a version that fails stays UNAVAILABLE with the reason."""
        self._repository.remove_leftovers()
        self.uploads.remove_abandoned()
        for name in self._repository.models():
            await self._reconcile(name)
        self._states = {name: model.state() for name, model in sorted(self._models.items()) if model.versions}
        self._tell()
        if self._settings.poll_seconds:
            self._polling = asyncio.create_task(self._poll())

    async def close(self) -> None:
        """Free all graphs."""
        tasks = [task for task in (self._polling, *self._following.values()) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
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
            while self._states is seen:  # not before the first load is complete
                await self._changed.wait()
            seen = self.states()
            yield list(seen.values())

    def resolve(self, name: str, version: int = 0, routing_key: str | None = None) -> Resolved:
        """Return the version that serves a request; without a key, the stable one and never the canary.

        Raises:
            NotFound: The model or the version is unknown.
            NotReady: The version cannot serve.
        """
        state = self.states().get(name)
        if state is None:
            raise model_not_found(name, self.states())
        number = choose_version(state, version, routing_key)
        return Resolved(number, self._models[name].loaded[number], state.traffic.generation)

    def answered(
        self, name: str, resolved: Resolved, inputs: Arrays, outputs: Sequence[str], samples: int, answer: Inference
    ) -> None:
        """Let the model's shadow have a request that the stable version has answered."""
        model = self._models.get(name)
        if model is not None and model.shadow is not None and resolved.number == model.traffic.stable_version:
            model.shadow.offer(resolved.version, inputs, outputs, samples, answer)

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

    def published(self, name: str, manifest: Manifest) -> pb.ModelVersion | None:
        """Return the version of the model that was published as *manifest* says, where there is one.

        Raises:
            Conflict: It has another graph.
        """
        model = self._models.get(name)
        for version in model.versions.values() if model and manifest.publication_id else ():
            if version.publication_id == manifest.publication_id:
                check_same_graph(name, version.version, version.graph_digest, manifest)
                return version
        return None

    async def publish(self, name: str, staging: Path, manifest: Manifest) -> pb.ModelVersion:
        """Add the version that lies in *staging*: load and check it, then give it a number, then announce it.

        Returns:
            The version, or the one that was published with the same identity before.

        Raises:
            InvalidInput: It does not load or does not do what its manifest says; nothing was added.
            Conflict: Another graph was published with that identity.
            Overloaded: There is no memory for it.
        """
        model = self._models.get(name) or self._new_model(name)
        _require_own(model)
        config, mark = model.config, model.config_mark
        if mark is None:  # a model that is new
            mark = fingerprint(model.folder / CONFIG_FILE)
            config = await asyncio.to_thread(read_config, model.folder / CONFIG_FILE, name)
        loaded = await self._loader.load(name, staging, config, manifest)
        return await _to_the_end(self._add(name, staging, manifest, loaded, config, mark))

    async def _add(
        self,
        name: str,
        staging: Path,
        manifest: Manifest,
        loaded: LoadedVersion,
        config: ModelConfig | None,
        mark: Fingerprint,
    ) -> pb.ModelVersion:
        async with self._loading[name], self._changing[name]:
            model = self._models.get(name) or self._new_model(name)
            _require_own(model)
            if model.config_mark is None:
                model.config, model.config_mark = config, mark
            try:
                serving = ready_versions(model.state())
                if serving and not model.traffic.stable_version:
                    # Without this a version that was dropped into the folder would lose its traffic to the new one.
                    await self._change_traffic(model, lambda traffic: traffic.moved_to(serving[-1]))
                newest = max(model.traffic.newest_version, model.traffic.stable_version, *model.versions, 0)
                number = await asyncio.to_thread(self._repository.commit, staging, manifest, newest)
                self._models[name] = model
                model.tried[number] = fingerprint(model.folder / str(number))
                if number not in model.loaded:  # else it was published before
                    model.put(number, loaded)
                if not model.traffic.stable_version:
                    await self._change_traffic(model, lambda traffic: traffic.moved_to(number))
                self._loader.unload_surplus(model)
            finally:
                self._announce(name)
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
        forget_previous: bool = False,
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
            lambda traffic: traffic.moved_to(
                stable_version, canary_version, canary_share, shadow_version, forget_previous=forget_previous
            ),
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
        self._known(name)
        return await _to_the_end(self._move_model(name, move, expected))

    async def _move_model(self, name: str, move: Callable[[Traffic], Traffic], expected: int | None) -> pb.Traffic:
        def change(current: Traffic) -> Traffic:
            current.expect(name, expected)
            return move(current)

        async with self._changing[name]:
            missing = await self._missing(name, change)
            if not missing:
                return await self._change(name, change)
        async with self._loading[name]:
            for number in missing:
                await self._loader.load_version(self._known(name), number)
            async with self._changing[name]:
                return await self._change(name, change)

    async def _missing(self, name: str, change: Callable[[Traffic], Traffic]) -> list[int]:
        """Return the versions that have to be loaded before the traffic is what *change* makes of it."""
        model = self._known(name)
        wanted = change(await asyncio.to_thread(self._repository.traffic, name))  # a replica may have moved it
        return [number for number in sorted(wanted.versions) if number in model.versions and number not in model.loaded]

    async def _change(self, name: str, change: Callable[[Traffic], Traffic]) -> pb.Traffic:
        """Change the traffic on disk and then, in one step, in memory, where all that it needs is loaded."""
        model = self._known(name)
        _require_own(model)
        state = model.state()

        def change_to_ready(current: Traffic) -> Traffic:
            traffic = change(current)
            for number in traffic.versions - {traffic.previous_version}:
                _require_ready(state, number)
            return traffic

        model.traffic = await asyncio.to_thread(self._repository.change_traffic, name, change_to_ready)
        self._loader.unload_surplus(model)
        self._announce(name)
        log.info("traffic moved", model=name, traffic=vars(model.traffic))
        return model.state().traffic

    async def delete(self, name: str, version: int) -> None:
        """Remove a version from memory and disk.

        Raises:
            NotFound: The model or the version is unknown.
            Conflict: It has a part in the traffic.
        """
        self._known(name)
        await _to_the_end(self._delete(name, version))

    async def _delete(self, name: str, version: int) -> None:
        def remember(traffic: Traffic) -> Traffic:
            serving = traffic.stable_version or max(ready_versions(model.state()), default=0)
            if version in {*traffic.versions, serving}:
                raise Conflict(
                    f"version {version} of model {name!r} has a part in its traffic; move that first",
                    reason="VERSION_IN_USE",
                )
            return traffic.without(max(model.versions))

        async with self._loading[name], self._changing[name]:
            model = self._known(name)
            if version not in model.versions:
                choose_version(model.state(), version)  # says which there are
            _require_own(model)
            model.traffic = await asyncio.to_thread(self._repository.delete, name, version, remember)
            model.forget(version)
            self._announce(name)
        log.info("version deleted", model=name, version=version)

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
        given = await asyncio.to_thread(self._repository.write_aside, name, files) if files else None
        if given is None and not self._repository.versions(name):
            raise NotFound(
                f"failed to load {name!r}: the repository has no folder {name}/<version>/; create it",
                reason="MODEL_NOT_FOUND",
            )
        await _to_the_end(self._load(name, config, given))

    async def _load(self, name: str, config: ModelConfig | None, given: Path | None) -> None:
        async with self._loading[name]:
            before = self._models.get(name)
            if before is None or given or config or before.given or before.config_given:
                # Beside the one that serves, which goes on where this comes to nothing.
                folder = given or self._repository.model_folder(name)
                model = ServedModel(name, folder, given is not None, config=config, config_given=config is not None)
                if before is not None:
                    model.traffic = before.traffic
            else:
                model = before
                model.unloaded = False
                model.retry_failed()
            wanted = await self._loader.load_wanted(model, settle=False)
            problem = model.problem()
            if problem and model is not before and (before is not None or not model.versions):
                model.close()
            else:
                await self._take_over(model, wanted)
        if problem:
            raise InvalidInput(f"failed to load {name!r}, {problem}", reason="LOAD_FAILED")

    async def unload(self, name: str) -> None:
        """Unload all versions of a model, until it is loaded again; they finish what they have.

        Raises:
            NotFound: The model is unknown.
        """
        self._known(name)
        async with self._changing[name]:
            model = self._known(name)
            model.unloaded = True
            for number in list(model.loaded):
                model.drop(number, "unloaded by request; RepositoryModelLoad loads it")
            model.follow_shadow()
            self._announce(name)
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

    async def _change_traffic(self, model: ServedModel, change: Callable[[Traffic], Traffic]) -> None:
        model.traffic = await asyncio.to_thread(self._repository.change_traffic, model.name, change)

    async def _poll(self) -> None:
        """Follow what operators and other replicas do to the repository."""
        while True:
            await asyncio.sleep(self._settings.poll_seconds)
            try:
                found = await asyncio.to_thread(self._repository.models)
            except OSError as error:  # what cannot be read now can be later
                refusal(error, repository=str(self._settings.repository))
                continue
            self._following = {name: task for name, task in self._following.items() if not task.done()}
            for name in {*found, *self._models} - set(self._following):
                self._following[name] = asyncio.create_task(self._follow(name))

    async def _follow(self, name: str) -> None:
        try:
            await self._reconcile(name, settle=True)
        except Exception as error:  # a folder that cannot be read now can be later
            refusal(error, model=name)

    async def _reconcile(self, name: str, *, settle: bool = False) -> None:
        """Bring memory in line with a model's folder, config and traffic."""
        async with self._loading[name]:
            model = self._models.get(name) or self._new_model(name)
            if not model.unloaded:
                await self._take_over(model, await self._loader.load_wanted(model, settle=settle))

    async def _take_over(self, model: ServedModel, wanted: Wanted) -> None:
        """Let *model*, in which all is loaded that can be, be what is served under its name."""
        name = model.name
        async with self._changing[name]:
            traffic = model.traffic
            if wanted.traffic is not None:
                traffic = await asyncio.to_thread(self._repository.traffic, name)
            present = await asyncio.to_thread(model.folder.is_dir)
            if not model.unloaded:  # from here on nothing waits until the change is told
                self._loader.take_over(model, wanted, traffic)
            before = self._models.pop(name, None)
            if model.versions or present:
                self._models[name] = model
            self._announce(name)
            if before is not None and before is not model:
                before.close()

    def _announce(self, name: str) -> None:
        """Tell followers how a model is now; requests are resolved by it, so what has gone must not be in it."""
        if self._states is None:  # the first load is not complete
            return
        states = {key: state for key, state in self._states.items() if key != name}
        model = self._models.get(name)
        if model is not None and model.versions:  # what is only being copied yet would make the server not ready
            states[name] = model.state()
        if states != self._states:
            self._states = dict(sorted(states.items()))
            self._tell()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


def _require_own(model: ServedModel) -> None:
    """Refuse to change on disk what a request brought along.

    Raises:
        Conflict: The model's versions are not those of the repository.
    """
    if model.given:
        raise Conflict(
            f"model {model.name!r} is served from files that came with a request, not from the repository; load it "
            "without files first",
            reason="MODEL_NOT_FROM_REPOSITORY",
        )


def _require_ready(state: pb.ModelState, version: int) -> None:
    """Refuse to let a version serve that cannot.

    Raises:
        NotFound: There is no such version.
        Conflict: It is not loaded.
    """
    try:
        choose_version(state, version)
    except NotReady as error:
        raise Conflict(error.message, reason="VERSION_NOT_READY") from error


async def _to_the_end(work: Coroutine[Any, Any, T]) -> T:
    """Run *work* as a whole: a caller that goes away meanwhile is let go when it is done."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait((task,))
        raise
