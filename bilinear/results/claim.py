"""Claims: at most one process at a time fills a results folder.

    with claim(folder):
        ...  # no other process writes in it

On this machine the claim is a lock on a file that names its owner; the operating system drops the
lock when the owner's process ends, however it ends. At a URL, and on a file system without locks,
it is a lease: an object created exclusively and rewritten every few seconds. Another process takes
a lease over if the owner's process is gone, or if the lease was not renewed while it watched. Some
stores overwrite where they should create; there two new owners wait until each can see the other.
"""

import json
import os
import platform
import re
import secrets
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from bilinear.errors import ConfigError, ResultsError
from bilinear.results.folder import Folder, LocalFolder, open_folder

LOCK = "owner.lock"
LEASE = re.compile(r"owner-(\d{6})\.json")
# Seconds between two renewals of a lease, and without one until its owner counts as gone.
_RENEWED_EVERY = 4.0
_GONE_AFTER = 20.0
# Seconds after which two processes that created the same lease at once both see which one is left.
_SETTLES_IN = 2.0
# Beyond the file's text: on Windows other processes cannot read a locked range.
_LOCKED_BYTE = 2**30


class Claimed(ConfigError):
    """A folder that another process is filling."""


class Claim:
    """A claim that is held, as a lock: the operating system gives it to no other process."""

    def check(self) -> None:
        """Raise ResultsError if another process has taken the folder over."""


def is_claim(name: str) -> bool:
    """Whether a file's name, directly in a results folder, is that of a claim."""
    return name == LOCK or LEASE.fullmatch(name) is not None


@contextmanager
def claim(folder: Folder) -> Iterator[Claim]:
    """Claim a folder, making it if it is new; raises Claimed while another process fills it.

    For the folder of a study's cell, the study's folder is claimed.
    """
    folder = _study_around(folder) or folder
    if isinstance(folder, LocalFolder):
        with _locked(folder) as lock:
            if lock is not None:
                yield lock
                return
    with _leased(folder) as lease:
        yield lease


def _processes() -> str:
    """Name the set of processes in which a pid is unique: the machine's, or the container's."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _study_around(folder: Folder) -> Folder | None:
    here = os.path.realpath(folder.path) if folder.path is not None else str(folder)
    parts = re.fullmatch(r"(.+)[/\\]cells[/\\][^/\\]+", here)
    study = open_folder(parts[1]) if parts else None
    return study if study is not None and study.exists("study.json") else None


@dataclass(frozen=True)
class _Owner:
    pid: int = field(default_factory=os.getpid)
    host: str = field(default_factory=platform.node)
    processes: str = field(default_factory=_processes)
    since: str = field(default_factory=lambda: time.strftime("%Y-%m-%d %H:%M:%S"))
    token: str = field(default_factory=lambda: secrets.token_hex(8))
    renewed: float = field(default_factory=time.time)

    def encoded(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"

    @property
    def is_gone(self) -> bool:
        """Whether it was a process of this machine, and has ended."""
        here = self.host == platform.node() and self.processes == _processes()
        if not here or sys.platform == "win32":
            return False
        try:
            os.kill(self.pid, 0)
        except (OSError, OverflowError) as error:
            return isinstance(error, ProcessLookupError)
        return False


def _parsed(content: bytes) -> _Owner | None:
    types = {"pid": int, "host": str, "processes": str, "since": str, "token": str}
    with suppress(ValueError, TypeError, KeyError, RecursionError, OverflowError):
        found = json.loads(content)
        if all(isinstance(found[name], kind) for name, kind in types.items()):
            return _Owner(**found | {"renewed": float(found["renewed"])})
    return None


def _refusal(folder: Folder, owner: _Owner | None) -> Claimed:
    who = "another process" if owner is None else str(owner)
    return Claimed(f"out: {str(folder)!r} is being filled by {who}; wait for it, or stop it")


@contextmanager
def _locked(folder: LocalFolder) -> Iterator[Claim | None]:
    """Hold a lock on a file in the folder; None where the file system has no locks."""
    path = Path(str(folder)) / LOCK
    made = not path.parent.exists()
    descriptor = _lock(folder, path)
    if descriptor is None:
        yield None
        return
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, _Owner().encoded())
        yield Claim()
    finally:
        if sys.platform == "win32":  # an open file cannot be removed there
            os.close(descriptor)
        with suppress(OSError):
            path.unlink()
        if sys.platform != "win32":
            os.close(descriptor)
        if made:
            with suppress(OSError):
                path.parent.rmdir()  # if it is empty, it was made for the lock alone


def _lock(folder: LocalFolder, path: Path) -> int | None:
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        except FileNotFoundError:
            continue  # the last owner has just removed the empty folder
        except OSError as error:
            if path.is_symlink() or path.is_dir():
                what = "link" if path.is_symlink() else "folder"
                raise ResultsError(f"{path}: expected the file of a lock, got a {what}") from error
            raise
        try:
            taken = _try_lock(descriptor)
            if taken is False:
                raise _refusal(folder, _parsed(_text(descriptor)))
            # If the last owner removed the file between our opening and locking it, the lock is on
            # no file of this name.
            if taken and _same_file(descriptor, path):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        if taken is None:
            path.unlink(missing_ok=True)
            return None


def _text(descriptor: int) -> bytes:
    """Read the owner's text; retry while the owner is writing it, or removing the file."""
    for _ in range(20):
        os.lseek(descriptor, 0, os.SEEK_SET)
        text = os.read(descriptor, 4096)
        if text.endswith(b"}"):
            break
        time.sleep(0.005)
    return text


