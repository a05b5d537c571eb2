"""The scheduler model on small machine code, whose cycles can be counted by hand."""

import random

import pytest

from bench.model.machine_code import hot_loop, innermost_loops, parse
from bench.model.scoreboard import model

NONE = 7


def line(
    address: int, text: str, stall: int = 1, sets: int = NONE, waits: int = 0, reads: int = NONE
) -> str:
    """An instruction as the disassembler prints it, with control bits in the second word."""
    control = stall | sets << 5 | reads << 8 | waits << 11
    upper = control << 41
    return (
        f"        /*{address:04x}*/                   {text} ;   /* 0x{0:016x} */\n"
        f"                                                    /* 0x{upper:016x} */\n"
    )


def loop_of(*written: tuple[str, dict[str, int]]) -> str:
    lines = [line(0x10 * i, text, **control) for i, (text, control) in enumerate(written)]
    return "".join(lines) + line(0x10 * len(lines), "@P0 BRA 0x0", stall=1)


def plain(count: int, stall: int = 1) -> list[tuple[str, dict[str, int]]]:
    return [(f"FADD R{i}, R{i}, R{i}", {"stall": stall}) for i in range(count)]


def cycles(text: str, warps: int, programs: int = 1) -> float:
    loop = hot_loop(parse(text))
    assert loop is not None
    return model(loop, warps, programs).cycles


def test_instructions_carry_their_control_bits() -> None:
    text = line(0, "LDG.E R1, desc[UR8][R4.64]", stall=5, sets=2) + line(
        16, "@!P1 FMUL R3, R1, R1", stall=13, waits=0b100
    )
    load, use = parse(text)
    assert (load.kind, load.stall, load.sets, load.waits) == ("global", 5, (2, None), 0)
    assert (use.opcode, use.kind, use.stall, use.waits) == ("FMUL", "FMA", 13, 4)


def test_one_warp_waits_out_its_stalls_and_others_fill_them() -> None:
    count, stall = random.randrange(20, 60), random.randrange(4, 8)
    text = loop_of(*plain(count, stall))
    alone = cycles(text, warps=4)
    assert alone == pytest.approx(count * stall, rel=0.1)
    assert cycles(text, warps=8) == pytest.approx(alone, rel=0.1)
    many = cycles(text, warps=4 * 2 * stall)
    assert many == pytest.approx(2 * stall * count, rel=0.1)


def test_a_result_of_unknown_latency_is_waited_for() -> None:
    load = ("LDG.E R1, desc[UR8][R4.64]", {"sets": 0})
    near = cycles(loop_of(load, ("FADD R2, R1, R1", {"waits": 1}), *plain(60)), 4)
    far = cycles(loop_of(load, *plain(60), ("FADD R2, R1, R1", {"waits": 1})), 4)
    assert near > far + 30


def test_exponentials_are_bound_by_their_unit() -> None:
    count = random.randrange(20, 50)
    text = loop_of(*[(f"MUFU.EX2 R{i}, R{i}", {}) for i in range(count)])
    assert cycles(text, 4) == pytest.approx(8 * count, rel=0.1)
    assert cycles(text, 8) == pytest.approx(16 * count, rel=0.1)


@pytest.mark.parametrize(("columns", "each"), [(64, 32), (128, 64), (256, 128)])
def test_products_take_their_columns(columns: int, each: int) -> None:
    product = f"HGMMA.64x{columns}x16.F32.BF16 R24, R104, gdesc[UR52], R24, gsb0"
    text = loop_of(*[(product, {})] * 8, ("WARPGROUP.DEPBAR.LE gsb0, 0x0", {}))
    loop = hot_loop(parse(text))
    assert loop is not None
    found = model(loop, 4)
    assert found.tensor == pytest.approx(8 * each)
    assert 8 * each < found.cycles < 8 * each + 50
    assert found.waits["tensor"] > found.cycles / 2


def test_a_barrier_holds_the_warps_of_one_program_alone() -> None:
    text = loop_of(*plain(40, 4), ("BAR.SYNC.DEFER_BLOCKING 0x0", {}))
    together, apart = cycles(text, 8), cycles(text, 4, programs=2)
    assert apart <= together + 1


def test_the_hot_loop_is_the_one_with_the_products() -> None:
    first = "".join(line(0x10 * i, t) for i, (t, _) in enumerate(plain(30)))
    first += line(0x200, "@P0 BRA 0x0")
    second = line(0x210, "HGMMA.64x64x16.F32.BF16 R24, R104, gdesc[UR52], R24, gsb0")
    code = parse(first + second + line(0x220, "@P1 BRA 0x210") + line(0x230, "@P1 BRA 0x0"))
    assert len(innermost_loops(code)) == 2
    loop = hot_loop(code)
    assert loop is not None
    assert loop.start == 0x210
