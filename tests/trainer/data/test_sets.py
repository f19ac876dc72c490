"""Names of samples of a model, and what becomes of them when a run is created."""

import pytest

from services.common.errors import InvalidInput
from services.trainer.sets import ModelSamples, parse_snapshot


@pytest.mark.parametrize(
    ("name", "samples"),
    [
        ("model:pets", ModelSamples("pets")),
        ("model:pets@12", ModelSamples("pets", last=12)),
        ("model:pets@5..12", ModelSamples("pets", after=5, last=12)),
        ("model:pets@5..", ModelSamples("pets", after=5)),
        ("model:a.b-c_d@1..2", ModelSamples("a.b-c_d", after=1, last=2)),
    ],
)
def test_a_name_is_read_and_written_alike(name: str, samples: ModelSamples) -> None:
    assert ModelSamples.parse(name) == samples
    assert str(samples) == name


@pytest.mark.parametrize("name", ["cifar10", "pets@3", "/data/model:pets", ""])
def test_other_sets_are_no_samples_of_a_model(name: str) -> None:
    assert ModelSamples.parse(name) is None


@pytest.mark.parametrize(
    "name", ["model:pets@", "model:pets@x", "model:pets@-1", "model:pets@1..2..3", "model:a@1@2", "model:pets@..3",
             "model:pets@1.5", "model:pets@" + "9" * 19, "model:pets@\u0663"],
)  # fmt: skip
def test_what_is_no_number_of_a_sample_is_refused(name: str) -> None:
    with pytest.raises(InvalidInput, match=r"names no samples; write model:<name>, model:<name>@<last> or"):
        ModelSamples.parse(name)


@pytest.mark.parametrize("name", ["model:pets@0", "model:pets@5..5", "model:pets@6..5"])
def test_what_holds_no_number_is_refused(name: str) -> None:
    with pytest.raises(InvalidInput, match=r"has no samples: none is above \d and up to \d; name a higher last one"):
        ModelSamples.parse(name)


@pytest.mark.parametrize(
    ("name", "pinned"),
    [
        ("model:pets", "model:pets@7"),
        ("model:pets@3..", "model:pets@3..7"),
        ("model:pets@3", "model:pets@3"),
        ("model:pets@2..7", "model:pets@2..7"),
    ],
)
def test_samples_end_with_the_newest(name: str, pinned: str) -> None:
    samples = ModelSamples.parse(name)

    assert samples is not None
    assert str(samples.pinned(7)) == pinned


@pytest.mark.parametrize("name", ["model:pets@8", "model:pets@2..8", "model:pets@7..", "model:pets@9.."])
def test_samples_that_are_to_come_are_refused(name: str) -> None:
    samples = ModelSamples.parse(name)

    assert samples is not None
    with pytest.raises(InvalidInput, match=r"the newest of model 'pets' is number 7; name a number up to that"):
        samples.pinned(7)


def test_a_snapshot_is_named_by_its_digest() -> None:
    assert parse_snapshot("snapshot:" + "0a" * 32) == "0a" * 32
    assert parse_snapshot("cifar10") is parse_snapshot("model:snapshot:") is None


@pytest.mark.parametrize(
    "name", ["snapshot:", "snapshot:" + "0A" * 32, "snapshot:" + "0" * 63, "snapshot:../" + "0" * 61]
)
def test_what_is_no_digest_is_refused(name: str) -> None:
    with pytest.raises(InvalidInput, match="names no snapshot; write snapshot: and its digest, 64 hexadecimal digits"):
        parse_snapshot(name)
