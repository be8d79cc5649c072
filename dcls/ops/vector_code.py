"""One depthwise convolution as a nest of loops over vectors, for one shape.

Neighbouring channels are neighbours in memory ([B, H, W, C]), and a depthwise convolution treats all of them alike: so
a vector holds L channels of one pixel, L = 16 or 8, every load is one cache line or half of one, nothing is shuffled.

What is emitted, in words. Letters: R S rows and columns of taps, y x output pixels, t one of the T pixels of a tile.

    convolution                                  kernel gradient
    each task: some rows of an image,            each task: some rows of taps,
    a cache line of channels, L at a time        a cache line of channels
      for y in the task's rows                     for some images, one if it is large: copied
        for tile of T pixels in the row              for r in the task's rows of taps
          sum[t] = bias                                sum[s] = 0
          for r in rows of taps inside the image       for image, for y with row r inside the image
            tap[s] = kernel[r, s]                        for tile of T pixels in the row
            for x in columns the tile reads                g[t] = gradient[y, t]
              v = input[.., x]                             for x in columns the tile reads
              sum[t] += v * tap[s]                           v = input[.., x]
          output[y, tile] = sum                              sum[s] += v * g[t]
                                                         result[r, s] += sum[s]

A row of the input, a tile of T = 4 pixels and S = 3 taps. Each v is loaded once and used by all that need it:

    input    [v0][v1][v2][v3][v4][v5]      output[0] += v0 tap[0] + v1 tap[1] + v2 tap[2]
                 [ 0][ 1][ 2][ 3]          output[1] += v1 tap[0] + v2 tap[1] + v3 tap[2]
    output                                 ...

The innermost lines are unrolled, with sums and taps (or g) in registers: T + S + 1 of 32 or 16, so that longer rows of
taps are cut into pieces. At the border the pairs (t, s) that fall outside the image are not emitted at all: columns are
known while writing the code, and rows come from a table. Tiles that read alike, the interior of a row, share one loop.

Where a vector is half a cache line, both halves are copied at once, and the lines that the next task copies, or this
one writes next, are asked for meanwhile: waiting for memory would take up to a quarter of the time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import reduce
from typing import NamedTuple

from llvmlite import ir

from dcls.ops.llvm import INT, Loop, Machine, Writer

# The arguments of both functions. `next` and `tasks` deal out the work, that of a convolution so much `at_once`; a
# thread's next task is most likely `apart` from this one. The rows of an image, or of taps, are divided into `parts`.
# `other` is the kernel or the output's gradient, `bias` the bias or its gradient.
NUMBERS = ("next", "tasks", "batch", "parts", "at_once", "apart")
POINTERS = ("input", "other", "bias", "result")

# Products summed in registers before they are added to the result, at least: more make the rounding error larger, fewer
# spend their time on the additions.
PARTIAL_SUM = 256

# Sums of the bias's gradient that go on side by side.
ADDERS = 4

# Floats of a cache line.
LINE = 16

# What the columns of one tile are used for: input -> pairs (output in the tile, tap).
Reads = dict[int, list[tuple[int, int]]]


class Axis(NamedTuple):
    """One axis of a convolution: output o sums the taps s times the input (o * stride + s - padding) / spread.

    Where that is not a whole number inside the input, there is nothing to sum. spread is above 1 in the gradient of a
    convolution whose stride was.
    """

    inputs: int
    outputs: int
    taps: int
    stride: int
    padding: int
    spread: int = 1

    def source(self, output: int, tap: int) -> int | None:
        """The input that an output reads through a tap, if any."""
        position, rest = divmod(output * self.stride + tap - self.padding, self.spread)
        return position if rest == 0 and 0 <= position < self.inputs else None


class Tiles(NamedTuple):
    """`repeats` tiles of `width` outputs, the first at `start`, which all read alike: `reads` is the first one's.

    From tile to tile the inputs move on by `shift`.
    """

    start: int
    width: int
    repeats: int
    shift: int
    reads: Reads


def tiles(axis: Axis, limit: int) -> list[Tiles]:
    """The outputs of an axis in tiles of at most `limit`, rounded up to whole spreads, about equally wide."""
    width = math.ceil(axis.outputs / math.ceil(axis.outputs / limit))
    width = math.ceil(width / axis.spread) * axis.spread
    shift = width * axis.stride // axis.spread
    runs: list[Tiles] = []
    for start in range(0, axis.outputs, width):
        tile = Tiles(start, min(width, axis.outputs - start), 1, shift, _reads(axis, start, width))
        last = runs[-1] if runs else None
        if last and tile.width == last.width and tile.reads == _shifted(last.reads, shift * last.repeats):
            runs[-1] = last._replace(repeats=last.repeats + 1)
        else:
            runs.append(tile)
    return runs


def _reads(axis: Axis, start: int, width: int) -> Reads:
    reads: Reads = {}
    for output in range(start, min(start + width, axis.outputs)):
        for tap in range(axis.taps):
            source = axis.source(output, tap)
            if source is not None:
                reads.setdefault(source, []).append((output - start, tap))
    return dict(sorted(reads.items()))


def _shifted(reads: Reads, by: int) -> Reads:
    return {source + by: pairs for source, pairs in reads.items()}


def _with_taps(reads: Reads, taps: range) -> Reads:
    """What is left for a piece of the row of taps."""
    chosen = {source: [pair for pair in pairs if pair[1] in taps] for source, pairs in reads.items()}
    return {source: pairs for source, pairs in chosen.items() if pairs}


def pieces(taps: int, limit: int) -> list[range]:
    """A row of taps in about equal pieces of at most `limit`."""
    length = math.ceil(taps / math.ceil(taps / limit))
    return [range(start, min(start + length, taps)) for start in range(0, taps, length)]


def rows_of_taps(axis: Axis) -> list[tuple[int, int, int]]:
    """For each output: the first tap inside the image, how many (every `spread`-th), and what the first reads."""
    return [_run((tap, axis.source(output, tap)) for tap in range(axis.taps)) for output in range(axis.outputs)]


def rows_of_outputs(axis: Axis) -> list[tuple[int, int, int]]:
    """For each tap: the first output that uses it inside the image, how many do, and what the first reads."""
    return [_run((output, axis.source(output, tap)) for output in range(axis.outputs)) for tap in range(axis.taps)]


def _run(pairs: Iterable[tuple[int, int | None]]) -> tuple[int, int, int]:
    inside = [(index, source) for index, source in pairs if source is not None]
    return (inside[0][0], len(inside), inside[0][1]) if inside else (0, 0, 0)


def blocks_of_task(machine: Machine, channels: int) -> int:
    """Vectors in a cache line, which one task takes in turn: another would fetch the same lines again."""
    return LINE // machine.lanes if channels % LINE == 0 else 1


def _registers(machine: Machine, columns: Axis, sums: str) -> tuple[int, int]:
    """Pixels in a tile, and taps in a piece of a row, where each pixel, or each tap, has a sum.

    They and an input fill the registers; of two ways to fill 32 the one that cuts a row into fewer parts. Two units
    that need 4 cycles for a product are at work with 8 sums of equal length, which those at a border are not: of 16
    registers 10 are sums. For those of 17 taps it is faster to leave some on the stack than to read the pixels again.
    """
    if machine.registers == 16:
        return (10, 4) if sums == "pixels" else (6, 17)
    ways = ((width, machine.registers - width - 1) for width in (14, 13))
    return min(ways, key=lambda way: math.ceil(columns.outputs / way[0]) * math.ceil(columns.taps / way[1]))


def _place(code: Writer, task: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Image, cache line of channels and part that are a task of a convolution."""
    rest, image = code.split(task, code.argument("batch"))
    return image, *code.split(rest, code.argument("parts"))


