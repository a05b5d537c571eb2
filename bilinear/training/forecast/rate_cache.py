"""The user's cache of measured rates: one JSON file per curve, which may be deleted at any time.

The curve of a missing or damaged file is measured again, which takes a second. If nothing can be
written, every run measures.
"""

import contextlib
import hashlib
import json
import math
import os
from pathlib import Path

from bilinear.results.folder import write_whole

Points = tuple[tuple[float, float], ...]


def cache_folder() -> Path:
    """$BILINEAR_CACHE, or bilinear in $XDG_CACHE_HOME or ~/.cache; RuntimeError without a home."""
    if os.environ.get("BILINEAR_CACHE"):
        return Path(os.environ["BILINEAR_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bilinear"


def read(key: dict[str, str]) -> Points | None:
    """Return the points of the curve with this key, all positive; None if there is none."""
    with contextlib.suppress(OSError, RuntimeError, ValueError, TypeError, KeyError):
        found = json.loads(_file(key).read_bytes())["points"]
        points = tuple(sorted((float(work), float(seconds)) for work, seconds in found))
        if points and all(0 < value < math.inf for point in points for value in point):
            return points
    return None


def write(key: dict[str, str], points: Points) -> None:
    """Store a curve; its key goes into the file, too, so that a person can tell files apart."""
    with contextlib.suppress(OSError, RuntimeError):
        file = _file(key)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps({"key": key, "points": points}, indent=2).encode())


def _file(key: dict[str, str]) -> Path:
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    return cache_folder() / f"calibration-{digest}.json"
