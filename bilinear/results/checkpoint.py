"""Checkpoints: states of models in training, from which the run after a killed one goes on."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from bilinear.errors import ResultsError
from bilinear.experiment.record import Job
from bilinear.results.folder import write_whole
from bilinear.results.seal import seal, unseal

# The most bytes of a file's header, which lists every model of the group.
_HEADER_BYTES = 2**26


class Checkpoint:
    """A folder with a file for each group of models that train together."""

    def __init__(self, folder: Path) -> None:
        """Use `folder`, which is made at the first write."""
        self._folder = folder

    def write(self, group: str, jobs: Sequence[Job], state: Mapping[str, Tensor]) -> None:
        """Write the state of `jobs`, tensors (n, …) with a row for each job, over the last one."""
        self._folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.contiguous() for name, tensor in state.items()}
        content = seal(tensors, {"jobs": list(jobs)})
        write_whole(self._folder / f"{group}.safetensors", content)

    def read(self) -> dict[Job, dict[str, Tensor]]:
        """Return the state of every job; raises ResultsError for a damaged file."""
        found: dict[Job, dict[str, Tensor]] = {}
        for path in sorted(self._folder.glob("*.safetensors")):
            try:
                state, about = unseal(path.read_bytes(), _HEADER_BYTES)
                jobs = [Job(*job) for job in about["jobs"]]
            except (OSError, KeyError, TypeError, ValueError) as error:
                raise ResultsError(
                    f"{path}: damaged ({error}); delete it, and its models begin again"
                ) from error
            for i, job in enumerate(jobs):
                found[job] = {name: tensor[i] for name, tensor in state.items()}
        return found

    def forget(self, group: str) -> None:
        """Delete the state of a group, and the folder once it is empty."""
        (self._folder / f"{group}.safetensors").unlink(missing_ok=True)
        if self._folder.exists() and not any(self._folder.iterdir()):
            self._folder.rmdir()
