"""Seals: a model's file is tensors in safetensors, with a digest of every byte of the file.

Its one metadata entry, `sealed`, is JSON: the model's row of the table; `origin`, a digest of the
config and the environment that it was trained under; and `sha256`, the digest of the whole file
with zeros in the digest's own place. A file of an earlier version has its row alone.
"""

import hashlib
import json
import re
import struct
from collections.abc import Mapping
from typing import Any

import safetensors.torch
from torch import Tensor

from bilinear.experiment.config import SweepConfig
from bilinear.experiment.cost import model_disk_bytes
from bilinear.experiment.record import Job

_EMPTY = "0" * 64
_DIGEST = re.compile(rb'sha256\\": \\"([0-9a-f]{64})\\"')
# The most bytes of a file's header: names, types and offsets of a dozen tensors, and the row.
_HEADER_BYTES = 2**15


class Damaged(ValueError):
    """A model's file that differs from what was written for this model."""


def origin_of(config_json: bytes, environment_json: bytes) -> str:
    """Return the digest that names a folder's config and environment."""
    return hashlib.sha256(config_json + b"\0" + environment_json).hexdigest()[:32]


def encode_sealed(tensors: Mapping[str, Tensor], row: Mapping[str, Any], origin: str) -> bytes:
    """Make a model's file."""
    return seal(tensors, {"row": row, "origin": origin})


def seal(tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> bytes:
    """Make a file of tensors with `about` in its metadata, and a digest of the whole file."""
    # One metadata key, as safetensors writes several in no fixed order.
    sealed = json.dumps({**about, "sha256": _EMPTY})
    content = safetensors.torch.save(dict(tensors), metadata={"sealed": sealed})
    start = content.index(_EMPTY.encode())
    digest = hashlib.sha256(content).hexdigest().encode()
    return content[:start] + digest + content[start + len(digest) :]


def unseal(content: bytes, header_bytes: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and `about` of a file that `seal` made; raises Damaged."""
    try:
        about: dict[str, Any] = json.loads(_metadata(content, header_bytes)["sealed"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Damaged("it has no digest") from error
    _check_digest(content, header_bytes)
    return tensors_of(content), about


def most_bytes(config: SweepConfig, d_hidden: int) -> int:
    """Return the most bytes that a model's file can have."""
    return 4 * model_disk_bytes(config, d_hidden) + _HEADER_BYTES


def is_sealed(content: bytes) -> bool:
    """Whether a model's file has a digest, right or wrong; raises Damaged if it has no header."""
    return "sealed" in _metadata(content)


def verified_row(content: bytes, job: Job, origin: str | None) -> dict[str, Any]:
    """Return the row of a model's file once its digest, its job and its origin were checked.

    An `origin` of None is not compared. Raises Damaged.
    """
    metadata = _metadata(content)
    try:
        about = json.loads(metadata["sealed"]) if "sealed" in metadata else None
        row = json.loads(metadata["row"]) if about is None else about["row"]
        found = Job(row["d_hidden"], row["seed"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Damaged("its row cannot be read") from error
    if about is not None:
        _check_digest(content)
        if origin is not None and about.get("origin") != origin:
            raise Damaged("it is of another sweep")
    if found != job:
        raise Damaged(f"it holds width {found.d_hidden}, seed {found.seed}")
    return dict(row)


def claimed_origin(content: bytes) -> str | None:
    """Return the origin that an undamaged file was sealed with, None for one without."""
    try:
        about = json.loads(_metadata(content).get("sealed", "{}"))
        if "origin" in about:
            _check_digest(content)
        origin: str | None = about.get("origin")
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None
    return origin


def tensors_of(content: bytes) -> dict[str, Tensor]:
    """Return a file's tensors; raises Damaged."""
    try:
        return safetensors.torch.load(content)
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
        raise Damaged(str(error)) from error


def _check_digest(content: bytes, header_bytes: int = _HEADER_BYTES) -> None:
    place = _DIGEST.search(content, 0, header_bytes)
    if place is None:
        raise Damaged("its digest cannot be read")
    zeroed = content[: place.start(1)] + _EMPTY.encode() + content[place.end(1) :]
    if hashlib.sha256(zeroed).hexdigest().encode() != place[1]:
        raise Damaged("its bytes are not those its digest was made of")


def _metadata(content: bytes, header_bytes: int = _HEADER_BYTES) -> dict[str, str]:
    try:
        (length,) = struct.unpack("<Q", content[:8])
        if length > header_bytes:
            raise Damaged("its header is too long")
        metadata: dict[str, str] = json.loads(content[8 : 8 + length])["__metadata__"]
        return dict(metadata)
    except Damaged:
        raise
    except (struct.error, ValueError, KeyError, TypeError, RecursionError) as error:
        raise Damaged("its header cannot be read") from error