def _share(code: Writer, part: ir.Value, rows: int) -> list[ir.Value]:
    """The rows that one of the parts takes, first and end."""
    ends = (part, code.at.add(part, part.type(1)))
    return [code.split(code.at.mul(each, part.type(rows)), code.argument("parts"))[0] for each in ends]


def convolution(machine: Machine, channels: int, rows: Axis, columns: Axis, turned: bool = False) -> ir.Module:
    """result[b, y, x] = bias + sum_rs other[r, s] * input[b, .., ..]: the left column of the text above.

    input [B, H, W, C], other [C / L, R, S, L], turned: in the order [C / L, R - r, S - s, L], bias [C], result
    [B, Y, X, C]. There are parts * B * C / L / blocks_of_task tasks.
    """
    code = Writer("convolution", machine.lanes, NUMBERS, POINTERS)
    lanes, output_row, blocks = code.lanes, columns.outputs * channels, blocks_of_task(machine, channels)
    # Vectors that are cache lines are read in place: copying was 13 % faster at best, and 10 % slower on small maps.
    of_input = _Copy(code, channels, rows.inputs * columns.inputs, blocks, wanted=lanes < LINE)
    pixel, row = of_input.pixel, columns.inputs * of_input.pixel
    inside, (width, room) = code.table(rows_of_taps(rows)), _registers(machine, columns, "pixels")
    direction = -1 if turned else 1
    tap, tap_row = direction * lanes, direction * columns.taps * lanes
    with code.tasks("next", "tasks", "at_once") as task:
        image, line, part = _place(code, task)
        share = _share(code, part, rows.outputs)
        # The task that this thread most likely takes next.
        next_image, next_line, _ = _place(code, code.at.add(task, code.argument("apart")))
        images, next_images = (
            code.step(code.argument("input"), (b, rows.inputs * columns.inputs * channels), (of, blocks * lanes))
            for b, of in ((image, line), (next_image, next_line))
        )
        of_input.fill(images, *_inputs_of(code, rows, *share), columns.inputs)
        with code.loop(0, blocks) as each:
            block = code.at.add(code.at.mul(line, INT(blocks)), each.index)
            source = of_input.block(images, each.index)
            result = code.step(code.argument("result"), (image, rows.outputs * output_row), (block, lanes))
            kernel = code.step(code.argument("other"), (block, rows.taps * columns.taps * lanes))
            if turned:
                kernel = code.step(kernel, (rows.taps * columns.taps - 1, lanes))
            bias = code.load(code.step(code.argument("bias"), (block, lanes)))
            with code.loop(*share) as y:
                first_tap, count, first_row = inside(y.index)
                taps = code.step(kernel, (first_tap, tap_row))
                for run in tiles(columns, width):
                    with code.loop(0, run.repeats) as n:
                        pixels = code.step(source, (first_row, row), (n.index, run.shift * pixel))
                        target = code.step(result, (y.index, output_row), (n.index, run.width * channels))
                        if lanes < LINE:
                            following = code.step(next_images, (y.index, output_row), (n.index, run.width * channels))
                            for t in range(run.start, run.start + run.width):
                                code.ahead(code.step(following, (t, channels)))
                                code.ahead(code.step(target, (t, channels), (1, output_row)), write=True)
                        with code.loop(0, count, [bias] * run.width) as r:
                            here = code.step(pixels, (r.index, row))
                            there = code.step(taps, (r.index, rows.spread * tap_row))
                            for piece in pieces(columns.taps, room):
                                if machine.registers == 16:
                                    code.forget()
                                reads = _with_taps(run.reads, piece)
                                _multiply_by_taps(code, r.sums, (here, pixel), (there, tap), reads)
                        for t, value in enumerate(r.sums):
                            code.store(value, code.step(target, (run.start + t, channels)))
    return code.done()


