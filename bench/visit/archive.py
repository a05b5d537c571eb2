"""One archive of a visit's JSON files and logs, to copy to another machine and continue there."""

import tarfile
from pathlib import Path

NAME = "gpu-visit.tar.gz"


def pack(folder: Path, target_folder: Path) -> Path:
    """Write every part's file and the logs in `folder` into an archive in `target_folder`."""
    target_folder.mkdir(parents=True, exist_ok=True)
    target, new = target_folder / NAME, target_folder / f"{NAME}.new"
    with tarfile.open(new, "w:gz") as archive:
        for path in [*sorted(folder.glob("gpu-*.json")), *sorted(folder.glob("logs/*.log"))]:
            archive.add(path, path.relative_to(folder))
    return new.replace(target)


def unpack(path: Path, folder: Path) -> list[str]:
    """Extract an archive's files into `folder`; returns their names."""
    with tarfile.open(path) as archive:
        archive.extractall(folder, filter="data")
        return archive.getnames()
