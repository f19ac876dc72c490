"""What `model.json` says about a model version: labels, pixels, provenance and proofs.

The trainer writes manifests, inference checks them, preprocess and the gateway read what inference passes on.
"""

import base64
import hashlib
import json
from typing import Annotated, Any, Literal, Self, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, FailFast, Field, ValidationError, model_validator

from services.common.errors import InvalidInput
from services.common.tensors import to_array, to_raw

Byte = Annotated[int, Field(ge=0, le=255)]
Side = Annotated[int, Field(ge=1, le=8192)]
T = TypeVar("T")
Many = Annotated[tuple[T, ...], FailFast()]
"""Only the first wrong one is told: to find a million of them would hold the process up for seconds."""
MAX_PROBLEMS = 20
"""Problems of a document that are listed."""
Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]

GRAPH_FILE = "model.onnx"
MANIFEST_FILE = "model.json"
"""Names of the two files that make a version, where it is trained and where it is served."""

DIGEST_PARAMETER = "preprocess_digest"
"""The request parameter that carries the digest of the spec that made a tensor."""


def digest_of(data: bytes) -> str:
    """Return `sha256:<hex>` of *data*."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


class _Document(BaseModel):
    # JSON has no form for NaN and infinity, so a document with one could be written but not read again.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class PreprocessSpec(_Document):
    """How the pixels of a picture become a model's input tensor.

    The order is fixed: orientation and colour, geometry, channel order, then numbers:
    `(pixel * scale - mean) / std` per channel where `datatype` is a float.
    """

    input: str
    """Name of the graph's input tensor."""
    width: Side
    height: Side
    mode: Literal["stretch", "crop", "letterbox"] = "stretch"
    """`stretch` ignores the aspect, `crop` resizes the shorter side and cuts the centre, `letterbox` fits and pads."""
    shorter_side: Side | None = None
    """Mode `crop`: length of the shorter side before the cut; the larger of width and height when absent."""
    filter: Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"] = "bilinear"
    antialias: bool = True
    """Whether the filter widens when it shrinks. Off means plain interpolation (nearest, bilinear, bicubic)."""
    padding: tuple[Byte, Byte, Byte] = (114, 114, 114)
    """RGB colour of the bars in mode `letterbox`."""
    background: tuple[Byte, Byte, Byte] = (255, 255, 255)
    """RGB colour that shows through transparent pixels."""
    color: Literal["RGB", "BGR", "L"] = "RGB"
    """Channel order; `L` is one channel of luma (ITU-R 601-2)."""
    layout: Literal["NHWC", "NCHW"] = "NHWC"
    datatype: Literal["UINT8", "FP16", "FP32"] = "UINT8"
    scale: float = 1.0
    mean: Many[float] = ()
    """Per channel, in units after `scale`; empty means zeros."""
    std: Many[float] = ()
    """Per channel, in units after `scale`; empty means ones."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        shorter = self.resize_side
        if self.mode == "crop" and shorter < max(self.width, self.height):
            raise ValueError(f"shorter_side {shorter} is smaller than the crop of {self.width}x{self.height}")
        if self.shorter_side is not None and self.mode != "crop":
            raise ValueError(f"shorter_side belongs to mode crop, not to {self.mode}")
        if not self.antialias and self.filter not in ("nearest", "bilinear", "bicubic"):
            raise ValueError(f"filter {self.filter} has no form without antialias; use nearest, bilinear or bicubic")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values and len(values) != self.channels:
                raise ValueError(f"{name} has {len(values)} values; {self.color} has {self.channels} channels")
        if 0.0 in self.std:
            raise ValueError("std must not be zero")
        if self.datatype == "UINT8" and (self.mean or self.std or self.scale != 1.0):
            raise ValueError("scale, mean and std need a float datatype; UINT8 pixels pass unchanged")
        return self

    @property
    def channels(self) -> int:
        """Channels of the tensor: 1 for `L`, else 3."""
        return 1 if self.color == "L" else 3

    @property
    def resize_side(self) -> int:
        """Mode `crop`: the shorter side in pixels after resizing."""
        return self.shorter_side or max(self.width, self.height)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one image's tensor, without the batch dimension."""
        if self.layout == "NHWC":
            return (self.height, self.width, self.channels)
        return (self.channels, self.height, self.width)

    def canonical_json(self) -> bytes:
        """Return the fields that differ from their defaults, sorted, without white space, as UTF-8.

        Defaults never change, so a spec keeps its digest when a later release adds a field.
        """
        fields = self.model_dump(mode="json", exclude_defaults=True)
        return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()

    @property
    def digest(self) -> str:
        """Identity of the spec: SHA-256 of its canonical JSON."""
        return digest_of(self.canonical_json())


