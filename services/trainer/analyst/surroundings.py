"""What work on a model depends on beside the rows: versions, encoder and public sets, each kept while it is good."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import structlog
from numpy.typing import NDArray
from sqlalchemy import func, select

from services.common.errors import Conflict, NotReady, ServiceError
from services.common.manifest import PreprocessSpec
from services.trainer.analyst.answering import OTHER_LABELS, Inference, ServedVersions
from services.trainer.analyst.basis import Basis, BasisFeatures, embed_basis, load_basis
from services.trainer.analyst.encoders import Encoders, OpenedEncoder
from services.trainer.analyst.figures import add_figure
from services.trainer.analyst.holdouts import publish_holdout
from services.trainer.analyst.judged import Judged, find_judged
from services.trainer.analyst.placing import Ground
from services.trainer.analyst.spaces import FeatureSpace
from services.trainer.analyst.stopping import GoOn
from services.trainer.analyst.stored import find_observations
from services.trainer.analyst.work import Wanted
from services.trainer.clock import now
from services.trainer.data.models import Model
from services.trainer.data.observing import mark_changed
from services.trainer.data.sources import DataSources
from services.trainer.feedback.tables import FindingRow, LoopModelRow
from services.trainer.loop.refusals import REFUSAL
from services.trainer.loop.streams import UNREADABLE
from services.trainer.loop.tables import EventRow
from services.trainer.runs.folder import LEARNT_FILE
from services.trainer.settings import TrainerSettings
from services.trainer.storage.database import Database

LISTED_SECONDS = 1.0
"""How long a list of versions is believed."""
AWAY_SECONDS = 5.0
"""After which inference that was away is asked again."""
MISSING_SECONDS = 60.0
"""After which a set that could not be read, or the run that made a version, is looked for again."""

_NOTHING = ServedVersions(0, {}, {})

log = structlog.get_logger(__name__)


class Surroundings:
    """Of one model.

    Args:
        database: Migrated.
        settings: Where things lie.
        task: The model.
        clock: Gives seconds.
    """

    def __init__(self, database: Database, settings: TrainerSettings, task: Model, clock: Callable[[], float]) -> None:
        self.task = task
        self.inference = Inference(settings.inference_address)
        self._database = database
        self._clock = clock
        self._sources = DataSources(settings.data, tuple(map(Path, settings.data_roots)), database, settings.blobs)
        self._encoders = Encoders(database, settings.runs)
        self._encoder: OpenedEncoder | None = None
        self._served = _NOTHING
        self._listed_until = -1.0
        self._heeded = -1
        self._judged: Judged | None = None
        self._sets: dict[str, tuple[float, Basis | None]] = {}
        self._features: tuple[tuple[str, str], BasisFeatures] | None = None
        self._space: FeatureSpace | None = None
        self._unreadable: set[int] = set()
        self._refused: set[int] = set()
        self._learnt: dict[str, tuple[float, NDArray[np.uint64]]] = {}
        self._unusable: set[str] = set()

    def look(self, holdout: str) -> Wanted:
        """Return what work depends on now.

        Args:
            holdout: Name of the set whose test part versions are measured on; empty for the model's base set.

        Raises:
            NotReady: The database does not answer.
        """
        self._list_versions()
        self._encoder = self._encoders.current(self.task)
        if self._encoder is not None and self._encoder.digest in self._unusable:
            self._encoder = None
        judging = self.holdout(holdout)
        self._read_judged()
        there = self._served is not _NOTHING
        judged = self._judged if there and self._judged is not None else Judged(0, self._served.champion, 0)
        self._refuse_other_labels(judged)
        return Wanted(
            encoder=self._encoder.digest if self._encoder is not None else "",
            champion=judged.champion,
            candidate=judged.candidate,
            ready=frozenset(self._served.specs) - self._refused,
            holdout=judging.holdout_digest if judging is not None else "",
            without=frozenset(self._unreadable),
        )

    @property
    def encoder(self) -> OpenedEncoder:
        """The encoder that the last look has found."""
        assert self._encoder is not None, "work with an encoder is found only where there is one"
        return self._encoder

    def version(self, number: int) -> tuple[int, PreprocessSpec]:
        """Return a version that is ready, and what pixels it takes."""
        return number, self._served.specs[number]

    def learnt_by(self, version: int) -> NDArray[np.uint64]:
        """Return what stands for the pixels that a version has learnt; nothing where no run here made it."""
        digest = self._served.graph_digests[version]
        until, learnt = self._learnt.get(digest, (-1.0, np.empty(0, np.uint64)))
        if self._clock() >= until:
            folder = self._encoders.folder_of(digest)
            until = self._clock() + MISSING_SECONDS  # the folder of a run may be brought here later
            if folder is not None and (folder / LEARNT_FILE).is_file():
                until, learnt = math.inf, np.load(folder / LEARNT_FILE, allow_pickle=False)
            self._learnt[digest] = until, learnt
        return learnt

    def holdout(self, name: str) -> Basis | None:
        """Return the set that versions are measured on; None where there is none or it cannot be read."""
        return self._set(name or self._base_name())

    def ground(self, go_on: GoOn) -> Ground:
        """Return what pictures are placed on, up to date with the rows.

        Raises:
            NotReady: The database does not answer.
            Overloaded: The disk has no room for the features of the base set.
        """
        encoder = self.encoder
        if self._space is None or self._space.encoder != encoder.digest:
            self._space = FeatureSpace(self.task.name, encoder.digest, encoder.width)
        with self._database.read() as session:
            self._space.refresh(session)
        basis = self._set(self._base_name())
        if basis is None:
            return Ground(self.task, self._space, None, None)
        key = (encoder.digest, basis.digest)
        if self._features is None or self._features[0] != key:
            try:
                self._features = key, embed_basis(basis, encoder, self._sources.prepared, go_on)
            except Conflict as error:
                log.warning("a set cannot be compared with", set=basis.name, reason=error.message)
                self._forget_set("", MISSING_SECONDS)
                return Ground(self.task, self._space, None, None)
        return Ground(self.task, self._space, basis, self._features[1])

    def cannot_read(self, problems: dict[int, str]) -> None:
        """Leave pictures alone from now on, by number why; the streams of judged pictures pass over them."""
        if not problems:
            return
        for number, reason in problems.items():
            log.warning("a picture cannot be read", observation=number, reason=reason)
        self._unreadable |= problems.keys()
        detail = "its file is gone or damaged"
        with self._database.begin(alone=True) as session:
            there = [row.number for row in find_observations(session, list(problems))]
            for number in there:
                session.merge(FindingRow(observation=number, kind=UNREADABLE, level=1.0, detail=detail, time=now()))
            session.flush()
            mark_changed(session, there)

    def refuses(self, version: int, error: Conflict) -> None:
        """Do not ask a version again before the next cycle; the gate of the present one rules by that."""
        log.warning("a version does not answer", version=version, reason=error.message)
        self._refused.add(version)
        if self._judged is None:
            return
        with self._database.begin(alone=True) as session:
            window = {"cycle": self._judged.cycle, "version": version}
            add_figure(session, self.task.name, REFUSAL, window, {"rule": error.reason, "detail": error.message})

    def has_lost(self, holdout: str, version: int, error: Conflict) -> None:
        """Read the hold-out again, a picture of which is lost; where that does not help, a version cannot answer it.

        Args:
            holdout: As `look` takes it.
            version: That takes other pixels than those that the hold-out has.
            error: Which picture.
        """
        before = self.holdout(holdout)
        self._forget_set(holdout, 0)
        after = self.holdout(holdout)
        if after is None or (before is not None and before.holdout_digest == after.holdout_digest):
            self.refuses(version, error)

    def does_not_fit(self, reason: str) -> None:
        """Do without the present encoder from now on."""
        log.warning("the encoder does not fit the pictures", encoder=self.encoder.digest, reason=reason)
        self._unusable.add(self.encoder.digest)

    @property
    def without_inference(self) -> bool:
        """Whether inference was away when it was last asked."""
        return self._served is _NOTHING

    def is_away(self, reason: str) -> None:
        """Do without inference for a while."""
        if self._served is not _NOTHING:
            log.info("inference is away", reason=reason)
        self._served, self._listed_until = _NOTHING, self._clock() + AWAY_SECONDS

    def close(self) -> None:
        """Close the channel."""
        self.inference.close()

    def _list_versions(self) -> None:
        if self._clock() < self._listed_until:
            return
        try:
            self._served = self.inference.versions(self.task)
        except NotReady as error:
            self.is_away(error.message)
            return
        self._listed_until = self._clock() + LISTED_SECONDS
        digest = self._served.graph_digests.get(self._served.champion)
        if digest is not None:
            self._encoders.ensure(self.task, digest)

    def _read_judged(self) -> None:
        """Find out which versions are judged; what one has refused in another cycle it is asked again."""
        with self._database.read() as session:
            last = session.scalar(select(func.max(EventRow.number)).where(EventRow.model == self.task.name)) or 0
            if last == self._heeded:
                return
            before, self._judged = self._judged, find_judged(session, self.task.name)
            self._heeded = last
        if self._judged is not None and (before is None or before.cycle != self._judged.cycle):
            self._refused.clear()

    def _refuse_other_labels(self, judged: Judged) -> None:
        for version in sorted({judged.champion, judged.candidate} & self._served.other_labels - self._refused):
            message = (
                f"{self.task.name}@{version} has no preprocess spec, or other labels than the model, "
                f"{', '.join(self.task.labels[:10])}; publish one that has them"
            )
            self.refuses(version, Conflict(message, reason=OTHER_LABELS))

    def _base_name(self) -> str:
        with self._database.read() as session:
            row = session.get(LoopModelRow, self.task.name)
        return row.base if row is not None else ""

    def _forget_set(self, holdout: str, seconds: float) -> None:
        """Do without a set for so long, then read it again."""
        self._sets[holdout or self._base_name()] = self._clock() + seconds, None

    def _set(self, name: str) -> Basis | None:
        if not name:
            return None
        until, basis = self._sets.get(name, (-1.0, None))
        if basis is None and self._clock() >= until:
            try:
                basis = load_basis(name, self.task, self._sources)
                with self._database.begin(alone=True) as session:
                    publish_holdout(session, self.task.name, basis)
            except NotReady:
                raise
            except ServiceError as error:
                log.warning("a set cannot be compared with", set=name, reason=error.message)
            self._sets[name] = self._clock() + MISSING_SECONDS, basis
        return basis
