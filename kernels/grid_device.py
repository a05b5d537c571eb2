"""Device code of one-hot-pair training: many models' gradients, evaluations and AdamW steps.

Algebra, for all pairs (a, b) with label c = (a + b) mod p and weights L_a, R_a, W_p, L_b, R_b, each
(p, d) with row a, b or c:

    l = L_a[a] + L_b[b]     r = R_a[a] + R_b[b]     h = l∘r     logits = h W_pᵀ
    g = (softmax(logits) − onehot(c)) · trained / n_train
    dW_p = gᵀ h     dh = g W_p     dl = dh∘r → Σ_b: dL_a[a], Σ_a: dL_b[b]     dr = dh∘l likewise

Tiles: one b against a block of BA a's, so that l is a block of L_a plus one row, and sums over b
stay in registers. Only U units are held at a time: l, r, h, dh, dL_a, dR_a are (BA, U), dW_p
(C, U); a wider model makes its logits anew for each U of its units. Logits and g are TILES
tiles of C classes, (BA, C) each. Models of unequal widths share a launch: rows in
memory are D long, a multiple of U, and zero past a model's own width, which they stay. p is a
compile-time constant because its masks and addresses else take the registers that the tiles need.
Logits are in bits: W_p is multiplied by log₂ e beforehand, and softmax is one 2ˣ an element.

The label is set apart from the other classes: its gradient is −Σ_{c'≠c} p_c', never p_c − 1, and
the loss of a pair that is right is log1p, which do not cancel in float32.

Model i in memory: weights, and both moments, (5p, D) with rows L_a, R_a, W_p, L_b, R_b; a gradient
(CHUNKS, 5p, D) where chunk k holds what the k-th range of b's adds. Counters
(model, 3): steps taken, evaluations in a row at the goal, whether it is done. Every sum has one
order: runs repeat bit for bit, whatever is trained beside a model.
"""

# mypy: disable-error-code="untyped-decorator, no-untyped-def, attr-defined"

import triton
import triton.language as tl

from .split_products import (
    LN2,
    LOG2E,
    exp2,
    parts,
    product,
    sum_and_most,
    transposed,
    two_sums,
)

# Columns of an evaluation: losses over training and validation pairs, counts of right answers
# likewise, smallest margin.
METRICS = tl.constexpr(5)
# Numbers of a recipe. Triton would compile a kernel again where one of them divides by 16, without
# a gain.
_PLAIN = (
    "n_train", "batch", "half_bits", "quantum", "steps", "eval_every", "hold", "goal_is_val",
)  # fmt: skip


@triton.jit
def _log1p(x):
    """log(1 + x) without the error of rounding 1 + x (Kahan's correction), x ≥ 0."""
    u = 1.0 + x
    rounded = u - 1.0
    return tl.where(rounded == 0.0, x, tl.log(u) * (x / tl.where(rounded == 0.0, 1.0, rounded)))


@triton.jit
def _rows(base_ptr, rows, inside, D, units):
    """Rows of a weight, (n, U); those not `inside` are 0."""
    at = rows[:, None] * D + units[None, :]
    return tl.load(base_ptr + at, mask=inside[:, None], other=0.0)


@triton.jit
def _projection(weights_ptr, p, D, classes, units, PRECISION: tl.constexpr):
    """Parts of W_pᵀ, (U, C), times log₂ e: with it logits come in bits, as 2ˣ wants them."""
    w_p = _rows(weights_ptr + 2 * p * D, classes, classes < p, D, units)
    return transposed(parts(w_p * LOG2E, PRECISION), PRECISION)


@triton.jit
def _halves(weights_ptr, p, D, a, inside, b, units):
    """l and r, (BA, U), of a block of a's with one b."""
    b_at = (3 * p + b) * D + units
    left = _rows(weights_ptr, a, inside, D, units) + tl.load(weights_ptr + b_at)[None, :]
    b_at += p * D
    right = _rows(weights_ptr + p * D, a, inside, D, units)
    return left, right + tl.load(weights_ptr + b_at)[None, :]


@triton.jit
def _label(a, b, p):
    total = a + b
    return tl.where(total >= p, total - p, total)


