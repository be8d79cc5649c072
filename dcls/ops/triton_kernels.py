# mypy: disable-error-code="no-untyped-def, no-untyped-call"
"""The CUDA kernels of triton_backend.py, which says what the letters mean and imports this file where it can run.

Sums are in float32 whatever the tensors hold. A tile is BLOCK_X neighbouring pixels of a row by BLOCK_C channels.
What is loaded once is used for several rows: of outputs in `convolution`, of taps in `kernel_gradient`. The rows are
written out, 0 to 3, and not an axis of the tile: taps of a tile with that axis would pass through shared memory.

Only the first axis of a tensor has 64-bit offsets: an image spans less than 2^31 numbers.
"""

import triton
import triton.language as tl

ROWS = tl.constexpr(4)


@triton.jit
def convolution(
    output,
    x,
    taps,
    bias,
    C,
    H,
    W,
    Y,
    X,
    R,
    S,
    pad_h,
    pad_w,
    x_b,
    x_c,
    x_h,
    x_w,
    o_b,
    o_c,
    o_h,
    o_w,
    STEP_H: tl.constexpr,
    STEP_W: tl.constexpr,
    SPREAD_H: tl.constexpr,
    SPREAD_W: tl.constexpr,
    TURNED: tl.constexpr,
    BLOCK_X: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """output[b, c, y, x] = bias[c] + sum_rs  taps[r, s, c] * wide[b, c, y * STEP_H - pad_h + r, x * STEP_W - pad_w + s]

    where `wide` is x with its rows SPREAD_H and its columns SPREAD_W apart and zeros between and around them. TURNED:
    taps are read from the last to the first. A program: ROWS rows of outputs, one tile wide. bias may be None.
    """
    program = tl.program_id(0)
    x_blocks, y_blocks, c_blocks = tl.cdiv(X, BLOCK_X), tl.cdiv(Y, ROWS), tl.cdiv(C, BLOCK_C)
    x0 = program % x_blocks * BLOCK_X
    y0 = program // x_blocks % y_blocks * ROWS
    c = program // (x_blocks * y_blocks) % c_blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    b = (program // (x_blocks * y_blocks * c_blocks)).to(tl.int64)
    columns = x0 + tl.arange(0, BLOCK_X)
    inside = c < C
    image = x + b * x_b + c[None, :] * x_c

    # Where the first tap of the first output reads, and the taps of a row with which the tile reads inside the image.
    top, left = y0 * STEP_H - pad_h, x0 * STEP_W - pad_w
    first_s = max(0, -left - (BLOCK_X - 1) * STEP_W)
    last_s = min(S, (W - 1) * SPREAD_W + 1 - left)
    first_h = tl.cdiv(max(0, top), SPREAD_H)
    last_h = min(H, tl.cdiv(max(0, top + (ROWS - 1) * STEP_H + R), SPREAD_H))

    sum0 = tl.zeros((BLOCK_X, BLOCK_C), tl.float32)
    if bias is not None:
        sum0 += tl.load(bias + c, mask=inside, other=0).to(tl.float32)[None, :]
    sum1, sum2, sum3 = sum0, sum0, sum0
    for h in range(first_h, last_h):
        r = h * SPREAD_H - top
        for s in range(first_s, last_s):
            at = columns * STEP_W - pad_w + s
            real = (at >= 0) & (at < W * SPREAD_W) & (at % SPREAD_W == 0)
            here = image + h * x_h + (at // SPREAD_W)[:, None] * x_w
            value = tl.load(here, mask=real[:, None] & inside[None, :], other=0).to(tl.float32)
            sum0 += value * _tap(taps, r, s, R, S, c, C, TURNED)
            sum1 += value * _tap(taps, r - STEP_H, s, R, S, c, C, TURNED)
            sum2 += value * _tap(taps, r - 2 * STEP_H, s, R, S, c, C, TURNED)
            sum3 += value * _tap(taps, r - 3 * STEP_H, s, R, S, c, C, TURNED)

    there = output + b * o_b + columns[:, None] * o_w + c[None, :] * o_c
    real = (columns < X)[:, None] & inside[None, :]
    _put(there, sum0, y0, Y, o_h, real)
    _put(there, sum1, y0 + 1, Y, o_h, real)
    _put(there, sum2, y0 + 2, Y, o_h, real)
    _put(there, sum3, y0 + 3, Y, o_h, real)


@triton.jit
def _tap(taps, r, s, R, S, c, C, TURNED: tl.constexpr):
    """taps[r, s, c] as a row of a tile; zeros where there is no such row of taps."""
    tap = r * S + s
    if TURNED:
        tap = R * S - 1 - tap
    return tl.load(taps + tap * C + c, mask=(c < C) & (r >= 0) & (r < R), other=0).to(tl.float32)[None, :]


@triton.jit
def _put(there, value, y, Y, o_h, real):
    tl.store(there + y * o_h, value.to(there.dtype.element_ty), mask=real & (y < Y))


@triton.jit
def kernel_gradient(
    partial,
    grad,
    x,
    B,
    C,
    H,
    W,
    Y,
    X,
    R,
    S,
    pad_h,
    pad_w,
    chunks,
    g_b,
    g_c,
    g_h,
    g_w,
    x_b,
    x_c,
    x_h,
    x_w,
    STEP_H: tl.constexpr,
    STEP_W: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_X: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """partial[chunk, r, s, c] = sum  grad[b, c, y, x] * x[b, c, y * STEP_H - pad_h + r, x * STEP_W - pad_w + s]

    over all x, and over those pairs of an image and one of its rows that belong to the chunk. A program: ROWS rows and
    BLOCK_S columns of taps, BLOCK_C channels, one chunk. Sums stay pixel by pixel until the end.
    """
    program = tl.program_id(0)
    c_blocks, s_blocks, r_blocks = tl.cdiv(C, BLOCK_C), tl.cdiv(S, BLOCK_S), tl.cdiv(R, ROWS)
    c = program % c_blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    s = program // c_blocks % s_blocks * BLOCK_S + tl.arange(0, BLOCK_S)
    r = program // (c_blocks * s_blocks) % r_blocks * ROWS
    chunk = (program // (c_blocks * s_blocks * r_blocks)).to(tl.int64)
    inside = c < C
    pixel = tl.arange(0, BLOCK_X)

    # The image's rows that one of these taps meets, and of the pairs of image and row those of this chunk.
    first_h = max(0, r - pad_h)
    rows = max(0, min(H, r + ROWS - pad_h + (Y - 1) * STEP_H) - first_h)
    first, last = (chunk * B * rows // chunks).to(tl.int32), ((chunk + 1) * B * rows // chunks).to(tl.int32)

    sum0 = tl.zeros((BLOCK_S, BLOCK_X, BLOCK_C), tl.float32)
    sum1, sum2, sum3 = sum0, sum0, sum0
    for pair in range(first, last):
        b, h = tl.cast(pair // rows, tl.int64), first_h + pair % rows
        y = h + pad_h - r
        for x0 in range(0, X, BLOCK_X):
            at = (x0 + pixel)[None, :] * STEP_W - pad_w + s[:, None]
            real = ((at >= 0) & (at < W))[:, :, None] & inside[None, None, :]
            here = x + b * x_b + h * x_h + at[:, :, None] * x_w + c[None, None, :] * x_c
            value = tl.load(here, mask=real, other=0).to(tl.float32)
            there = grad + b * g_b + (x0 + pixel)[None, :, None] * g_w + c[None, None, :] * g_c
            real = (x0 + pixel < X)[None, :, None] & inside[None, None, :]
            sum0 += value * _row(there, y, Y, g_h, real, STEP_H)
            sum1 += value * _row(there, y - 1, Y, g_h, real, STEP_H)
            sum2 += value * _row(there, y - 2, Y, g_h, real, STEP_H)
            sum3 += value * _row(there, y - 3, Y, g_h, real, STEP_H)

    there = partial + chunk * R * S * C + s[:, None] * C + c[None, :]
    real = (s < S)[:, None] & inside[None, :]
    tl.store(there + r * S * C, tl.sum(sum0, 1), mask=real)
    tl.store(there + (r + 1) * S * C, tl.sum(sum1, 1), mask=real & (r + 1 < R))
    tl.store(there + (r + 2) * S * C, tl.sum(sum2, 1), mask=real & (r + 2 < R))
    tl.store(there + (r + 3) * S * C, tl.sum(sum3, 1), mask=real & (r + 3 < R))


@triton.jit
def _row(there, y, Y, g_h, real, STEP_H: tl.constexpr):
    """The gradient's tile of the output row y / STEP_H; zeros where there is no such row."""
    exists = (y >= 0) & (y < Y * STEP_H) & (y % STEP_H == 0)
    return tl.load(there + y // STEP_H * g_h, mask=real & exists, other=0).to(tl.float32)
