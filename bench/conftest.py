"""Lets pytest-benchmark store our environment, clocks and roofs, but no raw samples."""

from typing import Any

import pytest
import torch

from bench.measure import roofs
from bench.measure.environment import clocks, environment

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
_AT_THE_BEGINNING: dict[str, Any] = {}


@pytest.fixture(autouse=True, scope="session")
def _machine(request: pytest.FixtureRequest) -> None:
    """Measure the roofs before the benchmarks, which compare their rates with them."""
    if request.config.getoption("benchmark_disable"):
        return
    _AT_THE_BEGINNING["clocks as found"] = clocks()
    _AT_THE_BEGINNING["roofs"] = {device: roofs.measured(device).to_dict() for device in DEVICES}


def pytest_benchmark_update_machine_info(config: Any, machine_info: dict[str, Any]) -> None:
    machine_info.clear()
    machine_info.update({**environment(), **_AT_THE_BEGINNING})


def pytest_benchmark_update_json(
    config: Any, benchmarks: list, output_json: dict[str, Any]
) -> None:
    for benchmark in output_json["benchmarks"]:
        benchmark["stats"].pop("data", None)
