"""After a deletion the next model is, byte for byte, that of somebody who has never seen what is gone."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from services.common.manifest import GRAPH_FILE, MANIFEST_FILE, Manifest, PreprocessSpec, digest_of
from services.trainer.data.models import create_model
from services.trainer.data.snapshots import read_snapshot
from services.trainer.feedback.observations import Intake
from services.trainer.feedback.sifting import Sifter
from services.trainer.options import RefitOptions, TrainingOptions
from services.trainer.recipes import make_options
from services.trainer.runs.record import Options, RunState
from services.trainer.storage.database import Database
from tests.trainer.feedback.conftest import Groups
from tests.trainer.jobs.conftest import SMALL, Runs
from tests.trainer.provenance.conftest import House

LABELS = ("cat", "cow", "dog")
SPEC = PreprocessSpec(input="image", width=16, height=16, mode="crop")
STARTER = "starter"


@pytest.fixture
def build(tmp_path: Path, policies: dict[str, Groups]) -> Iterator[Callable[[str], House]]:
    """A function that makes a house of its own for everybody."""
    opened: list[tuple[Database, Intake]] = []

    def make(name: str) -> House:
        database = Database(f"sqlite:///{tmp_path / name / 'trainer.db'}")
        database.migrate()
        create_model(database, "pets", LABELS, SPEC.canonical_json())
        intake = Intake(database, tmp_path / name / "blobs", lambda model: policies[model])
        opened.append((database, intake))
        return House(database, tmp_path / name, intake, Sifter(database, lambda model: policies[model]))

    yield make
    for database, intake in opened:
        intake.close()
        database.close()


def fill(house: House, seeds: range) -> None:
    """Let people send pictures, each of which a reviewer labels."""
    for seed in seeds:
        for picture in house.capture(5, f"user-{seed}", seed):
            house.say(picture, "rex", seed % 3, trusted=True)


def write_public(folder: Path) -> Path:
    """Write a set of pictures that no user has sent."""
    generator = np.random.default_rng(0)
    for label in LABELS:
        (folder / label).mkdir(parents=True)
        for number in range(12):
            Image.fromarray(generator.integers(0, 256, (16, 16, 3), np.uint8)).save(folder / label / f"{number}.png")
    return folder


def scratch(dataset: str) -> TrainingOptions:
    """Return options by which a network learns *dataset* alone, in deterministic mode."""
    changes = {"dataset": dataset, "test_fraction": 0.25, "epochs": 1, "deterministic": True}
    return make_options("quick", SMALL | changes)


def made_by(house: House, run_id: str, options: Options) -> str:
    """Let the process of a run come to its end, and return the digest of the graph that it would publish."""
    runs = Runs(house.folder)
    folder = runs.create(run_id, options)
    house.store.create(folder.request(), "service")
    house.store.claim(run_id, "service", 100)
    outcome = runs.outcome(folder)
    assert outcome.state is RunState.SUCCEEDED, outcome.reason
    house.store.finish(run_id, outcome)
    graph = Manifest.from_json((folder / MANIFEST_FILE).read_bytes(), MANIFEST_FILE).graph
    assert graph is not None
    assert graph.sha256 == digest_of((folder / GRAPH_FILE).read_bytes())
    return graph.sha256


def test_runs_after_a_deletion_make_the_models_of_one_who_never_saw_it(
    build: Callable[[str], House],
) -> None:
    ours, theirs = build("ours"), build("theirs")
    made_by(ours, STARTER, scratch(str(write_public(ours.folder / "data" / "public"))))
    shutil.copytree(ours.folders.runs / STARTER, theirs.folders.runs / STARTER)
    fill(ours, range(1, 8))
    fill(theirs, range(7, 3, -1))  # in another order, under other numbers
    (only,) = theirs.capture(1, "user-3", seed=3)
    theirs.say(only, "rex", 0, trusted=True)
    before = f"snapshot:{ours.snapshot()}"
    refitted_before = made_by(ours, "before", RefitOptions(source=f"run:{STARTER}", dataset=before, threads=1))

    for number in (1, 2):
        ours.deletions.delete_contributor(f"user-{number}", f"deletion-{number}")
    ours.clock.passed += 10
    pictures = range(12, 16)  # all but the first one of user 3
    deletions = ["deletion-1", "deletion-2", *(ours.forget(each, f"deletion-of-{each}") for each in pictures)]
    for deletion in deletions:
        ours.erasure.rows("pets", deletion)
    after, never = (f"snapshot:{house.snapshot()}" for house in (ours, theirs))

    assert after == never != before
    assert len(read_snapshot(ours.database, after.removeprefix("snapshot:")).pictures) == 21
    refitted, scratched = (
        [made_by(house, f"{name}-{kind}", options) for house, name in ((ours, "after"), (theirs, "never"))]
        for kind, options in (
            ("refit", RefitOptions(source=f"run:{STARTER}", dataset=after, threads=1)),
            ("scratch", scratch(after)),
        )
    )
    assert refitted[0] == refitted[1] != refitted_before
    assert scratched[0] == scratched[1]

    for deletion in deletions:
        ours.erasure.runs("pets", deletion, ())
    assert ours.deletions.find("deletion-1").runs == ["before"]
    assert {path.name for path in ours.folders.runs.iterdir()} == {STARTER, "after-refit", "after-scratch"}
    assert all(ours.deletions.report(deletion)["search"]["found"] == {} for deletion in deletions)
