"""`model.json`: what it accepts, what it refuses, and identities that must never change."""

import hashlib
import json

import numpy as np
import pytest

from services.common.errors import InvalidInput
from services.common.manifest import Golden, GoldenTensor, Manifest, PreprocessSpec, digest_of

SPEC = PreprocessSpec(input="image", width=32, height=24, mode="letterbox", color="BGR", layout="NCHW")


def test_digest_of_a_spec_is_the_same_in_every_release():
    canonical = b'{"color":"BGR","height":24,"input":"image","layout":"NCHW","mode":"letterbox","width":32}'

    assert SPEC.canonical_json() == canonical
    assert SPEC.digest == "sha256:24cade961225dd6e9c9a2dc86ad262f4c60e6d14584336237f1f96fd5ea2f7c4"
    assert SPEC.digest == f"sha256:{hashlib.sha256(canonical).hexdigest()}"


def test_default_that_is_spelled_out_changes_no_digest():
    spelled = PreprocessSpec.model_validate(SPEC.model_dump())

    assert "padding" in SPEC.model_dump()
    assert spelled.digest == SPEC.digest


@pytest.mark.parametrize("change", [{"width": 33}, {"filter": "box"}, {"padding": (0, 0, 0)}, {"input": "pixels"}])
def test_other_pixels_have_another_digest(change):
    assert SPEC.model_copy(update=change).digest != SPEC.digest


@pytest.mark.parametrize(
    ("color", "layout", "shape"),
    [
        ("RGB", "NHWC", (24, 32, 3)),
        ("RGB", "NCHW", (3, 24, 32)),
        ("L", "NHWC", (24, 32, 1)),
        ("L", "NCHW", (1, 24, 32)),
    ],
)
def test_spec_knows_the_shape_of_its_tensor(color, layout, shape):
    assert PreprocessSpec(input="x", width=32, height=24, color=color, layout=layout).shape == shape


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"mode": "crop", "shorter_side": 31}, "shorter_side 31 is smaller than the crop of 32x24"),
        ({"shorter_side": 64}, "shorter_side belongs to mode crop, not to stretch"),
        ({"antialias": False, "filter": "lanczos"}, "filter lanczos has no form without antialias"),
        ({"datatype": "FP32", "mean": [0.5]}, "mean has 1 values; RGB has 3 channels"),
        ({"datatype": "FP32", "color": "L", "std": [1, 1, 1]}, "std has 3 values; L has 1 channels"),
        ({"datatype": "FP32", "std": [1, 0, 1]}, "std must not be zero"),
        ({"scale": 0.5}, "need a float datatype"),
        ({"datatype": "FP32", "scale": float("inf")}, "finite"),
        ({"width": 0}, "greater than or equal to 1"),
        ({"height": 8193}, "less than or equal to 8192"),
        ({"padding": [0, 0, 256]}, "less than or equal to 255"),
        ({"sharpen": True}, "preprocess.sharpen: Extra inputs are not permitted"),
    ],
)
def test_spec_that_contradicts_itself_is_refused(fields, words):
    document = {"preprocess": {"input": "image", "width": 32, "height": 24} | fields}

    with pytest.raises(InvalidInput, match=words):
        Manifest.from_json(json.dumps(document), "model.json")


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ("", "model.json is not a valid manifest; correct it: document: Invalid JSON"),
        (b"\xff", "Invalid JSON"),
        ("[]", "document"),
        ('{"format": 2}', "format: Input should be 1"),
        ('{"labels": ["cat", "cat"]}', "labels repeat"),
        ('{"graph": {"sha256": "sha256:12", "size_bytes": 0}}', "graph.sha256: .*; graph.size_bytes: "),
        ('{"metrics": {"loss": NaN}}', "metrics.loss: Input should be a finite number"),
        ('{"golden": {"inputs": [], "outputs": []}}', "golden.inputs: .*; golden.outputs: "),
        ('{"preprocess_digest": "sha256:%s"}' % ("0" * 64), "does not belong to preprocess, which has None"),
    ],
)
def test_document_that_is_no_manifest_is_refused_with_every_problem(document, words):
    with pytest.raises(InvalidInput, match=words) as caught:
        Manifest.from_json(document, "model.json")

    assert caught.value.reason == "INVALID_MANIFEST"


def test_manifest_survives_its_file(tiny_classifier):
    manifest = tiny_classifier.manifest

    assert Manifest.from_json(manifest.to_json(), "model.json") == manifest


@pytest.mark.parametrize(
    ("datatype", "array"),
    [
        ("UINT8", np.arange(6, dtype=np.uint8).reshape(2, 3)),
        ("FP32", np.array([[0.1, -np.inf]], np.float32)),
        ("INT64", np.array(-(2**60))),
        ("BYTES", np.array([b"a", b"", "ä".encode()], np.object_)),
    ],
)
def test_golden_tensor_survives_its_document(datatype, array):
    tensor = GoldenTensor.from_array("x", datatype, array)
    golden = Golden(inputs=(tensor,), outputs=(tensor,))
    back = Golden.model_validate_json(golden.model_dump_json()).inputs[0].to_array()

    np.testing.assert_array_equal(back, array)
    assert back.dtype == array.dtype


@pytest.mark.parametrize(
    "fields",
    [{"data": "?"}, {"data": "AAA="}, {"datatype": "FP31"}, {"shape": [-1]}, {"shape": [3]}, {"datatype": "BYTES"}],
)
def test_golden_tensor_that_contradicts_itself_is_refused(fields):
    tensor = GoldenTensor(**{"name": "x", "datatype": "UINT8", "shape": (1,), "data": "AA=="} | fields)

    with pytest.raises(InvalidInput):
        tensor.to_array()


def test_digest_names_its_algorithm():
    assert digest_of(b"") == "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ('{"labels": [1, 2, 3]}', "labels.0: Input should be a valid string$"),
        (
            '{"metrics": {' + ", ".join(f'"{number}": "x"' for number in range(50)) + "}}",
            "50 values are of another kind",
        ),
    ],
)
def test_of_many_problems_few_are_listed(document, words):
    with pytest.raises(InvalidInput, match=words):
        Manifest.from_json(document, "manifest")
