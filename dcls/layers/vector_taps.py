"""Kernels from taps, and the gradients of taps, as loops over vectors.

A vector holds a number of each of L neighbouring kernels, L = 16 or 8: all of them are treated alike, so that nothing
depends on where a tap sits. What is emitted, in words. Letters: K taps, H W the cells of a kernel, y x one cell, i a
cell of axis d, q = p + S // 2, s the width; the share a of a tap is just w for v0; a 1-D kernel is a single row.

    construction                               gradients
    each task: L kernels, or a few times L     each task: the same
      cells[y, x] = 0                            cells[y, x] = the kernel's gradient
      for tap in K                               for tap in K
        f[d, i] = phi(i - q[d])                    f[d, i] = phi(i - q[d]), and its slopes by q and s
        a = w / (sum f[0] * sum f[1] + 1e-7)       u[0, y] = sum_x cells[y, x] f[1, x]
        cells[y, x] += a f[0, y] f[1, x]           u[1, x] = sum_y cells[y, x] f[0, y]
      the kernel = cells                           w, p, SIG: sums over i of u, f and the slopes

The cells are on the stack, and for one tap after the other the factors too; only a row of W factors (or of u[1]) is in
registers, in pieces where it is longer. A task has several times L kernels where all of them are neighbours and the
stack should hold their cells: short pieces of memory far apart would be fetched more than once.

How numbers of L = 4 kernels, their taps a b c, lie outside:

    taps         a0 b0 c0  a1 b1 c1  a2 b2 c2  a3 b3 c3        a vector: a0 a1 a2 a3, gathered number by number
    kernel       cell 0 of 0 1 2 3 and their neighbours, then cell 1 of all ..: a vector lies in one piece
    or           all cells of 0, all cells of 1, ..: as for taps
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import prod
from typing import NamedTuple

from llvmlite import ir

from dcls.layers import interpolation
from dcls.layers.generated import Shape
from dcls.layers.interpolation import Interpolation
from dcls.layers.separable import EPSILON
from dcls.ops.llvm import INT, Machine, Writer
from dcls.ops.vector_code import pieces

# The arguments of both functions: construction writes the kernel; gradients reads it, and the rest are its results.
NUMBERS = ("next", "tasks")
POINTERS = ("kernel", "weight", "positions", "sigmas", "of_weight", "of_positions", "of_sigmas")

# At the distance x of a cell: phi, and its derivatives by position and, where there is a width, by width.
Phi = Callable[[ir.Value], list[ir.Value]]


def bilinear(code: Writer, _: ir.Value | None) -> Phi:
    one, zero = code.number(1), code.zero

    def at(x: ir.Value) -> list[ir.Value]:
        inside = code.where(x, ">", code.number(-1), code.where(x, "<=", one, one, zero), zero)
        edge = code.where(x, ">", zero, code.subtract(one, x), code.add(one, x))
        return [code.multiply(edge, inside), code.where(x, ">", zero, inside, code.subtract(zero, inside))]

    return at


def triangle(code: Writer, width: ir.Value | None) -> Phi:
    one, zero, s = code.number(1), code.zero, code.number(1) if width is None else width

    def at(x: ir.Value) -> list[ir.Value]:
        value = code.subtract(s, magnitude(code, x))
        slopes = [sign(code, x), one][: 1 if width is None else 2]
        return [code.where(value, "<", zero, zero, value), *(code.where(value, ">", zero, m, zero) for m in slopes)]

    return at


def gaussian(code: Writer, s: ir.Value) -> Phi:
    inverse = code.divide(code.number(1), s)
    square = code.multiply(inverse, inverse)
    scale = code.multiply(square, code.number(-0.5))

    def at(x: ir.Value) -> list[ir.Value]:
        value = exponential(code, code.multiply(code.multiply(scale, x), x))
        by_position = code.multiply(code.multiply(value, square), x)
        return [value, by_position, code.multiply(code.multiply(by_position, x), inverse)]

    return at


# How each phi of the table is written; another one is not built here.
WRITTEN: dict[Callable[..., object], Callable[[Writer, ir.Value], Phi]] = {
    interpolation.bilinear: bilinear,
    interpolation.triangle: triangle,
    interpolation.wide_triangle: triangle,
    interpolation.gaussian: gaussian,
}


def magnitude(code: Writer, x: ir.Value) -> ir.Value:
    negative = code.subtract(code.zero, x)
    return code.where(x, ">", negative, x, negative)


def sign(code: Writer, x: ir.Value) -> ir.Value:
    """0 of 0, as torch has it."""
    below = code.where(x, "<", code.zero, code.number(-1), code.zero)
    return code.where(x, ">", code.zero, code.number(1), below)


# e^r = 1 + r + r^2 P(r) for |r| <= ln(2) / 2; the coefficients are those of expf in the Cephes library.
POLYNOMIAL = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
# ln(2) as a number of few bits, whose products with small integers are exact, and the rest.
LN2, LN2_REST = 0.693359375, -2.12194440e-4
# Added to a small number it leaves the nearest integer in the lowest bits.
ROUNDING = 1.5 * 2.0**23


def exponential(code: Writer, a: ir.Value) -> ir.Value:
    """e^a for a <= 0, by e^a = 2^n e^r; 0 below LOWEST."""
    bits = ir.VectorType(ir.IntType(32), code.lanes)
    shifted = code.fma(a, code.number(1.4426950408889634), code.number(ROUNDING))
    n = code.subtract(shifted, code.number(ROUNDING))
    r = code.fma(n, code.number(-LN2_REST), code.fma(n, code.number(-LN2), a))
    p = code.number(POLYNOMIAL[0])
    for coefficient in POLYNOMIAL[1:]:
        p = code.fma(p, r, code.number(coefficient))
    p = code.fma(p, code.multiply(r, r), code.add(r, code.number(1)))
    # A float's exponent stands above its 23 other bits, increased by 127.
    exponent = code.at.shl(code.at.bitcast(shifted, bits), ir.Constant(bits, [23] * code.lanes))
    power = code.at.bitcast(code.at.add(exponent, ir.Constant(bits, [127 << 23] * code.lanes)), code.vector)
    return code.where(a, "<", code.number(interpolation.LOWEST), code.zero, code.multiply(p, power))


class Axis:
    """One axis of the tap at hand: on the stack its factors, their slopes, and the kernel's gradient along it."""

    def __init__(self, code: Writer, size: int) -> None:
        self.size, self.total = size, code.number(1)
        self.factors, self.by_position, self.by_width, self.along = (code.memory(size) for _ in range(4))
        # What the single row of a 1-D kernel keeps.
        code.store(self.total, self.factors)

    def fill(self, code: Writer, position: ir.Value, phi: Phi, slopes: bool) -> None:
        """Factors, slopes if wanted, and the factors' total for a tap at a position from the first cell."""
        with code.loop(0, self.size, [code.zero, code.zero]) as i:
            cell, total = i.sums
            values = phi(code.subtract(cell, position))
            kept = (self.factors, self.by_position, self.by_width) if slopes else (self.factors,)
            for value, memory in zip(values, kept, strict=False):
                code.store(value, code.step(memory, (i.index, code.lanes)))
            i.sums = [code.add(cell, code.number(1)), code.add(total, values[0])]
        self.total = i.sums[1]

    def pulled_back(self, code: Writer, share: ir.Value, of_total: ir.Value, slopes: ir.Value) -> ir.Value:
        """The gradient of what the slopes are by, from `along`, which is for a share of 1, and the total's."""
        with code.loop(0, self.size, [code.zero]) as i:
            along, slope = (code.load(code.step(each, (i.index, code.lanes))) for each in (self.along, slopes))
            i.sums = [code.fma(code.fma(along, share, of_total), slope, i.sums[0])]
        return i.sums[0]


