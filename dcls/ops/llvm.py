"""Loops over vectors of float32 as LLVM IR, written from Python and compiled in this process.

Writer emits a function piece by piece; its `with` blocks read like the loops they emit:

    code = Writer("sum", machine.lanes, numbers=("length",), pointers=("values", "result"))
    with code.loop(0, code.argument("length"), [code.zero]) as loop:
        loop.sums = [code.add(loop.sums[0], code.load(code.step(code.argument("values"), (loop.index, code.lanes))))]
    code.store(loop.sums[0], code.argument("result"))
    code.done()
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from llvmlite import binding, ir

INT, FLOAT, POINTER = ir.IntType(64), ir.FloatType(), ir.PointerType()
# Of the register mxcsr: denormal results are zeros, and so are denormal operands.
FLUSH = 0x8000 | 0x0040


class Machine(NamedTuple):
    """What code is written for: LLVM's names, the float32 numbers in a vector, and the vector registers."""

    cpu: str
    features: str
    lanes: int
    registers: int


def this_machine() -> Machine | str:
    """The processor under this process, or why there is no code for it."""
    features, cpu = binding.get_host_cpu_features(), binding.get_host_cpu_name()
    if features.get("avx512f") and features.get("avx512vl"):
        return Machine(cpu, features.flatten(), 16, 32)
    if features.get("avx2") and features.get("fma"):
        return Machine(cpu, features.flatten(), 8, 16)
    return f"the processor {cpu} has neither AVX-512 nor AVX2"


class Loop:
    """A loop being written: its index, and sums, the values that go from one round to the next."""

    def __init__(self, index: ir.Value, sums: Sequence[ir.Value]) -> None:
        self.index = index
        self.sums = list(sums)


