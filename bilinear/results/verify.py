"""Verifies that a results folder still holds what was written into it.

A model is damaged if its digest is not that of its bytes, or if it is another job's or another
sweep's. A pack is damaged if its bytes differ from those written; its undamaged models are kept.
"""

import io
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from bilinear.experiment.config import SweepConfig
from bilinear.experiment.record import Job
from bilinear.experiment.task import split_pairs
from bilinear.results.folder import Folder, Unacceptable
from bilinear.results.frontier import frontier
from bilinear.results.packs import ROW_BYTES, Pack, encode_pack, model_file, pack_name
from bilinear.results.seal import Damaged, is_sealed, tensors_of
from bilinear.results.study_results import StudyResults
from bilinear.results.sums import SUMS
from bilinear.results.sweep_results import DAMAGE, STATE_KEYS, Results, encode_json, table_of

if TYPE_CHECKING:
    import pandas as pd

ASIDE = "set-aside"
_ANEW = "resuming the sweep makes it anew"

Judge = Callable[[Job, dict[str, Any], dict[str, Tensor]], None]


class Finding(NamedTuple):
    """A file that is not what it should be, and why."""

    name: str
    reason: str

    def __str__(self) -> str:
        """Return `name: reason`."""
        return f"{self.name}: {self.reason}"


class Verified(NamedTuple):
    """Rows of a folder's undamaged models, findings, and undamaged models in damaged packs."""

    rows: dict[Job, dict[str, Any]]
    findings: list[Finding]
    rescued: dict[Job, bytes]


def verify(results: Results, judge: Judge = lambda job, row, tensors: None) -> Verified:
    """Read every model of a folder, loose and packed; raises what reading a folder raises.

    `judge` is called with the job, row and tensors of each undamaged model.
    """
    found = Verified({}, [Finding(name, "no model of this sweep") for name in results.strange], {})
    for pack in results.packs:
        _verify_pack(results, pack, found, judge)
    for job in sorted(results.loose | results.twice):
        _verify_loose(results, job, found, judge)
    return found


def _verify_loose(results: Results, job: Job, found: Verified, judge: Judge) -> None:
    name = f"models/{model_file(job)}"
    try:
        content = results.folder.read(name, results.most_bytes(job))
    except Unacceptable as error:
        found.findings.append(Finding(name, _reason(error)))
        return
    try:
        found.rows[job] = _checked(results, job, content, judge)
    except DAMAGE as error:
        found.findings.append(Finding(name, _reason(error)))


def _verify_pack(results: Results, pack: int, found: Verified, judge: Judge) -> None:
    name, jobs = f"packs/{pack_name(pack)}", results.packing.jobs(pack)
    most = sum(results.most_bytes(job) + ROW_BYTES for job in jobs)
    rows: dict[Job, dict[str, Any]] = {}
    sound: dict[Job, bytes] = {}
    try:
        content = results.folder.read(name, most)
    except Unacceptable as error:
        found.findings.append(Finding(name, _reason(error)))
        return
    try:
        archive = Pack(io.BytesIO(content))
    except DAMAGE as error:
        found.findings.append(Finding(name, _reason(error)))
        return
    with closing(archive):
        for job in jobs:
            with suppress(*DAMAGE):
                file = archive.model(job, results.most_bytes(job))
                rows[job] = _checked(results, job, file, judge)
                sound[job] = file
        reason = _pack_reason(archive, jobs, rows)
        if reason is None and content != encode_pack(list(sound.items()), list(rows.values())):
            reason = "its bytes are not those of its models"
    found.rows.update(rows)
    if reason is not None:
        found.findings.append(Finding(name, reason))
        found.rescued.update(sound)


def _pack_reason(archive: Pack, jobs: list[Job], rows: Mapping[Job, Any]) -> str | None:
    damaged = [model_file(job) for job in jobs if job not in rows]
    if damaged:
        return f"{damaged[0]} in it is damaged"
    try:
        if not archive.holds_only(jobs):
            return "it doesn't hold its models alone, in their order"
        same = [_comparable(row) for row in archive.rows(jobs)]
    except DAMAGE as error:
        return _reason(error)
    if same != [_comparable(rows[job]) for job in jobs]:
        return "its rows are not those of its models"
    return None


