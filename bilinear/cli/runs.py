"""Lists the results folders under runs/, and finds the one begun last."""

import json
from collections.abc import Iterator
from pathlib import Path

from bilinear.errors import ConfigError, ResultsError
from bilinear.results.open import load_results
from bilinear.results.study_results import StudyResults

RUNS = Path("runs")
_BEGUN = ("study.json", "config.json")


def folders(parent: Path = RUNS) -> list[Path]:
    """Return the results folders directly in `parent`, the last begun first."""
    begun = {
        path: (path / name).stat().st_mtime_ns
        for path in (parent.iterdir() if parent.is_dir() else ())
        for name in _BEGUN
        if (path / name).is_file()
    }
    return sorted(begun, key=lambda path: (begun[path], path.name), reverse=True)


def last_run(parent: Path = RUNS) -> Path:
    """Return the folder begun last; raises ConfigError if there is none."""
    found = folders(parent)
    if not found:
        raise ConfigError(f"results: expected a folder, and there is none under {parent}")
    return found[0]


def rows(parent: Path = RUNS) -> Iterator[dict[str, str]]:
    """Describe each folder by a row of texts; for one that cannot be read, by the reason."""
    for path in folders(parent):
        try:
            what, models, smallest = _described(path)
        except (ConfigError, ResultsError, OSError) as error:
            what, models, smallest = str(error), "—", "—"
        yield {"folder": str(path), "task": what, "models": models, "smallest perfect": smallest}


def _described(path: Path) -> tuple[str, str, str]:
    results = load_results(path)
    if isinstance(results, StudyResults):
        moduli = ", ".join(map(str, sorted({cell.p for cell in results.study})))
        what = f"study of {len(results.study)} cells, P {moduli}"
        there = sum(len(cell.jobs) for cell in results.begun)
        total = sum(len(cell.jobs) for cell in results.study)
    else:
        what = f"(a + b) mod {results.config.p}"
        there, total = len(results.jobs), len(results.config.jobs)
    models = f"{total:,}" if there == total else f"{there:,} of {total:,}"
    return what, models, _smallest(path)


def _smallest(path: Path) -> str:
    """The smallest perfect width, from the summary of a finished run."""
    try:
        summary = json.loads((path / "summary.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return "—"
    cells = summary.get("cells", [summary])
    found = [cell["smallest_perfect_width"] for cell in cells]
    return str(min((width for width in found if width is not None), default="none"))
