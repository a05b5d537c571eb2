"""Folders that results go to: on this machine, or anywhere that fsspec reaches.

A file appears whole or not at all, under its own name: a local one is written beside it, forced to
disk and renamed; object stores give that by themselves.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

from bilinear.errors import ConfigError, ResultsError, extra

# Random access reads a little of a large object: fsspec would fetch megabytes at a time.
_BLOCK_BYTES = 2**18


class Folder(Protocol):
    """Files by name, `/` between folders; `path` is where it is on this machine, if it is."""

    path: Path | None

    def __str__(self) -> str:
        """Return the path or URL."""
        ...

    def child(self, name: str) -> "Folder":
        """Return a folder in this one, there or not."""
        ...

    def exists(self, name: str) -> bool:
        """Whether a file is there."""
        ...

    def names(self, inside: str = "") -> list[str]:
        """Sorted names of all that is directly in this folder, or in the one named `inside`."""
        ...

    def read(self, name: str) -> bytes:
        """Return a file's content; raises FileNotFoundError."""
        ...

    def read_all(self, names: Sequence[str]) -> list[bytes]:
        """Return the contents of several files."""
        ...

    def open(self, name: str) -> BinaryIO:
        """Open a file for random reads; raises FileNotFoundError."""
        ...

    def write(self, name: str, content: bytes) -> None:
        """Write a file whole; raises OSError or ResultsError, leaving what was there."""
        ...

    def write_all(self, files: Mapping[str, bytes]) -> None:
        """Write several files, each whole, in no order; a store with many round trips at a time."""
        ...

    def delete(self, names: Sequence[str]) -> None:
        """Remove files; those not there are passed over."""
        ...

    def sweep_up(self) -> None:
        """Remove what a killed process left half-written, here and in all folders inside."""
        ...


def open_folder(where: "str | os.PathLike[str] | Folder") -> Folder:
    """Return the folder at a path or an fsspec URL such as `s3://bucket/run`.

    Raises ConfigError for a URL that nothing installed here can reach.
    """
    if isinstance(where, LocalFolder | UrlFolder):
        return where
    text = os.fspath(cast("str | os.PathLike[str]", where))
    return UrlFolder.at(text) if "://" in text else LocalFolder(Path(text))


def write_whole(path: Path, content: bytes) -> None:
    """Write under another name, force it to disk, rename; raises OSError, leaving nothing."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        if error.filename is None and error.errno is not None:  # writing itself names no file
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


class LocalFolder:
    """A folder of this machine's."""

    def __init__(self, path: Path) -> None:
        """Made at the first write."""
        self.path: Path | None = path
        self._path = path

    def __str__(self) -> str:
        """Return the path."""
        return str(self._path)

    def child(self, name: str) -> Folder:
        """See `Folder`."""
        return LocalFolder(self._path / name)

    def exists(self, name: str) -> bool:
        """See `Folder`."""
        return (self._path / name).exists()

    def names(self, inside: str = "") -> list[str]:
        """See `Folder`."""
        folder = self._path / inside
        return sorted(os.listdir(folder)) if folder.is_dir() else []

    def read(self, name: str) -> bytes:
        """See `Folder`."""
        return (self._path / name).read_bytes()

    def read_all(self, names: Sequence[str]) -> list[bytes]:
        """See `Folder`."""
        return [self.read(name) for name in names]

    def open(self, name: str) -> BinaryIO:
        """See `Folder`."""
        return open(self._path / name, "rb")

    def write(self, name: str, content: bytes) -> None:
        """See `Folder`."""
        path = self._path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content)

    def write_all(self, files: Mapping[str, bytes]) -> None:
        """See `Folder`."""
        for name, content in files.items():
            self.write(name, content)

    def delete(self, names: Sequence[str]) -> None:
        """See `Folder`."""
        for name in names:
            (self._path / name).unlink(missing_ok=True)

    def sweep_up(self) -> None:
        """See `Folder`."""
        for leftover in self._path.rglob("*.partial"):
            leftover.unlink()


