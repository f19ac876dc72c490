"""What a run that starts from another one learns and is judged on, by its files alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from services.common import manifest
from services.common.errors import Conflict, InvalidInput
from services.common.manifest import MANIFEST_FILE, Manifest, PreprocessSpec
from services.trainer.clock import now
from services.trainer.data.collection import digest_contents
from services.trainer.data.datasets import Dataset
from services.trainer.data.imported import NewSample, SampleImport, newest_sample
from services.trainer.data.models import create_model
from services.trainer.data.pictures import read_picture
from services.trainer.data.samples import Samples
from services.trainer.jobs.job import Job
from services.trainer.jobs.reporting import Reporter
from services.trainer.jobs.sources import load_samples
from services.trainer.options import TrainingOptions
from services.trainer.runs.folder import LEARNT_FILE, PROGRESS_FILE, RunFolder
from services.trainer.runs.progress import read_newest
from services.trainer.runs.record import Request, RunKind
from services.trainer.settings import TrainerSettings
from services.trainer.storage.database import Database
from services.trainer.training.batches import Batches
from tests.trainer.data.conftest import encoded, write_classes
from tests.trainer.data.test_datasets import contents

SPEC = PreprocessSpec(input="image", width=8, height=8)
Options = Callable[..., TrainingOptions]


class Trainer:
    """Runs of which nothing but the samples is looked at."""

    def __init__(self, folder: Path, root: Path, database: Database) -> None:
        self.settings = TrainerSettings(
            runs=folder / "runs",
            data=folder / "data",
            data_roots=(str(root),),
            database=f"sqlite:///{folder / 'trainer.db'}",
            blobs=folder / "blobs",
        )
        self.database = database
        self.figures: dict[str, float] = {}

    def load(self, run_id: str, options: TrainingOptions) -> Dataset:
        """Load what a run learns, and leave behind what one that has succeeded does."""
        folder = RunFolder(self.settings.runs / run_id)
        request = Request(id=run_id, kind=RunKind.TRAINING, options=options, create_time=now())
        folder.create(request)
        with Reporter(folder) as reporter:
            dataset = load_samples(Job(folder, request, self.settings, reporter), options)
        told = read_newest(folder / PROGRESS_FILE)
        self.figures = dict(told.figures) if told else {}
        described = manifest.Dataset(name=dataset.name, digest=dataset.digest, counts=dataset.counts)
        training = manifest.Training(
            run_id=run_id, recipe="quick", options=options.model_dump(mode="json"), dataset=described, seconds=1.0
        )
        document = Manifest(labels=dataset.labels, preprocess=dataset.spec, training=training)
        (folder / MANIFEST_FILE).write_text(document.to_json())
        return dataset

    def take(self, images: list[bytes]) -> int:
        """Import cats and dogs in turns, and return the number of the newest."""
        create_model(self.database, "pets", ["cat", "dog"], SPEC.canonical_json())
        with SampleImport(self.database, self.settings.blobs, "pets") as taking:
            taking.add([NewSample(image, ("cat", "dog")[row % 2]) for row, image in enumerate(images)])
        return newest_sample(self.database, "pets")


@pytest.fixture
def trainer(tmp_path: Path, root: Path, database: Database) -> Trainer:
    return Trainer(tmp_path, root, database)


def noise(count: int, seed: int = 0) -> list[bytes]:
    generator = np.random.default_rng(seed)
    return [encoded(Image.fromarray(generator.integers(0, 256, (8, 8, 3), np.uint8))) for _ in range(count)]


def judged(dataset: Dataset) -> set[str]:
    return contents(dataset.validation) | contents(dataset.test)


def after(run_id: str, **others: Any) -> dict[str, Any]:
    return {"start_from": f"run:{run_id}", **others}


def test_an_import_leaves_the_samples_of_a_run_as_they_are(trainer: Trainer, options: Options) -> None:
    last = trainer.take(noise(40))
    before = trainer.load("first", options(f"model:pets@{last}"))

    trainer.take(noise(20, seed=1))

    assert trainer.load("again", options(f"model:pets@{last}")).digest == before.digest
    assert sum(before.counts.values()) == 40
    assert before.name == f"model:pets@{last}"
    assert sum(trainer.load("all", options("model:pets")).counts.values()) == 60


def test_new_samples_alone_are_learnt_beside_old_ones(trainer: Trainer, options: Options) -> None:
    first = trainer.take(noise(80))
    old = trainer.load("first", options(f"model:pets@{first}"))
    last = trainer.take(noise(40, seed=1))
    alone = trainer.load("alone", options(f"model:pets@{first}..{last}"))

    both = trainer.load("both", options(f"model:pets@{first}..{last}", **after("first")))

    assert sum(alone.counts.values()) == 40
    assert len(both.train) == 2 * len(alone.train)
    assert contents(alone.train) <= contents(both.train) <= contents(alone.train) | contents(old.train)
    assert judged(both) == judged(alone) | judged(old)
    assert trainer.figures == {"left_out_as_judged_on": 0, "left_out_as_learnt": 0}


def test_a_set_that_has_grown_is_learnt_once_and_judged_on_what_is_not_known(
    trainer: Trainer, options: Options
) -> None:
    first = trainer.take(noise(80))
    old = trainer.load("first", options(f"model:pets@{first}"))
    last = trainer.take(noise(50, seed=1))
    alone = trainer.load("alone", options(f"model:pets@{last}"))

    grown = trainer.load("grown", options(f"model:pets@{last}", **after("first")))

    assert judged(alone) & contents(old.train)  # where the shares meet
    assert not judged(grown) & contents(old.train)
    assert not judged(grown) & contents(grown.train)
    assert judged(old) <= judged(grown)
    assert len(contents(grown.train)) == len(grown.train)
    assert trainer.figures["left_out_as_learnt"] == len(judged(alone) & contents(old.train))


@pytest.mark.parametrize("replay", [0.0, 1.0])
def test_another_split_is_not_judged_on_what_was_learnt(
    trainer: Trainer, options: Options, root: Path, replay: float
) -> None:
    pets = str(write_classes(root / "pets", {"cat": 60, "dog": 60}))
    old = trainer.load("first", options(pets))
    alone = trainer.load("alone", options(pets, split_seed=1))

    other = trainer.load("other", options(pets, split_seed=1, **after("first", replay=replay)))

    assert judged(alone) & contents(old.train)
    assert not judged(other) & (contents(old.train) | contents(other.train))
    assert trainer.figures["left_out_as_learnt"] == len(judged(alone) & contents(old.train))
    unknown = judged(alone) - contents(old.train)
    assert judged(other) == (judged(old) | unknown if replay else unknown)


def test_the_same_samples_stay_as_they_are(trainer: Trainer, options: Options, root: Path) -> None:
    pets = str(write_classes(root / "pets", {"cat": 20, "dog": 20}))
    before = trainer.load("first", options(pets))

    again = trainer.load("again", options(pets, **after("first")))

    assert (again.digest, again.name) == (before.digest, before.name)
    assert trainer.figures == {"left_out_as_learnt": 0}


def test_a_folder_that_has_changed_is_not_asked_what_was_learnt(trainer: Trainer, options: Options, root: Path) -> None:
    pets = str(write_classes(root / "pets", {"cat": 60, "dog": 60}))
    old = trainer.load("first", options(pets))
    for label in ("cat", "dog"):
        for number in range(25):
            (root / "pets" / label / f"{number}.png").unlink()
    alone = trainer.load("alone", options(pets))

    changed = trainer.load("changed", options(pets, **after("first")))

    assert judged(alone) & contents(old.train)
    assert not judged(changed) & contents(old.train)


def test_what_a_run_before_the_last_has_learnt_is_not_judged_on_either(
    trainer: Trainer, options: Options, root: Path
) -> None:
    write_classes(root / "pets", {"cat": 60, "dog": 60})
    write_classes(root / "others", {"cat": 30, "dog": 30}, seed=1)
    first = trainer.load("first", options(str(root / "pets")))
    trainer.load("second", options(str(root / "others"), **after("first", replay=0.0)))

    third = trainer.load("third", options(str(root / "pets"), split_seed=1, **after("second", replay=0.0)))

    assert trainer.figures["left_out_as_learnt"] > 0
    assert judged(third) <= judged(first)


def test_a_run_that_kept_no_note_is_judged_by_its_options(trainer: Trainer, options: Options, root: Path) -> None:
    pets = str(write_classes(root / "pets", {"cat": 60, "dog": 60}))
    old = trainer.load("first", options(pets))
    (trainer.settings.runs / "first" / LEARNT_FILE).unlink()

    other = trainer.load("other", options(pets, split_seed=1, **after("first", replay=0.0)))

    assert not judged(other) & contents(old.train)


def test_a_class_with_nothing_left_to_judge_on_is_refused(trainer: Trainer, options: Options, root: Path) -> None:
    for part, count in (("train", 12), ("test", 4)):
        write_classes(root / "pets" / part, {"cat": count, "dog": count}, seed=count)
        write_classes(root / "others" / part, {"cat": count, "dog": count}, seed=9 + count)
    trainer.load("first", options(str(root / "pets")))
    for number in range(4):
        (root / "others" / "test" / "cat" / f"{number}.png").write_bytes(
            _learnt_cat(trainer, "first", root / "pets" / "train" / "cat", number)
        )

    with pytest.raises(InvalidInput) as caught:
        trainer.load("other", options(str(root / "others"), **after("first", replay=0.0)))

    assert (
        f"run:first has learnt every test sample of class 'cat' in data set '{root / 'others'}', so that nothing is "
        "left to judge on; use the split_seed and the fractions that it was trained with, or other samples"
    ) == caught.value.message


def _learnt_cat(trainer: Trainer, run_id: str, folder: Path, position: int) -> bytes:
    """Return the file of a cat that a run has learnt."""
    learnt = set(np.load(trainer.settings.runs / run_id / LEARNT_FILE).tolist())
    return [path.read_bytes() for path in sorted(folder.iterdir()) if _content(path) in learnt][position]


def _content(path: Path) -> int:
    spec = PreprocessSpec(input="image", width=8, height=8, mode="crop", filter="bilinear")
    return int(digest_contents(read_picture(path.read_bytes()).pixels(spec)[None], np.arange(1))[0])


def test_one_set_at_other_pixels_is_refused_where_its_parts_are_drawn(
    trainer: Trainer, options: Options, root: Path
) -> None:
    pets = str(write_classes(root / "pets", {"cat": 20, "dog": 20}))
    for part, count in {"train": 8, "validation": 3, "test": 2}.items():
        write_classes(root / "parts" / part, {"cat": count, "dog": count}, seed=count)
    larger = {"pixels": {"width": 12, "height": 12}, "replay": 0.0}
    trainer.load("first", options(pets))
    trainer.load("second", options(str(root / "parts")))

    with pytest.raises(Conflict, match=r"at 8 x 8 pixels .*; at others its parts are drawn anew, .*: use its pixels"):
        trainer.load("larger", options(pets, **after("first", **larger)))
    assert trainer.load("given", options(str(root / "parts"), **after("second", **larger))).spec.width == 12


@pytest.mark.parametrize(("option", "most"), [("translate", 7), ("cutout", 7)])
def test_an_augmentation_that_leaves_nothing_of_the_images_is_refused(
    trainer: Trainer, options: Options, root: Path, option: str, most: int
) -> None:
    pets = str(write_classes(root / "pets", {"cat": 8, "dog": 8}))
    small = {"policy": "none", "translate": 0, "cutout": 0}
    samples = Samples(np.zeros((4, 8, 12, 3), np.uint8), np.zeros(4, np.int64))

    with pytest.raises(InvalidInput) as caught:
        trainer.load("large", options(pets, augmentation=small | {option: most + 1}))

    assert caught.value.message == f"augmentation.{option} is 8, and the images are 8 x 8 pixels; set it to 7 at most"
    with pytest.raises(InvalidInput, match=r"the images are 12 x 8 pixels; set it to 7 at most"):
        Batches(samples, 2, options(pets, augmentation=small | {option: most + 1}), torch.device("cpu"), 0, 1)
    trainer.load("small", options(pets, augmentation=small | {option: most}))
    batches = Batches(samples, 2, options(pets, augmentation=small | {option: most}), torch.device("cpu"), 0, 1)
    assert [images.shape for images, _ in batches.epoch(0)] == [(4, 8, 12, 3)]