class Writer:
    """A function of one pointer, to an array of 64-bit numbers and then pointers, under construction."""

    def __init__(self, name: str, lanes: int, numbers: Sequence[str], pointers: Sequence[str]) -> None:
        self.lanes, self.name = lanes, name
        self.vector = ir.VectorType(FLOAT, lanes)
        self.zero = ir.Constant(self.vector, [0.0] * lanes)
        self.module = ir.Module(name)
        function = ir.Function(self.module, ir.FunctionType(ir.VoidType(), [POINTER]), name)
        self.at = ir.IRBuilder(function.append_basic_block())
        self.array = function.args[0]
        self.kinds = {each: (place, INT) for place, each in enumerate(numbers)}
        self.kinds |= {each: (place, POINTER) for place, each in enumerate(pointers, len(numbers))}
        self._fma = ir.Function(self.module, ir.FunctionType(self.vector, [self.vector] * 3), f"llvm.fma.v{lanes}f32")
        words = [ir.IntType(32)] * 3
        self._prefetch = ir.Function(self.module, ir.FunctionType(ir.VoidType(), [POINTER, *words]), "llvm.prefetch.p0")
        modes = ir.FunctionType(ir.VoidType(), [POINTER])
        self._get_modes, self._set_modes = (
            ir.Function(self.module, modes, f"llvm.x86.sse.{name}mxcsr") for name in ("st", "ld")
        )
        self._before = self._without_denormals()

    def _without_denormals(self) -> ir.Value:
        """Let this thread take numbers below 1.2e-38 for 0, and return where it is written what it did before.

        Products of small gradients and the tails of a Gaussian are such numbers, and processors take many times as long
        over them.
        """
        word = ir.IntType(32)
        before, now = self.at.alloca(word), self.at.alloca(word)
        self.at.call(self._get_modes, [before])
        self.at.store(self.at.or_(self.at.load(before, typ=word), word(FLUSH)), now)
        self.at.call(self._set_modes, [now])
        return before

    def argument(self, name: str) -> ir.Value:
        place, kind = self.kinds[name]
        return self.at.load(self.at.gep(self.array, [INT(place)], source_etype=INT), typ=kind)

    def step(self, pointer: ir.Value, *steps: tuple[ir.Value | int, int]) -> ir.Value:
        """The address index * stride floats further, for each (index, stride)."""
        for index, stride in steps:
            offset = INT(index * stride) if isinstance(index, int) else self.at.mul(index, INT(stride))
            pointer = self.at.gep(pointer, [offset], source_etype=FLOAT)
        return pointer

    def load(self, pointer: ir.Value) -> ir.Value:
        return self.at.load(pointer, align=4, typ=self.vector)

    def store(self, value: ir.Value, pointer: ir.Value) -> None:
        self.at.store(value, pointer, align=4)

    def ahead(self, pointer: ir.Value, write: bool = False) -> None:
        """Let the cache line at an address, which may be any, come from memory: it is going to be used, or written."""
        word = ir.IntType(32)
        self.at.call(self._prefetch, [pointer, word(int(write)), word(3 if write else 1), word(1)])

    def forget(self) -> None:
        """What is loaded from here on is loaded anew, not kept from before: a register less for each."""
        nothing = ir.InlineAsm(ir.FunctionType(ir.VoidType(), []), "", "~{memory}", side_effect=True)
        self.at.call(nothing, [])

    def number(self, value: float) -> ir.Value:
        """A vector of equal numbers."""
        return ir.Constant(self.vector, [value] * self.lanes)

    def memory(self, vectors: int) -> ir.Value:
        """Room for so many vectors on the stack; asked for before the first loop."""
        place = self.at.alloca(self.vector, size=vectors)
        place.align = 4 * self.lanes
        return place

    def gather(self, pointer: ir.Value, stride: int) -> ir.Value:
        """A vector of numbers that lie `stride` apart."""
        if stride == 1:
            return self.load(pointer)
        vector = ir.Constant(self.vector, ir.Undefined)
        for lane in range(self.lanes):
            number = self.at.load(self.step(pointer, (lane, stride)), typ=FLOAT)
            vector = self.at.insert_element(vector, number, ir.IntType(32)(lane))
        return vector

    def scatter(self, value: ir.Value, pointer: ir.Value, stride: int) -> None:
        """The reverse of gather."""
        if stride == 1:
            self.store(value, pointer)
            return
        for lane in range(self.lanes):
            self.at.store(self.at.extract_element(value, ir.IntType(32)(lane)), self.step(pointer, (lane, stride)))

    def add(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.at.fadd(a, b)

    def subtract(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.at.fsub(a, b)

    def multiply(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.at.fmul(a, b)

    def divide(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.at.fdiv(a, b)

    def where(self, a: ir.Value, sign: str, b: ir.Value, this: ir.Value, other: ir.Value) -> ir.Value:
        """`this` in the lanes where a < b (or whichever sign), `other` elsewhere and where one is no number."""
        return self.at.select(self.at.fcmp_ordered(sign, a, b), this, other)

    def fma(self, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
        """a * b + c, rounded once."""
        return self.at.call(self._fma, [a, b, c])

    def split(self, number: ir.Value, size: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Quotient and rest."""
        return self.at.udiv(number, size), self.at.urem(number, size)

    def smaller(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.at.select(self.at.icmp_signed("<", a, b), a, b)

    def larger(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.at.select(self.at.icmp_signed("<", a, b), b, a)

    def table(self, rows: Sequence[tuple[int, ...]]) -> Callable[[ir.Value], list[ir.Value]]:
        """Constants in memory: a function from the index of a row to its entries."""
        width, flat = len(rows[0]), [number for row in rows for number in row]
        constant = ir.GlobalVariable(self.module, ir.ArrayType(INT, len(flat)), self.module.get_unique_name("table"))
        constant.global_constant, constant.linkage = True, "internal"
        constant.initializer = ir.Constant(constant.value_type, flat)

        def entries(row: ir.Value) -> list[ir.Value]:
            places = (self.at.add(self.at.mul(row, INT(width)), INT(column)) for column in range(width))
            return [self.at.load(self.at.gep(constant, [each], source_etype=INT), typ=INT) for each in places]

        return entries

    @contextmanager
    def loop(self, begin: ir.Value | int, end: ir.Value | int, sums: Sequence[ir.Value] = ()) -> Iterator[Loop]:
        """for index in range(begin, end). Values assigned to loop.sums are there in the next round and afterwards."""
        begin, end = (INT(each) if isinstance(each, int) else each for each in (begin, end))
        before = self.at.block
        head, inside, after = (self.at.append_basic_block(name) for name in ("head", "inside", "after"))
        self.at.branch(head)
        self.at.position_at_end(head)
        index, *carried = [self.at.phi(value.type) for value in (begin, *sums)]
        self.at.cbranch(self.at.icmp_signed("<", index, end), inside, after)
        self.at.position_at_end(inside)
        loop = Loop(index, carried)
        yield loop
        nexts = (self.at.add(index, INT(1)), *loop.sums)
        for phi, first, following in zip((index, *carried), (begin, *sums), nexts, strict=True):
            phi.add_incoming(first, before)
            phi.add_incoming(following, self.at.block)
        self.at.branch(head)
        self.at.position_at_end(after)
        loop.sums = carried

    @contextmanager
    def tasks(self, counter: str, total: str, at_once: str = "") -> Iterator[ir.Value]:
        """Numbers below the argument `total`, each taken once by one of the threads that run this function at once.

        The argument `counter` is the next number that none has taken; as many as the argument `at_once` says, or one,
        are taken together.
        """
        end, place = self.argument(total), self.kinds[counter][0]
        many = self.argument(at_once) if at_once else INT(1)
        shared = self.at.gep(self.array, [INT(place)], source_etype=INT)
        take, work, after = (self.at.append_basic_block(name) for name in ("take", "work", "after"))
        self.at.branch(take)
        self.at.position_at_end(take)
        first = self.at.atomic_rmw("add", shared, many, "monotonic")
        self.at.cbranch(self.at.icmp_signed("<", first, end), work, after)
        self.at.position_at_end(work)
        with self.loop(first, self.smaller(self.at.add(first, many), end)) as task:
            yield task.index
        self.at.branch(take)
        self.at.position_at_end(after)

    def done(self) -> ir.Module:
        self.at.call(self._set_modes, [self._before])
        self.at.ret_void()
        return self.module


class Compiled(NamedTuple):
    """Machine code: its address, and what must live as long as it."""

    address: int
    engine: Any


def compiled(machine: Machine, module: ir.Module) -> Compiled:
    """The function that has the module's name, as machine code of this process."""
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    target = binding.Target.from_default_triple()
    generator = target.create_target_machine(cpu=machine.cpu, features=machine.features, opt=3, jit=True)
    engine = binding.create_mcjit_compiler(binding.parse_assembly(str(module)), generator)
    engine.finalize_object()
    return Compiled(engine.get_function_address(module.name), engine)
