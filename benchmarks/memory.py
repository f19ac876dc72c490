"""What a loaded graph takes of memory, by where its weights lie and which options of ONNX Runtime are set.

    python -m benchmarks.memory [--layers 12] [--width 2048] [--sessions 2]

Each case runs in a process of its own. A graph of dense layers (201 MB of weights) is loaded by one or more sessions,
and run with one sample and with 32; `/proc/self/smaps_rollup` says what the process then has more than before, and
`VmHWM` the most that it ever had. Private memory is what each session adds; the rest of RSS is shared with the page
cache and with other processes that map the same file. Outputs are compared with those of the first case.
"""

import argparse
import ctypes
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

MIB = 1024 * 1024
IN_PLACE = {
    "file": "model.ort",
    "bytes": True,
    "session.use_ort_model_bytes_directly": "1",
    "session.use_ort_model_bytes_for_initializers": "1",
}
CASES = {
    "in the graph": {},
    "in the graph, trimmed": {"trim": True},
    "in the graph, no prepacking": {"session.disable_prepacking": "1"},
    "in the graph, arena off": {"arena": False},
    "in the graph, initializers not from the arena": {"session.use_device_allocator_for_initializers": "1"},
    "in the graph, arena shrinks after each run": {"shrink": True},
    "in the graph, one arena for all": {"session.use_env_allocators": "1"},
    "beside it": {"file": "external.onnx"},
    "beside it, no prepacking": {"file": "external.onnx", "session.disable_prepacking": "1"},
    "beside it, stored prepacked": {"file": "prepacked.onnx"},
    "beside it, stored prepacked, trimmed": {"file": "prepacked.onnx", "trim": True},
    "shared arrays": {"shared": True},
    "shared arrays, no prepacking": {"shared": True, "session.disable_prepacking": "1"},
    "ORT format": {"file": "model.ort"},
    "ORT format, used in place": IN_PLACE,
    "ORT format, used in place, no prepacking": IN_PLACE | {"session.disable_prepacking": "1"},
}