@triton.jit
def _apart(logits, classes, label, p, C: tl.constexpr, PRECISION: tl.constexpr):
    """Separate the label from the other classes in a tile of logits (n, C).

    Returns the label's logit (n,), 0 if the tile does not hold it; the others' logits, −∞ at the
    label and at padding; the largest of these (n,), or −1e30 where there is none.
    """
    is_label = classes[None, :] == label[:, None]
    is_out = is_label
    if p % C != 0:
        is_out = is_label | (classes >= p)[None, :]
    others = tl.where(is_out, float("-inf"), logits)
    label_logit, best = sum_and_most(tl.where(is_label, logits, 0.0), others, 1, PRECISION)
    return label_logit, others, tl.maximum(best, -1e30, tl.PropagateNan.ALL)


@triton.jit
def _merge(
    logits, classes, label, p, label_logit, best, total, C: tl.constexpr, PRECISION: tl.constexpr
):
    """Take a further tile of logits into the label's logit, the others' largest, and their sum.

    `total` is Σ 2^(logit − best) over the classes but the label.
    """
    more, z, best_here = _apart(logits, classes, label, p, C, PRECISION)
    together = tl.maximum(best, best_here, tl.PropagateNan.ALL)
    here = tl.sum(exp2(z - together[:, None], PRECISION), 1)
    return label_logit + more, together, total * exp2(best - together, PRECISION) + here


@triton.jit
def _loss_gradient(e, classes, label, of_label, scale):
    """Gradient (n, C) of a row's cross-entropy from e = 2^(logit − shift), 0 at the label.

    `of_label` (n,) is the label's own gradient, `scale` (n,) what turns e into the others'.
    """
    is_label = classes[None, :] == label[:, None]
    return tl.where(is_label, of_label[:, None], e * scale[:, None])


