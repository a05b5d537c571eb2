"""One archive of a visit's JSON files and logs, to copy to another machine and continue there."""

import tarfile
from pathlib import Path

NAME = "gpu-visit.tar.gz"


def pack(folder: Path, home: Path) -> Path:
    """Write every part's file and the logs in `folder` into the archive in `home`."""
    home.mkdir(parents=True, exist_ok=True)
    target, new = home / NAME, home / f"{NAME}.new"
    with tarfile.open(new, "w:gz") as parcel:
        for path in [*sorted(folder.glob("gpu-*.json")), *sorted(folder.glob("logs/*.log"))]:
            parcel.add(path, path.relative_to(folder))
    new.replace(target)
    return target


def unpack(path: Path, folder: Path) -> list[str]:
    """Extract an archive's files into `folder`; returns their names."""
    with tarfile.open(path) as parcel:
        parcel.extractall(folder, filter="data")
        return parcel.getnames()
