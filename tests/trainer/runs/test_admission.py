"""What is refused before a run is created."""

from pathlib import Path
from typing import Any

import pytest

from services.common.errors import Conflict, InvalidInput, NotFound, ServiceError
from services.trainer.clock import now
from services.trainer.options import (
    ConversionOptions,
    EvaluationOptions,
    InspectionOptions,
    Range,
    RefitOptions,
    TrainingOptions,
    TuningOptions,
    parse_options,
)
from services.trainer.recipes import make_options
from services.trainer.runs.admission import Admission, parse_object, training_options
from services.trainer.runs.record import Options, Outcome, RunState
from services.trainer.runs.store import RunStore
from tests.trainer.runs.conftest import Create

SPACE = {"optimizer": Range(choices=("sgd", "adamw"))}


@pytest.fixture
def roots(tmp_path: Path) -> tuple[Path, Path]:
    first, second = tmp_path / "first", tmp_path / "second"
    (first / "pets").mkdir(parents=True)
    (second / "birds").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    (first / "link").symlink_to(tmp_path / "outside")
    (first / "circle").symlink_to(first / "circle")
    return first, second


@pytest.fixture
def admission(store: RunStore, roots: tuple[Path, Path]) -> Admission:
    return Admission(store, roots)


@pytest.fixture
def succeeded(store: RunStore, create: Create) -> str:
    create("done")
    store.claim("done", "service", 1)
    return store.finish("done", Outcome(state=RunState.SUCCEEDED, finish_time=now())).id


def training(**overrides: Any) -> TrainingOptions:
    return make_options("quick", overrides)


@pytest.mark.parametrize("dataset", ["cifar10", "cifar10-slice", "model:pets"])
def test_a_data_set_with_a_name_is_left_as_it_is(admission: Admission, dataset: str) -> None:
    options = training(dataset=dataset)

    assert admission.admit(options) == options


def test_samples_of_a_model_end_with_those_that_are_there(store: RunStore, roots: tuple[Path, Path]) -> None:
    newest = {"pets": 7}
    admission = Admission(store, roots, newest_sample=newest.__getitem__)
    inspected = InspectionOptions(training=training(dataset="model:pets"))

    first = admission.admit(training(dataset="model:pets"))
    newest["pets"] = 9

    assert isinstance(first, TrainingOptions)
    assert first.dataset == "model:pets@7"
    assert admission.admit(first) == first
    assert admission.admit(training(dataset="model:pets@7..")) == training(dataset="model:pets@7..9")
    assert admission.admit(inspected) == InspectionOptions(training=training(dataset="model:pets@9"))
    assert admission.admit(EvaluationOptions(source="pets@1", dataset="model:pets")) == EvaluationOptions(
        source="pets@1", dataset="model:pets@9"
    )
    with pytest.raises(InvalidInput, match="the newest of model 'pets' is number 9; name a number up to that"):
        admission.admit(training(dataset="model:pets@10"))


def test_a_snapshot_is_let_pass_where_it_is_there(store: RunStore, admission: Admission, succeeded: str) -> None:
    there, missing = ("snapshot:" + digit * 64 for digit in "ab")

    def find(digest: str) -> None:
        if digest not in there:
            raise NotFound(f"there is no snapshot {digest!r}; name one that the loop has made")

    asking = Admission(store, [], find_snapshot=find)
    for options in (training(dataset=there), RefitOptions(source=f"run:{succeeded}", dataset=there)):
        assert asking.admit(options) == options
    with pytest.raises(NotFound, match="there is no snapshot 'bbbb"):
        asking.admit(training(dataset=missing))
    assert admission.admit(training(dataset=missing)) == training(dataset=missing)
    with pytest.raises(InvalidInput, match="dataset 'snapshot:x' names no snapshot"):
        admission.admit(training(dataset="snapshot:x"))


