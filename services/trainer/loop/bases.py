"""The public sets that samples of users are learnt beside, and whose test parts are the hold-outs."""

from collections.abc import Callable, Sequence

import structlog
from sqlalchemy.orm import Session

from services.common.errors import ServiceError
from services.trainer.data.choosing import Caps
from services.trainer.data.cifar10 import LABELS
from services.trainer.data.models import find_model
from services.trainer.data.pinned import describe_base, load_base
from services.trainer.data.snapshots import Snapshot, make_snapshot
from services.trainer.data.sources import DataSources
from services.trainer.feedback.observations import ensure_loop_model
from services.trainer.feedback.tables import LoopModelRow
from services.trainer.loop.policy import LoopPolicy
from services.trainer.storage.database import Database

ALWAYS_HERE = "cifar10-slice"
"""Part of the repository; the base of models with its labels whose own set is not on this machine."""

log = structlog.get_logger(__name__)


def settle_base(database: Database, sources: DataSources, model: str, wanted: Sequence[str]) -> None:
    """Give a model the first of *wanted* sets that it can learn from, or the one that is always here, once for ever.

    Without one, candidates have no hold-out. To be called again until there is one: a set may come onto this machine.

    Raises:
        NotReady: The database does not answer.
    """
    task = find_model(database, model)
    with database.read() as session:
        row = session.get(LoopModelRow, model)
        if row is not None and row.base:
            return
    always = (ALWAYS_HERE,) if task.labels == LABELS else ()
    for name in dict.fromkeys((*wanted, *always)):
        try:
            load_base(name, task, sources)
        except ServiceError as error:
            log.info("no base set", model=model, set=name, reason=error.message)
            continue
        with database.begin(alone=True) as session:
            ensure_loop_model(session, model).base = name
        return


class BaseSnapshots:
    """Chooses samples of users, and of the model's base beside them.

    Args:
        database: Migrated.
        sources: Where sets are found.
    """

    def __init__(self, database: Database, sources: DataSources) -> None:
        self._database = database
        self._sources = sources

    def prepare(self, model: str, policy: LoopPolicy) -> Callable[[Session], Snapshot]:
        """Read the base, and return what then chooses of the samples that are accepted.

        Raises:
            ServiceError: The base cannot be read; also when choosing, where there is nothing to learn from.
        """
        task = find_model(self._database, model)
        with self._database.read() as session:
            row = session.get(LoopModelRow, model)
        name = row.base if row else ""
        base = describe_base(load_base(name, task, self._sources)) if name else None
        caps = Caps(policy.trust.cap_share, policy.trust.cap_least)
        retrain = policy.retrain
        return lambda session: make_snapshot(
            session, model, base, caps=caps, base_per_new=retrain.base_per_new, base_least=retrain.base_least
        )
