"""The user's cache of measured rates: a JSON file for each curve."""

import hashlib
import json
import math
import os
import tempfile
from itertools import pairwise
from pathlib import Path

Points = tuple[tuple[float, float], ...]


def cache_folder() -> Path | None:
    """$BILINEAR_CACHE, or bilinear in $XDG_CACHE_HOME or ~/.cache; None for a user without a home.

    Files in it may be deleted at any time: what they held is measured again.
    """
    if os.environ.get("BILINEAR_CACHE"):
        return Path(os.environ["BILINEAR_CACHE"])
    if os.environ.get("XDG_CACHE_HOME"):
        return Path(os.environ["XDG_CACHE_HOME"]) / "bilinear"
    try:
        return Path.home() / ".cache" / "bilinear"
    except RuntimeError:
        return None


class CalibrationCache:
    """Points of curves by key: all that they depend on. Nothing about a cache stops a run.

    What could not be read or kept is told in `notes`.
    """

    def __init__(self, folder: Path | None) -> None:
        """Keep files in `folder`, made when the first is written; without one keep nothing."""
        self._folder = folder
        self.notes: list[str] = []
        if folder is None:
            self._note("this user has no home, and BILINEAR_CACHE names no folder; nothing is kept")

    def file(self, key: dict[str, str]) -> Path | None:
        """Where points with this key are or would be."""
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
        return self._folder and self._folder / f"calibration-{digest}.json"

    def has(self, key: dict[str, str]) -> bool:
        """Whether there is a file for this key; it has not been read."""
        file = self.file(key)
        return file is not None and os.path.exists(file)

    def read(self, key: dict[str, str]) -> Points | None:
        """Return the points with this key, None if there are none that can be read."""
        file = self.file(key)
        if file is None:
            return None
        try:
            content = json.loads(file.read_bytes())
            if content["key"] != key:
                raise ValueError("of another key")
            return _checked(content["points"])
        except FileNotFoundError:
            return None
        except OSError as error:
            self._note(f"{file}: {error.strerror}; measured anew")
        except (ValueError, TypeError, KeyError):
            self._note(f"{file} is damaged; measured anew")
        return None

    def write(self, key: dict[str, str], points: Points) -> None:
        """Write in one piece: under another name first, since other processes write here too."""
        file = self.file(key)
        if file is None:
            return
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            descriptor, partial = tempfile.mkstemp(dir=file.parent, suffix=".partial")
            try:
                with os.fdopen(descriptor, "w") as out:
                    json.dump({"key": key, "points": points}, out, indent=2)
                os.replace(partial, file)
            except BaseException:
                Path(partial).unlink(missing_ok=True)
                raise
        except OSError as error:
            self._note(f"{file}: {error.strerror}; not kept")

    def _note(self, what: str) -> None:
        self.notes.append(f"calibration cache: {what}")


def _checked(content: list[list[float]]) -> Points:
    """Positive and rising, as a curve is; raises ValueError or TypeError."""
    points = tuple((float(work), float(seconds)) for work, seconds in content)
    rising = all(a[0] < b[0] and a[1] <= b[1] for a, b in pairwise(points))
    positive = all(0 < value < math.inf for point in points for value in point)
    if not (points and rising and positive):
        raise ValueError("no curve")
    return points
