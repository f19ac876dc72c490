from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from services.common.errors import Conflict
from services.trainer.data.samples import Samples
from services.trainer.export.graph import export_graph, open_graph, run_graph
from services.trainer.export.half import HALF_TOLERANCE, check_half, export_half
from services.trainer.networks.building import build_network
from services.trainer.networks.classifier import Classifier

SHAPE = (32, 32, 3)


def build(name: str, options: dict[str, Any], samples: Samples) -> Classifier:
    """Return a classifier with random weights, whose batch norms have seen real images."""
    torch.manual_seed(0)
    network = build_network(name, 10, options)
    model = Classifier(network, torch.full((3,), 120.0), torch.full((3,), 64.0), views=2)
    images = torch.from_numpy(samples.images[:100].copy())
    network.initialise_from(model.normalise(images))
    with torch.no_grad():
        model.train().logits(images)
    return model.eval()


@pytest.fixture(scope="module")
def model(slice_samples: tuple[Samples, Samples]) -> Classifier:
    return build("residual", {"widths": [16, 24, 32], "depths": [0, 0, 1]}, slice_samples[0])


@pytest.fixture(scope="module")
def single(model: Classifier, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model in float32."""
    path = tmp_path_factory.mktemp("single") / "model.onnx"
    export_graph(model, path, SHAPE, {"run": "r1"})
    return path


@pytest.fixture(scope="module")
def half(model: Classifier, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in float16."""
    path = tmp_path_factory.mktemp("half") / "model.onnx"
    export_half(model, path, SHAPE, {"run": "r1"})
    return path


def test_labels_stay_on_2000_real_images(single: Path, half: Path, slice_samples: tuple[Samples, Samples]) -> None:
    parity = check_half(single, half, slice_samples[0].images[:2000], threads=1)

    assert parity.samples == 2000
    assert parity.largest_difference <= HALF_TOLERANCE
    assert parity.label_changes <= 2


def test_weights_take_half_of_the_bytes(model: Classifier, single: Path, half: Path) -> None:
    weights = sum(parameter.numel() for parameter in model.parameters())

    assert single.stat().st_size - half.stat().st_size > 1.9 * weights


def test_inputs_outputs_and_metadata_are_those_of_any_graph(half: Path) -> None:
    session = open_graph(half, 1)

    assert [(i.name, i.type, i.shape) for i in session.get_inputs()] == [
        ("image", "tensor(uint8)", ["batch", 32, 32, 3])
    ]
    assert [(o.name, o.type) for o in session.get_outputs()] == [("probabilities", "tensor(float)")]
    assert session.get_modelmeta().custom_metadata_map == {"run": "r1"}
    assert [path.name for path in half.parent.iterdir()] == ["model.onnx"]


def test_the_model_stays_in_float32(model: Classifier, half: Path) -> None:
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_weights_are_float16(half: Path) -> None:
    weights = [each for each in onnx.load(half).graph.initializer if len(each.dims) == 4]

    assert weights
    assert {each.data_type for each in weights} == {TensorProto.FLOAT16}


def test_response_norms_of_large_values_stay_right(tmp_path: Path, slice_samples: tuple[Samples, Samples]) -> None:
    large = build("alexnet-small", {"head": [32], "input_side": 36}, slice_samples[0][:20])
    with torch.no_grad():  # squares of activations around 1,000 are beyond float16
        large.network.get_parameter("features.0.weight").mul_(200)
        large.network.get_parameter("features.4.weight").div_(100)

    export_graph(large, tmp_path / "single.onnx", SHAPE, {})
    export_half(large, tmp_path / "half.onnx", SHAPE, {})

    images = slice_samples[0].images[:20]
    before, after = (run_graph(open_graph(tmp_path / f"{name}.onnx", 1), images, 20) for name in ("single", "half"))
    assert np.abs(before - after).max() < HALF_TOLERANCE


def test_a_graph_that_differs_is_refused(
    single: Path, half: Path, tmp_path: Path, slice_samples: tuple[Samples, Samples]
) -> None:
    proto = onnx.load(half)
    weight = next(each for each in proto.graph.initializer if len(each.dims) == 4)
    array = onnx.numpy_helper.to_array(weight)
    weight.CopyFrom(helper.make_tensor(weight.name, weight.data_type, array.shape, (array * 3).tobytes(), raw=True))
    onnx.save_model(proto, tmp_path / "tampered.onnx")

    with pytest.raises(Conflict, match=r"float16 graph differs from the float32 graph: \d+ labels of 200 images"):
        check_half(single, tmp_path / "tampered.onnx", slice_samples[0].images[:200], threads=1)
