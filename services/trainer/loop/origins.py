"""Which runs a version comes from, and what they have learnt."""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from services.common.errors import InvalidInput, Unsupported
from services.common.manifest import GRAPH_FILE, MANIFEST_FILE, Manifest
from services.trainer.data.models import Model
from services.trainer.data.tables import SnapshotRow
from services.trainer.feedback.tables import LoopModelRow
from services.trainer.loop.facts import OriginFact
from services.trainer.loop.tables import PublicationRow
from services.trainer.runs.store import Run, RunStore
from services.trainer.sets import SNAPSHOT_PREFIX
from services.trainer.storage.database import Database

_RUN_PREFIX = "run:"
_MOST_ANCESTORS = 1000
"""More would be a circle."""


class Origins:
    """Finds runs; any thread may use it.

    Args:
        database: Migrated.
        store: The table of runs.
        runs: Folder of all runs.
    """

    def __init__(self, database: Database, store: RunStore, runs: Path) -> None:
        self._database = database
        self._store = store
        self._runs = runs
        self._by_digest: dict[str, str] = {}
        self._looked_at: set[str] = set()
        self._manifests: dict[str, Manifest] = {}
        self._can_be_cut: dict[str, bool] = {}

    def run_of(self, model: str, version: int, graph_digest: str) -> Run | None:
        """Return the run that made a version: that which the loop has published it from, or the one with its graph."""
        statement = select(PublicationRow.run).where(PublicationRow.model == model, PublicationRow.version == version)
        with self._database.read() as session:
            run_id = session.scalar(statement.limit(1))
        run_id = run_id or self._with_graph(graph_digest)
        return self._store.find(run_id, "") if run_id else None

    def lineage(self, run: Run) -> Iterator[Run]:
        """Yield *run*, the run that it was started from or made from, and so on."""
        found: Run | None = run
        for _ in range(_MOST_ANCESTORS):
            if found is None:
                return
            yield found
            found = self._parent(found)

    def is_made_from(self, run: Run | None, model: str, version: int, made_by: Run | None) -> bool:
        """Whether *run* names as its source that *version* of a model, which the run *made_by* has made."""
        sources = {f"{model}@{version}"} | ({_RUN_PREFIX + made_by.id} if made_by else set())
        return run is not None and _source(run.options) in sources

    def origin(self, task: Model, run: Run | None, tainted: Collection[str]) -> OriginFact | None:
        """Return the newest of a champion's run and its ancestors that is not tainted.

        Args:
            task: The model.
            run: Of its champion; None where it was not trained here.
            tainted: Ids of runs.
        """
        clean = (each for each in self.lineage(run) if each.id not in tainted) if run else iter(())
        found = next((each for each in clean if self.manifest(each.id) is not None), None)
        if found is None:
            return None
        with self._database.read() as session:
            row = session.get(LoopModelRow, task.name)
            base = row.base if row else ""
            learnt_base = base_of(session, found)
        manifest = self.manifest(found.id)
        fits = manifest is not None and (manifest.labels, manifest.preprocess) == (task.labels, task.spec)
        return OriginFact(found.id, fits and self._has_encoder(found.id), bool(base) and learnt_base == base)

    def tainted_runs(self, model: str, versions: Collection[int]) -> set[str]:
        """Return the ids of the runs that tainted *versions* of a model were published from."""
        statement = select(PublicationRow.run).where(
            PublicationRow.model == model,
            or_(PublicationRow.version.in_(sorted(versions)), PublicationRow.tainted_time.is_not(None)),
        )
        with self._database.read() as session:
            return set(session.scalars(statement))

    def manifest(self, run_id: str) -> Manifest | None:
        """Return what a run has made; None where it made no model, or is gone."""
        if run_id not in self._manifests:
            try:
                data = (self._runs / run_id / MANIFEST_FILE).read_bytes()
                self._manifests[run_id] = Manifest.from_json(data, MANIFEST_FILE)
            except (OSError, InvalidInput):
                return None
        return self._manifests[run_id]

    def _with_graph(self, digest: str) -> str | None:
        """Return the run whose graph has *digest*; each folder is read once."""
        if digest not in self._by_digest:
            names = {path.parent.name for path in self._runs.glob(f"*/{MANIFEST_FILE}")}
            for name in sorted(names - self._looked_at):
                manifest = self.manifest(name)
                if manifest is not None and manifest.graph is not None:
                    self._by_digest.setdefault(manifest.graph.sha256, name)
            self._looked_at = names
        return self._by_digest.get(digest)

    def _parent(self, run: Run) -> Run | None:
        source = _source(run.options)
        if source.startswith(_RUN_PREFIX):
            return self._store.find(source.removeprefix(_RUN_PREFIX), "")
        model, _, version = source.rpartition("@")
        return self.run_of(model, int(version), "") if version.isdecimal() else None

    def _has_encoder(self, run_id: str) -> bool:
        """Whether the run's graph can be cut before its last layer."""
        if run_id not in self._can_be_cut:
            from services.trainer.export.tail import find_tail  # onnx comes with it, which services can mostly spare

            try:
                find_tail(self._runs / run_id / GRAPH_FILE)
                self._can_be_cut[run_id] = True
            except (Unsupported, OSError):
                self._can_be_cut[run_id] = False
        return self._can_be_cut[run_id]


def base_of(session: Session, run: Run) -> str:
    """Return the set that a run has learnt beside users' samples; empty for none."""
    if not run.dataset.startswith(SNAPSHOT_PREFIX):
        return run.dataset
    row = session.get(SnapshotRow, run.dataset.removeprefix(SNAPSHOT_PREFIX))
    return row.base if row is not None else ""


def _source(options: dict[str, Any]) -> str:
    """Return what a run was made from, as its options name it; empty for none."""
    return str(options.get("source") or options.get("start_from") or options.get("training", {}).get("start_from", ""))
