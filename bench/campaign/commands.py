"""Malformed command lines: each must exit with 2 within 5 s, a line on stderr, and no file."""

import random
from functools import partial
from pathlib import Path
from typing import Any

from bench.campaign.processes import PATIENCE
from bench.campaign.sweeps import Folders

_JUNK = [
    "", " ", "²", "٣²", "x", "-", "1,,2", "1..", "..", "nan", "inf", "-inf", "1_0", "0x10",
    "9" * 20, "9" * 5000, "1e400", "\0", "\ud800", "🦆", "[bold]", "'", "a\nb", "--", "1;2", "-1",
    "1.5.2", "None", "x" * 100_000, "1..99999999999", "%s%n", "${HOME}", "../..", "1e-320x",
]  # fmt: skip
# Invalid values of each option, besides junk.
_OPTIONS: dict[str, list[str]] = {
    "--p": ["0", "1", "-7", "16385", "100000000", "2..16385", "7,7", "7.5"],
    "--widths": ["0", "-1", "16385", "10000000", "1..9999999", "3,3", "3.0"],
    "--seeds": ["0", "-1", "1000001", "18446744073709551616,1", "5,5", "1.5", "9999999999"],
    "--train-frac": ["0", "1", "-0.5", "1.1", "0.5,0.5", "1e-9"],
    "--steps": ["0", "-1", "1e3", "1.5", "99999999999"],
    "--epochs": ["0", "-1", "1.5", "99999999999"],
    "--lr": ["-1", "1e30", "1e-320", "0.1,0.1"],
    "--lr-end": ["-1", "1e30", "1e-320"],
    "--weight-decay": ["-1", "1e30", "1e-320", "0.1,0.1"],
    "--weight-decay-end": ["-1", "1e30"],
    "--schedule": ["linearly", "LINEAR"],
    "--decay-schedule": ["cos"],
    "--beta1": ["1", "-0.1", "2"],
    "--beta2": ["1", "-0.1"],
    "--batch-size": ["0", "-1", "1.5", "999999999", "FULL"],
    "--init-scale": ["0", "-1", "1e30", "1e-320"],
    "--eval-every": ["0", "-1", "0.5", "99999999999"],
    "--goal": ["train", "FULL"],
    "--hold": ["0", "-1", "99999999999"],
    "--device": ["tpu", "CPU", "cuda:99"],
    "--engine": ["spark", "RAY"],
    "--precision": ["bf16", "float32"],
    "--remainders": ["-1", "64", "1,1", "ALL", "1.5"],
    "--preset": ["Default", "mine"],
    "--ray-address": ["127.0.0.1:1"],
    "--out": ["/dev/null", "/dev/null/x", "nowhere://x", "/proc/nothing/here"],
    "--resume": ["/nonexistent", "/dev/null", "/tmp"],
    "--nonsense": ["1"],
    "--P": ["7"],
}
# Options for which junk is valid: any text can name a new folder.
_FREE = {"--out", "--resume", "--ray-address"}
_OTHERS = ["show", "check", "view", "export", "runs"]


def malformed(draw: random.Random) -> list[str]:
    """Draw a command line that must be refused."""
    if draw.random() < 0.15:
        places = ["", "/nonexistent", "/dev/null", "\0", "a[/b]", "nowhere://x", "x" * 300]
        more = draw.choice([[], ["--json", "--jsn"], ["--seed", "²"]])
        return [draw.choice(_OTHERS), draw.choice(places), *more]
    option = draw.choice(list(_OPTIONS))
    bad = _OPTIONS[option]
    junk = ["\0", ""] if option in _FREE else _JUNK
    value = draw.choice(bad) if draw.random() < 0.6 else draw.choice(junk)
    line = [option, value] if draw.random() < 0.7 else [f"{option}={value}"]
    extra = draw.choice([[], ["--quiet"], ["--dry-run"], ["--seeds", "2"]])
    if option in ("--epochs", "--ray-address") and draw.random() < 0.5:
        extra = ["--steps", "5", "--epochs", "5"]
    if option == extra[:1] or option in _FREE:  # with --dry-run, any --out is valid
        extra = []
    if draw.random() < 0.05:
        line = [option]  # its value is missing
    more = ["--nonsense"] if draw.random() < 0.1 or line == ["--resume"] else []
    return ["--fused", "--p", "7", "--widths", "3", "--steps", "5", *extra, *line, *more]


def commands(draw: random.Random, folders: Folders, n: int) -> dict[str, Any]:
    """Run n malformed command lines, each in a process of its own."""
    wrong: list[str] = []
    slowest = 0.0
    for _ in range(n):
        line = malformed(draw)
        process = folders.process(partial(_run, line))
        ended = process.end(at_most=20.0)
        slowest = max(slowest, ended.seconds)
        reason = ""
        if ended.code != 2 or ended.error.count("\n") != 1 or "Traceback" in ended.error:
            reason = f"ended with {ended.code}: {ended.error[-300:]}"
        elif len(ended.error) > 3000:
            reason = f"a line of {len(ended.error)} characters"
        elif ended.seconds > PATIENCE:
            reason = f"took {ended.seconds:.1f} s"
        elif written := _written(process.scratch):
            reason = f"wrote {written}"
        if reason:
            wrong.append(f"{' '.join(line)[:200]!r}: {reason}")
    return {"command lines": n, "slowest [s]": round(slowest, 2), "wrong": wrong}


def _run(line: list[str]) -> int:
    from bilinear.cli.commands import main

    return main(line)


def _written(scratch: Path) -> list[str]:
    return [f.name for f in scratch.iterdir() if f.name not in ("output", "error")]
