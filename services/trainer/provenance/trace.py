"""Follows an answer to what the version that gave it had learnt."""

from dataclasses import dataclass, replace

import numpy as np
import structlog
from numpy.typing import NDArray
from sqlalchemy import select
from sqlalchemy.orm import Session

from services.common.errors import NotFound, NotReady, ServiceError
from services.trainer.data.features import features_path, unpack
from services.trainer.data.models import Model, find_model
from services.trainer.data.pinned import load_base
from services.trainer.data.sources import DataSources
from services.trainer.data.tables import (
    ObservationRow,
    PredictionRow,
    SampleRow,
    SnapshotRow,
    SnapshotSampleRow,
)
from services.trainer.feedback.observations import find_prediction
from services.trainer.feedback.tables import EmbeddingRow, EncoderRow, LoopModelRow
from services.trainer.loop.origins import Origins, base_of
from services.trainer.loop.tables import PublicationRow
from services.trainer.provenance.lineage import Graphs
from services.trainer.runs.store import Run
from services.trainer.sets import SNAPSHOT_PREFIX
from services.trainer.statistics.neighbours import nearest
from services.trainer.storage.database import Database

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class TracedSample:
    """A sample that a version has learnt."""

    sample: int
    """Number; 0 for one of the base set."""
    base_sample: str
    """Such as `cifar10-slice train[17]`; empty for one that users gave."""
    label: str
    contributor: str = ""
    """Empty for the owner, and where nobody is known any more."""
    time: str = ""
    """When it came, RFC 3339; empty for one of the base set."""
    similarity: float = 0.0
    """Cosine of the angle between both features, -1 to 1."""


@dataclass(frozen=True)
class Trace:
    """Where an answer comes from; what is not known is empty."""

    model: str
    version: int
    graph_digest: str
    run_id: str
    snapshot: str
    """Digest; empty where the run has learnt from another set."""
    samples: tuple[TracedSample, ...]
    """Nearest first; none where the picture has no features yet."""
    tainted: bool


