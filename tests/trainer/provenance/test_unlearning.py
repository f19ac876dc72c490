"""After a deletion the next model is, byte for byte, that of somebody who has never seen what is gone."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from services.trainer.data.datasets import load_dataset
from services.trainer.data.models import create_model
from services.trainer.data.snapshots import read_snapshot
from services.trainer.export.encoder import Encoder
from services.trainer.export.graph import graph_metadata
from services.trainer.export.tail import cut_encoder, find_tail, replace_tail
from services.trainer.feedback.observations import Intake
from services.trainer.feedback.sifting import Sifter
from services.trainer.recipes import make_options
from services.trainer.statistics.heads import fit_head
from services.trainer.storage.database import Database
from tests.trainer.feedback.conftest import SPEC, Groups
from tests.trainer.provenance.conftest import LABELS, House

SHARES = {"validation_fraction": 0.25, "test_fraction": 0.25, "pixels": {"width": 8, "height": 8}}


@dataclass(frozen=True, eq=False)
class Refitted:
    """What a house's pictures make of the classifier."""

    snapshot: str
    learnt: NDArray[np.uint8]
    weight: NDArray[np.float32]
    graph: bytes


@pytest.fixture(scope="module")
def classifier(save_graph: Callable[..., Path]) -> Path:
    """A graph with a last layer: the means of rows and colours, weighed."""
    weight = np.random.default_rng(0).normal(0, 0.01, (3, 24)).astype(np.float32)
    return save_graph(
        [
            helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", ["pixels", "columns"], ["means"], keepdims=0),
            helper.make_node("Flatten", ["means"], ["features"]),
            helper.make_node("Gemm", ["features", "weight", "bias"], ["logits"], transB=1),
            helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        ],
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", 8, 8, 3])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", 3])],
        {"columns": np.array([2]), "weight": weight, "bias": np.full(3, 0.1, np.float32)},
    )


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


def refit(house: House, classifier: Path, folder: Path) -> Refitted:
    """Fit the last layer of *classifier* to what a house has, as a run does."""
    digest = house.snapshot()
    dataset = load_dataset(
        make_options("quick", {"dataset": f"snapshot:{digest}", "threads": 1, **SHARES}), house.sources
    )
    folder.mkdir()
    cut_encoder(classifier, folder / "encoder.onnx")
    features = Encoder(folder / "encoder.onnx", 1).embed(np.asarray(dataset.train.images))
    head = fit_head(features, dataset.train.labels, find_tail(classifier).head, smoothing=0.05, pull=1e-3, rounds=50)
    replace_tail(classifier, folder / "model.onnx", head, graph_metadata(dataset.labels, "refitted", dataset.name))
    onnx.checker.check_model(folder / "model.onnx")
    return Refitted(digest, np.asarray(dataset.train.images), head.weight, (folder / "model.onnx").read_bytes())


def test_a_model_made_after_a_deletion_is_that_of_one_who_never_saw_it(
    build: Callable[[str], House], classifier: Path, tmp_path: Path
) -> None:
    ours, theirs = build("ours"), build("theirs")
    fill(ours, range(1, 8))
    fill(theirs, range(7, 3, -1))  # in another order, under other numbers
    (only,) = theirs.capture(1, "user-3", seed=3)
    theirs.say(only, "rex", 0, trusted=True)
    before = refit(ours, classifier, tmp_path / "before")
    ours.run("before", f"snapshot:{before.snapshot}")

    for number in (1, 2):
        ours.deletions.delete_contributor(f"user-{number}", f"deletion-{number}")
    ours.clock.passed += 10
    for number in (1, 2):
        ours.erasure.rows("pets", f"deletion-{number}")
    for picture in range(12, 16):  # all but the first one of user 3
        ours.erasure.rows("pets", ours.forget(picture, f"deletion-of-{picture}"))

    after, never = (refit(house, classifier, tmp_path / name) for house, name in ((ours, "after"), (theirs, "never")))
    assert after.snapshot == never.snapshot != before.snapshot
    assert np.array_equal(after.learnt, never.learnt)
    assert after.weight.tobytes() == never.weight.tobytes() != before.weight.tobytes()
    assert after.graph == never.graph
    assert len(read_snapshot(ours.database, after.snapshot).pictures) == 21
    assert set(ours.deletions.find("deletion-1").runs) == {"before"}
