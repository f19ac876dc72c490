"""Does the work that there is for a model, piece by piece."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog
from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from services.common.errors import Conflict, InvalidInput, NotReady
from services.trainer.analyst.answering import answer_observations, answer_set
from services.trainer.analyst.drift import Judge, measure_errors, measure_shifts
from services.trainer.analyst.embedding import embed_observations
from services.trainer.analyst.placing import place
from services.trainer.analyst.quality import measure_quality
from services.trainer.analyst.screening import screen
from services.trainer.analyst.stopping import Stopped
from services.trainer.analyst.stored import StoredPictures
from services.trainer.analyst.surroundings import AWAY_SECONDS, Surroundings
from services.trainer.analyst.work import Answer, Drift, Embed, Screen, Sift, Wanted, Work, find_work
from services.trainer.data.blobs import Blobs
from services.trainer.data.models import find_model
from services.trainer.data.originals import SET_CHANGED
from services.trainer.data.tables import ObservationRow, PredictionRow
from services.trainer.feedback.sifting import Sifter
from services.trainer.loop.overview import pictures_wait
from services.trainer.loop.policy import LoopPolicy
from services.trainer.loop.tables import EventRow
from services.trainer.settings import TrainerSettings
from services.trainer.storage.database import Database

POLL_SECONDS = 0.5
LOOK_SECONDS = 20.0
"""How often all is looked through where nobody waits for it: for what time alone makes due, and for pictures that only
came; together they take a fraction of what they would one by one."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class _News:
    """By which it is seen that rows have come. Numbers are 0 where there is none yet."""

    change: int
    """Of pictures."""
    draw: int
    event: int
    waits: bool
    """Whether something was sent or said of pictures that no verdict heeds."""


def _read_news(session: Session, model: str) -> _News:
    newest = (
        select(func.coalesce(func.max(column), 0)).where(table.model == model).scalar_subquery()
        for table, column in (
            (ObservationRow, ObservationRow.changed_number),
            (PredictionRow, PredictionRow.draw),
            (EventRow, EventRow.number),
        )
    )
    change, draw, event = session.execute(select(*newest)).one()
    return _News(change, draw, event, pictures_wait(session, model))


