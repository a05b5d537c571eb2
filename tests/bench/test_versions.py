"""Counts in pytest's last line. The environments are made only before a release."""

import pytest

from bench.versions import counts


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("3 failed, 354 passed, 2 skipped in 155.53s (0:02:35)", (354, 3, 2, 0)),
        ("354 passed in 1.5s", (354, 0, 0, 0)),
        ("1 passed, 2 warnings, 1 error in 3s", (1, 0, 0, 1)),
        ("no tests ran in 0.01s", (0, 0, 0, 0)),
    ],
)
def test_counts(line: str, found: tuple[int, ...]) -> None:
    got = counts(f"...\nFAILED tests/x.py::test - 9 passed\n{line}\n")
    assert tuple(got.values()) == found
