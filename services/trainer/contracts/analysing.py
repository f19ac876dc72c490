"""Gathers what the analysis of a model in use is made from."""

import asyncio

from services.common.errors import NotReady
from services.trainer.data.models import find_model
from services.trainer.loop.analysis import make_analysis
from services.trainer.loop.analysis_page import render_analysis
from services.trainer.loop.log import EventLog
from services.trainer.loop.overview import read_overview
from services.trainer.loop.policy import LoopPolicy
from services.trainer.loop.reading import Reader
from services.trainer.loop.state import LoopState
from services.trainer.statistics.intervals import Interval
from services.trainer.storage.database import Database

_ALARMS = 20
"""Newest ones that are told of."""


class Analysing:
    """Makes analyses, one at a time: each reads all that was said of a model's pictures.

    Args:
        database: Migrated.
        events: Has the alarms.
        reader: Reads the rest.
    """

    def __init__(self, database: Database, events: EventLog, reader: Reader) -> None:
        self._database = database
        self._events = events
        self._reader = reader
        self._turn = asyncio.Semaphore(1)

    async def tell(self, state: LoopState, policy: LoopPolicy) -> tuple[bytes, bytes]:
        """Return what is known of the model of *state*, as JSON and as a page, both UTF-8.

        Raises:
            NotFound: There is no such model.
            NotReady: The database does not answer.
        """
        async with self._turn:
            version, interval = await read_accuracy(self._reader, state.model)
            worth = (await self._reader.facts(state, policy)).worth

            def make() -> tuple[bytes, bytes]:
                alarms = self._events.last(state.model, "alarm.raised", _ALARMS)
                task = find_model(self._database, state.model)
                with self._database.read() as session:
                    overview = read_overview(session, state, policy)
                    analysis = make_analysis(session, task, overview, version, interval, worth, policy, alarms)
                return analysis.model_dump_json().encode(), render_analysis(analysis).encode()

            return await asyncio.to_thread(make)


async def read_accuracy(reader: Reader, model: str) -> tuple[int, Interval | None]:
    """Return the version that serves and its accuracy on the traffic; 0 and None while inference does not say.

    Raises:
        NotFound: There is no such model.
    """
    try:
        return await reader.accuracy(model)
    except NotReady:  # the rest is known all the same
        return 0, None
