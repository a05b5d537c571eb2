"""The user's cache of measured rates: a JSON file a curve, which may be deleted at any time.

A file that is missing, damaged or of another key counts as not there: its curve is measured again,
which takes a second. Where nothing can be written, every run measures.
"""

import contextlib
import hashlib
import json
import math
import os
import tempfile
from itertools import pairwise
from pathlib import Path

Points = tuple[tuple[float, float], ...]


def cache_folder() -> Path:
    """$BILINEAR_CACHE, or bilinear in $XDG_CACHE_HOME or ~/.cache; RuntimeError without a home."""
    if os.environ.get("BILINEAR_CACHE"):
        return Path(os.environ["BILINEAR_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bilinear"


def read(key: dict[str, str]) -> Points | None:
    """Return the points of the curve with this key: positive and rising; None if not there."""
    with contextlib.suppress(OSError, RuntimeError, ValueError, TypeError, KeyError):
        content = json.loads(_file(key).read_bytes())
        points = tuple((float(work), float(seconds)) for work, seconds in content["points"])
        rising = all(a[0] < b[0] and a[1] <= b[1] for a, b in pairwise(points))
        positive = all(0 < value < math.inf for point in points for value in point)
        if content["key"] == key and points and rising and positive:
            return points
    return None


def write(key: dict[str, str], points: Points) -> None:
    """Write under another name first, since other processes read and write here too."""
    with contextlib.suppress(OSError, RuntimeError):
        file = _file(key)
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor, partial = tempfile.mkstemp(dir=file.parent, suffix=".partial")
        try:
            with os.fdopen(descriptor, "w") as out:
                json.dump({"key": key, "points": points}, out, indent=2)
            os.replace(partial, file)
        finally:
            Path(partial).unlink(missing_ok=True)


def _file(key: dict[str, str]) -> Path:
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    return cache_folder() / f"calibration-{digest}.json"
