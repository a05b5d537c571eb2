"""Folders of results: on this machine, or anywhere that fsspec reaches.

A file is there whole or not at all: a local one is written under another name, forced to disk and
renamed, and object stores replace objects whole. Nothing is read or written through a symbolic link
that leads out of a local folder.
"""

import os
import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

from bilinear.errors import ConfigError, ResultsError, extra, shown

# Bytes fetched at a time: random access needs little of a large object, and fsspec's own blocks
# are of megabytes.
_BLOCK_BYTES = 2**18
_PARTIAL = ".partial"
_OF_THIS_MACHINE = ("file://", "local://")


class Unacceptable(ResultsError):
    """A file that is not read because it is too large, no regular file, or outside its folder."""


class Folder(ABC):
    """Files by name, `/` between folders; `path` is None for a folder at a URL."""

    path: Path | None = None

    @abstractmethod
    def __str__(self) -> str:
        """Return the path or URL."""

    @abstractmethod
    def child(self, name: str) -> "Folder":
        """Return a folder in this one, whether it is there or not."""

    @abstractmethod
    def exists(self, name: str) -> bool:
        """Whether a file is there."""

    @abstractmethod
    def names(self, inside: str = "") -> list[str]:
        """Sorted names of files and folders directly in this one, or in its folder `inside`."""

    @abstractmethod
    def read(self, name: str, most: int | None = None) -> bytes:
        """Return a file's content.

        Raises FileNotFoundError, and Unacceptable for a file of more than `most` bytes.
        """

    def read_all(self, names: Sequence[str], most: int | None = None) -> list[bytes]:
        """Return the contents of several files, each as `read` does."""
        return [self.read(name, most) for name in names]

    @abstractmethod
    def open(self, name: str) -> BinaryIO:
        """Open a file for random reads; raises FileNotFoundError."""

    @abstractmethod
    def write(self, name: str, content: bytes) -> None:
        """Write a file whole; raises OSError or ResultsError, leaving what was there."""

    def write_all(self, files: Mapping[str, bytes]) -> None:
        """Write several files, each whole, in any order; on a store many at a time."""
        for name, content in files.items():
            self.write(name, content)

    @abstractmethod
    def create(self, name: str, content: bytes) -> bool:
        """Write a file that is not there yet; False, with nothing written, if it is.

        Exclusive between processes, but for a store that cannot refuse to overwrite.
        """

    @abstractmethod
    def move(self, name: str, to: str) -> None:
        """Rename a file, within this folder."""

    @abstractmethod
    def delete(self, names: Sequence[str]) -> None:
        """Remove files; one that is not there is no error."""

    @abstractmethod
    def remove_empty(self, inside: str) -> None:
        """Remove a folder in this one if it is there and empty."""

    @abstractmethod
    def sweep_up(self, inside: str, ours: Callable[[str], bool]) -> None:
        """Remove files directly in `inside` that a killed process left half-written.

        `ours` tells by a file's final name whether the caller may have written it.
        """


def open_folder(where: "str | os.PathLike[str] | Folder") -> Folder:
    """Return the folder at a path or an fsspec URL such as `s3://bucket/run`.

    Raises ConfigError for a URL that nothing installed here can reach.
    """
    if isinstance(where, Folder):
        return where
    try:
        text = os.fspath(where)
    except TypeError:
        raise TypeError(f"results folder: expected a path or a URL, got {shown(where)}") from None
    if not isinstance(text, str) or not text or "\0" in text:
        raise ConfigError(f"results folder: expected a path or a URL, got {shown(text)}")
    for scheme in _OF_THIS_MACHINE:
        # fsspec's own local files are neither forced to disk nor renamed.
        if text.startswith(scheme):
            return LocalFolder(Path(text.removeprefix(scheme)))
    return UrlFolder.at(text) if "://" in text else LocalFolder(Path(text))


def write_whole(path: Path, content: bytes) -> None:
    """Write under another name, force to disk, rename; raises OSError, leaving what was there."""
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}{_PARTIAL}")
    try:
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        # The error of a write names no file, and that of opening names the temporary one.
        if isinstance(error, OSError) and error.errno is not None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def final_name(name: str) -> str | None:
    """Return the final name of a half-written file, None for the name of any other file."""
    if not name.endswith(_PARTIAL):
        return None
    stem, _, token = name.removesuffix(_PARTIAL).rpartition(".")
    if len(token) == 8 and set(token) <= set("0123456789abcdef"):
        return stem
    return name.removesuffix(_PARTIAL)  # as an earlier version named it


