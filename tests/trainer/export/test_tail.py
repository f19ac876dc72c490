"""The last layer can be taken off a graph and another put on, and the rest of the graph never changes by it."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from aimass.starter import VERSION
from services.common.errors import InvalidInput, Unsupported
from services.common.manifest import GRAPH_FILE
from services.trainer.data.samples import Samples
from services.trainer.export.graph import export_graph, open_graph, run_graph
from services.trainer.export.half import export_half
from services.trainer.export.quantization import quantize_graph
from services.trainer.export.tail import FEATURES, cut_encoder, find_tail, replace_tail
from services.trainer.networks.building import build_network
from services.trainer.networks.classifier import Classifier, Views
from services.trainer.statistics.heads import Head, head_probabilities

STARTER = VERSION / GRAPH_FILE
RESIDUAL = ("residual", {"widths": [8, 12, 16], "depths": [0, 0, 1]})
SMALL = ("alexnet-small", {"head": [32]})


@pytest.fixture(scope="module")
def images(slice_samples: tuple[Samples, Samples]) -> NDArray[np.uint8]:
    return slice_samples[1].images[:40]


def a_model(network: tuple[str, dict[str, Any]], head: int, temperature: float, views: Views = 1) -> Classifier:
    """The layers before the last are the same each time; the last one, with a bias, is drawn by *head*."""
    torch.manual_seed(0)
    model = Classifier(
        build_network(network[0], 10, network[1]), torch.full((3,), 120.0), torch.full((3,), 64.0), views
    )
    model.temperature = temperature
    torch.manual_seed(head)
    for parameter in model.network.head.parameters():
        torch.nn.init.normal_(parameter)
    return model.eval()


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Graphs by name, two of which have the same layers before the last."""
    folder = tmp_path_factory.mktemp("graphs")
    models = {
        "residual": a_model(RESIDUAL, head=1, temperature=1.0),
        "residual, other head": a_model(RESIDUAL, head=2, temperature=1.7),
        "with a bias": a_model(SMALL, head=1, temperature=0.8),
    }
    for name, model in models.items():
        metadata = {"labels": '["a", "b"]', "run": name, "dataset": "slice"}
        export_graph(model, folder / f"{name}.onnx", (32, 32, 3), metadata)
    return {name: folder / f"{name}.onnx" for name in models} | {"starter": STARTER}