class Tap(NamedTuple):
    """A tap of L kernels: where its numbers are, its weight and sigmas, its share w / Z, and Z where there is one."""

    block: ir.Value
    index: ir.Value
    weight: ir.Value
    sigmas: list[ir.Value]
    share: ir.Value
    norm: ir.Value | None


class Builder:
    """What both functions have in common: memory on the stack, and the pieces of the text above."""

    def __init__(self, name: str, machine: Machine, row: Interpolation, shape: Shape) -> None:
        self.code = code = Writer(name, machine.lanes, NUMBERS, POINTERS)
        self.row, self.shape = row, shape
        self.vectors = shape.vectors(machine.lanes)
        self.all_cells = code.memory(self.vectors * prod(shape.sizes))
        self.cells = self.all_cells
        self.axes = [Axis(code, size) for size in shape.sizes]
        self.rows, self.columns = self.axes if len(self.axes) == 2 else (Axis(code, 1), *self.axes)
        self.parts = pieces(self.columns.size, machine.registers * 3 // 4)

    def load(self, memory: ir.Value, index: ir.Value | int) -> ir.Value:
        return self.code.load(self.code.step(memory, (index, self.code.lanes)))

    def places(self, name: str, block: ir.Value, index: ir.Value) -> list[ir.Value]:
        """By axis, where the first of L kernels has its tap in an array [axes, kernels, K]."""
        code, apart = self.code, self.code.lanes * self.shape.taps
        first = code.step(code.argument(name), (block, apart), (index, 1))
        return [first, code.step(first, (code.argument("tasks"), self.vectors * apart))][: len(self.axes)]

    def gather(self, name: str, block: ir.Value, index: ir.Value) -> list[ir.Value]:
        return [self.code.gather(place, self.shape.taps) for place in self.places(name, block, index)]

    def scatter(self, values: Sequence[ir.Value], name: str, tap: Tap) -> None:
        for value, place in zip(values, self.places(name, tap.block, tap.index), strict=False):
            self.code.scatter(value, place, self.shape.taps)

    def read(self, block: ir.Value, index: ir.Value, slopes: bool) -> Tap:
        """A tap, and each axis filled for it."""
        code = self.code
        weight = self.gather("weight", block, index)[0]
        positions = self.gather("positions", block, index)
        sigmas = self.gather("sigmas", block, index) if self.row.has_sigma else []
        floor = code.number(self.row.sigma_floor or 0)
        widths = [code.add(magnitude(code, sigma), floor) for sigma in sigmas] or [None] * len(self.axes)
        for axis, position, width in zip(self.axes, positions, widths, strict=True):
            # Centred first, in float32: it decides on which side of an integer a position falls.
            phi = WRITTEN[self.row.phi](code, width)
            axis.fill(code, code.add(position, code.number(axis.size // 2)), phi, slopes)
        if not self.row.normalised:
            return Tap(block, index, weight, sigmas, weight, None)
        norm = code.add(code.multiply(self.rows.total, self.columns.total), code.number(EPSILON))
        return Tap(block, index, weight, sigmas, code.divide(weight, norm), norm)

    def add_to_cells(self, tap: Tap) -> None:
        code, row = self.code, self.columns.size * self.code.lanes
        for piece in self.parts:
            factors = [self.load(self.columns.factors, x) for x in piece]
            with code.loop(0, self.rows.size) as y:
                a, line = code.multiply(tap.share, self.load(self.rows.factors, y.index)), (y.index, row)
                for x, factor in zip(piece, factors, strict=True):
                    place = code.step(self.cells, line, (x, code.lanes))
                    code.store(code.fma(a, factor, code.load(place)), place)

    def pull_cells(self) -> ir.Value:
        """Fill `along` of both axes; returns the gradient of the share."""
        code, row = self.code, self.columns.size * self.code.lanes
        for piece in self.parts:
            with code.loop(0, self.rows.size, [code.zero] * len(piece)) as y:
                factor, line = self.load(self.rows.factors, y.index), code.step(self.cells, (y.index, row))
                place = code.step(self.rows.along, (y.index, code.lanes))
                total = code.load(place) if piece.start else code.zero
                for i, x in enumerate(piece):
                    cell = self.load(line, x)
                    y.sums[i] = code.fma(cell, factor, y.sums[i])
                    total = code.fma(cell, self.load(self.columns.factors, x), total)
                code.store(total, place)
            for x, total in zip(piece, y.sums, strict=True):
                code.store(total, code.step(self.columns.along, (x, code.lanes)))
        with code.loop(0, self.columns.size, [code.zero]) as cells:
            along, factor = (self.load(each, cells.index) for each in (self.columns.along, self.columns.factors))
            cells.sums = [code.fma(along, factor, cells.sums[0])]
        return cells.sums[0]

    def pull_tap(self, tap: Tap, of_share: ir.Value) -> None:
        """Write the gradients of a tap's weight, positions and sigmas."""
        code, of_totals = self.code, [self.code.zero] * 2
        if tap.norm is not None:
            of_share = code.divide(of_share, tap.norm)
            of_norm = code.subtract(code.zero, code.multiply(of_share, tap.share))
            of_totals = [code.multiply(of_norm, other.total) for other in (self.columns, self.rows)]
        pairs = list(zip(self.axes, of_totals[-len(self.axes) :], strict=True))
        self.scatter([of_share], "of_weight", tap)
        along = [axis.pulled_back(code, tap.share, of_total, axis.by_position) for axis, of_total in pairs]
        self.scatter(along, "of_positions", tap)
        if tap.sigmas:
            along = [axis.pulled_back(code, tap.share, of_total, axis.by_width) for axis, of_total in pairs]
            signs = (sign(code, sigma) for sigma in tap.sigmas)
            self.scatter([code.multiply(*each) for each in zip(along, signs, strict=True)], "of_sigmas", tap)

    @contextmanager
    def blocks(self, task: ir.Value) -> Iterator[ir.Value]:
        """Each L kernels of a task, with `cells` being theirs."""
        code = self.code
        with code.loop(0, self.vectors) as vector:
            self.cells = code.step(self.all_cells, (vector.index, prod(self.shape.sizes) * code.lanes))
            yield code.at.add(code.at.mul(task, INT(self.vectors)), vector.index)

    def copy(self, task: ir.Value, into_cells: bool) -> None:
        """Between the cells on the stack and a task's kernels outside."""
        code, sizes, neighbours = self.code, prod(self.shape.sizes), self.shape.neighbours
        width = self.vectors * code.lanes
        out, part = code.split(task, INT(max(1, neighbours // width)))
        outside = code.step(code.argument("kernel"), (out, sizes * (neighbours or code.lanes)), (part, width))
        apart = 1 if neighbours else sizes
        with code.loop(0, sizes) as cell:
            for vector in range(self.vectors):
                here = code.step(self.all_cells, (vector, sizes * code.lanes), (cell.index, code.lanes))
                there = code.step(outside, (cell.index, neighbours or 1), (vector, code.lanes))
                if into_cells:
                    code.store(code.gather(there, apart), here)
                else:
                    code.scatter(code.load(here), there, apart)


def construction(machine: Machine, row: Interpolation, shape: Shape) -> ir.Module:
    """kernel [.., S..] of weight [.., K], positions and sigmas [N, .., K]: the left column of the text above."""
    builder = Builder("construction", machine, row, shape)
    code = builder.code
    with code.tasks("next", "tasks") as task:
        with builder.blocks(task) as block:
            with code.loop(0, prod(shape.sizes)) as cell:
                code.store(code.zero, code.step(builder.cells, (cell.index, code.lanes)))
            with code.loop(0, shape.taps) as k:
                builder.add_to_cells(builder.read(block, k.index, slopes=False))
        builder.copy(task, into_cells=False)
    return code.done()


def gradients(machine: Machine, row: Interpolation, shape: Shape) -> ir.Module:
    """of_weight, of_positions and of_sigmas of the kernel's gradient, in `kernel`: the right column."""
    builder = Builder("gradients", machine, row, shape)
    code = builder.code
    with code.tasks("next", "tasks") as task:
        builder.copy(task, into_cells=True)
        with builder.blocks(task) as block, code.loop(0, shape.taps) as k:
            tap = builder.read(block, k.index, slopes=True)
            builder.pull_tap(tap, builder.pull_cells())
    return code.done()