class UrlFolder:
    """A folder behind an fsspec URL; its files are objects that a store replaces whole."""

    path: Path | None = None

    def __init__(self, system: Any, root: str, url: str) -> None:
        """Use an fsspec file system, the folder's name in it, and its URL."""
        self._system, self._root, self._url = system, root.rstrip("/"), url.rstrip("/")

    @classmethod
    def at(cls, url: str) -> "UrlFolder":
        """See `open_folder`."""
        with extra("sweep"):
            from fsspec.core import url_to_fs

        try:
            # What another process wrote a moment ago must be seen: no cached listings.
            system, root = url_to_fs(url, use_listings_cache=False)
        except ImportError as error:
            raise ConfigError(f"{url}: {error} (S3: pip install 'bilinear[s3]')") from error
        except ValueError as error:
            raise ConfigError(f"{url}: {error}") from error
        return cls(system, root, url)

    def __str__(self) -> str:
        """Return the URL."""
        return self._url

    def child(self, name: str) -> Folder:
        """See `Folder`."""
        return UrlFolder(self._system, f"{self._root}/{name}", f"{self._url}/{name}")

    def exists(self, name: str) -> bool:
        """See `Folder`."""
        with self._saying(name):
            return bool(self._system.exists(f"{self._root}/{name}"))

    def names(self, inside: str = "") -> list[str]:
        """See `Folder`."""
        folder = f"{self._root}/{inside}".rstrip("/")
        with self._saying(inside):
            try:
                found = self._system.ls(folder, detail=False)
            except FileNotFoundError:
                return []
        names = {name.rstrip("/").rpartition("/")[2] for name in found if name != f"{folder}/"}
        return sorted(names - {""})

    def read(self, name: str) -> bytes:
        """See `Folder`."""
        with self._saying(name):
            return bytes(self._system.cat_file(f"{self._root}/{name}"))

    def read_all(self, names: Sequence[str]) -> list[bytes]:
        """See `Folder`."""
        full = [f"{self._root}/{name}" for name in names]
        with self._saying(""):
            found = self._system.cat(full, on_error="raise") if full else {}
        return [found[name] for name in full]

    def open(self, name: str) -> BinaryIO:
        """See `Folder`."""
        with self._saying(name):
            file = self._system.open(f"{self._root}/{name}", "rb", block_size=_BLOCK_BYTES)
        return cast("BinaryIO", file)

    def write(self, name: str, content: bytes) -> None:
        """See `Folder`."""
        with self._saying(name, missing_too=True):
            self._system.pipe_file(f"{self._root}/{name}", content)

    def write_all(self, files: Mapping[str, bytes]) -> None:
        """See `Folder`."""
        with self._saying("", missing_too=True):
            self._system.pipe({f"{self._root}/{name}": files[name] for name in files})

    def delete(self, names: Sequence[str]) -> None:
        """See `Folder`."""
        inside = {name.rpartition("/")[0] for name in names}
        present = {
            f"{folder}/{name}".lstrip("/") for folder in inside for name in self.names(folder)
        }
        there = [f"{self._root}/{name}" for name in names if name in present]
        with self._saying(""):
            if there:
                self._system.rm(there)

    def sweep_up(self) -> None:
        """See `Folder`; an object is never half there."""

    @contextmanager
    def _saying(self, name: str, *, missing_too: bool = False) -> Iterator[None]:
        """Turn whatever a store's client raises into one line that names the object."""
        try:
            yield
        except FileNotFoundError as error:
            if not missing_too:
                raise
            raise ResultsError(f"{self._url}/{name}: {error}") from error
        except Exception as error:
            text = " ".join(str(error).split()) or type(error).__name__
            raise ResultsError(f"{self._url}/{name}: {text}") from error