class Analyst:
    """The analyst of one model; one thread uses it.

    Args:
        database: Migrated.
        settings: Where things lie.
        model: Name of the model.
        policy_of: How often to look, whom to trust.
        stop: Set where the process is to end: a long piece of work is broken off.
        clock: Gives seconds.

    Raises:
        NotFound: There is no such model.
    """

    def __init__(
        self,
        database: Database,
        settings: TrainerSettings,
        model: str,
        policy_of: Callable[[str], LoopPolicy],
        stop: threading.Event,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._task = find_model(database, model)
        self._policy_of = policy_of
        self._stop = stop
        self._clock = clock
        self._pictures = StoredPictures(Blobs(settings.blobs))
        self._surroundings = Surroundings(database, settings, self._task, clock)
        self._sifter = Sifter(database, policy_of)
        self._seen: tuple[_News, Wanted] | None = None
        """With which there was nothing to do."""
        self._seen_until = -1.0
        self._news_wait = False
        """Whether something has come since, which is to be looked at: no other analyst would be started for it."""

    def run(self, idle_seconds: float) -> None:
        """Work until there was nothing to do for so long, or the process is to end.

        Raises:
            ServiceError: Something is in the way that waiting does not help, such as a full disk.
        """
        idle_since = self._clock()
        while not self._stop.is_set():
            try:
                if self.step():
                    idle_since = self._clock()
                    continue
            except Stopped:
                return
            except NotReady as error:
                log.warning("the analyst waits", reason=error.message)
                self._news_wait = False
            if self._clock() - idle_since >= idle_seconds and not self._news_wait:
                return
            self._stop.wait(POLL_SECONDS)

    def step(self) -> bool:
        """Do one piece of work; return whether there was any.

        Raises:
            Stopped: The process is to end; what was not finished is found again.
            ServiceError: As `run`, and NotReady where the database does not answer.
        """
        work = self.find()
        if work is None:
            return False
        begin = self._clock()
        try:
            self._do(work)
        except IntegrityError:  # what it was about was deleted meanwhile
            self._stop.wait(POLL_SECONDS)
        log.debug("work done", work=type(work).__name__, seconds=round(self._clock() - begin, 3))
        return True

    def find(self) -> Work | None:
        """Return the next piece of work; None where there is none, or where all that there is may wait for more."""
        with self._database.read() as session:
            news = _read_news(session, self._task.name)
        rests = self._clock() < self._seen_until
        self._news_wait = rests and self._seen is not None and news != self._seen[0]
        if rests and not self._is_awaited(news):
            return None
        policy = self._policy_of(self._task.name)
        wanted = self._surroundings.look(policy.judging.holdout)
        if rests and (news, wanted) == self._seen:
            return None
        with self._database.read() as session:
            work = find_work(session, self._task.name, wanted, policy.alarm, datetime.now(UTC))
        if work is None:
            self._seen, self._news_wait = (news, wanted), False
            self._seen_until = self._clock() + (AWAY_SECONDS if self._surroundings.without_inference else LOOK_SECONDS)
        return work

    def _is_awaited(self, news: "_News") -> bool:
        """Whether somebody waits for what has come since there was nothing to do: who has sent words, or a gate."""
        if self._seen is None:
            return True
        before, wanted = self._seen
        return wanted.candidate > 0 or news.event != before.event or (news.waits and news != before)

    def close(self) -> None:
        """Close the channel to inference."""
        self._surroundings.close()

    def _do(self, work: Work) -> None:
        match work:
            case Embed():
                self._embed(work)
            case Answer():
                self._answer(work)
            case Sift():
                if work.observations:
                    self._place(work)
                self._sifter.sift(self._task.name)
            case Screen():
                ground = self._surroundings.ground(self._go_on)
                screen(self._database, ground, self._surroundings.encoder, work.changed_number, self._go_on)
                self._sifter.sift(self._task.name)
            case Drift():
                self._look_for_drift(work)

    def _embed(self, work: Embed) -> None:
        try:
            problems = embed_observations(self._database, self._pictures, self._surroundings.encoder, work.observations)
        except InvalidInput as error:
            self._surroundings.does_not_fit(error.message)
            return
        self._surroundings.cannot_read(problems)

    def _place(self, work: Sift) -> None:
        ground = self._surroundings.ground(self._go_on)
        neighbours = self._policy_of(self._task.name).trust.neighbours
        place(self._database, self._pictures, ground, work.observations, neighbours)

    def _answer(self, work: Answer) -> None:
        version = self._surroundings.version(work.version)
        inference = self._surroundings.inference
        holdout_name = self._policy_of(self._task.name).judging.holdout
        try:
            if work.set_digest:
                basis = self._surroundings.holdout(holdout_name)
                assert basis is not None, "its digest was told"
                holdout = work.set_digest, basis.originals["test"]
                answer_set(self._database, inference, self._task, version, holdout, self._go_on)
                return
            learnt = self._surroundings.learnt_by(work.version)
            problems = answer_observations(
                self._database, self._pictures, inference, self._task, version, work.observations, learnt
            )
        except Conflict as error:
            if error.reason == SET_CHANGED:
                self._surroundings.has_lost(holdout_name, work.version, error)
            else:
                self._surroundings.refuses(work.version, error)
        except NotReady as error:
            self._surroundings.is_away(error.message)
        else:
            self._surroundings.cannot_read(problems)

    def _look_for_drift(self, work: Drift) -> None:
        policy = self._policy_of(self._task.name)
        wanted: Wanted = self._surroundings.look(policy.judging.holdout)
        if work.windows is not None and wanted.champion:
            holdout = self._surroundings.holdout(policy.judging.holdout)
            labels = holdout.test.labels if holdout is not None else None
            judge = Judge(wanted.champion, wanted.holdout, labels)
            measure_shifts(self._database, self._task, wanted.encoder, judge, work.windows, policy.alarm)
        if wanted.champion:
            measure_errors(self._database, self._task, wanted.champion, policy.alarm, datetime.now(UTC))
        last_draw = work.windows.recent.last if work.windows is not None else 0
        measure_quality(self._database, self._pictures, self._task, last_draw, work.changed_number, self._go_on)

    def _go_on(self) -> None:
        if self._stop.is_set():
            raise Stopped
