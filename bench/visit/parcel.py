"""One file with all a visit has found, JSON and logs: to copy elsewhere, and to go on from."""

import tarfile
from pathlib import Path

NAME = "gpu-visit.tar.gz"


def pack(folder: Path, home: Path) -> Path:
    """Replace `home`'s parcel by one of every part's file, and of the logs, in `folder`."""
    home.mkdir(parents=True, exist_ok=True)
    target, new = home / NAME, home / f"{NAME}.new"
    with tarfile.open(new, "w:gz") as parcel:
        for path in [*sorted(folder.glob("gpu-*.json")), *sorted(folder.glob("logs/*.log"))]:
            parcel.add(path, path.relative_to(folder))
    new.replace(target)
    return target


def unpack(path: Path, folder: Path) -> list[str]:
    """Put a parcel's files into `folder`; their names."""
    with tarfile.open(path) as parcel:
        parcel.extractall(folder, filter="data")
        return parcel.getnames()
