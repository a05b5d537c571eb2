"""Whose a results folder is: new, this sweep's, or another's, in which nothing is changed.

A folder belongs to the config and the environment in its two files. If those are damaged or gone, a
model in it still says which they were, and the same command writes them again.
"""

import json
from collections.abc import Callable, Iterator
from typing import Any

from bilinear.errors import ConfigError, ResultsError
from bilinear.experiment.config import SweepConfig
from bilinear.results.claim import is_claim
from bilinear.results.folder import Folder, Unacceptable, final_name
from bilinear.results.packs import Pack, PackPlan, job_of, pack_of_name
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
    """Write a folder's two files if it is new, or mend them; returns what was mended.

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
    """Return None for a new folder, else what is damaged of this sweep's identity; writes nothing.

    Raises ResultsError for a folder that holds something else, or whose owner cannot be told, and
    ConfigError for another sweep's.
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
    """Raise ConfigError unless what is left of a folder says that it is this sweep's."""
    files = _kept_or_ours(folder, config, environment)
    if all(_read(folder, name) == files[name] for name in IDENTITY):
        return  # the digests are what is damaged
    if not _has_models(folder):
        _refuse_strange(folder, [name for name in folder.names() if name != "config.json"])
        text = _read(folder, "config.json")
        there = None if text is None else _parsed(text, SweepConfig.from_json)
        if there is None or there == config:
            return  # no model was trained with anything else
    elif origin_of(*(files[name] for name in IDENTITY)) in _origins(folder, config):
        return
    raise ConfigError(f"{damage}; these are other settings than its models were trained with")


def _kept_or_ours(
    folder: Folder, config: SweepConfig, environment: dict[str, str]
) -> dict[str, bytes]:
    """Of each file what is there if it says what this run would, else what this run says.

    An earlier version may have written equal settings with other bytes.
    """
    ours = {"config.json": config.to_json().encode(), "environment.json": encode_json(environment)}
    wanted = {"config.json": config, "environment.json": environment}
    parse: dict[str, Callable[[str], Any]] = {
        "config.json": SweepConfig.from_json,
        "environment.json": json.loads,
    }
    kept = {}
    for name, content in ours.items():
        there = _read(folder, name)
        same = there is not None and _parsed(there, parse[name]) == wanted[name]
        kept[name] = there if there is not None and same else content
    return kept


def _read(folder: Folder, name: str, most: int | None = None) -> bytes | None:
    try:
        return folder.read(name, most)
    except (FileNotFoundError, Unacceptable):
        return None


def _parsed(content: bytes, parse: Callable[[str], Any]) -> Any:
    try:
        return parse(content.decode())
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
    """What the undamaged models of a folder say that they were trained from."""
    plan = PackPlan(config)
    for name in folder.names("models"):
        job = job_of(name)
        if job is not None and job in plan:
            content = _read(folder, f"models/{name}", most_bytes(config, job.d_hidden))
            yield None if content is None else claimed_origin(content)
    for name in folder.names("packs"):
        pack = pack_of_name(name)
        if pack is None or pack >= plan.packs:
            continue
        try:
            archive = Pack(folder.open(f"packs/{name}"))
        except DAMAGE:
            continue
        try:
            for job in plan.jobs(pack):
                yield claimed_origin(archive.model(job, most_bytes(config, job.d_hidden)))
        except DAMAGE:
            continue
        finally:
            archive.close()