def _comparable(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    return sorted((name, repr(value)) for name, value in row.items())  # NaN equals NaN


def _checked(results: Results, job: Job, content: bytes, judge: Judge) -> dict[str, Any]:
    row = results.verified_row(job, content)
    tensors = tensors_of(content)
    wanted = {
        STATE_KEYS[0]: (2 * job.d_hidden, 2 * results.config.p),
        STATE_KEYS[1]: (results.config.p, job.d_hidden),
    }
    for name, shape in wanted.items():
        if name not in tensors or tuple(tensors[name].shape) != shape:
            raise Damaged(f"expected {name} of shape {shape}")
    judge(job, row, tensors)
    return row


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return f"damaged ({text})"


def set_aside(folder: Folder, findings: list[Finding]) -> None:
    """Move files to `set-aside/`, where no code reads or removes them."""
    for finding in findings:
        where, number = f"{ASIDE}/{finding.name}", 1
        while folder.exists(where):
            number += 1
            where = f"{ASIDE}/{finding.name}.{number}"
        folder.move(finding.name, where)


def check(results: Results) -> Verified:
    """Verify a folder as `verify` does, and its table, its summary and its models' rows.

    The accuracies of each undamaged model are computed from its weights once more.
    """
    wrong: list[Finding] = []
    found = verify(results, lambda *model: wrong.extend(_recomputed(results.config, *model)))
    found.findings.extend(wrong)
    if not results.has_digests and _any_sealed(results):
        found.findings.append(Finding(SUMS, f"it is gone; {_ANEW}"))
    if len(found.rows) == results.packing.models:
        table = table_of(list(found.rows.values()))
        found.findings.extend(_derived(results, table, frontier(table)))
    elif results.folder.exists("table.parquet"):
        found.findings.extend(_missing(results, found))
    return found


def _any_sealed(results: Results) -> bool:
    """Whether a model has a digest; an earlier version wrote neither digests nor SHA256SUMS."""
    for job in sorted(results.loose):
        content = results.folder.read(f"models/{model_file(job)}", results.most_bytes(job))
        with suppress(Damaged):
            return is_sealed(content)
    for pack in results.packs:
        job = results.packing.jobs(pack)[0]
        with suppress(*DAMAGE), closing(results.pack(pack)) as archive:
            return is_sealed(archive.model(job, results.most_bytes(job)))
    return False


def check_study(results: StudyResults) -> list[Finding]:
    """Check a study's own files, for a study whose cells are complete and undamaged."""
    missing = [] if results.has_digests else [Finding(SUMS, "it is gone")]
    return missing + list(_derived(results, results.table_of_cells(), results.summary()))


def _missing(results: Results, found: Verified) -> Iterator[Finding]:
    """Find the models that a finished sweep has lost."""
    named = {finding.name for finding in found.findings}
    for job in map(Job._make, results.config.jobs):
        loose = f"models/{model_file(job)}"
        packed = (
            f"packs/{pack_name(results.packing.pack_of(job))}" if results.packing.packs else loose
        )
        if job not in found.rows and not named & {loose, packed}:
            named.add(packed)
            yield Finding(packed, "it is gone")


def _derived(
    results: Results | StudyResults, table: "pd.DataFrame", summary: dict[str, Any]
) -> Iterator[Finding]:
    """Compare the table and the summary with the models."""
    import pandas as pd

    for name in ("table.parquet", "summary.json"):
        try:
            content = results.folder.read(name)
        except (FileNotFoundError, Unacceptable) as error:
            gone = isinstance(error, FileNotFoundError)
            yield Finding(name, f"it is gone; {_ANEW}" if gone else _reason(error))
            continue
        try:
            if name == "summary.json":
                same = json.loads(content) == json.loads(encode_json(summary))
            else:
                same = table.equals(pd.read_parquet(io.BytesIO(content)))
        except DAMAGE as error:
            yield Finding(name, _reason(error))
            continue
        if not same or not results.has_digest_of(name, content):
            yield Finding(name, f"it is not of these models; {_ANEW}")


def _recomputed(
    config: SweepConfig, job: Job, row: Mapping[str, Any], state: Mapping[str, Tensor]
) -> Iterator[Finding]:
    """Compare the accuracies in an undamaged model's row with those of its weights.

    Each of the p² pairs is judged in float64; one whose margin is within rounding of 0 may be
    counted either way.
    """
    margin, scale = margins(config.p, state[STATE_KEYS[0]], state[STATE_KEYS[1]])
    train = split_pairs(config.p, config.train_frac, job.seed).train_mask
    parts = {"full_acc": torch.ones_like(train), "train_acc": train, "val_acc": ~train}
    open_to_rounding = margin.abs() <= 1e-5 * scale
    for column, mask in parts.items():
        said = row[column]
        if said != said:  # NaN: the notebook's loop computes no accuracy on the training pairs
            continue
        right, n = int((margin[mask] > 0).sum()), int(mask.sum())
        if abs(right - said * n) > int(open_to_rounding[mask].sum()) + 0.5:
            reason = f"{column} is {said} in its row; its weights are right on {right} of {n} pairs"
            yield Finding(f"models/{model_file(job)}", reason)


def margins(p: int, weight: Tensor, w_p: Tensor) -> tuple[Tensor, float]:
    """Return every pair's margin (p, p) in float64, and the largest magnitude of a logit."""
    w_l, w_r = weight.double().chunk(2)
    preact_l = w_l[:, :p, None] + w_l[:, None, p:]
    preact_r = w_r[:, :p, None] + w_r[:, None, p:]
    logits = torch.einsum("cd,dab->abc", w_p.double(), preact_l * preact_r)
    a = torch.arange(p)
    label = ((a[:, None] + a) % p)[..., None]
    right = logits.gather(2, label)[..., 0]
    others = logits.scatter(2, label, -torch.inf).amax(2)
    return right - others, float(logits.abs().max())
