from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from services.common.errors import Unsupported
from services.trainer.data.samples import Samples
from services.trainer.export import quantization
from services.trainer.export.graph import export_graph, open_graph, run_graph
from services.trainer.export.quantization import choose_quantized, draw_calibration, quantize_graph
from services.trainer.networks.building import build_network
from services.trainer.networks.classifier import Classifier, Views

STARTER = Path(__file__).parents[3] / "aimass" / "starter" / "cifar10" / "1" / "model.onnx"
RESIDUAL = ("residual", {"widths": [16, 24, 32], "depths": [0, 0, 1]})
SMALL = ("alexnet-small", {"head": [64]})
NETWORKS: list[tuple[str, dict[str, Any], Views]] = [
    (*RESIDUAL, 1),
    (*RESIDUAL, 6),
    ("alexnet-small", {"head": [64], "input_side": 40}, 2),  # up-sampled, then padded; with response norms
    ("torchvision:resnet18", {}, 1),
]


@pytest.fixture(scope="module")
def images(slice_samples: tuple[Samples, Samples]) -> NDArray[np.uint8]:
    return draw_calibration(slice_samples[0], 32, seed=0)


def export(name: str, options: dict[str, Any], views: Views, images: NDArray[np.uint8], path: Path) -> Path:
    torch.manual_seed(0)
    network = build_network(name, 10, options)
    model = Classifier(network, torch.tensor([125.0, 123.0, 114.0]), torch.tensor([63.0, 62.0, 67.0]), views=views)
    network.initialise_from(model.normalise(torch.from_numpy(images)))
    with torch.no_grad():
        model.train().logits(torch.from_numpy(images))  # batch norms see what real images do
    export_graph(model.eval(), path, (32, 32, 3), {"run": "r1", "labels": '["a", "b"]'})
    return path


@pytest.fixture(scope="module")
def starter(images: NDArray[np.uint8], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The starter model, quantised."""
    path = tmp_path_factory.mktemp("starter") / "model.onnx"
    quantize_graph(STARTER, path, images)
    return path


def operators(path: Path) -> list[str]:
    """Return what ONNX Runtime makes of a graph."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(path.with_suffix(".optimised.onnx"))
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]


@pytest.mark.parametrize(("name", "options", "views"), NETWORKS, ids=lambda each: str(each))
def test_a_quantised_graph_says_nearly_what_the_graph_says(
    name: str,
    options: dict[str, Any],
    views: Views,
    images: NDArray[np.uint8],
    slice_samples: tuple[Samples, Samples],
    tmp_path: Path,
) -> None:
    source = export(name, options, views, images, tmp_path / "model.onnx")

    quantize_graph(source, tmp_path / "int8.onnx", images)

    unseen = slice_samples[1].images[:20]
    before, after = (np.log(run_graph(open_graph(p, 1), unseen, 20)) for p in (source, tmp_path / "int8.onnx"))
    assert np.abs(after - before).mean() < 0.15 * (before - before.mean(axis=0)).std() + 0.02
    # The file has constants of its own; the weights take a quarter.
    assert (tmp_path / "int8.onnx").stat().st_size < 0.3 * source.stat().st_size + 60_000


def test_the_starter_model_keeps_its_accuracy(starter: Path, slice_samples: tuple[Samples, Samples]) -> None:
    test = slice_samples[1]

    correct = [
        (run_graph(open_graph(path, 1), test.images, 100).argmax(axis=1) == test.labels).mean()
        for path in (STARTER, starter)
    ]

    assert correct[1] >= correct[0] - 0.005


def test_inputs_outputs_and_metadata_stay(starter: Path) -> None:
    before, after = (open_graph(path, 1) for path in (STARTER, starter))

    for session in (before, after):
        assert [(i.name, i.type, i.shape) for i in session.get_inputs()] == [
            ("image", "tensor(uint8)", ["batch", 32, 32, 3])
        ]
        assert [(o.name, o.type) for o in session.get_outputs()] == [("probabilities", "tensor(float)")]
    assert after.get_modelmeta().custom_metadata_map == before.get_modelmeta().custom_metadata_map


