"""Eight float32 values that move as one: explicit SIMD for Numba kernels.

`Lanes` is an LLVM `<8 x float>`, `Mask` an `<8 x i1>`; LLVM turns them into AVX, two SSE or two NEON
registers. Kernels written with them do not depend on what the auto-vectoriser recognises. Ordinary
operators work between lanes and with scalars, which are repeated. Arrays are one-dimensional float32
and indices count elements; nothing is bounds-checked.
"""

# Numba's own functions carry no types.
# mypy: disable-error-code="no-untyped-call,untyped-decorator"
from __future__ import annotations

import operator
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.typing.templates import ConcreteTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

WIDTH = 8
operation: Any = intrinsic  # Numba types what these functions take and give, not mypy
_FLOAT = ir.FloatType()
_INT = ir.IntType(32)
_VECTOR = ir.VectorType(_FLOAT, WIDTH)
_INTS = ir.VectorType(_INT, WIDTH)
_BITS = ir.VectorType(ir.IntType(1), WIDTH)
_CONTRACT = ("contract",)  # lets a product and a sum become one fused multiply-add


class LanesType(types.Type):
    """Numba type of eight float32."""

    def __init__(self) -> None:
        super().__init__(name="Lanes")


class MaskType(types.Type):
    """Numba type of eight booleans."""

    def __init__(self) -> None:
        super().__init__(name="LanesMask")


Lanes = LanesType()
Mask = MaskType()


@register_model(LanesType)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, fe_type: Any) -> None:
        super().__init__(manager, fe_type, _VECTOR)


@register_model(MaskType)
class _MaskModel(models.PrimitiveModel):
    def __init__(self, manager: Any, fe_type: Any) -> None:
        super().__init__(manager, fe_type, _BITS)


_SCALARS = (types.float32, types.float64, types.int64)


def _constant(value: float) -> ir.Constant:
    return ir.Constant(_VECTOR, [float(value)] * WIDTH)


def _order(lanes: list[int]) -> ir.Constant:
    return ir.Constant(_INTS, lanes)


def _repeat(builder: ir.IRBuilder, scalar: ir.Value) -> ir.Value:
    one = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), scalar, ir.Constant(_INT, 0))
    return builder.shuffle_vector(one, ir.Constant(_VECTOR, ir.Undefined), _order([0] * WIDTH))


def _as_lanes(context: Any, builder: ir.IRBuilder, kind: types.Type, value: ir.Value) -> ir.Value:
    if isinstance(kind, LanesType):
        return value
    return _repeat(builder, context.cast(builder, value, kind, types.float32))


def _pairs() -> list[tuple[types.Type, types.Type]]:
    return [(Lanes, Lanes)] + [(Lanes, s) for s in _SCALARS] + [(s, Lanes) for s in _SCALARS]


