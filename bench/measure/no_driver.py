"""A driver for Triton that runs nothing: kernels compile for sm_90 and starts end in Python.

For timing and testing what stands between a launcher and the device on a machine that has none.
Install it before the first launch, in a process in which Triton does not interpret kernels.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any


class NoDriver:
    """Triton's driver interface; `started` gets the arguments of every start: see `install`."""

    utils = SimpleNamespace(
        load_binary=lambda *_: (1, object(), 1, 0, 1024),
        get_device_properties=lambda _: {"max_shared_mem": 232_448},
    )

    def __init__(self, started: Callable[..., None]) -> None:
        self._started = started

    def launcher_cls(self, source: object, metadata: object) -> Callable[..., None]:
        return self._started

    def get_current_device(self) -> int:
        """The number that PyTorch gives to CPU tensors, which stand for the device's."""
        return -1

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)


def install(started: Callable[..., None] = lambda *_: None) -> None:
    """Make it Triton's driver.

    `started` takes what Triton's launcher takes: grid (three numbers), stream, function, metadata,
    launch metadata, two hooks, and the kernel's arguments.
    """
    from triton.runtime import driver

    driver.set_active(NoDriver(started))  # type: ignore[arg-type]
