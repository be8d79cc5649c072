# mypy: disable-error-code="no-untyped-def, no-untyped-call, assignment"
"""The CUDA kernels of triton_backend.py, which says what the letters mean and imports this file where it can run.

Sums are in float32 whatever the tensors hold. A tile is BLOCK_X neighbouring pixels of a row by BLOCK_C channels.
What is loaded once is used for several tiles of sums: rows of outputs in `convolution`, taps in `kernel_gradient`. They
are a tuple and no axis of the tile, because the compiler would pass tiles with such an axis through shared memory.

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

    start = tl.zeros((BLOCK_X, BLOCK_C), tl.float32)
    if bias is not None:
        start += tl.load(bias + c, mask=inside, other=0).to(tl.float32)[None, :]
    sums = (start,) * ROWS
    for h in range(first_h, last_h):
        r = h * SPREAD_H - top
        for s in range(first_s, last_s):
            at = columns * STEP_W - pad_w + s
            real = (at >= 0) & (at < W * SPREAD_W) & (at % SPREAD_W == 0)
            here = image + h * x_h + (at // SPREAD_W)[:, None] * x_w
            value = tl.load(here, mask=real[:, None] & inside[None, :], other=0).to(tl.float32)
            added = ()
            for j in tl.static_range(ROWS):
                added += (sums[j] + value * _tap(taps, r - j * STEP_H, s, R, S, c, C, TURNED),)
            sums = added

    for j in tl.static_range(ROWS):
        there = output + b * o_b + (y0 + j) * o_h + columns[:, None] * o_w + c[None, :] * o_c
        real = (columns < X)[:, None] & inside[None, :] & (y0 + j < Y)
        tl.store(there, sums[j].to(output.dtype.element_ty), mask=real)


@triton.jit
def _tap(taps, r, s, R, S, c, C, TURNED: tl.constexpr):
    """taps[r, s, c] as a row of a tile; zeros where there is no such row of taps."""
    tap = r * S + s
    if TURNED:
        tap = R * S - 1 - tap
    return tl.load(taps + tap * C + c, mask=(c < C) & (r >= 0) & (r < R), other=0).to(tl.float32)[None, :]


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
    s = program // c_blocks % s_blocks * BLOCK_S
    r = program // (c_blocks * s_blocks) % r_blocks * ROWS
    chunk = (program // (c_blocks * s_blocks * r_blocks)).to(tl.int64)
    inside = c < C

    # The image's rows that one of these taps meets, and of the pairs of image and row those of this chunk.
    first_h = max(0, r - pad_h)
    rows = max(0, min(H, r + ROWS - pad_h + (Y - 1) * STEP_H) - first_h)
    first, last = (chunk * B * rows // chunks).to(tl.int32), ((chunk + 1) * B * rows // chunks).to(tl.int32)

    zeros = tl.zeros((BLOCK_X, BLOCK_C), tl.float32)
    sums = (zeros,) * (BLOCK_S * ROWS)
    for pair in range(first, last):
        b, h = tl.cast(pair // rows, tl.int64), first_h + pair % rows
        y = h + pad_h - r
        for x0 in range(0, X, BLOCK_X):
            columns = x0 + tl.arange(0, BLOCK_X)
            there = grad + b * g_b + columns[:, None] * g_w + c[None, :] * g_c
            real = (columns < X)[:, None] & inside[None, :]
            rows_of_grad = ()
            for j in tl.static_range(ROWS):
                rows_of_grad += (_row(there, y - j, Y, g_h, real, STEP_H),)
            added = ()
            for i in tl.static_range(BLOCK_S):
                at = columns * STEP_W - pad_w + s + i
                here = x + b * x_b + h * x_h + at[:, None] * x_w + c[None, :] * x_c
                real = ((at >= 0) & (at < W))[:, None] & inside[None, :]
                value = tl.load(here, mask=real, other=0).to(tl.float32)
                for j in tl.static_range(ROWS):
                    added += (sums[i * ROWS + j] + value * rows_of_grad[j],)
            sums = added

    for i in tl.static_range(BLOCK_S):
        for j in tl.static_range(ROWS):
            there = partial + ((chunk * R + r + j) * S + s + i) * C + c
            tl.store(there, tl.sum(sums[i * ROWS + j], 0), mask=inside & (r + j < R) & (s + i < S))


@triton.jit
def _row(there, y, Y, g_h, real, STEP_H: tl.constexpr):
    """The gradient's tile of the output row y / STEP_H; zeros where there is no such row."""
    exists = (y >= 0) & (y < Y * STEP_H) & (y % STEP_H == 0)
    return tl.load(there + y // STEP_H * g_h, mask=real & exists, other=0).to(tl.float32)
