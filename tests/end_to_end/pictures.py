"""Real pictures, encoded in memory."""

import struct
import zlib
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from services.trainer.data.slices import read_slice

SAMPLES = sorted((Path(__file__).parents[2] / "gateway" / "page" / "samples").glob("*.png"))


def encode(pixels: np.ndarray, format: str = "PNG", **options: Any) -> bytes:
    """Return *pixels* as a file."""
    file = BytesIO()
    Image.fromarray(pixels).save(file, format, **options)
    return file.getvalue()


@cache
def cifar() -> np.ndarray:
    """Return the test pictures of the slice, uint8 (1000, 32, 32, 3)."""
    return read_slice()[1].images


@cache
def cat() -> bytes:
    """Return a sample of the page that shows a cat."""
    return next(path for path in SAMPLES if path.name.startswith("cat")).read_bytes()


@cache
def large() -> bytes:
    """Return a JPEG of 1,600 x 1,280 pixels, put together from 2,000 real ones."""
    tiles = np.concatenate([cifar(), cifar()]).reshape(40, 50, 32, 32, 3)
    return encode(tiles.transpose(0, 2, 1, 3, 4).reshape(1280, 1600, 3), "JPEG", quality=90)


def plain(color: tuple[int, int, int]) -> bytes:
    """Return a PNG of 4 x 4 pixels of one colour."""
    return encode(np.full((4, 4, 3), color, np.uint8))


def huge_png() -> bytes:
    """Return a PNG of about 1 kB that claims 30,000 x 30,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(900_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def animated_gif(frames: list[np.ndarray]) -> bytes:
    """Return a GIF that shows *frames*, one after the other."""
    first, *others = [Image.fromarray(frame) for frame in frames]
    file = BytesIO()
    first.save(file, "GIF", save_all=True, append_images=others, duration=100)
    return file.getvalue()
