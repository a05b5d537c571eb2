"""Damage of every kind: found by reading, named by `check`, mended by a resume to the same bits."""

import json
import random
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from folders import files, flip, run, same

import bilinear
from bilinear.cli.commands import main
from bilinear.errors import ConfigError, ResultsError
from bilinear.reference import Model, ModelConfig
from bilinear.results.seal import encode_sealed, tensors_of, verified_row
from bilinear.results.verify import check, margins, verify


def load(folder: Path) -> bilinear.Results:
    results = bilinear.load_results(folder)
    assert isinstance(results, bilinear.Results)
    return results


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "copy")


@pytest.fixture
def packed_copy(packed: Path, tmp_path: Path) -> Path:
    return shutil.copytree(packed, tmp_path / "copy")


MODEL = "models/d003-s0001.safetensors"


def cut(folder: Path) -> str:
    (folder / MODEL).write_bytes((folder / MODEL).read_bytes()[:-8])
    return MODEL


def flipped(folder: Path) -> str:
    flip(folder / MODEL, -8)
    return MODEL


def emptied(folder: Path) -> str:
    (folder / MODEL).write_bytes(b"")
    return MODEL


def copied_over(folder: Path) -> str:
    shutil.copy(folder / "models/d004-s0001.safetensors", folder / MODEL)
    return MODEL


def renamed(folder: Path) -> str:
    name = "models/d099-s0001.safetensors"
    (folder / MODEL).rename(folder / name)
    return name


def other_seed(folder: Path) -> str:
    shutil.copy(folder / "models/d003-s0002.safetensors", folder / MODEL)
    return MODEL


def huge(folder: Path) -> str:
    with open(folder / MODEL, "r+b") as file:
        file.truncate(2**34)  # zeros that take no space on disk
    return MODEL


def long_header(folder: Path) -> str:
    (folder / MODEL).write_bytes(struct.pack("<Q", 2**62) + b"{}")
    return MODEL


def deep_header(folder: Path) -> str:
    text = b'{"__metadata__":' + b"[" * 20_000
    (folder / MODEL).write_bytes(struct.pack("<Q", len(text)) + text)
    return MODEL


def linked_out(folder: Path) -> str:
    elsewhere = folder.parent / "elsewhere.safetensors"
    (folder / MODEL).rename(elsewhere)
    (folder / MODEL).symlink_to(elsewhere)
    return MODEL


HARM = [
    cut, flipped, emptied, copied_over, renamed, other_seed, huge, long_header, deep_header,
    linked_out,
]  # fmt: skip


@pytest.mark.parametrize("harm", HARM)
def test_a_harmed_model_is_named_set_aside_and_trained_again(
    copy: Path, whole: Path, harm: Callable[[Path], str], capsys: pytest.CaptureFixture[str]
) -> None:
    name = harm(copy)
    results = load(copy)
    (finding,) = [f for f in verify(results).findings if "table" not in f.name]
    assert finding.name == name
    if harm is renamed:
        assert not results.complete
        assert len(results.table) == 11
    else:
        with pytest.raises(ResultsError, match=r"d003-s0001"):
            results.models[3, 1]
    capsys.readouterr()
    assert main(["check", str(copy)]) == 1
    assert f"{copy}/{name}: " in capsys.readouterr().out
    assert run(copy) == 0
    assert f"mended: {name}: " in capsys.readouterr().out
    assert same(copy, whole)
    assert (copy / "set-aside" / name).is_symlink() or (copy / "set-aside" / name).exists()
    assert main(["check", str(copy)]) == 0


def test_a_link_out_of_the_folder_is_refused(copy: Path, tmp_path: Path) -> None:
    (copy / "models").rename(tmp_path / "elsewhere")
    (copy / "models").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ResultsError, match="got a link out of it"):
        bilinear.load_results(copy)
    assert run(copy) == 2


PACK = "packs/000001.zip"


def rewritten(change: Callable[[dict[str, bytes]], None], how: int = 0) -> Callable[[Path], None]:
    def harm(folder: Path) -> None:
        with zipfile.ZipFile(folder / PACK) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        change(members)
        with zipfile.ZipFile(folder / PACK, "w", how) as archive:
            for name, content in members.items():
                archive.writestr(name, content)

    return harm


