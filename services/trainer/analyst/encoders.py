"""Which encoder a model's pictures are embedded with: the champion's graph without its last layer."""

from functools import cached_property
from pathlib import Path

import numpy as np
import structlog
from numpy.typing import NDArray
from sqlalchemy import select

from services.common.errors import ServiceError
from services.common.manifest import GRAPH_FILE, MANIFEST_FILE, Manifest, PreprocessSpec
from services.trainer.clock import now
from services.trainer.data.models import Model
from services.trainer.export.encoder import Encoder
from services.trainer.export.tail import cut_encoder, find_tail
from services.trainer.feedback.tables import EncoderRow
from services.trainer.runs.folder import ENCODER_FILE
from services.trainer.statistics.heads import Head
from services.trainer.storage.database import Database

log = structlog.get_logger(__name__)


class Encoders:
    """Finds the graphs of runs, and cuts encoders off them.

    Args:
        database: Migrated.
        runs: Folder of all runs.
    """

    def __init__(self, database: Database, runs: Path) -> None:
        self._database = database
        self._runs = runs
        self._looked_for: set[tuple[str, str]] = set()
        self._opened: dict[str, OpenedEncoder] = {}

    def current(self, task: Model) -> "OpenedEncoder | None":
        """Return the newest encoder of a model; None where it has none, or the graph is gone."""
        with self._database.read() as session:
            row = session.scalar(
                select(EncoderRow)
                .where(EncoderRow.model == task.name)
                .order_by(EncoderRow.create_time.desc(), EncoderRow.digest)
                .limit(1)
            )
        if row is None:
            return None
        folder = self._runs / row.run
        if row.digest not in self._opened:
            spec = _spec_of(folder)
            if spec is None or not (folder / ENCODER_FILE).is_file():
                return None
            self._opened = {row.digest: OpenedEncoder(folder, spec, len(task.labels))}
        return self._opened[row.digest]

    def ensure(self, task: Model, graph_digest: str) -> None:
        """Let the model have the encoder of the graph that serves, where a run on this machine made it.

        Args:
            task: The model.
            graph_digest: `sha256:<hex>` of the graph.
        """
        if (task.name, graph_digest) in self._looked_for:
            return
        self._looked_for.add((task.name, graph_digest))
        folder = self.folder_of(graph_digest)
        if folder is None:
            log.info("no run on this machine made what serves; pictures are not embedded", model=task.name)
            return
        try:
            digest = cut_encoder(folder / GRAPH_FILE, folder / ENCODER_FILE)
            width = find_tail(folder / GRAPH_FILE).width
        except ServiceError as error:
            log.warning("what serves has no features to compare pictures by", model=task.name, reason=error.message)
            return
        with self._database.begin(alone=True) as session:
            row = session.get(EncoderRow, (task.name, digest))
            if row is None:
                session.add(
                    EncoderRow(digest=digest, model=task.name, run=folder.name, features=width, create_time=now())
                )
            elif not (self._runs / row.run / ENCODER_FILE).is_file():
                row.run = folder.name  # that of the run before was erased

    def folder_of(self, graph_digest: str) -> Path | None:
        """Return the folder of a run on this machine that made the graph of that digest, `sha256:<hex>`."""
        for path in sorted(self._runs.glob(f"*/{MANIFEST_FILE}")):
            try:
                graph = Manifest.from_json(path.read_bytes(), str(path)).graph
            except (OSError, ServiceError):  # erased meanwhile, or damaged: it is not ours to complain
                continue
            if graph is not None and graph.sha256 == graph_digest and (path.parent / GRAPH_FILE).is_file():
                return path.parent
        return None


class OpenedEncoder:
    """An encoder with the head that it was cut off.

    Args:
        folder: Of its run.
        spec: How pictures become the pixels that it takes; the model's own may be another one.
        classes: Labels of the model.
    """

    def __init__(self, folder: Path, spec: PreprocessSpec, classes: int) -> None:
        self._folder = folder
        self.spec = spec
        self._classes = classes
        self._encoder = Encoder(folder / ENCODER_FILE, threads=1)  # more would get in the way of serving
        self.digest = self._encoder.digest
        self.width = self._encoder.width

    def embed(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the features (n, f) of *images*, uint8 (n, H, W, 3).

        Raises:
            InvalidInput: They have another size than those that the encoder takes.
        """
        return self._encoder.embed(images)

    @cached_property
    def head(self) -> Head:
        """The last layer to fit others from: the graph's own, or zeros where that is for other labels."""
        try:
            head = find_tail(self._folder / GRAPH_FILE).head
        except (OSError, ServiceError):
            head = None
        if head is not None and len(head.weight) == self._classes:
            return head
        zeros = np.zeros((self._classes, self.width), np.float32)
        return Head(zeros, np.zeros(self._classes, np.float32))


def _spec_of(folder: Path) -> PreprocessSpec | None:
    """Return the preprocess spec of what a run has made; None where that is gone or damaged."""
    try:
        return Manifest.from_json((folder / MANIFEST_FILE).read_bytes(), MANIFEST_FILE).preprocess
    except (OSError, ServiceError):
        return None
