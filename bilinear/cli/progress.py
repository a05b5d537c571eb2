"""What a running sweep shows: a live panel on a terminal, plain lines in a pipe."""

import time
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from bilinear.cli.durations import duration
from bilinear.experiment.config import SweepConfig
from bilinear.experiment.cost import work_of_step
from bilinear.experiment.record import Finished, Job, Progress
from bilinear.training.run import Resumed

_PLAIN_SECONDS = 5.0
_BANDS = 8


class SweepState:
    """Where a sweep or a study stands: fed with its events, asked by the displays."""

    def __init__(self, cells: Sequence[SweepConfig]) -> None:
        """Nothing is done yet."""
        self.cells = cells
        self.total = sum(len(cell.widths) * len(cell.seeds) for cell in cells)
        self.done = self.perfect = self.resumed = 0
        self.training: dict[tuple[int, Job], int] = {}
        self.best: dict[int, float] = {}
        self.smallest: int | None = None
        self.started = time.monotonic()
        self._unit = [{d: work_of_step(cell, d) for d in cell.widths} for cell in cells]
        self._open_cost = sum(
            sum(unit.values()) * len(cell.seeds) * cell.steps
            for cell, unit in zip(cells, self._unit, strict=True)
        )
        self._ended_cost = 0.0
        self.trained: list[list[int]] = [[] for _ in cells]
        self._left = [len(cell.widths) * len(cell.seeds) for cell in cells]
        self.steps_ended = 0

    def update(self, index: int, event: Resumed | Progress | Finished) -> None:
        """Take in one event of the cell with this index."""
        if isinstance(event, Resumed):
            self.resumed += len(event.rows)
            for row in event.rows:
                self._end(index, Job(row["d_hidden"], row["seed"]), row, here=False)
        elif isinstance(event, Finished):
            self.training.pop((index, event.job), None)
            self._end(index, event.job, event.record.row(event.job), here=True)
        else:
            self.training[index, event.job] = event.evaluation.step
            self._see(event.job.d_hidden, event.evaluation.full_acc)

    def _end(self, index: int, job: Job, row: dict, here: bool) -> None:
        self.done += 1
        self._left[index] -= 1
        self._see(job.d_hidden, row["full_acc"])
        if row["perfect"]:
            self.perfect += 1
            self.smallest = min(job.d_hidden, self.smallest or job.d_hidden)
        unit = self._unit[index][job.d_hidden]
        self._open_cost -= unit * self.cells[index].steps
        if here:
            self.trained[index].append(job.d_hidden)
            self.steps_ended += row["steps"]
            self._ended_cost += unit * row["steps"]

    def _see(self, d_hidden: int, acc: float) -> None:
        if acc == acc:  # the notebook's loop knows no full accuracy before its end
            self.best[d_hidden] = max(acc, self.best.get(d_hidden, 0.0))

    @property
    def steps(self) -> int:
        """Steps taken by this run, of all models together."""
        return self.steps_ended + sum(self.training.values())

    @property
    def steps_per_second(self) -> float:
        """Their mean rate."""
        return self.steps / max(time.monotonic() - self.started, 1e-9)

    def seconds_left(self) -> float | None:
        """At most this long: as if no further model stopped early; None before it can be known."""
        running = sum(
            self._unit[index][job.d_hidden] * step for (index, job), step in self.training.items()
        )
        spent = self._ended_cost + running
        elapsed = time.monotonic() - self.started
        if spent == 0 or elapsed < 1:
            return None
        return (self._open_cost - running) / spent * elapsed

    def bands(self) -> list[tuple[int, int, float | None]]:
        """(narrowest, widest, best accuracy so far on all pairs) of at most eight groups."""
        widths = sorted({d for cell in self.cells for d in cell.widths})
        size = -(-len(widths) // _BANDS)
        groups = [widths[i : i + size] for i in range(0, len(widths), size)]
        return [
            (g[0], g[-1], max((self.best[d] for d in g if d in self.best), default=None))
            for g in groups
        ]

    def line(self) -> str:
        """All of it in one line of text."""
        left = self.seconds_left()
        parts = [
            f"{self.done}/{self.total} models ended",
            f"{self.perfect} perfect",
            f"smallest width {self.smallest or '—'}",
            f"{len(self.training)} in training",
            f"{self.steps_per_second:,.0f} steps/s",
            f"at most {'?' if left is None else duration(left)} left",
        ]
        if len(self.cells) > 1:
            parts.insert(0, f"{self._left.count(0)}/{len(self.cells)} cells")
        return ", ".join(parts)


def _percent(acc: float | None) -> str:
    """Four digits, and 100 % only for all pairs."""
    if acc is None:
        return "—"
    return "100 %" if acc == 1.0 else f"{min(acc, 0.9999):.2%}".replace("%", " %")


def _band_name(narrowest: int, widest: int) -> str:
    return f"d={narrowest}" if narrowest == widest else f"d={narrowest}…{widest}"


def _panel(state: SweepState) -> Group:
    bands = Table(box=None, padding=(0, 2, 0, 0))
    row = state.bands()
    for narrowest, widest, _ in row:
        bands.add_column(_band_name(narrowest, widest), justify="right")
    bands.add_row(*(_percent(best) for *_, best in row))
    bar = Table.grid()
    bar.add_row(ProgressBar(total=state.total, completed=state.done, width=60))
    return Group(
        bar,
        Text(state.line()),
        Text("best accuracy so far on all pairs:", style="dim"),
        bands,
    )


class Display:
    """Shows the events of a sweep or a study while used as a context manager."""

    def __init__(self, cells: Sequence[SweepConfig], console: Console) -> None:
        """Live on a terminal or in a notebook with widgets, else a line every few seconds."""
        self.state, self._console = SweepState(cells), console
        self._live: Live | None = None
        if console.is_terminal or (console.is_jupyter and find_spec("ipywidgets")):
            panel = partial(_panel, self.state)
            self._live = Live(console=console, refresh_per_second=5, get_renderable=panel)
        self._shown = time.monotonic()
        self._said_resumed = False

    def __enter__(self) -> "Display":
        """Start showing."""
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        """Leave the last state on the screen."""
        self._say_resumed()
        if self._live:
            self._live.stop()
        elif self.state.done or self.state.training:
            self._console.print(self.state.line(), soft_wrap=True)

    def __call__(self, index: int, event: Resumed | Progress | Finished) -> None:
        """Take in and show one event of the cell with this index."""
        self.state.update(index, event)
        if not isinstance(event, Resumed):
            self._say_resumed()
        if not self._live and time.monotonic() - self._shown > _PLAIN_SECONDS:
            self._shown = time.monotonic()
            self._console.print(self.state.line(), soft_wrap=True)

    def _say_resumed(self) -> None:
        if self.state.resumed and not self._said_resumed:
            self._console.print(f"{self.state.resumed} models are there from before")
        self._said_resumed = True
