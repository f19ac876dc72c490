"""Messages of the loop contract about where knowledge comes from and what is forgotten."""

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from aimass.trainer.v1 import loop_pb2 as pb
from services.common.errors import InvalidInput
from services.trainer.contracts.timestamps import timestamp_of
from services.trainer.provenance.deletion import Deletion
from services.trainer.provenance.trace import Trace, TracedSample

MOST_NEAREST = 100
"""Samples of a trace; the contract states it."""
_NEAREST = 10


def check_nearest(count: int) -> int:
    """Return how many samples a trace shall have, where *count* was asked for.

    Raises:
        InvalidInput: It is below 0 or above `MOST_NEAREST`.
    """
    if not 0 <= count <= MOST_NEAREST:
        raise InvalidInput(
            f"nearest_count is {count}; give 1 to {MOST_NEAREST}, or 0 for {_NEAREST}", field="nearest_count"
        )
    return count or _NEAREST


def pack_trace(trace: Trace) -> pb.TracePredictionResponse:
    """Return a trace as the contract has it."""
    return pb.TracePredictionResponse(
        model=trace.model,
        version=trace.version,
        graph_digest=trace.graph_digest,
        run_id=trace.run_id,
        snapshot=trace.snapshot,
        samples=map(_sample, trace.samples),
        tainted=trace.tainted,
    )


def pack_deletion(deletion: Deletion, report: Mapping[str, Any] | None = None) -> pb.Deletion:
    """Return a deletion as the contract has it, with its report where there is one."""
    return pb.Deletion(
        id=deletion.id,
        state=pb.Deletion.State.Value(f"STATE_{deletion.state}"),
        deadline=timestamp_of(deletion.deadline),
        tainted_versions=deletion.versions,
        tainted_runs=deletion.runs,
        report_json=json.dumps(report) if report is not None else "",
    )


def _sample(sample: TracedSample) -> pb.TracedSample:
    return pb.TracedSample(
        sample_id=sample.sample,
        base_sample=sample.base_sample,
        label=sample.label,
        contributor=sample.contributor,
        time=timestamp_of(datetime.fromisoformat(sample.time)) if sample.time else None,
        similarity=sample.similarity,
    )
