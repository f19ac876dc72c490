"""What it costs that a run is watched over RPC: CPU time of the trainer service beside that of the run's process.

One run of recipe `quick` under a trainer service of its own, and callers who all follow `WatchRun`. Counted from the
end of the first epoch to that of the last: all that the service does, also its own watching over the process.
"""

import argparse
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc

from aimass.trainer.v1 import training_pb2 as pb
from aimass.trainer.v1.training_pb2_grpc import TrainingServiceStub
from benchmarks.suites import cpu_seconds, running_trainer
from services.trainer.runs.folder import RunFolder

RUN = "watched"


def epochs(stub: TrainingServiceStub) -> Iterator[int]:
    """Follow the run and yield the number of each epoch when it is told."""
    for answer in stub.WatchRun(pb.WatchRunRequest(id=RUN)):
        yield from (entry.epoch for entry in answer.entries if entry.kind == pb.Progress.KIND_EPOCH)


def measure(address: str, pids: list[int], count: int) -> list[float]:
    """Follow the run to its last epoch, and return the CPU seconds that each process took after the first."""
    with grpc.insecure_channel(address) as channel:
        before: list[float] = []
        for epoch in epochs(TrainingServiceStub(channel)):
            if epoch == 1:
                before = [cpu_seconds(pid) for pid in pids]
            if epoch == count:
                return [cpu_seconds(pid) - start for pid, start in zip(pids, before, strict=True)]
    raise RuntimeError(f"run {RUN} ended before epoch {count}")


def follow(address: str) -> None:
    """Follow the run as a further caller, as far as it goes."""
    with grpc.insecure_channel(address) as channel:
        try:
            list(epochs(TrainingServiceStub(channel)))
        except grpc.RpcError:
            return  # the service stops when enough was measured


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--callers", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home, running_trainer(Path(home)) as (address, service):
        with grpc.insecure_channel(address) as channel:
            stub = TrainingServiceStub(channel)
            work = pb.Training(recipe="quick", overrides_json=f'{{"epochs": {options.epochs}}}')
            stub.CreateRun(pb.CreateRunRequest(id=RUN, training=work))
            next(epochs(stub))
        process = RunFolder(Path(home) / "runs" / RUN).signed()
        assert process is not None, "it is at work in its first epochs"
        for _ in range(options.callers - 1):
            threading.Thread(target=follow, args=(address,), daemon=True).start()
        served, trained = measure(address, [service, process], options.epochs)
    print(
        f"{options.callers} callers: the service took {served:.2f} s of CPU time, the run's process {trained:.2f} s: "
        f"{served / trained:.2%}"
    )


if __name__ == "__main__":
    main()
