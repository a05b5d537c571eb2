"""Opens the results folder of a sweep, or of a study of several sweeps."""

import os

from bilinear.results.folder import open_folder
from bilinear.results.study_results import StudyResults, is_study
from bilinear.results.sweep_results import Results


def load_results(where: str | os.PathLike[str]) -> Results | StudyResults:
    """Open the folder of a sweep or of a study, finished or not, at a path or an fsspec URL.

    Returns a `Results` for a sweep, a `results.study_results.StudyResults` for a study. Raises
    ResultsError for anything else. `bilinear.Results(where)` opens the folder of a sweep only.
    """
    folder = open_folder(where)
    return StudyResults(folder) if is_study(folder) else Results(folder)
