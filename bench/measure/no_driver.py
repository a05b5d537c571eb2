"""A driver for Triton that runs no kernel: kernels compile for sm_90, launches call a function.

Serves to time and test the Python code of a launch on a machine without a GPU. Install the driver
before the first launch, in a process in which Triton does not interpret kernels.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any


class NoDriver:
    """Triton's driver interface; calls `started` at every launch: see `install`."""

    utils = SimpleNamespace(
        load_binary=lambda *_: (1, object(), 1, 0, 1024),
        get_device_properties=lambda _: {"max_shared_mem": 232_448},
    )

    def __init__(self, started: Callable[..., None]) -> None:
        self._started = started

    def launcher_cls(self, source: object, metadata: object) -> Callable[..., None]:
        return self._started

    def get_current_device(self) -> int:
        """PyTorch's device number of CPU tensors, which replace CUDA tensors here."""
        return -1

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)


def install(started: Callable[..., None] = lambda *_: None) -> None:
    """Make `NoDriver` Triton's driver.

    `started` takes the arguments that Triton's launcher takes: grid (three numbers), stream,
    function, metadata, launch metadata, two hooks, and the kernel's arguments.
    """
    from triton.runtime import driver

    driver.set_active(NoDriver(started))  # type: ignore[arg-type]