def embed(encoder: Path, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    return open_graph(encoder, threads=1).run([FEATURES], {"image": images})[0]  # type: ignore[no-any-return]


def ask(graph: Path, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    return run_graph(open_graph(graph, threads=1), images, 32)


def another_head(like: Head, *, bias: bool) -> Head:
    generator = np.random.default_rng(0)
    weight = generator.normal(size=like.weight.shape).astype(np.float32)
    return Head(weight, generator.normal(size=len(weight)).astype(np.float32) if bias else None, temperature=1.3)


NAMES = pytest.mark.parametrize("name", ["starter", "residual", "residual, other head", "with a bias"])


@NAMES
def test_a_graph_computes_what_its_last_layer_makes_of_its_features(
    name: str, graphs: dict[str, Path], images: NDArray[np.uint8], tmp_path: Path
) -> None:
    tail = find_tail(graphs[name])
    cut_encoder(graphs[name], tmp_path / "encoder.onnx")

    features = embed(tmp_path / "encoder.onnx", images)

    assert features.shape == (40, tail.width)
    assert features.dtype == np.float32
    assert (tail.bias is not None) == (name == "with a bias")
    assert np.allclose(head_probabilities(tail.head, features), ask(graphs[name], images), atol=1e-5)


@NAMES
@pytest.mark.parametrize("bias", [False, True])
def test_a_graph_with_another_last_layer_computes_what_that_says(
    name: str, bias: bool, graphs: dict[str, Path], images: NDArray[np.uint8], tmp_path: Path
) -> None:
    tail = find_tail(graphs[name])
    head = another_head(tail.head, bias=bias)
    cut_encoder(graphs[name], tmp_path / "encoder.onnx")

    replace_tail(graphs[name], tmp_path / "model.onnx", head, {})

    expected = head_probabilities(head, embed(tmp_path / "encoder.onnx", images))
    assert np.allclose(ask(tmp_path / "model.onnx", images), expected, atol=1e-5)
    assert not np.allclose(ask(graphs[name], images), expected, atol=0.1)
    found = find_tail(tmp_path / "model.onnx")
    assert np.array_equal(found.weight, head.weight)
    assert np.array_equal(found.bias, head.bias) if bias else found.bias is None  # type: ignore[arg-type]
    assert found.temperature == np.float32(1.3)


@NAMES
def test_the_encoder_of_a_graph_stays_the_same_whatever_its_last_layer_is(
    name: str, graphs: dict[str, Path], tmp_path: Path
) -> None:
    before = cut_encoder(graphs[name], tmp_path / "before.onnx")
    source = graphs[name]
    for turn, bias in enumerate([True, False, True]):
        head = another_head(find_tail(source).head, bias=bias)
        replace_tail(source, tmp_path / f"{turn}.onnx", head, {"run": f"r{turn}"})
        source = tmp_path / f"{turn}.onnx"

    assert cut_encoder(source, tmp_path / "after.onnx") == before
    assert (tmp_path / "after.onnx").read_bytes() == (tmp_path / "before.onnx").read_bytes()


def test_two_exports_with_other_heads_have_one_encoder(graphs: dict[str, Path], tmp_path: Path) -> None:
    digests = {name: cut_encoder(path, tmp_path / "encoder.onnx") for name, path in graphs.items()}

    assert digests["residual"] == digests["residual, other head"]
    assert len(set(digests.values())) == 3


def test_an_encoder_is_another_when_a_weight_of_it_changes(graphs: dict[str, Path], tmp_path: Path) -> None:
    proto = onnx.load(graphs["residual"])
    weight = next(each for each in proto.graph.initializer if each.name == "network.whiten.weight")
    changed = numpy_helper.to_array(weight).copy()
    changed.flat[0] = np.nextafter(changed.flat[0], np.float32(2))
    weight.CopyFrom(numpy_helper.from_array(changed, weight.name))
    onnx.save_model(proto, tmp_path / "changed.onnx")

    digests = [cut_encoder(path, tmp_path / "encoder.onnx") for path in (graphs["residual"], tmp_path / "changed.onnx")]

    assert digests[0] != digests[1]


def test_an_encoder_takes_batches_of_any_size_and_names_neither_run_nor_labels(
    graphs: dict[str, Path], images: NDArray[np.uint8], tmp_path: Path
) -> None:
    cut_encoder(graphs["with a bias"], tmp_path / "encoder.onnx")

    session = open_graph(tmp_path / "encoder.onnx", threads=1)
    inputs, outputs = session.get_inputs(), session.get_outputs()
    assert [(i.name, i.type, i.shape) for i in inputs] == [("image", "tensor(uint8)", ["batch", 32, 32, 3])]
    assert [(o.name, o.type, o.shape) for o in outputs] == [("features", "tensor(float)", ["batch", 32])]
    assert not onnx.load(tmp_path / "encoder.onnx").metadata_props
    assert [len(embed(tmp_path / "encoder.onnx", images[:size])) for size in (1, 7)] == [1, 7]


def test_a_graph_with_another_last_layer_says_nothing_of_its_source(graphs: dict[str, Path], tmp_path: Path) -> None:
    source = graphs["residual"]
    head = find_tail(source).head

    replace_tail(source, tmp_path / "model.onnx", head, {"labels": '["a", "b"]', "dataset": "snapshot:5"})

    kept = {entry.key: entry.value for entry in onnx.load(tmp_path / "model.onnx").metadata_props}
    assert kept == {"labels": '["a", "b"]', "dataset": "snapshot:5"}


def test_nothing_of_the_old_last_layer_is_left(graphs: dict[str, Path], tmp_path: Path) -> None:
    source = graphs["with a bias"]
    old = find_tail(source)

    replace_tail(source, tmp_path / "model.onnx", another_head(old.head, bias=True), {})

    proto = onnx.load(tmp_path / "model.onnx")
    assert len(proto.graph.node) == len(onnx.load(source).graph.node)
    assert old.weight.tobytes() not in (tmp_path / "model.onnx").read_bytes()


def test_a_head_for_other_features_is_refused(graphs: dict[str, Path], tmp_path: Path) -> None:
    head = Head(np.zeros((10, 17), np.float32), None, 1.0)

    with pytest.raises(InvalidInput, match=r"weights of shape \(10, 17\) and residual.onnx takes \(10, 16\); fit it"):
        replace_tail(graphs["residual"], tmp_path / "model.onnx", head, {})
    assert not (tmp_path / "model.onnx").exists()


def with_views(float32: Path, path: Path, images: NDArray[np.uint8]) -> None:
    export_graph(a_model(RESIDUAL, head=1, temperature=1.7, views=2), path, (32, 32, 3), {})


def of_halves(float32: Path, path: Path, images: NDArray[np.uint8]) -> None:
    export_half(a_model(RESIDUAL, head=1, temperature=1.7), path, (32, 32, 3), {})


def of_integers(float32: Path, path: Path, images: NDArray[np.uint8]) -> None:
    quantize_graph(float32, path, images)


@pytest.mark.parametrize(("make", "found"), [(with_views, "ReduceMean"), (of_halves, "Cast"), (of_integers, "Gemm")])
def test_graphs_of_several_views_or_another_arithmetic_are_refused(
    make: Callable[[Path, Path, NDArray[np.uint8]], None],
    found: str,
    graphs: dict[str, Path],
    images: NDArray[np.uint8],
    tmp_path: Path,
) -> None:
    make(graphs["residual"], tmp_path / "model.onnx", images)

    with pytest.raises(Unsupported, match=rf"the last layer of model.onnx cannot be replaced: its end holds {found} "):
        find_tail(tmp_path / "model.onnx")


GENERATOR = np.random.default_rng(0)
CONSTANTS = {
    "W": GENERATOR.normal(size=(5, 3)),
    "b": GENERATOR.normal(size=3),
    "row": GENERATOR.normal(size=(1, 3)),
    "two": np.array(2.0),
    "four": np.array([4.0]),
    "minus": np.array(-1.0),
}


def a_graph(path: Path, nodes: Sequence[onnx.NodeProto]) -> None:
    """Write a graph whose features `x` are twice its input, and whose last nodes are *nodes*."""
    graph = helper.make_graph(
        [helper.make_node("Mul", ["image", "two"], ["x"]), *nodes],
        "small",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 5])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in CONSTANTS.items()],
    )
    onnx.save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)


