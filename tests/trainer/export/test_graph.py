from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

from services.common.errors import Conflict, Unsupported
from services.trainer.data.datasets import Dataset
from services.trainer.data.samples import Samples
from services.trainer.export import graph as graph_module
from services.trainer.export.graph import check_parity, export_graph, make_golden, open_graph, run_graph
from services.trainer.networks.building import build_network
from services.trainer.networks.classifier import Classifier, Views
from services.trainer.options import TrainingOptions
from services.trainer.training.loop import train
from services.trainer.training.model import build_model
from services.trainer.training.prediction import predict


@pytest.fixture(scope="module")
def trained(small_dataset: Dataset, small_options: TrainingOptions) -> Classifier:
    options = small_options.model_copy(update={"epochs": 1})
    model = build_model(small_dataset, options)
    train(model, small_dataset, options)
    return model


@pytest.fixture(scope="module")
def graph(trained: Classifier, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / "model.onnx"
    export_graph(trained, path, (32, 32, 3), {"run": "r1"})
    return path


def test_graph_gives_the_probabilities_of_the_network(graph: Path, trained: Classifier, small_dataset: Dataset) -> None:
    found = run_graph(open_graph(graph, threads=1), small_dataset.test.images, 32)

    assert np.allclose(found, predict(trained, small_dataset.test), atol=1e-5)
    assert np.allclose(found.sum(axis=1), 1.0, atol=1e-5)


def test_graph_takes_uint8_pixels_in_batches_of_any_size(graph: Path) -> None:
    session = open_graph(graph, threads=1)
    inputs, outputs = session.get_inputs(), session.get_outputs()

    assert [(i.name, i.type, i.shape) for i in inputs] == [("image", "tensor(uint8)", ["batch", 32, 32, 3])]
    assert [(o.name, o.type, o.shape) for o in outputs] == [("probabilities", "tensor(float)", ["batch", 10])]


def test_graph_is_one_file_that_names_its_run_and_no_source(graph: Path) -> None:
    proto = onnx.load(graph)

    assert [path.name for path in graph.parent.iterdir()] == ["model.onnx"]
    assert {entry.key: entry.value for entry in proto.metadata_props} == {"run": "r1"}
    assert "BatchNormalization" not in {node.op_type for node in proto.graph.node}
    assert b".py" not in graph.read_bytes()


def test_export_leaves_the_network_as_it_was(graph: Path, trained: Classifier) -> None:
    assert any("norm.running_mean" in name for name in trained.state_dict())


def test_parity_holds_on_real_images(graph: Path, trained: Classifier, small_dataset: Dataset) -> None:
    parity = check_parity(trained, open_graph(graph, threads=1), small_dataset.test.images)

    assert (parity.samples, parity.label_mismatches) == (100, 0)
    assert parity.largest_difference < 1e-5


def test_parity_refuses_a_graph_with_another_weight(
    graph: Path, trained: Classifier, small_dataset: Dataset, tmp_path: Path
) -> None:
    proto = onnx.load(graph)
    weight = next(each for each in proto.graph.initializer if each.name.endswith("stages.0.convolution.weight"))
    tampered = onnx.numpy_helper.to_array(weight).copy()
    tampered.flat[0] += 1.0
    weight.CopyFrom(onnx.numpy_helper.from_array(tampered, weight.name))
    onnx.save_model(proto, tmp_path / "tampered.onnx")

    with pytest.raises(Conflict, match=r"differs from the trained network: .* probabilities by up to \d\.\d+e-\d\d;"):
        check_parity(trained, open_graph(tmp_path / "tampered.onnx", threads=1), small_dataset.test.images)


def test_golden_outputs_are_what_the_graph_answers(graph: Path, small_dataset: Dataset) -> None:
    session = open_graph(graph, threads=1)

    golden = make_golden(session, small_dataset.test[:8])

    (image,), (probabilities,) = golden.inputs, golden.outputs
    assert np.array_equal(image.to_array(), small_dataset.test.images[:8])
    assert np.allclose(
        run_graph(session, image.to_array(), 1), probabilities.to_array(), atol=golden.absolute_tolerance
    )


def test_graph_divides_the_logits_by_the_temperature(
    trained: Classifier, small_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trained, "temperature", 3.0)
    images = small_dataset.test.images

    export_graph(trained, tmp_path / "model.onnx", (32, 32, 3), {})
    found = run_graph(open_graph(tmp_path / "model.onnx", threads=1), images, 50)
    monkeypatch.undo()

    softened = predict(trained, small_dataset.test) ** (1 / 3)
    assert np.allclose(found, softened / softened.sum(axis=1, keepdims=True), atol=1e-5)


def a_classifier(name: str, options: dict[str, Any], images: NDArray[np.uint8], views: Views = 1) -> Classifier:
    """Random weights; norms that have seen *images*."""
    torch.manual_seed(0)
    network = build_network(name, 10, options, image_size=images.shape[1:3])
    model = Classifier(network, torch.tensor([125.0, 123.0, 114.0]), torch.tensor([63.0, 62.0, 67.0]), views)
    with torch.no_grad():
        model.train()(torch.from_numpy(images[:32].copy()))
    return model.eval()


@pytest.mark.parametrize(
    ("name", "options", "views"),
    [
        ("residual", {"widths": [8, 12, 16], "depths": [0, 1, 1]}, 6),
        ("alexnet", {}, 1),
        ("alexnet-small", {"head": [32], "norm": "lrn"}, 1),
        ("alexnet-small", {"head": [32], "norm": "batch", "input_side": 40}, 1),
        ("torchvision:resnet18", {}, 1),
        ("torchvision:mobilenet_v3_small", {"input_side": 64}, 1),
    ],
)
@pytest.mark.timeout(300)  # the largest takes 15 s of a processor that others may want too
def test_every_network_s_graph_computes_what_the_network_does(
    name: str, options: dict[str, Any], views: Views, slice_samples: tuple[Samples, Samples], tmp_path: Path
) -> None:
    images = slice_samples[0].images[:33]
    model = a_classifier(name, options, images, views).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    export_graph(model, tmp_path / "model.onnx", (32, 32, 3), {})
    parity = check_parity(model, open_graph(tmp_path / "model.onnx"), images)

    assert parity.samples == 33
    kinds = {node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node}
    assert not kinds & {"LRN", "Pow", "BatchNormalization"}


@pytest.mark.parametrize(("name", "options"), [("residual", {}), ("alexnet-small", {"input_side": 64, "head": [16]})])
def test_images_of_other_sizes_have_graphs_of_their_size(
    name: str, options: dict[str, Any], slice_samples: tuple[Samples, Samples], tmp_path: Path
) -> None:
    images = np.concatenate([slice_samples[0].images[:33]] * 2, axis=2)[:, :28, :48]

    model = a_classifier(name, options, images)
    export_graph(model, tmp_path / "model.onnx", images.shape[1:], {})

    session = open_graph(tmp_path / "model.onnx", threads=1)
    assert session.get_inputs()[0].shape == ["batch", 28, 48, 3]
    check_parity(model, session, images)


def test_parity_is_checked_on_two_thousand_images_at_every_batch_size(
    slice_samples: tuple[Samples, Samples], tmp_path: Path
) -> None:
    images = slice_samples[0].images[:2000]
    model = a_classifier("residual", {"widths": [8, 8, 8], "depths": [0, 0, 0]}, images)
    export_graph(model, tmp_path / "model.onnx", (32, 32, 3), {})
    fractions: list[float] = []

    parity = check_parity(model, open_graph(tmp_path / "model.onnx"), images, on_progress=fractions.append)

    assert (parity.samples, parity.label_mismatches) == (2000, 0)
    assert fractions == [0.2, 0.4, 0.6, 0.8, 1.0]


def test_more_weights_than_a_file_holds_are_refused(
    trained: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph_module, "MOST_BYTES", 1000)

    with pytest.raises(Unsupported, match=r"the network has 0\.0 GB of weights and an ONNX file holds 0\.0; train a"):
        export_graph(trained, tmp_path / "model.onnx", (32, 32, 3), {})
