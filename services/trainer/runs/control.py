"""What can be done with runs: create, look, cancel, resume, publish."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import grpc
from pydantic import BaseModel

from services.common.channels import SIBLING_OPTIONS
from services.common.errors import Conflict, InvalidInput, NotFound, NotReady, ServiceError
from services.common.manifest import MANIFEST_FILE
from services.trainer.clock import now
from services.trainer.options import ConversionOptions, InspectionOptions, TuningOptions
from services.trainer.publishing import publish_version, set_stable
from services.trainer.runs.admission import Admission
from services.trainer.runs.artifacts import ARTIFACTS
from services.trainer.runs.folder import CHOICE_FILE, PROGRESS_FILE, REQUEST_FILE, RunFolder, read_document
from services.trainer.runs.progress import Progress, read_newest
from services.trainer.runs.record import Options, Request, RunKind, RunState, check_run_id
from services.trainer.runs.store import Run, RunFilter, RunStore, name_taken
from services.trainer.runs.supervisor import Supervisor
from services.trainer.runs.watching import Update, watch_run
from services.trainer.sets import ModelSamples

MAX_CLIENT_ID = 128
_KINDS = {kind.options: kind for kind in RunKind}
_PASSING = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED)
"""Statuses by which inference says nothing of the model that was sent."""


class RunControl:
    """The runs of a database, and a supervisor for those of one queue.

    Args:
        store: The table of runs.
        supervisor: Starts those that are created or resumed here.
        admission: Looks at their options first.
        inference_address: Where models are published.
    """

    def __init__(self, store: RunStore, supervisor: Supervisor, admission: Admission, inference_address: str) -> None:
        self._store = store
        self._supervisor = supervisor
        self._admission = admission
        self._inference_address = inference_address

    async def create(self, options: Options, client_id: str = "", run_id: str = "") -> Run:
        """Queue a run; the same *client_id* or *run_id* with equal options gives the run that is there already.

        That holds whatever has become of the data set, the disk or other runs since.

        Raises:
            InvalidInput: The options or a name are wrong.
            NotFound: What the options name does not exist.
            Conflict: A name belongs to another run, or the options name a run without a model.
            Overloaded: There is too little disk space.
        """
        if len(client_id) > MAX_CLIENT_ID:
            raise InvalidInput(
                f"client id has {len(client_id)} characters; use up to {MAX_CLIENT_ID}", field="client_id"
            )
        if run_id:
            check_run_id(run_id)
        run = await asyncio.to_thread(self._create, options, client_id, run_id)
        self._supervisor.wake()
        return run

    async def get(self, run_id: str) -> tuple[Run, Progress | None]:
        """Return a run and how far it is.

        Raises:
            NotFound: There is no such run.
        """
        run = await asyncio.to_thread(self._store.get, check_run_id(run_id))
        return run, await asyncio.to_thread(read_newest, self.folder(run_id) / PROGRESS_FILE)

    async def list(self, selected: RunFilter, limit: int, before: int | None = None) -> list[Run]:
        """Return *limit* runs at most, newest first, that are older than the one with the number *before*."""
        return await asyncio.to_thread(self._store.list, selected, limit, before)

    def watch(self, run_id: str, position: int = 0) -> AsyncIterator[Update]:
        """Yield what has happened to a run and what happens, until it has ended.

        Raises:
            NotFound: There is no such run.
            InvalidInput: *position* is not one that an update gave.
        """
        return watch_run(self._store, self.folder(run_id), run_id, position)

    async def cancel(self, run_id: str) -> Run:
        """End a queued run, or ask a running one to stop; its checkpoint stays.

        Raises:
            NotFound: There is no such run.
            Conflict: It has ended otherwise.
        """
        run = await asyncio.to_thread(self._store.request_cancel, check_run_id(run_id))
        if run.state is RunState.RUNNING and run.queue != self._supervisor.queue:
            run = await self._supervisor.take_over(run)
        self._supervisor.wake()
        return run

    async def resume(self, run_id: str) -> Run:
        """Let a run that failed, was cancelled or lost its supervisor go on from its checkpoint, in the queue here.

        Returns:
            The run; where it turns out to have succeeded when its supervisor was gone already, as that.

        Raises:
            NotFound: There is no such run.
            Conflict: It has succeeded, a process that ends just now is at work on it, or it has learnt what is deleted.
            Overloaded: There is too little disk space.
        """
        run = await asyncio.to_thread(self._store.get, check_run_id(run_id))
        if run.state is RunState.RUNNING and run.queue != self._supervisor.queue:
            run = await self._supervisor.take_over(run)
            if run.state in (RunState.RUNNING, RunState.SUCCEEDED):
                return run
        run = await asyncio.to_thread(self._resume, run_id)
        self._supervisor.wake()
        return run

    async def publish(
        self, run_id: str, model: str, *, stable: bool = False, force: bool = False, publication_id: str = ""
    ) -> int:
        """Send the model of a run to inference, and return the number of its version.

        Args:
            run_id: A run that has succeeded.
            model: Name under which inference serves it.
            stable: Whether the version gets the traffic.
            force: Publish also a conversion that was measured as not worth it.
            publication_id: Whoever publishes again with the same one gets the version that is there.

        Raises:
            NotFound: There is no such run.
            Conflict: It has no model, one that is not worth it or that has learnt what is deleted, or inference refuses
                it.
            NotReady: Inference is away.
        """
        run = await asyncio.to_thread(self._store.get, check_run_id(run_id))
        await asyncio.to_thread(self._admission.refuse_tainted, run_id)
        folder = self.folder(run_id)
        if run.state is not RunState.SUCCEEDED or not (folder / MANIFEST_FILE).exists():
            raise Conflict(f"run {run_id!r} is {run.state} and has no model to publish; name one that has succeeded")
        choice = await asyncio.to_thread(read_document, folder / CHOICE_FILE, _Choice)
        if choice is not None and not choice.chosen and not force:
            raise Conflict(
                f"the model of run {run_id!r} was {choice.reason}; publish the model that it was made from, or this "
                "one all the same with force",
                reason="NOT_CHOSEN",
            )
        return await asyncio.to_thread(self._publish, folder.path, model, stable, publication_id)

    def artifact(self, run_id: str, name: str) -> Path:
        """Return the path of a file that a run has made.

        Raises:
            InvalidInput: No run makes such a file.
            NotFound: There is no such run, or it has not made the file.
            Conflict: The run has learnt what is deleted: a copy of its files could not be taken back.
        """
        if name not in ARTIFACTS:
            raise InvalidInput(f"artifact {name[:100]!r} is unknown; use one of {', '.join(ARTIFACTS)}", field="name")
        self._store.get(check_run_id(run_id))
        self._admission.refuse_tainted(run_id)
        path = self.folder(run_id) / name
        if not path.exists():
            raise NotFound(f"run {run_id!r} has no {name}; look at its state and its kind", field="name")
        return path

    def folder(self, run_id: str) -> RunFolder:
        """Return where the files of a run lie."""
        return self._supervisor.folder(check_run_id(run_id))

    def _create(self, options: Options, client_id: str, run_id: str) -> Run:
        known = self._store.find(run_id, client_id)
        if known is not None:
            if self._is_asked_for(known, options):
                return known
            raise name_taken(known, client_id)
        options = self._admission.admit(options)
        self._supervisor.check_disk()
        if run_id:
            self._check_unused(run_id)
        request = Request(
            id=run_id or _make_id(options),
            kind=_KINDS[type(options)],
            options=options,
            trusted=self._admission.trusted,
            create_time=now(),
        )
        return self._store.create(request, self._supervisor.queue, client_id)

    def _check_unused(self, run_id: str) -> None:
        """Make sure that no files of another life lie where the run would write."""
        folder = self.folder(run_id)
        if (folder / REQUEST_FILE).exists():
            raise Conflict(
                f"{folder.path} holds a run that the database does not know; remove it or give this one another id",
                field="id",
            )

    def _is_asked_for(self, run: Run, options: Options) -> bool:
        """Whether *run* was created from *options*, which came with a name of it."""
        training = options.training if isinstance(options, TuningOptions | InspectionOptions) else options
        dataset = "" if isinstance(training, ConversionOptions) else training.dataset
        if not _is_same_set(dataset, run.dataset):
            options = self._admission.admit(options)
        elif training is options:
            options = options.model_copy(update={"dataset": run.dataset} if dataset else {})
        else:
            options = options.model_copy(
                update={"training": training.model_copy(update={"dataset": run.dataset})},
            )
        asked = (_KINDS[type(options)], options.model_dump(mode="json"))
        return asked == (run.kind, run.options) and run.trusted <= self._admission.trusted

    def _resume(self, run_id: str) -> Run:
        run = self._store.get(run_id)
        if run.state is RunState.SUCCEEDED or (run.queue == self._supervisor.queue and not run.state.final):
            return self._store.resume(run_id, self._supervisor.queue)  # refuses, or goes on already
        self._admission.refuse_tainted(run_id)
        self._supervisor.check_disk()
        folder = self.folder(run_id)
        with folder.locked():
            if run.state in (RunState.FAILED, RunState.CANCELLED):
                folder.forget_outcome()
            return self._store.resume(run_id, self._supervisor.queue)

    def _publish(self, folder: Path, model: str, stable: bool, publication_id: str) -> int:
        try:
            with grpc.insecure_channel(self._inference_address, options=SIBLING_OPTIONS) as channel:
                version = publish_version(channel, model, folder, publication_id=publication_id).version
                if stable:
                    set_stable(channel, model, version)
                return version
        except grpc.RpcError as error:
            raise self._refusal(folder.name, error) from error

    def _refusal(self, run_id: str, error: grpc.RpcError) -> ServiceError:
        if error.code() in _PASSING:
            return NotReady(
                f"inference at {self._inference_address} does not answer: {error.details()}; publish again when it does"
            )
        kind = InvalidInput if error.code() is grpc.StatusCode.INVALID_ARGUMENT else Conflict
        return kind(f"inference refuses the model of run {run_id!r}: {error.details()}")


class _Choice(BaseModel):
    """What is needed here of `choice.json`."""

    chosen: bool
    reason: str


def _is_same_set(asked: str, admitted: str) -> bool:
    """Whether *admitted* is what became of the data set *asked*; a folder need not be there any more."""
    if asked == admitted:
        return True
    samples, pinned = ModelSamples.parse(asked), ModelSamples.parse(admitted)
    if samples is not None and pinned is not None:
        return samples.last is None and replace(samples, last=pinned.last) == pinned
    parts = Path(asked).parts
    return bool(parts) and Path(admitted).parts[-len(parts) :] == parts


def _make_id(options: Options) -> str:
    kind = _KINDS[type(options)]
    name = getattr(options, "recipe", "") or kind.lower()
    return f"{name}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
