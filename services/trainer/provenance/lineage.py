"""Which runs have seen pictures of users, and which have learnt from such runs."""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import select
from sqlalchemy.orm import Session

from services.common.errors import InvalidInput
from services.trainer.data.blobs import Blobs
from services.trainer.data.collection import digest_contents
from services.trainer.data.files import read_file
from services.trainer.data.models import Model
from services.trainer.data.observing import Role
from services.trainer.data.pictures import MAX_IMAGE_BYTES, read_picture
from services.trainer.data.tables import ObservationRow, SampleRow, SnapshotRow, SnapshotSampleRow
from services.trainer.loop.origins import Origins
from services.trainer.loop.tables import PublicationRow
from services.trainer.provenance.subjects import Subjects, in_batches
from services.trainer.runs.folder import LEARNT_FILE
from services.trainer.runs.store import Run, RunFilter, RunStore
from services.trainer.sets import SNAPSHOT_PREFIX, ModelSamples
from services.trainer.storage.database import Database

Graphs = Callable[[], Mapping[str, Mapping[int, str]]]
"""Returns by model and version the digest of the graph, `sha256:<hex>`, of all that inference has.

Raises NotReady while inference does not answer.
"""


@dataclass(frozen=True)
class Lost:
    """A picture that goes, or whose label does."""

    observation: int
    samples: frozenset[int]
    """Numbers of all samples that it was."""
    snapshots: frozenset[str]
    """Digests of those that hold it, or its label."""
    create_time: str
    whole: bool
    """Whether the picture goes; else its label does."""
    content: int | None = None
    """What stands for its pixels in `learnt.npy`; None where that was not looked for, or it cannot be read."""


@dataclass(frozen=True)
class Taint:
    """What has learnt from something."""

    runs: frozenset[str]
    versions: Mapping[str, Mapping[int, str]]
    """By model, the number of each with its run."""


class Lineage:
    """Finds runs and versions; any thread may use it.

    Args:
        database: Migrated.
        store: The table of runs.
        origins: Finds runs of versions.
        runs: Folder of all runs.
        blobs: Folder of pictures.
    """

    def __init__(self, database: Database, store: RunStore, origins: Origins, runs: Path, blobs: Path) -> None:
        self._database = database
        self._store = store
        self._origins = origins
        self._runs = runs
        self._blobs = Blobs(blobs)

    def contents(self, task: Model, pictures: Sequence[int]) -> dict[int, int]:
        """Return by number what stands for the pixels of pictures in `learnt.npy`, where a run may have to be asked.

        Only runs on `model:<name>`, or beside it, are: what others have learnt is in snapshots. Pictures that cannot be
        read are left out.
        """
        bases = self._bases()
        if not any(_names_samples(run, task.name, bases) for run in self._store.list(RunFilter())):
            return {}
        found = {}
        for numbers in in_batches(pictures):
            with self._database.read() as session:
                rows = list(session.scalars(select(ObservationRow).where(ObservationRow.number.in_(numbers))))
            for row in rows:
                try:
                    data = read_file(self._blobs.path(row.content_digest), MAX_IMAGE_BYTES + 1)
                    pixels = read_picture(data, row.orientation).pixels(task.spec)
                except InvalidInput:
                    continue
                found[row.number] = int(digest_contents(pixels[None], np.zeros(1, np.int64))[0])
        return found

    def learners(self, model: str, lost: Sequence[Lost]) -> list[str]:
        """Return the ids of the runs that have seen any of *lost* in their own data set, in the order of their age.

        A run on a snapshot has seen what the snapshot holds, and what its base does. One on `model:<name>` has seen the
        samples of its numbers, and what its model has learnt; where it says nothing of that, all that was there when it
        was created.
        """
        runs, bases = sorted(self._store.list(RunFilter()), key=lambda run: run.number), self._bases()
        return [run.id for run in runs if self._has_seen(run, _names_samples(run, model, bases), lost)]

    def taint(self, learners: Collection[str], graphs: Graphs) -> Taint:
        """Return *learners* with all runs that were started or made from one of them, and their versions.

        Raises:
            NotReady: Inference does not answer.
        """
        runs, served, all_runs = set(learners), graphs(), self._store.list(RunFilter())
        while True:
            versions = self._versions(runs, served)
            names = {f"run:{run_id}" for run_id in runs}
            names |= {f"{model}@{version}" for model, numbers in versions.items() for version in numbers}
            more = {run.id for run in all_runs if run.id not in runs and names & set(_texts(run.options))}
            if not more:
                return Taint(frozenset(runs), versions)
            runs |= more

    def _versions(self, runs: Collection[str], served: Mapping[str, Mapping[int, str]]) -> dict[str, dict[int, str]]:
        manifests = {run_id: self._origins.manifest(run_id) for run_id in runs}
        by_graph = {each.graph.sha256: run_id for run_id, each in manifests.items() if each and each.graph}
        published = select(PublicationRow.model, PublicationRow.version, PublicationRow.run)
        with self._database.read() as session:
            known = {(row.model, row.version): row.run for row in session.execute(published)}
        # Whose run is known goes by that: a clean run may have made the same graph.
        guessed = {
            (model, version): by_graph[digest]
            for model, graphs in served.items()
            for version, digest in graphs.items()
            if digest in by_graph
        }
        found: dict[str, dict[int, str]] = {}
        for (model, version), run_id in (guessed | known).items():
            if version is not None and run_id in runs:
                found.setdefault(model, {})[version] = run_id
        return found

    def _bases(self) -> dict[str, str]:
        """Return the base of each snapshot, by the name of the latter as a set."""
        with self._database.read() as session:
            rows = session.execute(select(SnapshotRow.digest, SnapshotRow.base)).all()
        return {SNAPSHOT_PREFIX + digest: base for digest, base in rows}

    def _has_seen(self, run: Run, samples: ModelSamples | None, lost: Sequence[Lost]) -> bool:
        digest = run.dataset.removeprefix(SNAPSHOT_PREFIX)
        if any(digest in each.snapshots for each in lost):
            return True
        if samples is None:
            return False
        if any(_is_among(samples, each.samples) for each in lost):
            return True
        learnt = self._learnt(run.id)
        return any(
            run.create_time >= each.create_time
            if learnt is None or each.content is None
            else bool((learnt == each.content).any())
            for each in lost
            if each.whole
        )

    def _learnt(self, run_id: str) -> NDArray[np.uint64] | None:
        try:
            learnt: NDArray[np.uint64] = np.load(self._runs / run_id / LEARNT_FILE, allow_pickle=False)
            return learnt
        except (OSError, ValueError):  # it makes no model, is not so far, or is damaged
            return None