def _define_arithmetic(python_operator: Any, instruction: str) -> None:
    def lower(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        left, right = (_as_lanes(context, builder, kind, value) for kind, value in zip(sig.args, args, strict=True))
        return getattr(builder, instruction)(left, right, flags=_CONTRACT)

    @infer_global(python_operator)
    class _Template(ConcreteTemplate):
        cases = [signature(Lanes, *pair) for pair in _pairs()]

    for pair in _pairs():
        lower_builtin(python_operator, *pair)(lower)


def _define_comparison(python_operator: Any, predicate: str) -> None:
    def lower(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        left, right = (_as_lanes(context, builder, kind, value) for kind, value in zip(sig.args, args, strict=True))
        return builder.fcmp_ordered(predicate, left, right)  # false when either side is NaN

    @infer_global(python_operator)
    class _Template(ConcreteTemplate):
        cases = [signature(Mask, *pair) for pair in _pairs()]

    for pair in _pairs():
        lower_builtin(python_operator, *pair)(lower)


for _operator, _instruction in (
    (operator.add, "fadd"),
    (operator.sub, "fsub"),
    (operator.mul, "fmul"),
    (operator.truediv, "fdiv"),
):
    _define_arithmetic(_operator, _instruction)
for _operator, _predicate in ((operator.lt, "<"), (operator.le, "<="), (operator.gt, ">"), (operator.ge, ">=")):
    _define_comparison(_operator, _predicate)


@infer_global(operator.and_)
class _AndTemplate(ConcreteTemplate):
    cases = [signature(Mask, Mask, Mask)]


@lower_builtin(operator.and_, Mask, Mask)
def _lower_and(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
    return builder.and_(*args)


@infer_global(operator.neg)
class _NegTemplate(ConcreteTemplate):
    cases = [signature(Lanes, Lanes)]


@lower_builtin(operator.neg, Lanes)
def _lower_neg(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
    return builder.fneg(args[0])


def _pointer(context: Any, builder: ir.IRBuilder, kind: types.Array, array: ir.Value, index: ir.Value) -> ir.Value:
    data = context.make_array(kind)(context, builder, array).data
    return builder.gep(data, [index])


def _is_row(array: types.Type) -> bool:
    return isinstance(array, types.Array) and array.ndim == 1 and array.layout == "C" and array.dtype == types.float32


@operation
def load(typingctx: Any, array: Any, index: Any) -> Any:
    """`load(array, i)`: elements i to i + 7."""
    if not _is_row(array):
        return None

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        pointer = _pointer(context, builder, sig.args[0], args[0], args[1])
        return builder.load(builder.bitcast(pointer, _VECTOR.as_pointer()), align=4)

    return signature(Lanes, array, types.int64), codegen


@operation
def store(typingctx: Any, array: Any, index: Any, value: Any) -> Any:
    """`store(array, i, lanes)`: write elements i to i + 7."""
    if not _is_row(array):
        return None

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        pointer = _pointer(context, builder, sig.args[0], args[0], args[1])
        builder.store(args[2], builder.bitcast(pointer, _VECTOR.as_pointer()), align=4)
        return context.get_dummy_value()

    return signature(types.none, array, types.int64, Lanes), codegen


@operation
def peek(typingctx: Any, array: Any, index: Any) -> Any:
    """`array[i]` without the test for a negative index."""
    if not _is_row(array):
        return None

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        return builder.load(_pointer(context, builder, sig.args[0], args[0], args[1]))

    return signature(types.float32, array, types.int64), codegen


@operation
def poke(typingctx: Any, array: Any, index: Any, value: Any) -> Any:
    """`array[i] = value` without the test for a negative index."""
    if not _is_row(array):
        return None

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        builder.store(args[2], _pointer(context, builder, sig.args[0], args[0], args[1]))
        return context.get_dummy_value()

    return signature(types.none, array, types.int64, types.float32), codegen


@operation
def prefetch(typingctx: Any, array: Any, index: Any) -> Any:
    """Begin to load the cache line of `array[i]`; any index is harmless."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        byte = ir.IntType(8).as_pointer()
        pointer = builder.bitcast(_pointer(context, builder, sig.args[0], args[0], args[1]), byte)
        flags = [_INT] * 3
        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(ir.VoidType(), [byte, *flags]), "llvm.prefetch.p0"
        )
        builder.call(function, [pointer, *(ir.Constant(_INT, v) for v in (0, 3, 1))])  # read, keep, data
        return context.get_dummy_value()

    return signature(types.none, array, types.int64), codegen


@operation
def gather(typingctx: Any, array: Any, row: Any, last: Any, stride: Any, column: Any) -> Any:
    """`gather(array, row, last, stride, column)`: array[min(row + k, last) * stride + column] for lane k."""
    if not _is_row(array):
        return None

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        array_value, row_value, last_value, stride_value, column_value = args
        lanes = ir.Constant(_VECTOR, ir.Undefined)
        for lane in range(WIDTH):
            index = builder.add(row_value, ir.Constant(row_value.type, lane))
            index = builder.select(builder.icmp_signed("<", index, last_value), index, last_value)
            index = builder.add(builder.mul(index, stride_value), column_value)
            element = builder.load(_pointer(context, builder, sig.args[0], array_value, index))
            lanes = builder.insert_element(lanes, element, ir.Constant(_INT, lane))
        return lanes

    return signature(Lanes, array, types.int64, types.int64, types.int64, types.int64), codegen


@operation
def splat(typingctx: Any, value: Any) -> Any:
    """The scalar in every lane."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        return _as_lanes(context, builder, sig.args[0], args[0])

    return signature(Lanes, value), codegen


@operation
def ramp(typingctx: Any) -> Any:
    """0, 1, ... 7."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        return ir.Constant(_VECTOR, [float(lane) for lane in range(WIDTH)])

    return signature(Lanes), codegen


@operation
def select(typingctx: Any, mask: Any, yes: Any, no: Any) -> Any:
    """`yes` where the mask is set, else `no`."""
    if mask != Mask:
        return None

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        values = [_as_lanes(context, builder, k, v) for k, v in zip(sig.args[1:], args[1:], strict=True)]
        return builder.select(args[0], *values)

    return signature(Lanes, mask, yes, no), codegen


def _extremum(predicate: str) -> Any:
    def typed(typingctx: Any, left: Any, right: Any) -> Any:
        def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
            a, b = (_as_lanes(context, builder, k, v) for k, v in zip(sig.args, args, strict=True))
            return builder.select(builder.fcmp_ordered(predicate, a, b), a, b)

        return signature(Lanes, left, right), codegen

    return typed


smaller = operation(_extremum("<"))
larger = operation(_extremum(">"))


@operation
def square_root(typingctx: Any, value: Any) -> Any:
    """Square root of every lane."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(_VECTOR, [_VECTOR]), "llvm.sqrt.v8f32"
        )
        return builder.call(function, args)

    return signature(Lanes, value), codegen


@operation
def any_lane(typingctx: Any, mask: Any) -> Any:
    """True when at least one lane of the mask is set."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        bits = builder.bitcast(args[0], ir.IntType(WIDTH))
        return builder.icmp_unsigned("!=", bits, ir.Constant(bits.type, 0))

    return signature(types.boolean, mask), codegen


@operation
def mask_bits(typingctx: Any, mask: Any) -> Any:
    """The mask as an integer, lane 0 in the lowest bit."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        return builder.zext(builder.bitcast(args[0], ir.IntType(WIDTH)), ir.IntType(64))

    return signature(types.int64, mask), codegen


_EXP2 = (1.000000072, 0.6931469671, 0.2402211972, 0.05550713276, 0.00967554154, 0.001327647174)


def _multiply_add(builder: ir.IRBuilder, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
    return builder.fadd(builder.fmul(a, b, flags=_CONTRACT), c, flags=_CONTRACT)


@operation
def exp2(typingctx: Any, value: Any) -> Any:
    """2 to the power of every lane, for exponents up to 127; relative error below 3e-7.

    The exponent is split into the nearest integer, which goes into the exponent bits, and a remainder in
    [-0.5, 0.5], for which a polynomial of degree 5 (minimax in relative error) suffices.
    """

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        low = _constant(-126.0)
        exponent = builder.select(builder.fcmp_ordered(">", args[0], low), args[0], low)
        magic = _constant(12582912.0)  # 1.5 * 2^23: adding it leaves the nearest integer in the low bits
        shifted = builder.fadd(exponent, magic)
        rest = builder.fsub(exponent, builder.fsub(shifted, magic))
        # pairs of coefficients, so that the products do not wait for each other (Estrin's scheme)
        square = builder.fmul(rest, rest)
        result = None
        for low_term, high_term in reversed(list(zip(_EXP2[::2], _EXP2[1::2], strict=True))):
            pair = _multiply_add(builder, _constant(high_term), rest, _constant(low_term))
            result = pair if result is None else _multiply_add(builder, result, square, pair)
        power = builder.shl(builder.bitcast(shifted, _INTS), _order([23] * WIDTH))
        return builder.bitcast(builder.add(builder.bitcast(result, _INTS), power), _VECTOR)

    return signature(Lanes, Lanes), codegen


def _add_pairs(builder: ir.IRBuilder, a: ir.Value, b: ir.Value, even: list[int], odd: list[int]) -> ir.Value:
    return builder.fadd(builder.shuffle_vector(a, b, _order(even)), builder.shuffle_vector(a, b, _order(odd)))


@operation
def sums(typingctx: Any, a: Any, b: Any, c: Any, d: Any, e: Any, f: Any, g: Any, h: Any) -> Any:
    """Lane k of the result is the sum over the lanes of the k-th argument."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        stages = (
            ([0, 8, 2, 10, 4, 12, 6, 14], [1, 9, 3, 11, 5, 13, 7, 15]),
            ([0, 1, 8, 9, 4, 5, 12, 13], [2, 3, 10, 11, 6, 7, 14, 15]),
            ([0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 6, 7, 12, 13, 14, 15]),
        )
        values = list(args)
        for even, odd in stages:
            pairs = zip(values[::2], values[1::2], strict=True)
            values = [_add_pairs(builder, left, right, even, odd) for left, right in pairs]
        return values[0]

    return signature(Lanes, *[Lanes] * WIDTH), codegen


@operation
def total(typingctx: Any, value: Any) -> Any:
    """Sum over the lanes."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        value = args[0]
        for step in (4, 2, 1):
            moved = builder.shuffle_vector(value, value, _order([(lane + step) % WIDTH for lane in range(WIDTH)]))
            value = builder.fadd(value, moved)
        return builder.extract_element(value, ir.Constant(_INT, 0))

    return signature(types.float32, value), codegen