def _inputs_of(code: Writer, axis: Axis, first: ir.Value, end: ir.Value) -> tuple[ir.Value, ir.Value]:
    """The inputs, first and end, among which are all that these outputs read."""
    last = code.at.sub(end, INT(1))
    begin, stop = (
        code.at.sdiv(code.at.add(code.at.mul(output, INT(axis.stride)), INT(tap - axis.padding)), INT(axis.spread))
        for output, tap in ((first, 0), (last, axis.taps - 1))
    )
    return code.larger(begin, INT(0)), code.smaller(code.at.add(stop, INT(1)), INT(axis.inputs))


def _multiply_by_taps(
    code: Writer, sums: list[ir.Value], row: tuple[ir.Value, int], taps: tuple[ir.Value, int], reads: Reads
) -> None:
    """sums[t] += row[x] * taps[s] for all x that are read, each for its pairs (t, s).

    row and taps: where the first is, and how many floats lie from one to the next.
    """
    used = {s for pairs in reads.values() for _, s in pairs}
    factors = {s: code.load(code.step(taps[0], (s, taps[1]))) for s in sorted(used)}
    for x, pairs in reads.items():
        value = code.load(code.step(row[0], (x, row[1])))
        for t, s in pairs:
            sums[t] = code.fma(value, factors[s], sums[t])


