# mypy: disable-error-code="no-untyped-def, no-untyped-call"
"""The CUDA kernels of triton_bands.py, which explains form and letters and imports this file where it can run."""

import triton
import triton.language as tl

# Output rows and columns of a tile: together the columns of a band matrix.
J = tl.constexpr(4)
N = tl.constexpr(16)
JN = tl.constexpr(64)

# The interpreter multiplies the bits of bfloat16 as if they were whole numbers.
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def spread_taps(
    bands, kernel, R, S, shift, k_c, k_r, k_s, TURNED: tl.constexpr, K: tl.constexpr, BLOCK_K: tl.constexpr
):
    """bands[c, i, k, j * N + n] = kernel[c, i - j, k - n + shift], or 0 where no such tap is. A program: one c, i."""
    c, i = tl.program_id(0).to(tl.int64), tl.program_id(1)
    k, jn = tl.arange(0, BLOCK_K), tl.arange(0, JN)
    r, s = (i - jn // N)[None, :], k[:, None] - (jn % N)[None, :] + shift
    real = (r >= 0) & (r < R) & (s >= 0) & (s < S)
    if TURNED:
        r, s = R - 1 - r, S - 1 - s
    taps = tl.load(kernel + c * k_c + r * k_r + s * k_s, mask=real, other=0)
    there = bands + (c * tl.num_programs(1) + i) * (K * JN) + k[:, None] * JN + jn[None, :]
    tl.store(there, taps, mask=(k < K)[:, None])


@triton.jit
def gather_taps(of_kernel, of_bands, R, S, shift, K: tl.constexpr, BLOCK_S: tl.constexpr):
    """of_kernel[c, r, s] = sum of of_bands over the places to which spread_taps brings the tap. A program: one c, r."""
    c, r = tl.program_id(0).to(tl.int64), tl.program_id(1)
    s, jn = tl.arange(0, BLOCK_S), tl.arange(0, JN)
    j, n = jn // N, jn % N
    k = s[:, None] + n[None, :] - shift
    places = of_bands + (c * (R + J - 1) + r) * (K * JN) + j[None, :] * (K * JN) + k * JN + jn[None, :]
    found = tl.load(places, mask=(k >= 0) & (k < K) & (s < S)[:, None], other=0)
    there = of_kernel + (c * R + r) * S + s
    tl.store(there, tl.sum(found, 1).to(of_kernel.dtype.element_ty), mask=s < S)


@triton.jit
def _rows(x, m, groups, M, c, i, columns, C, H, WIDE, pad_h):
    """The rows i - pad_h + J * group of channel c, from the padded images x [B, C, H, WIDE]; m counts (b, group)."""
    h = m % groups * J - pad_h + i
    image = (m // groups).to(tl.int64) * C + c
    real = (m < M) & (h >= 0) & (h < H)
    return tl.load(x + (image * H + h)[:, None] * WIDE + columns[None, :], mask=real[:, None], other=0)


@triton.jit
def _group(m, groups, C, c, tiles):
    """Where the rows of a group begin in [B, C, J * groups, N * tiles]."""
    return (((m // groups).to(tl.int64) * C + c) * groups + m % groups) * (J * N * tiles)


@triton.jit
def _place(jn, tiles):
    """Where, from there, the first tile has row j and column n."""
    return jn // N * (N * tiles) + jn % N


@triton.jit
def _dot(a, b, total):
    if INTERPRETED:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, total)


@triton.jit
def products(
    output,
    x,
    bands,
    bias,
    M,
    C,
    H,
    WIDE,
    groups,
    tiles,
    pad_h,
    first,
    last,
    I,
    K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """output[b, c, J * group + j, N * tile + n]
        = bias[c] + sum_ik  x[b, c, J * group + i - pad_h, N * tile + k] * bands[c, i, k, j * N + n]

    over i from first to last; output is [B, C, J * groups, N * tiles]. A program: one c and tile, BLOCK_M rows.
    """
    program = tl.program_id(0)
    m_blocks = tl.cdiv(M, BLOCK_M)
    m = program % m_blocks * BLOCK_M + tl.arange(0, BLOCK_M)
    tile = program // m_blocks % tiles
    c = (program // (m_blocks * tiles)).to(tl.int64)
    inner, jn = tl.arange(0, BLOCK_K), tl.arange(0, JN)
    # Rows of the band matrices of all i, one below the other.
    band = bands + c * I * (K * JN) + inner[:, None] * JN + jn[None, :]

    total = tl.zeros((BLOCK_M, JN), tl.float32)
    if bias is not None:
        total += tl.load(bias + c).to(tl.float32)
    for i in range(first, last):
        for k in tl.static_range(0, K, BLOCK_K):
            rows = _rows(x, m, groups, M, c, i, inner + (tile * N + k), C, H, WIDE, pad_h)
            total = _dot(rows, tl.load(band + (i * K + k) * JN), total)

    there = output + _group(m, groups, C, c, tiles)[:, None] + (_place(jn, tiles) + tile * N)[None, :]
    tl.store(there, total.to(output.dtype.element_ty), mask=(m < M)[:, None])


@triton.jit
def band_gradients(
    of_bands,
    grad,
    x,
    M,
    C,
    H,
    WIDE,
    groups,
    tiles,
    pad_h,
    I,
    K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """of_bands[c, i, k, j * N + n] = sum over b, group, tile of grad times what `products` multiplies with that number

    grad is [B, C, J * groups, N * tiles], with zeros where there is no output. A program: one c and i, BLOCK_K k.
    """
    program = tl.program_id(0)
    k_blocks = K // BLOCK_K
    k = program % k_blocks * BLOCK_K + tl.arange(0, BLOCK_K)
    i = program // k_blocks % I
    c = (program // (k_blocks * I)).to(tl.int64)
    inner, jn = tl.arange(0, BLOCK_M), tl.arange(0, JN)

    total = tl.zeros((BLOCK_K, JN), tl.float32)
    for m0 in range(0, M, BLOCK_M):
        m = m0 + inner
        for tile in range(tiles):
            rows = _rows(x, m, groups, M, c, i, k + tile * N, C, H, WIDE, pad_h)
            there = grad + _group(m, groups, C, c, tiles)[:, None] + (_place(jn, tiles) + tile * N)[None, :]
            total = _dot(tl.trans(rows), tl.load(there, mask=(m < M)[:, None], other=0), total)
    tl.store(of_bands + (c * I + i) * (K * JN) + k[:, None] * JN + jn[None, :], total)
