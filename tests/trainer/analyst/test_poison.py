"""The short form of benchmarks/poison.py."""

from pathlib import Path

import numpy as np
import pytest

from aimass.starter import VERSION
from benchmarks.poison import ATTACKS, MOST_LOST, Attacked, attack, make_world, show
from services.common.manifest import GRAPH_FILE
from services.trainer.data.samples import Samples
from services.trainer.export.encoder import Encoder
from services.trainer.export.tail import cut_encoder, find_tail

PER_CLASS, SENT, UNSEEN = 125, 600, 400


@pytest.fixture(scope="module")
def attacked(slice_samples: tuple[Samples, Samples], tmp_path_factory: pytest.TempPathFactory) -> Attacked:
    """Three of six contributors agree to say of everything that it is of the class after its own."""
    path: Path = tmp_path_factory.mktemp("encoder") / "encoder.onnx"
    cut_encoder(VERSION / GRAPH_FILE, path)
    train, test = slice_samples
    chosen = np.concatenate([np.flatnonzero(train.labels == number)[:PER_CLASS] for number in range(10)])
    shown = show(Encoder(path, threads=1), (train[chosen], test[:UNSEEN]), severity=0)
    world = make_world(shown, shown, find_tail(VERSION / GRAPH_FILE).head, SENT, seed=0)
    return attack(world, ATTACKS["all classes turned, 3 of 6"], reviewed=0.05, rounds=2, seed=0)


def test_colluding_contributors_cost_a_loop_without_guards_more_than_five_points(attacked: Attacked) -> None:
    assert attacked.unguarded.wrong > 0.4
    assert attacked.unguarded_silent.accuracy - attacked.unguarded.accuracy > 0.05


def test_with_the_guards_they_cost_next_to_nothing(attacked: Attacked) -> None:
    assert attacked.guarded_silent.accuracy - attacked.guarded.accuracy <= MOST_LOST
    assert attacked.guarded.wrong < 0.01
    assert attacked.guarded.learnt > SENT / 4