def no_rows(members: dict[str, bytes]) -> None:
    members["rows.json"] = b"[]"


def another_row(members: dict[str, bytes]) -> None:
    rows = json.loads(members["rows.json"])
    rows[2]["full_acc"] = 1.0
    members["rows.json"] = json.dumps(rows).encode()


def one_less(members: dict[str, bytes]) -> None:
    members.popitem()


def one_more(members: dict[str, bytes]) -> None:
    members["d009-s0000.safetensors"] = next(reversed(members.values()))


def flip_within(members: dict[str, bytes]) -> None:
    """Damage from before the zip file was written, so that its checksum does not show it."""
    name = next(reversed(members))
    members[name] = members[name][:-1] + bytes([members[name][-1] ^ 1])


def bomb(members: dict[str, bytes]) -> None:
    members["rows.json"] = b" " * 50_000_000


PACKS: dict[str, Callable[[Path], None]] = {
    "flipped": lambda folder: flip(folder / PACK, 3000),
    "cut": lambda folder: (folder / PACK).write_bytes((folder / PACK).read_bytes()[:2000]),
    "empty": lambda folder: (folder / PACK).write_bytes(b""),
    "another's": lambda folder: shutil.copy(folder / "packs/000000.zip", folder / PACK) and None,
    "no rows": rewritten(no_rows),
    "another row": rewritten(another_row),
    "one less": rewritten(one_less),
    "one more": rewritten(one_more),
    "flipped within": rewritten(flip_within),
    "bomb": rewritten(bomb, zipfile.ZIP_DEFLATED),
}


@pytest.mark.parametrize("harm", PACKS)
def test_a_harmed_pack_is_set_aside_and_made_again(
    packed_copy: Path, packed: Path, harm: str, capsys: pytest.CaptureFixture[str]
) -> None:
    PACKS[harm](packed_copy)
    assert [f.name for f in verify(load(packed_copy)).findings] == [PACK]
    (packed_copy / "table.parquet").unlink()
    if harm in ("cut", "empty", "another's", "no rows", "bomb"):
        with pytest.raises(ResultsError, match=r"packs/000001\.zip: damaged"):
            load(packed_copy).table  # noqa: B018
    capsys.readouterr()
    assert run(packed_copy) == 0
    assert f"mended: {PACK}: " in capsys.readouterr().out
    assert same(packed_copy, packed)


def test_a_pack_of_no_number_of_this_sweep_is_not_read(packed_copy: Path, packed: Path) -> None:
    for name in ("000003.zip", "99999999.zip", "٠٠٠٠٠١.zip", "1.zip"):
        shutil.copy(packed_copy / "packs/000000.zip", packed_copy / "packs" / name)
    results = load(packed_copy)
    assert len(results.strange) == 4
    assert len(results.table) == len(results.models) == 12
    assert run(packed_copy) == 0
    assert same(packed_copy, packed)


def test_damage_is_not_packed_away(packed: Path, whole: Path, tmp_path: Path) -> None:
    """A loose model was damaged before its pack was full: it is trained again for the pack."""
    begun = shutil.copytree(packed, tmp_path / "begun")
    (begun / "packs/000000.zip").unlink()
    for name in ("d004-s0000", "d004-s0001"):
        (begun / "models").mkdir(exist_ok=True)
        shutil.copy(whole / f"models/{name}.safetensors", begun / "models")
    flip(begun / "models/d004-s0001.safetensors", -5)
    assert run(begun) == 0
    assert same(begun, packed)
    assert not (begun / "models").exists()


@pytest.mark.parametrize("bits", [1, 2, 5])
def test_a_damaged_table_is_made_again(copy: Path, whole: Path, bits: int) -> None:
    size = (copy / "table.parquet").stat().st_size
    for place in random.sample(range(size), bits):
        flip(copy / "table.parquet", place)
    assert load(copy).table.equals(load(whole).table)
    assert main(["check", str(copy)]) == 1
    assert main(["show", str(copy)]) == 0
    assert run(copy) == 0
    assert same(copy, whole)