def node(kind: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, inputs.split(), [output], **attributes)


SOFTMAX = node("Softmax", "z", "probabilities", axis=-1)


@pytest.mark.parametrize(
    ("nodes", "temperature"),
    [
        ([node("MatMul", "x W", "z"), SOFTMAX], 1.0),
        ([node("MatMul", "x W", "p"), node("Add", "p b", "z"), SOFTMAX], 1.0),
        ([node("MatMul", "x W", "p"), node("Add", "row p", "q"), node("Mul", "four q", "z"), SOFTMAX], 0.25),
        (
            [
                *(node("MatMul", "x W", "p"), node("Div", "p four", "q"), node("Add", "q b", "r")),
                *(node("Div", "r two", "s"), node("Mul", "s four", "z"), SOFTMAX),
            ],
            0.5,
        ),
        ([node("Gemm", "x W b", "p", alpha=0.5, beta=3.0), node("Div", "p two", "z"), SOFTMAX], 2.0),
        ([node("Gemm", "x W b", "p", beta=2.0), node("Div", "p two", "q"), node("Add", "q row", "z"), SOFTMAX], 1.0),
    ],
)  # fmt: skip
def test_every_form_of_a_last_layer_is_read_as_one_product_one_bias_and_one_temperature(
    nodes: Sequence[onnx.NodeProto], temperature: float, tmp_path: Path
) -> None:
    a_graph(tmp_path / "model.onnx", nodes)
    pixels = GENERATOR.normal(size=(7, 5)).astype(np.float32)

    tail = find_tail(tmp_path / "model.onnx")

    (expected,) = open_graph(tmp_path / "model.onnx", threads=1).run(None, {"image": pixels})
    assert np.allclose(head_probabilities(tail.head, 2 * pixels), expected, atol=1e-6)
    assert (tail.features, tail.width, tail.temperature) == ("x", 5, temperature)


@pytest.mark.parametrize(
    ("nodes", "found"),
    [
        ([node("MatMul", "x W", "p"), node("Relu", "p", "probabilities")], "Relu"),
        ([node("MatMul", "x W", "p"), node("Relu", "p", "z"), SOFTMAX], "Relu"),
        ([node("MatMul", "x W", "z"), node("Softmax", "z", "probabilities", axis=0)], "Softmax"),
        ([node("MatMul", "x W", "p"), node("Mul", "p minus", "z"), SOFTMAX], "Mul"),
        ([node("MatMul", "x W", "p"), node("Mul", "p b", "z"), SOFTMAX], "Mul"),
        ([node("MatMul", "x W", "p"), node("Div", "two p", "z"), SOFTMAX], "Div"),
        ([node("MatMul", "x W", "p"), node("MatMul", "x W", "q"), node("Add", "p q", "z"), SOFTMAX], "Add"),
        ([node("Add", "image b", "z"), SOFTMAX], "no operator"),
    ],
)
def test_every_other_form_is_refused(nodes: Sequence[onnx.NodeProto], found: str, tmp_path: Path) -> None:
    a_graph(tmp_path / "model.onnx", nodes)

    with pytest.raises(Unsupported, match=f"its end holds {found} where only"):
        find_tail(tmp_path / "model.onnx")