@pytest.mark.parametrize(
    ("options", "source", "field"),
    [
        (training(start_from="run:done"), "run:done", "start_from"),
        (training(start_from="pets@3"), "pets@3", "start_from"),
        (training(distillation={"teacher": "pets@3"}), "pets@3", "distillation.teacher"),
        (ConversionOptions(source="run:done"), "run:done", "source"),
        (EvaluationOptions(source="pets@3"), "pets@3", "source"),
        (RefitOptions(source="run:done", dataset="cifar10"), "run:done", "source"),
        (TuningOptions(training=training(start_from="pets@3"), space=SPACE), "pets@3", "start_from"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("succeeded")
def test_nothing_is_made_of_a_model_that_has_learnt_what_is_deleted(
    store: RunStore, options: Options, source: str, field: str
) -> None:
    tainted = Admission(store, [], find_deletion=lambda name: "deletion-1" if name == source else "")

    with pytest.raises(Conflict, match=f"{source} has learnt what deletion 'deletion-1' removes, and goes") as caught:
        tainted.admit(options)

    assert (caught.value.field, caught.value.reason) == (field, "TAINTED")
    assert Admission(store, [], find_deletion=lambda name: "").admit(options) == options


def test_a_refit_needs_a_model_and_a_set(admission: Admission, succeeded: str) -> None:
    with pytest.raises(NotFound, match="run 'nothing' is unknown"):
        admission.admit(RefitOptions(source="run:nothing", dataset="cifar10"))
    with pytest.raises(InvalidInput, match="source 'x' is not the name of a model"):
        admission.admit(RefitOptions(source="x", dataset="cifar10"))
    with pytest.raises(InvalidInput, match="dataset is missing"):
        parse_options(RefitOptions, {"source": f"run:{succeeded}"})


def test_a_folder_is_found_in_each_root_and_named_in_full(admission: Admission, roots: tuple[Path, Path]) -> None:
    first, second = roots
    (second / "both").mkdir()

    named = [str(first / "pets"), "pets", "birds", "./both"]

    assert [admission.admit(training(dataset=name)).dataset for name in named] == [
        str(first / "pets"), str(first / "pets"), str(second / "birds"), str(second / "both"),
    ]  # fmt: skip


@pytest.mark.parametrize("dataset", ["/etc", "../outside", "pets/../../outside", "link", "link/..", "/nowhere/at/all"])
def test_a_folder_outside_of_the_roots_is_refused_whether_it_exists_or_not(admission: Admission, dataset: str) -> None:
    with pytest.raises(InvalidInput, match=r"lies outside of .*; move it there or name its folder in TRAINER_DATA_ROO"):
        admission.admit(training(dataset=dataset))


@pytest.mark.parametrize("dataset", ["a\0b", "x" * 5_000, "circle"], ids=["zero", "long", "circle"])
def test_what_is_no_path_is_refused(admission: Admission, dataset: str) -> None:
    with pytest.raises((InvalidInput, NotFound), match=r"is not a path|does not exist"):
        admission.admit(training(dataset=dataset))


def test_a_folder_that_does_not_exist_is_not_found(admission: Admission) -> None:
    with pytest.raises(
        NotFound, match="dataset 'nothing' does not exist; use cifar10, cifar10-slice, model:<name>, sna"
    ):
        admission.admit(training(dataset="nothing"))


def test_code_is_named_by_the_command_line_only(store: RunStore, admission: Admission) -> None:
    options = training(network="my_module:my_network")

    assert Admission(store, [], trusted=True).admit(options) == options
    with pytest.raises(InvalidInput, match="network 'my_module:my_network' names code, which only `aimass train`"):
        admission.admit(options)


@pytest.mark.parametrize("network", ["residual", "alexnet", "torchvision:resnet18"])
def test_networks_of_the_suite_and_of_torchvision_are_not_code(admission: Admission, network: str) -> None:
    assert admission.admit(training(network=network)).network == network


def test_the_command_line_may_name_any_folder(
    store: RunStore, tmp_path: Path, roots: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    assert Admission(store, roots, trusted=True).admit(training(dataset="outside")).dataset == str(tmp_path / "outside")


@pytest.mark.parametrize(
    "options",
    [
        training(start_from="run:done"),
        training(start_from="cifar10@3", distillation={"teacher": "run:done"}),
        ConversionOptions(source="run:done"),
        EvaluationOptions(source="cifar10@1"),
        EvaluationOptions(source="run:done", dataset="cifar10"),
        TuningOptions(training=training(start_from="run:done"), space={"augmentation.cutout": Range(low=0, high=8)}),
        TuningOptions(training=training(), space=SPACE),
    ],
)
@pytest.mark.usefixtures("succeeded")
def test_what_names_models_that_exist_is_let_in(admission: Admission, options: TrainingOptions) -> None:
    assert admission.admit(options) == options


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        (training(start_from="run:nothing"), NotFound, "run 'nothing' is unknown"),
        (training(start_from="run:waiting"), Conflict, "start_from 'run:waiting' has no model: it is a run of kind"),
        (training(distillation={"teacher": "best"}), InvalidInput, "distillation.teacher 'best' is not the name of a"),
        (ConversionOptions(source="cifar10@0"), InvalidInput, "source 'cifar10@0' is not the name of a model; use"),
        (EvaluationOptions(source="cifar10@1", dataset="/etc"), InvalidInput, "dataset '/etc' lies outside of"),
        (TuningOptions(training=training(network="a:b"), space={"epochs": Range(low=1, high=2)}), InvalidInput, "code"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused(
    admission: Admission, create: Create, options: TrainingOptions, error: type[ServiceError], words: str
) -> None:
    create("waiting")

    with pytest.raises(error) as caught:
        admission.admit(options)

    assert words in caught.value.message


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"workers": {"count": 2}}, "workers.count is 2, and the models of an inspection are trained by one process"),
        ({"start_from": "run:done"}, "start_from is 'run:done', which may have learnt the samples that are inspected"),
        ({"distillation": {"teacher": "run:done"}}, "distillation.teacher is 'run:done', and the models of an inspec"),
        ({"pruning": {"speedup": 2.5}}, "pruning.speedup is 2.5, and the models of an inspection are thrown away"),
    ],
)
def test_an_inspection_refuses_what_it_would_not_do(overrides: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_options(InspectionOptions, {"training": training(**overrides)})

    assert words in caught.value.message
    assert caught.value.field == next(iter(overrides)) + "".join(
        f".{name}" for value in overrides.values() if isinstance(value, dict) for name in value
    )


def test_overrides_come_as_a_json_object() -> None:
    options = training_options("quick", '{"lr": 0.01, "augmentation": {"cutout": 2}}')

    assert options == make_options("quick", {"lr": 0.01, "augmentation": {"cutout": 2}})
    assert training_options("quick", "") == make_options("quick")


@pytest.mark.parametrize(
    ("text", "words"),
    [("{", "overrides_json is not JSON: "), ("[1]", "holds JSON that is no object"), ("[" * 100_000, "is not JSON")],
    ids=["cut off", "list", "deep"],
)
def test_what_is_no_json_object_is_refused(text: str, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        parse_object(text, "overrides_json")