@pytest.mark.parametrize("name", ["table.parquet", "summary.json"])
@pytest.mark.parametrize("content", [b"", b"\xff", b"[" * 100_000, b"PAR1", b"[1]"])
def test_no_content_of_table_or_summary_is_a_traceback(
    copy: Path, whole: Path, name: str, content: bytes
) -> None:
    (copy / name).write_bytes(content)
    assert main(["show", str(copy)]) == 0
    assert main(["check", str(copy)]) == 1
    assert run(copy) == 0
    assert same(copy, whole)


def test_weights_that_do_not_do_what_their_row_says_are_found(copy: Path) -> None:
    """The row was wrong before its digest was made: only the weights show it."""
    results = load(copy)
    content = (copy / MODEL).read_bytes()
    row = verified_row(content, results.jobs[0]._replace(d_hidden=3, seed=1), None)
    wrong = encode_sealed(tensors_of(content), row | {"full_acc": 0.96}, results.origin)
    (copy / MODEL).write_bytes(wrong)
    (finding,) = [f for f in check(load(copy)).findings if f.name == MODEL]
    assert "full_acc is 0.96 in its row" in finding.reason


def test_margins_are_those_of_the_model() -> None:
    p, d = 7, 5
    model = Model(ModelConfig(p, d)).double()
    a = torch.arange(p)
    one_hot = torch.nn.functional.one_hot(torch.cartesian_prod(a, a), p).double().flatten(1)
    with torch.no_grad():
        logits = model(one_hot).reshape(p, p, p)
    state = model.state_dict()
    got, scale = margins(p, state["bi_linear.weight"], state["projection.weight"])
    assert scale == pytest.approx(logits.abs().max().item())
    for i in range(p):
        for j in range(p):
            right = logits[i, j, (i + j) % p]
            others = torch.cat([logits[i, j, : (i + j) % p], logits[i, j, (i + j) % p + 1 :]])
            assert got[i, j].item() == pytest.approx((right - others.max()).item())


def everything(results: bilinear.Results) -> tuple[object, ...]:
    """All that can be read of a folder, for a comparison."""
    read = [
        (job, {k: v.tolist() for k, v in results.models[job].items()},
         results.histories[job].to_csv(), results.interactions[job].tolist())
        for job in results.jobs
    ]  # fmt: skip
    return (
        results.config, results.environment, results.complete, results.table.to_csv(), read,
    )  # fmt: skip


def read_or_refused(folder: Path) -> tuple[tuple[object, ...] | None, str | None]:
    try:
        return everything(load(folder)), None
    except (ResultsError, ConfigError) as error:
        return None, str(error)


@pytest.mark.parametrize("kind", ["whole", "packed"])
def test_bytes_flipped_anywhere_give_the_right_answer_or_one_line(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Neither a traceback nor a wrong answer. Each round draws a file and its damage."""
    folder: Path = request.getfixturevalue(kind)
    right = everything(load(folder))
    seed = random.randrange(2**32)
    draw, told = random.Random(seed), 0
    names = [name for name in files(folder) if not name.endswith(".png")]
    for _ in range(150):
        name = draw.choice(names)
        damaged = bytearray((folder / name).read_bytes())
        for _ in range(draw.choice([1, 1, 1, 2, 8])):
            damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
        copy = tmp_path / "copy"
        shutil.copytree(folder, copy, symlinks=True)
        (copy / name).write_bytes(damaged)
        got, line = read_or_refused(copy)
        assert got == right if line is None else "\n" not in line, f"seed {seed}: {name}: {line}"
        assert len(line or "") < 2000
        told += line is not None
        shutil.rmtree(copy)
    assert told > 20


def test_a_table_of_no_models_has_the_columns_of_one_of_some(copy: Path) -> None:
    shutil.rmtree(copy / "models")
    empty = load(copy).table
    assert isinstance(empty, pd.DataFrame)
    assert len(empty) == 0
    (copy / "table.parquet").unlink()
    assert list(load(copy).table.columns) == list(empty.columns)
    assert main(["show", str(copy)]) == 0
