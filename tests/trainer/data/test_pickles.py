import contextlib
import io
import os
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.errors import InvalidInput
from services.trainer.data.pickles import read_pickle

ROWS = np.arange(12, dtype=np.uint8).reshape(3, 4)


class Attack:
    """Runs a command when it is unpickled the plain way."""

    def __reduce__(self) -> Any:
        return os.system, ("touch /tmp/attacked",)


class Hidden:
    """The same through numpy's own names."""

    def __reduce__(self) -> Any:
        return np.load, ("/etc/passwd",)


def python_2(rows: np.ndarray, labels: list[int]) -> bytes:
    """A batch as Python 2 wrote the official ones: protocol 2, texts as bytes, numpy's old module names."""
    file = io.BytesIO()
    raw = rows.tobytes()
    file.write(b"\x80\x02}q\x01(")
    file.write(b"U\x04data" + b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R")
    file.write(b"(K\x01K" + bytes([rows.shape[0]]) + b"K" + bytes([rows.shape[1]]) + b"\x86")
    file.write(b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb")
    file.write(b"\x89T" + len(raw).to_bytes(4, "little") + raw + b"tb")
    file.write(b"U\x06labels](" + b"".join(b"K" + bytes([label]) for label in labels) + b"eu.")
    return file.getvalue()


def test_a_batch_of_python_2_is_what_plain_pickle_gives() -> None:
    data = python_2(ROWS, [1, 0, 2])

    expected = pickle.loads(data, encoding="bytes")

    content = read_pickle(data, "data_batch_1")

    assert np.array_equal(content["data"], expected[b"data"])
    assert content["labels"] == expected[b"labels"] == [1, 0, 2]


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("order", ["C", "F"])
def test_every_protocol_is_read(protocol: int, order: str) -> None:
    rows = np.asarray(ROWS, order=order)
    data = pickle.dumps({"data": rows, b"labels": [3, 1, 4], "label_names": ["a", b"b"]}, protocol)

    content = read_pickle(data, "batch")

    assert np.array_equal(content["data"], ROWS)
    assert content["labels"] == [3, 1, 4]
    assert content["label_names"] == ["a", b"b"]


@pytest.mark.parametrize(
    "content",
    [
        {"data": Attack()},
        {"data": Hidden()},
        [1, 2],
        {"data": np.zeros(3)},
        {"data": np.array([{}], dtype=object)},
        {"data": np.random.default_rng(0)},
    ],
    ids=["command", "numpy-function", "list", "floats", "objects", "class"],
)
def test_anything_else_is_refused_and_nothing_of_it_runs(content: object) -> None:
    with pytest.raises(InvalidInput, match="batch is not a pickled batch of a CIFAR set, or holds something else"):
        read_pickle(pickle.dumps(content), "batch")

    assert not os.path.exists("/tmp/attacked")


@given(st.integers(0, 400), st.binary(max_size=6))
def test_damaged_batches_are_read_or_refused_and_nothing_worse(place: int, content: bytes) -> None:
    data = python_2(ROWS, [1, 0, 2])
    data = data[:place] + content + data[place + len(content) :]

    with contextlib.suppress(InvalidInput):
        assert isinstance(read_pickle(data, "batch"), dict)