# Floats of a copy: two of 112 x 112 pixels are smaller than the 2 MiB that a thread's stack may be limited to.
LARGEST_COPY = 112 * 112 * LINE


class _Copy:
    """A cache line of channels of images, on a thread's stack, unless they nearly are alone or are too large.

    L channels of all pixels lie side by side, and then the next L. They are read once for each row of taps; beside the
    others they would take as many cache lines, but in few places of the caches, and would be gone at the next row.
    """

    def __init__(self, code: Writer, channels: int, pixels: int, blocks: int, wanted: bool = True) -> None:
        self.code, self.channels, self.blocks, self.pixels = code, channels, blocks, pixels
        wanted = wanted and channels >= 4 * code.lanes and blocks * pixels * code.lanes <= LARGEST_COPY
        self.memory = code.memory(blocks * pixels) if wanted else None
        self.pixel = code.lanes if wanted else channels

    def fill(self, images: ir.Value, begin: ir.Value, end: ir.Value, times: int) -> None:
        """Copy the pixels times * begin to times * end of images, given by their first pixel's first channel here."""
        if self.memory is None:
            return
        with self.code.loop(*(self.code.at.mul(each, INT(times)) for each in (begin, end))) as i:
            for block in range(self.blocks):
                value = self.code.load(self.code.step(images, (i.index, self.channels), (block, self.code.lanes)))
                self.code.store(value, self.code.step(self.block(images, INT(block)), (i.index, self.code.lanes)))

    def block(self, images: ir.Value, index: ir.Value) -> ir.Value:
        """Where to read L of the channels of those images."""
        if self.memory is None:
            return self.code.step(images, (index, self.code.lanes))
        return self.code.step(self.memory, (index, self.pixels * self.code.lanes))

    def ahead(self, image: ir.Value, row: tuple[ir.Value, int], share: tuple[ir.Value, int]) -> None:
        """Let a share of a row of the images after these come from memory.

        row: which, and its pixels; share: which, and of how many.
        """
        width = math.ceil(row[1] / share[1])
        first = self.code.step(image, (row[0], row[1] * self.channels), (share[0], width * self.channels))
        for i in range(width):
            self.code.ahead(self.code.step(first, (self.pixels + i, self.channels)))


