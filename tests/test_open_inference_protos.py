"""Our stubs of the Open Inference Protocol and tritonclient's declare the same, so that one process can hold both."""

import subprocess
import sys

import pytest

OURS = "aimass.open_inference.grpc_service_pb2_grpc"
THEIRS = "tritonclient.grpc"


def run_python(code: str) -> str:
    """Run *code* in an interpreter of its own: all modules of a process share one descriptor pool."""
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("aimass.open_inference.model_config_pb2", "tritonclient.grpc.model_config_pb2"),
        ("aimass.open_inference.grpc_service_pb2", "tritonclient.grpc.service_pb2"),
    ],
)
def test_descriptor_is_the_one_of_tritonclient(ours: str, theirs: str) -> None:
    code = "from {} import DESCRIPTOR; print(DESCRIPTOR.name, DESCRIPTOR.serialized_pb.hex())"

    assert run_python(code.format(ours)) == run_python(code.format(theirs))


@pytest.mark.parametrize("modules", [(OURS, THEIRS), (THEIRS, OURS)], ids=["ours first", "theirs first"])
def test_our_stubs_and_tritonclient_share_a_process(modules: tuple[str, str]) -> None:
    code = f"""
import importlib
for module in {modules!r}:
    importlib.import_module(module)
from aimass.open_inference.grpc_service_pb2 import ModelInferRequest as Ours
from tritonclient.grpc.service_pb2 import ModelInferRequest as Theirs
print(Ours.DESCRIPTOR is Theirs.DESCRIPTOR)
"""

    assert run_python(code) == "True\n"