def main() -> None:
    """Measure all cases and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--sessions", type=int, default=2)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(measure(CASES[arguments.case], arguments.folder, arguments.sessions)))
        return
    with tempfile.TemporaryDirectory() as name:
        write_graphs(Path(name), arguments.layers, arguments.width)
        print("| case, MiB | sessions | load s | peak | RSS | PSS | private | run ms x1 | x32 | same |")
        print("|---|---|---|---|---|---|---|---|---|---|")
        expected = {}
        for case in CASES:
            for sessions in sorted({1, arguments.sessions}):
                figures = run_case(case, name, sessions)
                if figures is None:
                    print(f"| {case} | {sessions} | the process crashes | | | | | | | |", flush=True)
                    continue
                expected = expected or figures
                same = figures["answers"] == expected["answers"]
                print(
                    f"| {case} | {sessions} | {figures['load']:.2f} | {figures['peak']:.0f} | {figures['Rss']:.0f} | "
                    f"{figures['Pss']:.0f} | {figures['private']:.0f} | {figures['one']:.1f} | {figures['many']:.1f} | "
                    f"{'yes' if same else 'no'} |",
                    flush=True,
                )


def run_case(case: str, folder: str, sessions: int) -> dict | None:
    """Return the figures of a case, from a process of its own; None where it dies."""
    options = ["--case", case, "--folder", folder, "--sessions", str(sessions)]
    command = [sys.executable, "-m", "benchmarks.memory", *options]
    process = subprocess.run(command, check=False, capture_output=True, text=True)
    if process.returncode < 0:
        return None
    process.check_returncode()
    return json.loads(process.stdout)


def write_graphs(folder: Path, layers: int, width: int) -> None:
    """Write the same dense layers with their weights in the file, beside it, and in ONNX Runtime's own format."""
    random = np.random.default_rng(0)
    weights = {
        f"w{layer}": (random.normal(size=(width, width)) / np.sqrt(width)).astype(np.float32) for layer in range(layers)
    }
    names = ["x", *(f"h{layer}" for layer in range(1, layers)), "y"]
    graph = helper.make_graph(
        [helper.make_node("MatMul", [names[layer], f"w{layer}"], [names[layer + 1]]) for layer in range(layers)],
        "dense",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", width])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)])
    onnx.save(model, folder / "model.onnx")
    onnx.save(model, folder / "external.onnx", save_as_external_data=True, location="weights.bin")
    np.savez(folder / "weights.npz", **weights)
    for name, entries in (
        ("model.ort", {}),
        (
            "prepacked.onnx",
            {
                "session.save_external_prepacked_constant_initializers": "1",
                "session.optimized_model_external_initializers_file_name": "prepacked.bin",
            },
        ),
    ):
        options = ort.SessionOptions()
        options.optimized_model_filepath = str(folder / name)
        for key, value in entries.items():
            options.add_session_config_entry(key, value)
        ort.InferenceSession(folder / "external.onnx", options, providers=["CPUExecutionProvider"])


def measure(case: dict, folder: Path, count: int) -> dict:
    """Load and run *count* sessions of a case in this process, and return what that took."""
    path = folder / case.get("file", "model.onnx")
    if "session.use_env_allocators" in case:
        info = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
        ort.create_and_register_allocator(info, None)
    shared = {}
    if case.get("shared"):  # as views of the file with the external data, which is mapped
        data = np.memmap(folder / "weights.bin", np.float32, "r")
        width = int(np.load(folder / "weights.npz")["w0"].shape[0])
        for place in range(data.size // width**2):
            array = data[place * width**2 : (place + 1) * width**2].reshape(width, width)
            shared[f"w{place}"] = ort.OrtValue.ortvalue_from_numpy(array)
    before = memory()
    started = time.perf_counter()
    content = path.read_bytes() if case.get("bytes") else path
    sessions = [load(content, case, shared) for _ in range(count)]
    if case.get("trim"):
        ctypes.CDLL(None).malloc_trim(0)
    loaded = time.perf_counter()
    width = sessions[0].get_inputs()[0].shape[1]
    random = np.random.default_rng(1)
    batches = [random.normal(size=(size, width)).astype(np.float32) for size in (1, 32)]
    run = ort.RunOptions()
    if case.get("shrink"):
        run.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    answers = {session.run(None, {"x": batch}, run)[0].tobytes() for session in sessions for batch in batches}
    times = [median(seconds(sessions[0], batch, run) for _ in range(9)) * 1000 for batch in batches]
    after = memory()
    return {
        "load": loaded - started,
        "one": times[0],
        "many": times[1],
        "answers": sorted(hashlib.sha256(answer).hexdigest() for answer in answers),
    } | {key: (after[key] - before[key]) / MIB for key in ("peak", "Rss", "Pss", "private")}


def load(content: Path | bytes, case: dict, shared: dict[str, ort.OrtValue]) -> ort.InferenceSession:
    """Return a session with the options of a case and the service's own."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.enable_cpu_mem_arena = case.get("arena", True)
    for key, value in case.items():
        if key.startswith("session."):
            options.add_session_config_entry(key, value)
    for name, array in shared.items():
        options.add_initializer(name, array)
    return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def seconds(session: ort.InferenceSession, batch: np.ndarray, options: ort.RunOptions) -> float:
    """Return how long a run takes."""
    started = time.perf_counter()
    session.run(None, {"x": batch}, options)
    return time.perf_counter() - started


def memory() -> dict[str, int]:
    """Return the bytes that this process has."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    figures = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
    status = Path("/proc/self/status").read_text()
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return figures | {
        "private": figures["Private_Dirty"] + figures["Private_Clean"],
        "peak": int(peak.split()[1]) * 1024,
    }


if __name__ == "__main__":
    main()