class LocalFolder(Folder):
    """A folder of this machine."""

    def __init__(self, path: Path) -> None:
        """Use `path`, which is made at the first write."""
        self.path = path
        self._path = path

    def __str__(self) -> str:
        """Return the path."""
        return str(self._path)

    def _inside(self, name: str) -> Path:
        """Return a file's path; raises ResultsError if it leads out of the folder."""
        path = self._path / name
        try:
            inside = path.resolve().is_relative_to(self._path.resolve())
        except (OSError, RuntimeError) as error:  # Python 3.13 and those before it
            raise Unacceptable(f"{path}: expected a folder, got a circle of links") from error
        if not inside:
            raise Unacceptable(f"{path}: expected a file in its folder, got a link out of it")
        return path

    def _place(self, name: str) -> Path:
        """Return a file's path for writing; makes the folder that it is in."""
        self._inside(name.rpartition("/")[0])
        path = self._path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def child(self, name: str) -> Folder:
        """See `Folder`."""
        return LocalFolder(self._path / name)

    def exists(self, name: str) -> bool:
        """See `Folder`."""
        return (self._path / name).exists()

    def names(self, inside: str = "") -> list[str]:
        """See `Folder`."""
        folder = self._inside(inside)
        return sorted(os.listdir(folder)) if folder.is_dir() else []

    def read(self, name: str, most: int | None = None) -> bytes:
        """See `Folder`."""
        with self.open(name) as file:
            content = file.read(-1 if most is None else most + 1)
        _check_size(self, name, len(content), most)
        return content

    def open(self, name: str) -> BinaryIO:
        """See `Folder`."""
        path = self._inside(name)
        if path.exists() and not path.is_file():  # opening a pipe would wait for ever
            raise Unacceptable(f"{path}: expected a file")
        return open(path, "rb")

    def write(self, name: str, content: bytes) -> None:
        """See `Folder`."""
        write_whole(self._place(name), content)

    def create(self, name: str, content: bytes) -> bool:
        """See `Folder`."""
        path = self._inside(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(path, "xb", buffering=0) as file:
                file.write(content)
        except FileExistsError:
            return False
        return True

    def move(self, name: str, to: str) -> None:
        """See `Folder`."""
        os.replace(self._path / name, self._place(to))

    def delete(self, names: Sequence[str]) -> None:
        """See `Folder`."""
        for name in names:
            (self._path / name).unlink(missing_ok=True)

    def remove_empty(self, inside: str) -> None:
        """See `Folder`."""
        folder = self._path / inside
        if folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir()):
            folder.rmdir()

    def sweep_up(self, inside: str, ours: Callable[[str], bool]) -> None:
        """See `Folder`."""
        for name in self.names(inside):
            final = final_name(name)
            if final is not None and ours(final):
                (self._path / inside / name).unlink(missing_ok=True)


def _check_size(folder: Folder, name: str, size: int, most: int | None) -> None:
    if most is not None and size > most:
        raise Unacceptable(f"{folder}/{name}: expected at most {most:,} bytes, got more")


class UrlFolder(Folder):
    """A folder at an fsspec URL; its files are objects that a store replaces whole."""

    def __init__(self, system: Any, root: str, url: str) -> None:
        """Use an fsspec file system, the folder's name in it, and its URL."""
        self._system, self._root, self._url = system, root.rstrip("/"), url.rstrip("/")

    @classmethod
    def at(cls, url: str) -> "UrlFolder":
        """See `open_folder`."""
        with extra("sweep"):
            from fsspec.core import url_to_fs

        try:
            # Without cached listings, files that another process has just written are found.
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
        with self._naming(name):
            return bool(self._system.exists(f"{self._root}/{name}"))

    def names(self, inside: str = "") -> list[str]:
        """See `Folder`."""
        folder = f"{self._root}/{inside}".rstrip("/")
        with self._naming(inside):
            try:
                found = self._system.ls(folder, detail=False)
            except FileNotFoundError:
                return []
        names = {name.rstrip("/").rpartition("/")[2] for name in found if name != f"{folder}/"}
        return sorted(names - {""})

    def read(self, name: str, most: int | None = None) -> bytes:
        """See `Folder`."""
        if most is not None:
            with self._naming(name):
                size = int(self._system.size(f"{self._root}/{name}") or 0)
            _check_size(self, name, size, most)
        with self._naming(name):
            return bytes(self._system.cat_file(f"{self._root}/{name}"))

    def read_all(self, names: Sequence[str], most: int | None = None) -> list[bytes]:
        """See `Folder`."""
        full = [f"{self._root}/{name}" for name in names]
        with self._naming(""):
            found = self._system.cat(full, on_error="raise") if full else {}
        for name in names:
            _check_size(self, name, len(found[f"{self._root}/{name}"]), most)
        return [found[name] for name in full]

    def open(self, name: str) -> BinaryIO:
        """See `Folder`."""
        with self._naming(name):
            file = self._system.open(f"{self._root}/{name}", "rb", block_size=_BLOCK_BYTES)
        return cast("BinaryIO", file)

    def write(self, name: str, content: bytes) -> None:
        """See `Folder`."""
        with self._naming(name, missing_too=True):
            self._system.pipe_file(f"{self._root}/{name}", content)

    def write_all(self, files: Mapping[str, bytes]) -> None:
        """See `Folder`."""
        with self._naming("", missing_too=True):
            self._system.pipe({f"{self._root}/{name}": files[name] for name in files})

    def create(self, name: str, content: bytes) -> bool:
        """See `Folder`."""
        with self._naming(name, missing_too=True):
            try:
                self._system.pipe_file(f"{self._root}/{name}", content, mode="create")
            except FileExistsError:
                return False
        return True

    def move(self, name: str, to: str) -> None:
        """See `Folder`."""
        with self._naming(name):
            self._system.mv(f"{self._root}/{name}", f"{self._root}/{to}")

    def delete(self, names: Sequence[str]) -> None:
        """See `Folder`."""
        inside = {name.rpartition("/")[0] for name in names}
        present = {
            f"{folder}/{name}".lstrip("/") for folder in inside for name in self.names(folder)
        }
        there = [f"{self._root}/{name}" for name in names if name in present]
        with self._naming(""):
            if there:
                self._system.rm(there)

    def remove_empty(self, inside: str) -> None:
        """See `Folder`; a store has no empty folders."""

    def sweep_up(self, inside: str, ours: Callable[[str], bool]) -> None:
        """See `Folder`; a store has no half-written objects."""

    @contextmanager
    def _naming(self, name: str, *, missing_too: bool = False) -> Iterator[None]:
        """Turn what a store's client raises into one line that names the object."""
        try:
            yield
        except FileNotFoundError as error:
            if not missing_too:
                raise
            raise ResultsError(f"{self._url}/{name}: {error}") from error
        except Exception as error:
            text = " ".join(str(error).split()) or type(error).__name__
            raise ResultsError(f"{self._url}/{name}: {text}") from error