def test_a_quantised_graph_is_one_file_without_paths_of_this_machine(starter: Path) -> None:
    data = starter.read_bytes()

    assert not [path for path in starter.parent.iterdir() if "optimised" not in path.name and path != starter]
    assert not [word for word in (b"/tmp", b"/home", b".py", b"/work") if word in data]
    assert {each.domain for each in onnx.load(starter).opset_import} == {""}


def test_everything_between_the_pixels_and_the_last_layer_is_computed_on_integers(starter: Path) -> None:
    found = operators(starter)

    assert found.count("QLinearConv") == 8
    assert found.count("NhwcMaxPool") == 3
    assert not {"Conv", "MaxPool", "Sub", "Cast", "QuantizeLinear"} & set(found[:-6])


def test_sums_of_squares_are_computed_on_integers(images: NDArray[np.uint8], tmp_path: Path) -> None:
    source = export(*SMALL, 1, images, tmp_path / "model.onnx")

    quantize_graph(source, tmp_path / "int8.onnx", images[:16])

    found = operators(tmp_path / "int8.onnx")
    assert (found.count("QLinearConv"), found.count("QLinearMul"), found.count("Conv")) == (7, 2, 0)
    assert found.count("NhwcMaxPool") == 3


def test_the_same_images_make_the_same_graph(starter: Path, images: NDArray[np.uint8], tmp_path: Path) -> None:
    quantize_graph(STARTER, tmp_path / "again.onnx", images)

    assert (tmp_path / "again.onnx").read_bytes() == starter.read_bytes()


def test_calibration_images_are_drawn_by_a_seed(slice_samples: tuple[Samples, Samples]) -> None:
    first, same, other = (draw_calibration(slice_samples[0], 50, seed) for seed in (1, 1, 2))

    assert first.shape == (50, 32, 32, 3)
    assert np.array_equal(first, same)
    assert not np.array_equal(first, other)


def test_all_images_are_drawn_where_there_are_too_few(slice_samples: tuple[Samples, Samples]) -> None:
    assert len(draw_calibration(slice_samples[0][:20], 512, seed=0)) == 20


def test_a_quantised_graph_is_not_quantised_again(starter: Path, images: NDArray[np.uint8], tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match=r"model\.onnx has nothing to quantise"):
        quantize_graph(starter, tmp_path / "again.onnx", images)

    assert list(tmp_path.iterdir()) == []


def test_a_graph_that_normalises_otherwise_is_quantised_all_the_same(
    images: NDArray[np.uint8], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = export(*RESIDUAL, 1, images, tmp_path / "model.onnx")
    monkeypatch.setattr(quantization, "_normalisation", lambda graph: None)

    quantize_graph(source, tmp_path / "int8.onnx", images)

    before, after = (run_graph(open_graph(p, 1), images, 32) for p in (source, tmp_path / "int8.onnx"))
    assert np.abs(after - before).max() < 0.1


def test_two_products_fit_into_16_bits_which_is_what_many_processors_add_them_in(starter: Path) -> None:
    tensors = [onnx.numpy_helper.to_array(each) for each in onnx.load(starter).graph.initializer]
    weights = [each.astype(np.int64) for each in tensors if each.dtype == np.int8 and each.size > 1]

    assert weights
    assert max(2 * 255 * np.abs(each).max() for each in weights) <= np.iinfo(np.int16).max


def test_int8_is_compared_on_samples_of_its_own(starter: Path, slice_samples: tuple[Samples, Samples]) -> None:
    """The margin is wider than in a run: 1,000 samples decide about one point at most."""
    choice = choose_quantized(STARTER, starter, slice_samples[1], threads=1, margin=0.01)

    assert (choice.quality.samples, choice.quality.not_worse) == (1000, True)
    assert choice.candidate_bytes < 0.3 * choice.parent_bytes
    assert [speed.batch_size for speed in choice.speeds] == [1, 8, 32]