class Tracer:
    """Traces predictions; any thread may ask.

    Args:
        database: Migrated.
        origins: Finds runs of versions.
        sources: Where data sets are found.
        graphs: Says what inference has.
    """

    def __init__(self, database: Database, origins: Origins, sources: DataSources, graphs: Graphs) -> None:
        self._database = database
        self._origins = origins
        self._sources = sources
        self._graphs = graphs
        self._bases: dict[tuple[str, str], tuple[str, NDArray[np.int64]]] = {}
        """By model and set: digest of the set, and labels of its training samples."""

    def trace(self, prediction_id: str, count: int) -> Trace:
        """Return where a prediction comes from, with the *count* learnt samples that are most like its picture.

        Raises:
            NotFound: It was not captured, or is no longer kept.
            NotReady: The database does not answer.
        """
        with self._database.read() as session:
            row = find_prediction(session, prediction_id)
            if row is None:
                raise NotFound(
                    f"prediction {prediction_id[:50]!r} was not captured or is forgotten; name one that is "
                    "kept, or try again in some seconds where it has just been made",
                    reason="PREDICTION_NOT_FOUND",
                    field="prediction_id",
                )
            published = select(PublicationRow).where(
                PublicationRow.model == row.model, PublicationRow.version == row.version
            )
            publication = session.scalar(published.limit(1))
        digest = self._served_digest(row.model, row.version)
        run = self._origins.run_of(row.model, row.version, digest)
        manifest = self._origins.manifest(run.id) if run else None
        snapshot = ""
        if run is not None and run.dataset.startswith(SNAPSHOT_PREFIX):
            snapshot = run.dataset.removeprefix(SNAPSHOT_PREFIX)
        return Trace(
            row.model,
            row.version,
            digest or (manifest.graph.sha256 if manifest and manifest.graph else ""),
            run.id if run else publication.run if publication else "",
            snapshot,
            self._nearest(row, run, snapshot, count) if run else (),
            publication is not None and publication.tainted_time is not None,
        )

    def _served_digest(self, model: str, version: int) -> str:
        try:
            return self._graphs().get(model, {}).get(version, "")
        except NotReady:  # what the loop has published is known all the same
            return ""

    def _nearest(self, row: PredictionRow, run: Run, snapshot: str, count: int) -> tuple[TracedSample, ...]:
        """Return the learnt samples that are most like the picture of a prediction, by its newest features."""
        task = find_model(self._database, row.model)
        with self._database.read() as session:
            found = session.execute(
                select(EmbeddingRow.encoder, EmbeddingRow.vector)
                .join(EncoderRow, EncoderRow.digest == EmbeddingRow.encoder)
                .where(EmbeddingRow.observation == row.observation, EncoderRow.model == row.model)
                .order_by(EncoderRow.create_time.desc(), EncoderRow.digest)
                .limit(1)
            ).first()
            if found is None:
                return ()
            given = _given(session, task, snapshot, found.encoder)
            name, drawn = _base(session, task.name, run, snapshot)
        query = unpack(found.vector)
        samples, features = [each for each, _ in given], [vector for _, vector in given]
        base = self._base_features(task, name, found.encoder) if name else None
        if base is not None:
            positions = range(len(base.labels)) if drawn is None else drawn
            samples += [
                TracedSample(0, f"{name} train[{position}]", task.labels[base.labels[position]])
                for position in positions
            ]
            features += list(base.features[np.asarray(positions, np.int64)])
        if not samples:
            return ()
        rows, similarity = nearest(query[None], np.stack(features), count)
        return tuple(
            replace(samples[position], similarity=float(value))
            for position, value in zip(rows[0].tolist(), similarity[0].tolist(), strict=True)
        )

    def _base_features(self, task: Model, name: str, encoder: str) -> "_Base | None":
        """Return the training part of a base set with its features, where the analyst has made them."""
        key = (task.name, name)
        if key not in self._bases:
            try:
                dataset = load_base(name, task, self._sources)
            except ServiceError as error:
                log.info("the base set of a trace is not at hand", set=name, reason=error.message)
                return None
            self._bases[key] = dataset.digest, dataset.train.labels
        digest, labels = self._bases[key]
        try:
            features = np.load(features_path(self._sources.prepared, encoder, digest), "r", allow_pickle=False)
        except (OSError, ValueError):
            return None
        return _Base(labels, features[: len(labels)])


@dataclass(frozen=True, eq=False)
class _Base:
    labels: NDArray[np.int64]
    features: NDArray[np.float16]


def _given(
    session: Session, task: Model, snapshot: str, encoder: str
) -> list[tuple[TracedSample, NDArray[np.float16]]]:
    """Return the training samples of a snapshot that users gave, with their features."""
    statement = (
        select(
            SnapshotSampleRow.sample,
            SnapshotSampleRow.label,
            EmbeddingRow.vector,
            SampleRow.contributor,
            SampleRow.create_time,
            ObservationRow.create_time.label("first_time"),
        )
        .join(EmbeddingRow, EmbeddingRow.observation == SnapshotSampleRow.observation)
        .join(ObservationRow, ObservationRow.number == SnapshotSampleRow.observation)
        .outerjoin(SampleRow, SampleRow.number == SnapshotSampleRow.sample)  # it may have another label by now
        .where(
            SnapshotSampleRow.snapshot == snapshot,
            SnapshotSampleRow.part == "train",
            EmbeddingRow.encoder == encoder,
        )
        .order_by(SnapshotSampleRow.sample)
    )
    return [
        (
            TracedSample(
                each.sample, "", task.labels[each.label], each.contributor or "", each.create_time or each.first_time
            ),
            unpack(each.vector),
        )
        for each in session.execute(statement)
    ]


def _base(session: Session, model: str, run: Run, snapshot: str) -> tuple[str, list[int] | None]:
    """Return the base set that a run has learnt, and which of its training samples; None for all of them."""
    pinned = session.get(SnapshotRow, snapshot) if snapshot else None
    if pinned is not None:
        return pinned.base, pinned.base_drawn
    row = session.get(LoopModelRow, model)
    learnt = base_of(session, run)
    return (learnt, None) if row is not None and learnt == row.base else ("", None)
