"""What pytest-benchmark stores: our environment instead of the host's name, no raw samples."""

from typing import Any

from bench.environment import environment


def pytest_benchmark_update_machine_info(config: Any, machine_info: dict[str, Any]) -> None:
    machine_info.clear()
    machine_info.update(environment())


def pytest_benchmark_update_json(
    config: Any, benchmarks: list, output_json: dict[str, Any]
) -> None:
    for benchmark in output_json["benchmarks"]:
        benchmark["stats"].pop("data", None)