def _same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _try_lock(descriptor: int) -> bool | None:
    """Lock an open file; False if another process holds it, None where there are no locks."""
    if sys.platform == "win32":
        import msvcrt

        os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        os.lseek(descriptor, 0, os.SEEK_SET)
        return True
    import errno
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        if error.errno in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK):
            return None
        raise
    return True


class _Lease(Claim):
    """A claim as an object that names its owner, rewritten by a thread of this process."""

    def __init__(self, folder: Folder, name: str, owner: _Owner) -> None:
        self._folder, self._name, self._owner = folder, name, owner
        self._ended = threading.Event()
        self._lost = False
        self._checked = time.monotonic()
        self._thread = threading.Thread(target=self._renew, daemon=True)
        self._thread.start()

    def _renew(self) -> None:
        while not self._ended.wait(_RENEWED_EVERY):
            self._renew_once()

    def _renew_once(self) -> None:
        try:
            other = _newest(self._folder)
            if other != self._name or _token(self._folder, self._name) != self._owner.token:
                self._lost = True
                return
            self._folder.write(self._name, replace(self._owner, renewed=time.time()).encoded())
            self._checked = time.monotonic()
        except (OSError, ResultsError):
            pass  # if the store cannot be reached for long, the run's own writes fail with an error

    def check(self) -> None:
        """Renew first if this process was suspended for long enough to lose the folder."""
        if not self._lost and time.monotonic() - self._checked > _GONE_AFTER / 2:
            self._renew_once()
        if self._lost:
            raise ResultsError(f"{self._folder}: another process has taken it over")

    def end(self) -> None:
        self._ended.set()
        self._thread.join()
        if not self._lost:
            with suppress(OSError, ResultsError):
                self._folder.delete([n for n in _leases(self._folder) if n <= self._name])


@contextmanager
def _leased(folder: Folder) -> Iterator[_Lease]:
    """Write the next lease once the owner of the last one is gone."""
    before = _newest(folder)
    seen = None if before is None else _wait_until_gone(folder, before)
    number = 1 + (int(before[6:12]) if before is not None else 0)
    name, owner = f"owner-{number:06d}.json", _Owner()
    if not folder.create(name, owner.encoded()):
        raise _refusal(folder, _read(folder, name))
    if folder.create(name, owner.encoded()):  # created twice: this store overwrites
        time.sleep(_SETTLES_IN)
    # Of two processes that looked at the same time, at least one sees the other's lease here.
    undisturbed = before is None or _read(folder, before) == seen
    if _newest(folder) != name or _token(folder, name) != owner.token or not undisturbed:
        if _token(folder, name) == owner.token:
            folder.delete([name])
        raise _refusal(folder, None)
    lease = _Lease(folder, name, owner)
    try:
        yield lease
    finally:
        lease.end()


def _wait_until_gone(folder: Folder, name: str) -> _Owner | None:
    """Return the lease of an owner that is gone; raises Claimed if the owner renews it."""
    owner = _read(folder, name)
    if owner is not None and owner.is_gone:
        return owner
    # Clocks of two machines can differ, so a lease that looks old is watched for a while.
    if owner is not None and 0 <= time.time() - owner.renewed < _GONE_AFTER:
        raise _refusal(folder, owner)
    deadline = time.monotonic() + _GONE_AFTER
    while time.monotonic() < deadline:
        time.sleep(_RENEWED_EVERY / 4)
        now = _read(folder, name)
        if now != owner:
            raise _refusal(folder, now)
    return owner


def _leases(folder: Folder) -> list[str]:
    return [name for name in folder.names() if LEASE.fullmatch(name)]


def _newest(folder: Folder) -> str | None:
    return max(_leases(folder), default=None)


def _read(folder: Folder, name: str) -> _Owner | None:
    try:
        return _parsed(folder.read(name))
    except FileNotFoundError:
        return None


def _token(folder: Folder, name: str) -> str | None:
    owner = _read(folder, name)
    return None if owner is None else owner.token