@triton.jit
def _logits(
    weights_ptr, p, D, a, inside, b, classes,
    BA: tl.constexpr, C: tl.constexpr, U: tl.constexpr,
    PRECISION: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """A tile of logits (BA, C) of one b, over all units, in bits."""
    logits = tl.zeros((BA, C), ACC)
    for first in range(0, D, U):
        units = first + tl.arange(0, U)
        left, right = _halves(weights_ptr, p, D, a, inside, b, units)
        w_p = _projection(weights_ptr, p, D, classes, units, PRECISION)
        logits += product(parts(left * right, PRECISION), w_p, PRECISION, ACC)
    return logits


@triton.jit
def _other_units(
    weights_ptr, p, D, a, inside, b, first, classes, logits,
    U: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Add to a tile of logits what all units but first … first + U − 1 give."""
    for distance in range(U, D, U):
        at = first + distance
        units = tl.multiple_of(tl.where(at >= D, at - D, at), U) + tl.arange(0, U)
        left, right = _halves(weights_ptr, p, D, a, inside, b, units)
        w_p = _projection(weights_ptr, p, D, classes, units, PRECISION)
        logits += product(parts(left * right, PRECISION), w_p, PRECISION, ACC)
    return logits


@triton.jit
def grid_gradient(
    weights_ptr, gradient_ptr, trained_ptr, p, D, b_first, b_end, share,
    C: tl.constexpr, TILES: tl.constexpr, BA: tl.constexpr, U: tl.constexpr, HOLD: tl.constexpr,
    PRECISION: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Gradient of the loss over the training pairs with b in [b_first, b_end), `share` each.

    Reads weights and trained (p, p), 0 or 1 at [b, a]; writes gradient (5p, D): all rows but those
    of L_b and R_b outside the range. Walks the pairs once for each tile of C classes and U units,
    which bounds the registers, and makes all logits again each time.
    """
    for tile in range(0, p, C):
        for first in range(0, D, U):
            _tile_gradient(
                weights_ptr, gradient_ptr, trained_ptr, p, D, tile, first, b_first, b_end, share,
                C, TILES, BA, U, HOLD, PRECISION, ACC,
            )  # fmt: skip


@triton.jit
def _tile_gradient(
    weights_ptr, gradient_ptr, trained_ptr, p, D, tile, first, b_first, b_end, share,
    C: tl.constexpr, TILES: tl.constexpr, BA: tl.constexpr, U: tl.constexpr, HOLD: tl.constexpr,
    PRECISION: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """What C classes from `tile` give to the gradient's columns first … first + U − 1.

    HOLD keeps l and r in registers from the logits on; without it they are read again after the
    softmax.
    """
    units = first + tl.arange(0, U)
    classes = tile + tl.arange(0, C)
    is_class = classes < p
    w_p = parts(_rows(weights_ptr + 2 * p * D, classes, is_class, D, units), PRECISION)
    w_p_bits = _projection(weights_ptr, p, D, classes, units, PRECISION)
    d_w_p = tl.zeros((C, U), ACC)
    for a_first in range(0, p, BA):
        a = a_first + tl.arange(0, BA)
        inside = a < p
        if HOLD:
            l_a = _rows(weights_ptr, a, inside, D, units)
            r_a = _rows(weights_ptr + p * D, a, inside, D, units)
        d_l_a = tl.zeros((BA, U), ACC)
        d_r_a = tl.zeros((BA, U), ACC)
        for b in range(b_first, b_end):
            b_at = (3 * p + b) * D + units
            label = _label(a, b, p)
            if HOLD:
                left = l_a + tl.load(weights_ptr + b_at)[None, :]
                right = r_a + tl.load(weights_ptr + p * D + b_at)[None, :]
                h = parts(left * right, PRECISION)
                logits = product(h, w_p_bits, PRECISION, ACC)
                if D > U:
                    logits = _other_units(
                        weights_ptr, p, D, a, inside, b, first, classes, logits, U, PRECISION, ACC
                    )  # fmt: skip
            else:
                logits = _logits(
                    weights_ptr, p, D, a, inside, b, classes, BA, C, U, PRECISION, ACC
                )  # fmt: skip
            label_logit, z, best = _apart(logits, classes, label, p, C, PRECISION)
            if p > C:
                total = tl.sum(exp2(z - best[:, None], PRECISION), 1)
                for distance in range(C, TILES * C, C):
                    other = (tile + distance) % (TILES * C) + tl.arange(0, C)
                    logits = _logits(
                        weights_ptr, p, D, a, inside, b, other, BA, C, U, PRECISION, ACC
                    )  # fmt: skip
                    label_logit, best, total = _merge(
                        logits, other, label, p, label_logit, best, total, C, PRECISION
                    )
                shift = tl.maximum(best, label_logit)
                total *= exp2(best - shift, PRECISION)
                e = exp2(z - shift[:, None], PRECISION)
            else:
                shift = tl.maximum(best, label_logit)
                e = exp2(z - shift[:, None], PRECISION)
                total = tl.sum(e, 1)
            trained = tl.load(trained_ptr + b * p + a, mask=inside, other=0.0)
            scale = trained * share / (total + exp2(label_logit - shift, PRECISION))
            g = parts(_loss_gradient(e, classes, label, -total * scale, scale), PRECISION)
            if not HOLD:
                left, right = _halves(weights_ptr, p, D, a, inside, b, units)
                h = parts(left * right, PRECISION)
            d_w_p += product(transposed(g, PRECISION), h, PRECISION, ACC)
            dh = product(g, w_p, PRECISION, ACC)
            d_left = dh * right
            d_right = dh * left
            d_l_a += d_left
            d_r_a += d_right
            d_l_b, d_r_b = two_sums(d_left, d_right, 0, PRECISION)
            if p > C:
                again = (a_first > 0) | (tile > 0)
                d_l_b += tl.load(gradient_ptr + b_at, mask=again, other=0.0)
                d_r_b += tl.load(gradient_ptr + p * D + b_at, mask=again, other=0.0)
            tl.store(gradient_ptr + b_at, d_l_b)
            tl.store(gradient_ptr + p * D + b_at, d_r_b)
        a_at = gradient_ptr + a[:, None] * D + units[None, :]
        if p > C:
            again = inside[:, None] & (tile > 0)
            d_l_a += tl.load(a_at, mask=again, other=0.0)
            d_r_a += tl.load(a_at + p * D, mask=again, other=0.0)
        tl.store(a_at, d_l_a, mask=inside[:, None])
        tl.store(a_at + p * D, d_r_a, mask=inside[:, None])
        tl.debug_barrier()  # later iterations add to what is stored here
    w_p_at = gradient_ptr + (2 * p + classes)[:, None] * D + units[None, :]
    tl.store(w_p_at, d_w_p, mask=is_class[:, None])


@triton.jit
def grid_metrics(
    weights_ptr, trained_ptr, p, D, b_first, b_end,
    C: tl.constexpr, BA: tl.constexpr, U: tl.constexpr,
    PRECISION: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Columns of an evaluation over the pairs with b in [b_first, b_end), both losses as sums.

    Ties and not-a-numbers are wrong answers; one not-a-number makes the smallest margin one.
    """
    train_loss = tl.zeros((BA,), ACC)
    val_loss = tl.zeros((BA,), ACC)
    train_right = tl.zeros((BA,), tl.int32)
    val_right = tl.zeros((BA,), tl.int32)
    min_margin = tl.full((BA,), float("inf"), ACC)
    for a_first in range(0, p, BA):
        a = a_first + tl.arange(0, BA)
        inside = a < p
        for b in range(b_first, b_end):
            label = _label(a, b, p)
            label_logit = tl.zeros((BA,), ACC)
            best = tl.full((BA,), -1e30, ACC)
            total = tl.zeros((BA,), ACC)
            for tile in range(0, p, C):
                classes = tile + tl.arange(0, C)
                logits = _logits(
                    weights_ptr, p, D, a, inside, b, classes, BA, C, U, PRECISION, ACC
                )  # fmt: skip
                label_logit, best, total = _merge(
                    logits, classes, label, p, label_logit, best, total, C, PRECISION
                )
            shift = tl.maximum(best, label_logit)
            others = total * exp2(best - shift, PRECISION)
            margin = label_logit - best
            all_classes = others + exp2(label_logit - shift, PRECISION)
            wrong_loss = (shift - label_logit) * LN2 + tl.log(all_classes)
            loss = tl.where(margin > 0, _log1p(others), wrong_loss)
            is_right = (margin > 0).to(tl.int32)
            trained = tl.load(trained_ptr + b * p + a, mask=inside, other=0.0) != 0.0
            held_out = inside & (trained == 0)
            train_loss += tl.where(trained, loss, 0.0)
            val_loss += tl.where(held_out, loss, 0.0)
            train_right += tl.where(trained, is_right, 0)
            val_right += tl.where(held_out, is_right, 0)
            margin = tl.where(inside, margin * LN2, min_margin)
            min_margin = tl.minimum(min_margin, margin, tl.PropagateNan.ALL)
    lost = tl.sum((min_margin != min_margin).to(tl.int32), 0) > 0  # tl.min drops NaN
    return (
        tl.sum(train_loss, 0),
        tl.sum(val_loss, 0),
        tl.sum(train_right, 0).to(ACC),
        tl.sum(val_right, 0).to(ACC),
        tl.where(lost, float("nan"), tl.min(min_margin, 0)),
    )


@triton.jit
def _mix32(x):
    x = (x ^ (x >> 16)) * 0x85EBCA6B
    x = (x ^ (x >> 13)) * 0xC2B2AE35
    return x ^ (x >> 16)


@triton.jit
def _mix64(x):
    x += 0x9E3779B97F4A7C15
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)


@triton.jit
def _permute(index, epoch_key, half_bits):
    """The eight Feistel rounds of `shuffle`, uint32 (n,) below 2^(2·half_bits)."""
    low = epoch_key.to(tl.uint32)
    high = (epoch_key >> 32).to(tl.uint32)
    mask = ((1 << half_bits) - 1).to(tl.uint32)
    left = index >> half_bits
    right = index & mask
    for i in tl.static_range(8):
        left, right = right, left ^ (_mix32(right + low + _mix32(high + i)) & mask)
    return (left << half_bits) | right


@triton.jit
def shuffled(position, n, key, epoch, half_bits):
    """Which training pair stands at `position` (int32, below n) in the epoch's order.

    As `shuffle.shuffled`; key and epoch are uint64 scalars, half_bits half the bits that hold n.
    """
    epoch_key = _mix64(key ^ _mix64(epoch))
    index = _permute(position.to(tl.uint32), epoch_key, half_bits)
    outside = index >= n.to(tl.uint32)
    while tl.max(outside.to(tl.int32), 0) > 0:
        index = tl.where(outside, _permute(index, epoch_key, half_bits), index)
        outside = index >= n.to(tl.uint32)
    return index.to(tl.int32)


@triton.jit
def _add_rows(
    gradient_ptr, token, d_rows, again, p, D, units,
    C: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Sum rows (n, U) by token (n,) into (p, D), added to the stored sums if `again`.

    As products with the one-hot matrix of the tokens, which have a fixed order of summation.
    """
    for first in range(0, p, C):
        tokens = first + tl.arange(0, C)
        one_hot = parts((tokens[:, None] == token[None, :]).to(ACC), PRECISION)
        at = gradient_ptr + tokens[:, None] * D + units[None, :]
        is_token = (tokens < p)[:, None]
        before = tl.load(at, mask=is_token & again, other=0.0)
        tl.store(at, before + product(one_hot, d_rows, PRECISION, ACC), mask=is_token)


@triton.jit
def _batch_halves(weights_ptr, p, D, a, b, units):
    """l and r (n, U) of pairs."""
    a_at = weights_ptr + a[:, None] * D + units[None, :]
    b_at = weights_ptr + (3 * p + b)[:, None] * D + units[None, :]
    left = tl.load(a_at) + tl.load(b_at)
    return left, tl.load(a_at + p * D) + tl.load(b_at + p * D)


@triton.jit
def _batch_logits(
    weights_ptr, p, D, a, b, classes,
    BM: tl.constexpr, C: tl.constexpr, U: tl.constexpr,
    PRECISION: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """A tile of logits (n, C) of pairs, over all units."""
    logits = tl.zeros((BM, C), ACC)
    for first in range(0, D, U):
        units = first + tl.arange(0, U)
        left, right = _batch_halves(weights_ptr, p, D, a, b, units)
        w_p = _projection(weights_ptr, p, D, classes, units, PRECISION)
        logits += product(parts(left * right, PRECISION), w_p, PRECISION, ACC)
    return logits


@triton.jit
def _batch_tile(
    weights_ptr, gradient_ptr, g, classes, a, b, classes_again, tokens_again, p, D,
    C: tl.constexpr, U: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Gradient from a tile of g (n, C) of pairs, added to the stored one where `…_again`."""
    is_class = (classes < p)[:, None]
    for first in range(0, D, U):
        units = first + tl.arange(0, U)
        left, right = _batch_halves(weights_ptr, p, D, a, b, units)
        at = (2 * p + classes)[:, None] * D + units[None, :]
        before = tl.load(gradient_ptr + at, mask=is_class & classes_again, other=0.0)
        h = parts(left * right, PRECISION)
        d_w_p = before + product(transposed(g, PRECISION), h, PRECISION, ACC)
        tl.store(gradient_ptr + at, d_w_p, mask=is_class)
        w_p = parts(tl.load(weights_ptr + at, mask=is_class, other=0.0), PRECISION)
        dh = product(g, w_p, PRECISION, ACC)
        d_left = parts(dh * right, PRECISION)
        d_right = parts(dh * left, PRECISION)
        of_b = gradient_ptr + 3 * p * D
        _add_rows(gradient_ptr, a, d_left, tokens_again, p, D, units, C, PRECISION, ACC)
        _add_rows(gradient_ptr + p * D, a, d_right, tokens_again, p, D, units, C, PRECISION, ACC)
        _add_rows(of_b, b, d_left, tokens_again, p, D, units, C, PRECISION, ACC)
        _add_rows(of_b + p * D, b, d_right, tokens_again, p, D, units, C, PRECISION, ACC)


@triton.jit
def batch_gradient(
    weights_ptr, gradient_ptr, pairs_ptr, p, D, first, batch, n_train, key, epoch, half_bits,
    share,
    C: tl.constexpr, BM: tl.constexpr, U: tl.constexpr,
    PRECISION: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Gradient of the loss of pairs first … first + batch − 1 of the epoch's order, `share` each.

    Reads the weights, whose rows are gathered for BM pairs at a time, and pairs (n_train, 2) int32;
    writes all of gradient (5p, D).
    """
    for start in range(0, batch, BM):
        i = start + tl.arange(0, BM)
        index = shuffled(tl.minimum(first + i, n_train - 1), n_train, key, epoch, half_bits)
        a = tl.load(pairs_ptr + 2 * index)
        b = tl.load(pairs_ptr + 2 * index + 1)
        label = _label(a, b, p)
        label_logit = tl.zeros((BM,), ACC)
        best = tl.full((BM,), -1e30, ACC)
        total = tl.zeros((BM,), ACC)
        for tile in range(0, p, C):
            classes = tile + tl.arange(0, C)
            logits = _batch_logits(weights_ptr, p, D, a, b, classes, BM, C, U, PRECISION, ACC)
            label_logit, best, total = _merge(
                logits, classes, label, p, label_logit, best, total, C, PRECISION
            )
        shift = tl.maximum(best, label_logit)
        total *= exp2(best - shift, PRECISION)
        every = total + exp2(label_logit - shift, PRECISION)
        scale = tl.where(i < batch, share, 0.0) / every
        for tile in range(0, p, C):
            classes = tile + tl.arange(0, C)
            logits = _batch_logits(weights_ptr, p, D, a, b, classes, BM, C, U, PRECISION, ACC)
            e = exp2(logits - shift[:, None], PRECISION)
            e = tl.where((classes < p)[None, :], e, 0.0)
            # Counted from the tile: Triton 3.6 cannot compile another use of the mask made above.
            g = _loss_gradient(e, tl.arange(0, C), label - tile, -total * scale, scale)
            g = parts(g, PRECISION)
            _batch_tile(
                weights_ptr, gradient_ptr, g, classes, a, b, start > 0, (start > 0) | (tile > 0),
                p, D, C, U, PRECISION, ACC,
            )  # fmt: skip
            tl.debug_barrier()  # later iterations add to what is stored here


@triton.jit
def adamw(
    weights_ptr, moment1_ptr, moment2_ptr, gradient_ptr, schedule_ptr, hyper_ptr, p, D, t,
    CHUNKS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """AdamW step t (from 0) of a model, in place (Loshchilov & Hutter 2019, arXiv 1711.05101).

    schedule (steps, 3) holds lr/(1 − β₁ᵗ⁺¹), 1/√(1 − β₂ᵗ⁺¹) and lr·decay; hyper (3,) β₁, β₂ and ε.
    The gradient is the sum of its chunks, in order; a row of L_b or R_b is in its b's chunk alone.
    """
    rate = tl.load(schedule_ptr + 3 * t)
    root = tl.load(schedule_ptr + 3 * t + 1)
    decay = tl.load(schedule_ptr + 3 * t + 2)
    beta1 = tl.load(hyper_ptr)
    beta2 = tl.load(hyper_ptr + 1)
    eps = tl.load(hyper_ptr + 2)
    size = 5 * p * D
    chunk_of_b = tl.cdiv(p, CHUNKS)
    for start in range(0, size, BLOCK):
        at = start + tl.arange(0, BLOCK)
        inside = at < size
        if CHUNKS == 1:
            g = tl.load(gradient_ptr + at, mask=inside, other=0.0)
        else:
            row = at // D
            owner = tl.where(row < 3 * p, -1, row % p // chunk_of_b)
            g = tl.load(gradient_ptr + at, mask=inside & (owner <= 0), other=0.0)
            for chunk in tl.static_range(1, CHUNKS):  # unrolled: their reads wait together
                mine = inside & ((owner < 0) | (owner == chunk))
                g += tl.load(gradient_ptr + chunk * size + at, mask=mine, other=0.0)
        w = tl.load(weights_ptr + at, mask=inside, other=0.0)
        m1 = tl.load(moment1_ptr + at, mask=inside, other=0.0)
        m2 = tl.load(moment2_ptr + at, mask=inside, other=0.0)
        m1 += (1.0 - beta1) * (g - m1)
        m2 += (1.0 - beta2) * (g * g - m2)
        w -= decay * w + rate * m1 / (tl.sqrt(m2) * root + eps)
        tl.store(weights_ptr + at, w, mask=inside)
        tl.store(moment1_ptr + at, m1, mask=inside)
        tl.store(moment2_ptr + at, m2, mask=inside)


@triton.jit
def is_evaluated(t, steps, eval_every):
    """Whether the weights after t steps are evaluated."""
    return ((t > 0) & (t % eval_every == 0)) | (t == steps)


@triton.jit
def record(history_ptr, t, eval_every, p, n_train, goal_is_val, metrics, streak):
    """Write one evaluation, its losses as means; returns evaluations in a row at the goal."""
    train_loss, val_loss, train_right, val_right, min_margin = metrics
    at = history_ptr + (tl.cdiv(t, eval_every) - 1) * METRICS
    n_val = p * p - n_train
    tl.store(at, train_loss / n_train)
    tl.store(at + 1, val_loss / n_val)
    tl.store(at + 2, train_right)
    tl.store(at + 3, val_right)
    tl.store(at + 4, min_margin)
    missing = n_val - val_right + tl.where(goal_is_val != 0, 0, n_train - train_right)
    return tl.where(missing == 0, streak + 1, 0)


@triton.jit
def _model(models_ptr, split_of_ptr, p, D: tl.constexpr):
    """Which model this program works on, where it lies, and its split."""
    model = tl.load(models_ptr + tl.program_id(0)).to(tl.int64)
    return model, model * (5 * p * D), tl.load(split_of_ptr + model).to(tl.int64)


@triton.jit(do_not_specialize=_PLAIN)
def grid_run_kernel(
    weights_ptr, moment1_ptr, moment2_ptr, gradient_ptr, counters_ptr, history_ptr,
    models_ptr, split_of_ptr, key_ptr, trained_ptr, pairs_ptr, schedule_ptr, hyper_ptr,
    n_train, batch, half_bits, quantum, steps, eval_every, hold, goal_is_val,
    p: tl.constexpr, C: tl.constexpr, TILES: tl.constexpr, BA: tl.constexpr,
    D: tl.constexpr, U: tl.constexpr, HOLD: tl.constexpr,
    BLOCK: tl.constexpr, MINIBATCH: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Train one model for up to `quantum` steps: program i takes model models[i].

    Everything of a model is read and written in place, weights and moments once a step. It stops
    for good after the evaluation that is the `hold`-th in a row at the goal, or that of the last
    step.
    """
    model, at, split = _model(models_ptr, split_of_ptr, p, D)
    weights, gradient = weights_ptr + at, gradient_ptr + at
    history = history_ptr + model * tl.cdiv(steps, eval_every) * METRICS
    trained = trained_ptr + split * p * p
    counters = counters_ptr + model * 3
    t = tl.load(counters)
    streak = tl.load(counters + 1)
    done = tl.load(counters + 2)
    one = tl.full((), 1.0, ACC)
    end = tl.minimum(t + quantum, steps)
    running = 1 - done
    while running != 0:
        if is_evaluated(t, steps, eval_every):
            metrics = grid_metrics(weights, trained, p, D, 0, p, C, BA, U, PRECISION, ACC)
            streak = record(history, t, eval_every, p, n_train, goal_is_val, metrics, streak)
            done = ((streak >= hold) | (t == steps)).to(tl.int32)
        if done != 0:
            running = 0
        else:
            if MINIBATCH:
                an_epoch = n_train // batch
                batch_gradient(
                    weights, gradient, pairs_ptr + split * n_train * 2,
                    p, D, t % an_epoch * batch, batch, n_train,
                    tl.load(key_ptr + model).to(tl.uint64, bitcast=True),
                    (t // an_epoch).to(tl.uint64), half_bits, one / batch,
                    C, BA, U, PRECISION, ACC,
                )  # fmt: skip
            else:
                grid_gradient(
                    weights, gradient, trained, p, D, 0, p, one / n_train,
                    C, TILES, BA, U, HOLD, PRECISION, ACC,
                )  # fmt: skip
            tl.debug_barrier()
            adamw(
                weights, moment1_ptr + at, moment2_ptr + at, gradient, schedule_ptr, hyper_ptr,
                p, D, t, 1, BLOCK,
            )  # fmt: skip
            tl.debug_barrier()
            t += 1
            running = ((t < end) | (t == steps)).to(tl.int32)
    tl.store(counters, t)
    tl.store(counters + 1, streak)
    tl.store(counters + 2, done)


@triton.jit(do_not_specialize=_PLAIN)
def grid_step_kernel(
    weights_ptr, gradient_ptr, sums_ptr, counters_ptr, models_ptr, split_of_ptr, trained_ptr,
    n_train, steps, eval_every,
    p: tl.constexpr, C: tl.constexpr, TILES: tl.constexpr, BA: tl.constexpr,
    D: tl.constexpr, U: tl.constexpr, HOLD: tl.constexpr,
    CHUNKS: tl.constexpr,
    PRECISION: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """One chunk of one model's full-batch gradient: program (i, k) walks the k-th range of b's.

    Reads weights; writes chunk k of the gradient, and of sums (model, CHUNKS, 5) where the step's
    weights are evaluated.
    """
    model, at, split = _model(models_ptr, split_of_ptr, p, D)
    chunk = tl.program_id(1)
    t = tl.load(counters_ptr + model * 3)
    if tl.load(counters_ptr + model * 3 + 2) == 0:
        range_of_b = tl.cdiv(p, CHUNKS)
        first = chunk * range_of_b
        end = tl.minimum(first + range_of_b, p)
        weights = weights_ptr + at
        trained = trained_ptr + split * p * p
        if is_evaluated(t, steps, eval_every):
            metrics = grid_metrics(weights, trained, p, D, first, end, C, BA, U, PRECISION, ACC)
            sums = sums_ptr + (model * CHUNKS + chunk) * METRICS
            for i in tl.static_range(METRICS):
                tl.store(sums + i, metrics[i])
        one = tl.full((), 1.0, ACC)
        grid_gradient(
            weights, gradient_ptr + at * CHUNKS + chunk * (5 * p * D), trained,
            p, D, first, end, one / n_train, C, TILES, BA, U, HOLD, PRECISION, ACC,
        )  # fmt: skip


@triton.jit(do_not_specialize=_PLAIN)
def grid_update_kernel(
    weights_ptr, moment1_ptr, moment2_ptr, gradient_ptr, sums_ptr, counters_ptr, history_ptr,
    models_ptr, split_of_ptr, schedule_ptr, hyper_ptr,
    n_train, steps, eval_every, hold, goal_is_val,
    p: tl.constexpr, D: tl.constexpr, CHUNKS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Evaluation and AdamW step of one model from the chunks of `grid_step_kernel`."""
    model, at, _ = _model(models_ptr, split_of_ptr, p, D)
    counters = counters_ptr + model * 3
    t = tl.load(counters)
    streak = tl.load(counters + 1)
    if tl.load(counters + 2) == 0:
        done = 0
        if is_evaluated(t, steps, eval_every):
            sums = sums_ptr + model * CHUNKS * METRICS
            train_loss = tl.load(sums)
            val_loss = tl.load(sums + 1)
            train_right = tl.load(sums + 2)
            val_right = tl.load(sums + 3)
            min_margin = tl.load(sums + 4)
            for chunk in range(1, CHUNKS):
                part = sums + chunk * METRICS
                train_loss += tl.load(part)
                val_loss += tl.load(part + 1)
                train_right += tl.load(part + 2)
                val_right += tl.load(part + 3)
                margin = tl.load(part + 4)
                min_margin = tl.minimum(min_margin, margin, tl.PropagateNan.ALL)
            history = history_ptr + model * tl.cdiv(steps, eval_every) * METRICS
            metrics = (train_loss, val_loss, train_right, val_right, min_margin)
            streak = record(history, t, eval_every, p, n_train, goal_is_val, metrics, streak)
            done = ((streak >= hold) | (t == steps)).to(tl.int32)
        if done == 0:
            adamw(
                weights_ptr + at, moment1_ptr + at, moment2_ptr + at, gradient_ptr + at * CHUNKS,
                schedule_ptr, hyper_ptr, p, D, t, CHUNKS, BLOCK,
            )  # fmt: skip
            t += 1
        tl.debug_barrier()
        tl.store(counters, t)
        tl.store(counters + 1, streak)
        tl.store(counters + 2, done)