def kernel_gradient(machine: Machine, channels: int, rows: Axis, columns: Axis) -> ir.Module:
    """result[r, s] = sum_byx other[b, y, x] * input[b, .., ..]: the right column of the text above.

    And bias = sum_byx other. input [B, H, W, C], other, the output's gradient, [B, Y, X, C], result
    [C / L, R, S, L], bias [C]. There are parts * C / L / blocks_of_task tasks; the result does not depend on the parts.
    """
    code = Writer("kernel_gradient", machine.lanes, NUMBERS, POINTERS)
    lanes, pixels, outputs = code.lanes, rows.inputs * columns.inputs, rows.outputs * columns.outputs
    many, blocks = math.ceil(PARTIAL_SUM / outputs), blocks_of_task(machine, channels)
    of_input, of_other = (_Copy(code, channels, many * each, blocks) for each in (pixels, outputs))
    pixel, row = of_input.pixel, columns.inputs * of_input.pixel
    place, output_row = of_other.pixel, columns.outputs * of_other.pixel
    inside, (width, room) = code.table(rows_of_outputs(rows)), _registers(machine, columns, "taps")
    with code.tasks("next", "tasks") as task:
        line, part = code.split(task, code.argument("parts"))
        batch, share = code.argument("batch"), _share(code, part, rows.taps)
        groups = code.split(code.at.add(batch, INT(many - 1)), INT(many))[0]
        with code.loop(0, groups) as g, code.loop(0, blocks) as each:
            block = code.at.add(code.at.mul(line, INT(blocks)), each.index)
            result = code.step(code.argument("result"), (block, rows.taps * columns.taps * lanes))
            start = code.at.mul(g.index, INT(many))
            images = code.smaller(code.at.sub(batch, start), INT(many))
            following = code.at.sub(batch, code.at.add(start, INT(many)))
            source = code.step(code.argument("input"), (line, blocks * lanes), (start, pixels * channels))
            gradient = code.step(code.argument("other"), (line, blocks * lanes), (start, outputs * channels))
            with code.loop(each.index, 1):
                of_input.fill(source, INT(0), images, pixels)
                of_other.fill(gradient, INT(0), images, outputs)
            xs, gs = of_input.block(source, each.index), of_other.block(gradient, each.index)
            with code.loop(*share) as r:
                first_output, count, first_row = inside(r.index)
                for piece in pieces(columns.taps, room):
                    with code.loop(0, images, [code.zero] * len(piece)) as image:
                        inputs = code.step(xs, (image.index, pixels * pixel), (first_row, row))
                        weights = code.step(gs, (image.index, outputs * place), (first_output, output_row))
                        with code.loop(0, count, image.sums) as y:
                            here = code.step(inputs, (y.index, rows.stride * row))
                            there = code.step(weights, (y.index, output_row))
                            # Small images' copies are short, and asking for what is there already costs as much.
                            if lanes < LINE and many <= 2:
                                with code.loop(0, code.smaller(following, INT(1))):
                                    read = code.at.add(first_row, code.at.mul(y.index, INT(rows.stride)))
                                    this = code.step(source, (image.index, pixels * channels))
                                    of_input.ahead(this, (read, columns.inputs), (r.index, rows.taps))
                                    read = code.at.add(first_output, y.index)
                                    this = code.step(gradient, (image.index, outputs * channels))
                                    of_other.ahead(this, (read, columns.outputs), (r.index, rows.taps))
                            _multiply_by_gradient(code, y, (here, pixel), (there, place), tiles(columns, width), piece)
                        image.sums = y.sums
                    for s, value in zip(piece, image.sums, strict=True):
                        _add(code, code.step(result, (r.index, columns.taps * lanes), (s, lanes)), value, g.index)
            # The first part's alone: what it adds between another's load and store, of zeros, would be lost.
            with code.loop(part, 1):
                with code.loop(0, images, [code.zero] * ADDERS) as image:
                    _sum_pixels(code, image, code.step(gs, (image.index, outputs * place)), place, outputs)
                _add(code, code.step(code.argument("bias"), (block, lanes)), reduce(code.add, image.sums), g.index)
    return code.done()


def _multiply_by_gradient(
    code: Writer,
    row: Loop,
    inputs: tuple[ir.Value, int],
    weights: tuple[ir.Value, int],
    runs: Sequence[Tiles],
    piece: range,
) -> None:
    """sums[s] += inputs[x] * weights[t] along a row of pixels, for the taps s of a piece.

    inputs and weights: where the first is, and how many floats lie from one pixel to the next.
    """
    pixel, place = inputs[1], weights[1]
    for run in runs:
        reads = _with_taps(run.reads, piece)
        used = {t for pairs in reads.values() for t, _ in pairs}
        with code.loop(0, run.repeats, row.sums) as n:
            here = code.step(inputs[0], (n.index, run.shift * pixel))
            there = code.step(weights[0], (n.index, run.width * place))
            factors = {t: code.load(code.step(there, (run.start + t, place))) for t in sorted(used)}
            for x, pairs in reads.items():
                value = code.load(code.step(here, (x, pixel)))
                for t, s in pairs:
                    n.sums[s - piece.start] = code.fma(value, factors[t], n.sums[s - piece.start])
        row.sums = n.sums


def _sum_pixels(code: Writer, image: Loop, weights: ir.Value, pixel: int, count: int) -> None:
    """Sum all pixels of an image, several in turn: an addition waits for the one before it."""
    with code.loop(0, count // ADDERS, image.sums) as n:
        for i in range(ADDERS):
            place = code.step(weights, (n.index, ADDERS * pixel), (i, pixel))
            n.sums[i] = code.add(n.sums[i], code.load(place))
    image.sums = n.sums
    for i in range(count % ADDERS):
        image.sums[i] = code.add(image.sums[i], code.load(code.step(weights, (count - 1 - i, pixel))))


def _add(code: Writer, place: ir.Value, value: ir.Value, turn: ir.Value) -> None:
    """Add value to what is there; in turn 0 nothing is."""
    before = code.at.select(code.at.icmp_signed("==", turn, INT(0)), code.zero, code.load(place))
    code.store(code.add(before, value), place)
