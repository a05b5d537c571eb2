"""Begins a results folder: a new one, or this sweep's own; another sweep's is left unchanged.

A folder belongs to the config and the environment in its two files. If those are damaged or gone,
the models' seals still tell which they were, and the same command writes the files again.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from typing import Any

from bilinear.errors import ConfigError, ResultsError
from bilinear.experiment.config import SweepConfig
from bilinear.results.claim import is_claim
from bilinear.results.folder import Folder, Unacceptable, final_name
from bilinear.results.packs import Pack, Packing, job_of, model_file, pack_name, pack_of_name
from bilinear.results.seal import claimed_origin, most_bytes, origin_of
from bilinear.results.sums import SUMS, write_summed
from bilinear.results.sweep_results import DAMAGE, Results, encode_json

IDENTITY = ("config.json", "environment.json")
_FINISHED = (
    "table.parquet",
    "summary.json",
    "accuracy.png",
    "interactions.png",
    "chain.png",
    "view.html",
    "sessions.json",
)
_ROOMS = ("models", "packs", "in-training", "set-aside")


def begin(folder: Folder, config: SweepConfig, environment: dict[str, str]) -> list[str]:
    """Write a folder's two files if it is new or they are damaged; returns what was damaged.

    Raises what `check_whose` does.
    """
    damage = check_whose(folder, config, environment)
    if damage is None or damage:
        files = _kept_or_ours(folder, config, environment)
        write_summed(folder, files, last="config.json")
    return [f"{text}: written again" for text in damage or ()]


def check_whose(
    folder: Folder, config: SweepConfig, environment: dict[str, str]
) -> list[str] | None:
    """Return None for a new folder, else what is damaged of its two files; writes nothing.

    Raises ResultsError for a folder that holds something else, and ConfigError for another sweep's
    or one whose sweep cannot be determined.
    """
    names = folder.names()
    if "config.json" not in names and not _has_models(folder):
        _refuse_strange(folder, names)
        return None
    try:
        there = Results(folder)
    except ResultsError as error:
        _check_mendable(folder, config, environment, error)
        return [str(error).partition(";")[0]]
    _check_same(folder, there, config, environment)
    return []


def _check_same(
    folder: Folder, there: Results, config: SweepConfig, environment: dict[str, str]
) -> None:
    if there.config != config:
        different = "; ".join(config.differences(there.config))
        raise ConfigError(f"out: {str(folder)!r} belongs to another config ({different})")
    if there.environment != environment:
        raise ConfigError(
            f"out: {str(folder)!r} was begun with {there.environment}, this is "
            f"{environment}; the bits of its models could differ"
        )


def _check_mendable(
    folder: Folder, config: SweepConfig, environment: dict[str, str], damage: ResultsError
) -> None:
    """Raise ConfigError unless the undamaged rest of a folder shows that it is this sweep's."""
    files = _kept_or_ours(folder, config, environment)
    if all(_read(folder, name) == files[name] for name in IDENTITY):
        return  # only the digests are damaged
    if not _has_models(folder):
        _refuse_strange(folder, [name for name in folder.names() if name != "config.json"])
        there = _parsed(_read(folder, "config.json"), SweepConfig.from_json)
        if there is None or there == config:
            return  # there is no model of other settings
    elif origin_of(*(files[name] for name in IDENTITY)) in _origins(folder, config):
        return
    raise ConfigError(f"{damage}; these are other settings than its models were trained with")


def _kept_or_ours(
    folder: Folder, config: SweepConfig, environment: dict[str, str]
) -> dict[str, bytes]:
    """Of each of the two files, its content if that equals this run's settings, else this run's.

    An earlier version may have written equal settings with other bytes.
    """
    ours: list[tuple[str, Any, bytes, Callable[[str], Any]]] = [
        ("config.json", config, config.to_json().encode(), SweepConfig.from_json),
        ("environment.json", environment, encode_json(environment), json.loads),
    ]
    files = {}
    for name, wanted, content, parse in ours:
        there = _read(folder, name)
        same = there is not None and _parsed(there, parse) == wanted
        files[name] = there if there is not None and same else content
    return files


def _read(folder: Folder, name: str, most: int | None = None) -> bytes | None:
    try:
        return folder.read(name, most)
    except (FileNotFoundError, Unacceptable):
        return None


def _parsed(content: bytes | None, parse: Callable[[str], Any]) -> Any:
    try:
        return None if content is None else parse(content.decode())
    except (ValueError, RecursionError):
        return None


def _refuse_strange(folder: Folder, names: list[str]) -> None:
    known = {"environment.json", SUMS, *_FINISHED, *_ROOMS}
    partial = {*known, "config.json"}
    strange = [
        name
        for name in names
        if name not in known and not is_claim(name) and final_name(name) not in partial
    ]
    if strange:
        raise ResultsError(
            f"out: expected a new folder or a results folder, got {str(folder)!r}, "
            f"which holds {strange[0]!r} and no config.json"
        )


def _has_models(folder: Folder) -> bool:
    return any(job_of(name) is not None for name in folder.names("models")) or any(
        pack_of_name(name) is not None for name in folder.names("packs")
    )


def _origins(folder: Folder, config: SweepConfig) -> Iterator[str | None]:
    """The origins in the seals of a folder's undamaged models."""
    packing = Packing(config)
    for job in packing.jobs_among(folder.names("models")):
        most = most_bytes(config, job.d_hidden)
        content = _read(folder, f"models/{model_file(job)}", most)
        yield None if content is None else claimed_origin(content)
    for pack in packing.packs_among(folder.names("packs")):
        with suppress(*DAMAGE), closing(Pack(folder.open(f"packs/{pack_name(pack)}"))) as archive:
            for job in packing.jobs(pack):
                yield claimed_origin(archive.model(job, most_bytes(config, job.d_hidden)))