def describe_lost(session: Session, subjects: Subjects, contents: Mapping[int, int]) -> list[Lost]:
    """Return what runs may have seen of *subjects*: pictures that go, and labels that nobody else has given.

    What candidates are judged on is left out: no run sees it.

    Args:
        session: To be asked before the rows are gone.
        subjects: As `find_subjects` gives them.
        contents: As `Lineage.contents` gives them.
    """
    went, found = frozenset(subjects.pictures), []
    for some in in_batches(sorted({*subjects.pictures, *subjects.labels})):
        came = select(ObservationRow.number, ObservationRow.create_time).where(
            ObservationRow.number.in_(some), ObservationRow.role != Role.JUDGE
        )
        times: dict[int, str] = dict(session.execute(came).all())
        samples, snapshots = defaultdict[int, set[int]](set), defaultdict[int, set[str]](set)
        made = select(SampleRow.observation, SampleRow.number, SampleRow.label).where(SampleRow.observation.in_(some))
        for number, sample, label in session.execute(made):
            if number is not None and subjects.labels.get(number, label) == label:
                samples[number].add(sample)
        for row in session.scalars(select(SnapshotSampleRow).where(SnapshotSampleRow.observation.in_(some))):
            if subjects.labels.get(row.observation, row.label) == row.label:
                samples[row.observation].add(row.sample)
                snapshots[row.observation].add(row.snapshot)
        for number, time in times.items():
            given = (frozenset(samples[number]), frozenset(snapshots[number]))
            found.append(Lost(number, *given, time, number in went, contents.get(number)))
    return found


def _names_samples(run: Run, model: str, bases: Mapping[str, str]) -> ModelSamples | None:
    """Return the samples of *model* that a run was made on, or beside; None where it was on others."""
    try:
        samples = ModelSamples.parse(bases.get(run.dataset, run.dataset))
    except InvalidInput:  # of an earlier release
        return None
    return samples if samples is not None and samples.model == model else None


def _is_among(samples: ModelSamples, numbers: Collection[int]) -> bool:
    return any(samples.after < each and (samples.last is None or each <= samples.last) for each in numbers)


def _texts(value: Any) -> Iterator[str]:
    """Yield all texts within options."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _texts(each)
    elif isinstance(value, Sequence):
        for each in value:
            yield from _texts(each)