class GoldenTensor(_Document):
    """One tensor of a golden vector; raw little-endian bytes in base64."""

    name: str
    datatype: str
    shape: Many[int]
    data: str

    @classmethod
    def from_array(cls, name: str, datatype: str, array: np.ndarray) -> Self:
        """Pack *array*; its dtype must be the one that *datatype* names."""
        return cls(name=name, datatype=datatype, shape=array.shape, data=base64.b64encode(to_raw(array)).decode())

    def to_array(self) -> np.ndarray:
        """Return a read-only array.

        Raises:
            InvalidInput: Datatype, shape and data do not belong together.

        """
        try:
            raw = base64.b64decode(self.data, validate=True)
        except ValueError as error:
            raise InvalidInput(
                f"the data of golden tensor {self.name!r} is not base64; export the model again"
            ) from error
        return to_array(self.name, self.datatype, self.shape, raw)


class Golden(_Document):
    """Inputs and the outputs that the graph gave where it was made; checked before a version says READY."""

    inputs: Annotated[Many[GoldenTensor], Field(min_length=1)]
    outputs: Annotated[Many[GoldenTensor], Field(min_length=1)]
    absolute_tolerance: float = 1e-4
    """Largest |difference| allowed: kernels differ between processors."""


class Graph(_Document):
    """Identity of `model.onnx`."""

    sha256: Digest
    size_bytes: Annotated[int, Field(ge=1)]


class Dataset(_Document):
    """What a version was trained and measured on."""

    name: str
    digest: Digest
    """Over the samples and labels of all splits, in order."""
    counts: dict[str, int]
    """Samples per split."""


class Training(_Document):
    """Where a version comes from."""

    run_id: str
    recipe: str
    options: dict[str, Any] = {}
    dataset: Dataset
    seconds: float
    software: dict[str, str] = {}


class Manifest(_Document):
    """The whole of `model.json`."""

    format: Literal[1] = 1
    labels: Many[str] = ()
    """One per class, in the order of the output's last axis."""
    preprocess: PreprocessSpec | None = None
    preprocess_digest: Digest | None = None
    graph: Graph | None = None
    create_time: str | None = None
    """RFC 3339, UTC."""
    parent_version: int | None = None
    publication_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{8,128}$")] | None = None
    """Whoever publishes again with the same one gets the version that is there."""
    training: Training | None = None
    metrics: dict[str, float] = {}
    golden: Golden | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(set(self.labels)) != len(self.labels):
            raise ValueError("labels repeat")
        own = self.preprocess.digest if self.preprocess else None
        if self.preprocess_digest is not None and self.preprocess_digest != own:
            raise ValueError(
                f"preprocess_digest {self.preprocess_digest} does not belong to preprocess, which has {own}"
            )
        return self

    @classmethod
    def from_json(cls, text: str | bytes, source: str) -> Self:
        """Parse a manifest that *source* names.

        Raises:
            InvalidInput: It is not a manifest; the message lists every problem.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise InvalidInput(
                f"{source} is not a valid manifest; correct it: {_problems(error)}", reason="INVALID_MANIFEST"
            ) from error

    def to_json(self) -> str:
        """Return the document as it is written to `model.json`."""
        return self.model_dump_json(indent=1, exclude_none=True) + "\n"


def _problems(error: ValidationError) -> str:
    if error.error_count() > MAX_PROBLEMS:  # to list a million takes seconds
        return f"{error.error_count()} values are of another kind than they should be"
    return "; ".join(f"{'.'.join(map(str, each['loc'])) or 'document'}: {each['msg']}" for each in error.errors())
