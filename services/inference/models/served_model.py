"""One model in memory: its traffic, its loaded versions, and what is said of each."""

import contextlib
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from aimass.inference.v1 import lifecycle_pb2 as pb
from aimass.open_inference.model_config_pb2 import ModelConfig
from services.common.manifest import GRAPH_FILE, Manifest
from services.inference.models.desired_traffic import Traffic
from services.inference.models.repository import Fingerprint
from services.inference.models.shadowing import Shadow
from services.inference.models.version import LoadedVersion

READY, UNAVAILABLE = pb.ModelVersion.STATE_READY, pb.ModelVersion.STATE_UNAVAILABLE


@dataclass
class ServedModel:
    """What a process knows of one model."""

    name: str
    folder: Path
    """Where its versions lie."""
    given: bool = False
    """Whether that is a folder of files that came with a request."""
    traffic: Traffic = field(default_factory=Traffic)
    loaded: dict[int, LoadedVersion] = field(default_factory=dict)
    versions: dict[int, pb.ModelVersion] = field(default_factory=dict)
    shadow: Shadow | None = None
    config: ModelConfig | None = None
    """As read or given; None where there is none."""
    config_given: bool = False
    """Whether the config came with a request, and the file does not count."""
    unloaded: bool = False
    """Whether somebody asked for it not to be loaded."""
    seen: dict[int | str, Fingerprint] = field(default_factory=dict)
    """Files as they were found last: by version, and of the config."""
    tried: dict[int, Fingerprint] = field(default_factory=dict)
    """Files of a version as they were when it was loaded, or failed to be."""
    config_mark: Fingerprint | None = None
    """The config's file as it was read, or failed to be."""
    config_problem: str = ""
    """What is wrong with that file; `config` is the one before."""
    traffic_problem: str = ""
    """What is wrong with `traffic.json`."""
    failed_reloads: set[int] = field(default_factory=set)
    """Versions that serve as they were, while what lies in their folder does not load."""

    def state(self) -> pb.ModelState:
        """Return what followers are told."""
        return pb.ModelState(
            model=self.name,
            traffic=traffic_message(self.traffic),
            versions=[self.versions[number] for number in sorted(self.versions)],
            unloaded=self.unloaded,
        )

    def put(self, number: int, loaded: LoadedVersion) -> None:
        """Let *loaded* serve as version *number*; one that did so before finishes what it has."""
        before = self.loaded.get(number)
        self.loaded[number] = loaded
        self.versions[number] = _ready(number, loaded)
        self.failed_reloads.discard(number)
        if before is not None:
            before.close()

    def fail(self, number: int, reason: str) -> None:
        """Say why version *number* could not be loaded; where an earlier load of it serves, that goes on."""
        if number in self.loaded:
            self.failed_reloads.add(number)
            self.versions[number].state_reason = reason
        else:
            self.versions[number] = unavailable(number, Manifest(), reason)

    def retry_failed(self) -> None:
        """Let what could not be loaded be tried again, though its files are the same."""
        if self.config_problem:
            self.config_mark = None
        for number in [number for number in self.tried if number not in self.loaded or number in self.failed_reloads]:
            del self.tried[number]

    def problem(self) -> str:
        """Return why the newest version does not serve, or not as its files are by now; empty where it does."""
        if not self.versions:
            return f"there is no version of it; give a file such as 1/{GRAPH_FILE}"
        newest = max(self.versions)
        if newest in self.loaded and newest not in self.failed_reloads:
            return ""
        return f"version {newest}: {self.versions[newest].state_reason}"

    def forget(self, number: int) -> None:
        """Let go of a version that is no longer in the repository."""
        version = self.loaded.pop(number, None)
        for known in (self.versions, self.tried, self.seen):
            known.pop(number, None)
        if version is not None:
            version.close()
        self.follow_shadow()

    def close(self) -> None:
        """Free all graphs."""
        if self.given:
            shutil.rmtree(self.folder.parent, ignore_errors=True)
        if self.shadow is not None:
            self.shadow.close()
        for version in self.loaded.values():
            version.close()

    def drop(self, number: int, reason: str) -> None:
        """Unload version *number*; it finishes what it has."""
        version = self.loaded.pop(number)
        self.versions[number] = unavailable(number, version.manifest, reason)
        version.close()

    def follow_shadow(self) -> None:
        """Begin or end the comparison as the traffic has it."""
        number = self.traffic.shadow_version
        version = self.loaded.get(number)
        if self.shadow is not None and self.shadow.is_of(version):
            return
        if self.shadow is not None:
            self.shadow.close()
        self.shadow = None if version is None else Shadow(number, version)


def traffic_message(traffic: Traffic) -> pb.Traffic:
    """Return the contract's form of *traffic*."""
    canary = pb.Canary(version=traffic.canary_version, share=traffic.canary_share) if traffic.canary_version else None
    return pb.Traffic(
        generation=traffic.generation,
        stable_version=traffic.stable_version,
        previous_version=traffic.previous_version,
        canary=canary,
        shadow_version=traffic.shadow_version,
    )


def unavailable(number: int, manifest: Manifest, reason: str) -> pb.ModelVersion:
    """Describe a version that is not loaded."""
    message = _version_message(number, manifest, UNAVAILABLE)
    message.state_reason = reason
    return message


def _ready(number: int, loaded: LoadedVersion) -> pb.ModelVersion:
    message = _version_message(number, loaded.manifest, READY)
    message.graph_digest = loaded.graph_digest
    message.labels[:] = loaded.labels
    return message


def _version_message(number: int, manifest: Manifest, state: pb.ModelVersion.State.ValueType) -> pb.ModelVersion:
    spec = manifest.preprocess
    message = pb.ModelVersion(
        version=number,
        state=state,
        labels=manifest.labels,
        preprocess_spec=spec.canonical_json() if spec else b"",
        preprocess_digest=spec.digest if spec else "",
        graph_digest=manifest.graph.sha256 if manifest.graph else "",
        metrics=manifest.metrics,
        publication_id=manifest.publication_id or "",
    )
    if manifest.create_time:
        with contextlib.suppress(ValueError):  # a foreign manifest's time in another form is no reason to refuse it
            message.create_time.FromJsonString(manifest.create_time)
    return message
