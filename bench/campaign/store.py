"""A local S3 server (moto) in a process of its own, with one bucket."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.campaign.processes import Process

_KEYS = {
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_MAX_ATTEMPTS": "1",
}
_BUCKET = "campaign"


@contextmanager
def bucket(scratch: Path) -> Iterator[str]:
    """Start the server and set its address in os.environ; yields the bucket's name."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait_for(url, server)
        os.environ.update(_KEYS | {"AWS_ENDPOINT_URL": url})
        ended = Process(_make_bucket, scratch / "bucket").end()
        if ended.code != 0:
            raise RuntimeError(f"the bucket could not be made: {ended.error}")
        yield _BUCKET
    finally:
        server.kill()
        server.wait()


def _wait_for(url: str, server: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 120
    while True:
        try:
            urllib.request.urlopen(f"{url}/moto-api/", timeout=5).close()
            return
        except OSError:
            if server.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def _make_bucket() -> int:
    import fsspec

    fsspec.filesystem("s3", skip_instance_cache=True).mkdir(_BUCKET)
    return 0
