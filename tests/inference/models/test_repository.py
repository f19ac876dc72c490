"""The repository on disk: whole versions or none, traffic that lasts, nothing left over."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from services.common.errors import Conflict, InvalidInput, NotFound
from services.common.manifest import Manifest
from services.inference.models.desired_traffic import Traffic
from services.inference.models.repository import ModelRepository


@pytest.fixture
def repository(tmp_path):
    return ModelRepository(tmp_path / "models")


def stage_graph(repository: ModelRepository, model: str = "m"):
    staging = repository.stage(model)
    (staging / "model.onnx").write_bytes(b"graph")
    return staging


def commit_graph(repository: ModelRepository, newest: int = 0, **fields) -> int:
    return repository.commit(stage_graph(repository), Manifest(**fields), newest)


def test_new_repository_is_empty(repository):
    assert repository.models() == []
    assert repository.versions("m") == []
    assert repository.traffic("m") == Traffic(0, 0)


def test_committed_version_is_complete_and_has_the_next_number(repository):
    numbers = [commit_graph(repository, labels=("a",)) for _ in range(3)]
    folder = repository.version_folder("m", 3)

    assert numbers == [1, 2, 3] == repository.versions("m")
    assert (folder / "model.onnx").read_bytes() == b"graph"
    assert Manifest.from_json((folder / "model.json").read_bytes(), "model.json").labels == ("a",)


def test_number_follows_the_highest_version_not_the_first_gap(repository):
    for number in (2, 10):
        repository.version_folder("m", number).mkdir(parents=True)

    assert commit_graph(repository) == 11


def test_number_of_a_version_that_was_removed_is_not_given_out_again(repository):
    assert commit_graph(repository, newest=7) == 8


def test_staged_version_is_not_seen(repository):
    stage_graph(repository)

    assert repository.versions("m") == repository.models() == []


@pytest.mark.parametrize("others", [[], ["1"]])
def test_discarded_version_leaves_nothing(repository, others):
    staging = stage_graph(repository)
    for name in others:
        (staging.parent / name).mkdir()
    repository.discard(staging)

    assert not staging.exists()
    assert repository.models() == (["m"] if others else [])


def test_folders_that_are_no_models_or_versions_are_not_seen(repository):
    for name in (".hidden", "-x", "good/1", "good/01", "good/0", "good/v2", "good/1.bak", "good/3" + "0" * 18):
        (repository.model_folder("good").parent / name).mkdir(parents=True)
    (repository.model_folder("good").parent / "file").write_text("")

    assert repository.models() == ["good"]
    assert repository.versions("good") == [1]


def test_traffic_survives_a_restart(repository, tmp_path):
    for _ in range(4):
        commit_graph(repository)
    repository.change_traffic("m", lambda traffic: traffic.moved_to(1))
    repository.change_traffic("m", lambda traffic: traffic.moved_to(2, 3, 0.25, 4))

    assert ModelRepository(tmp_path / "models").traffic("m") == Traffic(2, 2, 1, 3, 0.25, 4)
    assert {path.name for path in repository.model_folder("m").iterdir()} == {"1", "2", "3", "4", "traffic.json"}


def test_traffic_never_moves_to_a_version_that_is_gone(repository):
    commit_graph(repository)
    commit_graph(repository)
    repository.change_traffic("m", lambda traffic: traffic.moved_to(1))
    repository.delete("m", 2, lambda traffic: traffic.without(2))

    with pytest.raises(NotFound, match="version 2 of model 'm' is gone; name one that it has: 1"):
        repository.change_traffic("m", lambda traffic: traffic.moved_to(2))
    with pytest.raises(NotFound, match="version 2 of model 'm' is gone from the repository"):
        repository.delete("m", 2, lambda traffic: traffic)
    assert repository.traffic("m").stable_version == 1


def test_a_model_whose_folder_is_gone_is_not_found(repository):
    with pytest.raises(NotFound, match="the traffic of model 'm' is gone from the repository"):
        repository.change_traffic("m", lambda traffic: traffic.moved_to(1))


def test_what_the_disk_does_not_let_be_is_refused_with_its_reason(repository):
    (repository.model_folder("m")).write_text("a file where the folder should be")

    with pytest.raises(Conflict, match=r"a new version of model 'm' cannot be written: .*File exists"):
        repository.stage("m")


def test_no_version_gets_a_number_that_is_no_versions_name(repository):
    (repository.model_folder("m") / ("9" * 18)).mkdir(parents=True)

    with pytest.raises(Conflict, match="the highest there can be; remove it"):
        commit_graph(repository)


@pytest.mark.parametrize(
    "names", [["1", "1/model.onnx"], ["1/model.onnx", "1/model.onnx/a"], ["1/\0"], ["1/" + "a" * 300], ["../../x"]]
)
def test_files_that_cannot_lie_beside_each_other_are_refused_and_leave_nothing(
    repository, names, tmp_path, monkeypatch
):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = set(tmp_path.iterdir())

    with pytest.raises(InvalidInput, match=r"give a path such as 1/model\.onnx"):
        repository.write_aside("m", dict.fromkeys(names, b"x"))

    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "\xff",
        '{"generation": "1"}',
        '{"generation": 1e999, "stable_version": 1}',
        '{"generation": 1, "stable_version": 9223372036854775808}',
        '{"generation": 1, "stable_version": 1, "previous_version": -1}',
    ],
)
def test_malformed_traffic_is_refused(repository, text):
    commit_graph(repository)
    (repository.model_folder("m") / "traffic.json").write_text(text, encoding="latin-1")

    with pytest.raises(InvalidInput, match=r"^traffic\.json is not valid"):
        repository.traffic("m")


def test_what_a_living_process_has_staged_is_no_leftover(repository, tmp_path):
    staging = stage_graph(repository)
    ModelRepository(tmp_path / "models").remove_leftovers()

    assert repository.commit(staging, Manifest()) == 1


def test_two_processes_that_change_traffic_at_once_both_count(repository, tmp_path):
    commit_graph(repository)
    other = ModelRepository(tmp_path / "models")
    with ThreadPoolExecutor(8) as threads:
        for number in range(20):
            threads.submit((repository, other)[number % 2].change_traffic, "m", lambda traffic: traffic.moved_to(1))

    assert repository.traffic("m").generation == 20


def test_what_a_change_raises_leaves_the_traffic_as_it_was(repository):
    commit_graph(repository)

    with pytest.raises(Conflict, match="has generation 0, not 5"):
        repository.change_traffic("m", lambda traffic: traffic.expect("m", 5))
    assert repository.traffic("m") == Traffic()
    assert not (repository.model_folder("m") / "traffic.json").exists()


@pytest.mark.parametrize("name", ["../other/1/model.onnx", "/etc/passwd", ""])
def test_files_that_leave_the_models_folder_are_not_written(repository, name):
    with pytest.raises(InvalidInput, match="leaves the model's folder"):
        repository.write_aside("m", {name: b""})


def test_leftovers_of_a_killed_process_are_removed(repository, tmp_path):
    commit_graph(repository)
    repository.change_traffic("m", lambda traffic: traffic.moved_to(1))
    for model in ("m", "unfinished"):
        (repository.model_folder(model) / ".staging-0123").mkdir(parents=True)
    (repository.model_folder("m") / ".traffic.json-0123").write_text("{")
    repository.remove_leftovers()

    assert {path.relative_to(tmp_path / "models").as_posix() for path in (tmp_path / "models").rglob("*")} == {
        "m",
        "m/1",
        "m/1/model.json",
        "m/1/model.onnx",
        "m/traffic.json",
    }
    assert json.loads((repository.model_folder("m") / "traffic.json").read_text())["stable_version"] == 1


@pytest.mark.parametrize("name", ["", ".", "..", ".m", "a/b", "../m", "a b", "ä", "m\n", "-m", "x" * 129, "a\0b"])
def test_name_that_could_leave_the_repository_is_refused(repository, name):
    with pytest.raises(InvalidInput, match="is not valid; use up to 128 letters"):
        repository.stage(name)
    assert repository.models() == []


@pytest.mark.parametrize("name", ["m", "0", "Model.v2_final-3", "x" * 128])
def test_usual_names_are_taken(repository, name):
    repository.version_folder(name, 1).mkdir(parents=True)

    assert repository.models() == [name]
