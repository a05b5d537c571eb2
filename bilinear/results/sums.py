"""SHA256SUMS: digests of a results folder's files that are not models; `sha256sum -c` checks them.

A model's file holds its own digest (`bilinear.results.seal`). A folder of an earlier version has
neither.
"""

import hashlib
import re
from collections.abc import Mapping

from bilinear.errors import ResultsError
from bilinear.results.folder import Folder

SUMS = "SHA256SUMS"
_MOST_BYTES = 2**16
_NAMES = {"config.json", "environment.json", "study.json", "table.parquet", "summary.json"}


def digest(content: bytes) -> str:
    """Return the SHA-256 of a file's content in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def encode_sums(digests: Mapping[str, str]) -> bytes:
    """Return the digests in the format of `sha256sum`."""
    return "".join(f"{digests[name]}  {name}\n" for name in sorted(digests)).encode()


def read_sums(folder: Folder) -> dict[str, str] | None:
    """Read the digests of a folder, None if it has none; raises ResultsError for damaged ones."""
    try:
        content = folder.read(SUMS, _MOST_BYTES)
    except FileNotFoundError:
        return None
    found = re.findall(rb"([0-9a-f]{64})  ([\w.-]+)\n", content)
    digests = {name.decode("ascii", "replace"): value.decode() for value, name in found}
    if encode_sums(digests) != content or not digests.keys() <= _NAMES:
        raise ResultsError(f"{folder}/{SUMS}: damaged; the sweep's own command with --out mends it")
    return digests


def verified(sums: Mapping[str, str] | None, name: str, content: bytes) -> bool:
    """Whether a file has the digest in `sums`; False without one."""
    return sums is not None and sums.get(name) == digest(content)


def write_summed(folder: Folder, files: Mapping[str, bytes], last: str | None = None) -> None:
    """Write files and then their digests, but the file `last` after the digests.

    Digests of other files are kept.
    """
    try:
        sums = read_sums(folder) or {}
    except ResultsError:
        sums = {}
    folder.write_all({name: content for name, content in files.items() if name != last})
    folder.write(SUMS, encode_sums(sums | {name: digest(files[name]) for name in files}))
    if last is not None:
        folder.write(last, files[last])
