"""The closed list of operators in terms of ONNX's.

One small function per operator emits ONNX nodes and returns the name of the value they make. Shapes are
fixed, so what ONNX would compute at run time (the pads of a pooling that rounds up, the windows of an
adaptive one) is a constant here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from edge_agent.runtimes import Array, onnx_quantised
from edge_agent.runtimes.onnx_proto import TYPES
from edge_agent.runtimes.onnx_writer import Writer

_Convert: TypeAlias = Callable[[Writer], str]


def convert_node(writer: Writer) -> str:
    """Emit what computes the writer's node; returns the name of its value.

    Raises:
        StageError: ONNX has no exact counterpart.
    """
    return _TABLE[writer.node.op](writer)


def supported() -> frozenset[str]:
    """The operators converted here; a test holds them equal to `shared.operators.OPS`."""
    return frozenset(_TABLE)


def _unary(op: str, **attributes: str) -> _Convert:
    """An operator of one tensor; `attributes` are ONNX's names and ours."""

    def make(w: Writer) -> str:
        return w.emit(
            op, w.operand(), **{theirs: w.attribute(ours) for theirs, ours in attributes.items()}
        )

    return make


def _binary(op: str) -> _Convert:
    def make(w: Writer) -> str:
        x, y = w.cast(w.operand(), w.spec()), w.cast(w.operand(1), w.spec(1))
        alpha = w.node.kwargs.get("alpha", 1.0)
        if alpha != 1.0:
            y = w.emit("Mul", y, w.constant(alpha, w.node.spec.dtype))
        return w.emit(op, x, y)

    return make


def _compare(op: str) -> _Convert:
    """Operands alike in dtype; the result is of booleans."""

    def make(w: Writer) -> str:
        dtype = str(np.result_type(w.spec().dtype, w.spec(1).dtype))
        x, y = (w.cast(w.operand(i), w.spec(i), dtype) for i in range(2))
        return w.emit(op, x, y)

    return make


def _where(w: Writer) -> str:
    x, y = (w.cast(w.operand(i), w.spec(i)) for i in (1, 2))
    return w.emit("Where", w.operand(), x, y)


def _cast(w: Writer) -> str:
    return w.emit("Cast", w.operand(), to=TYPES[w.attribute("dtype")])


def _take(w: Writer) -> str:
    return w.emit("Gather", w.operand(), w.operand(1), axis=w.attribute("dim"))


def _scalar(op: str) -> _Convert:
    def make(w: Writer) -> str:
        value = w.constant(w.attribute("value"), w.node.spec.dtype)
        return w.emit(op, w.cast(w.operand(), w.spec()), value)

    return make


def _conv2d(w: Writer) -> str:
    bias = w.optional(2)
    return w.emit(
        "Conv",
        w.operand(),
        w.operand(1),
        *(() if bias is None else (bias,)),
        strides=w.attribute("stride"),
        pads=w.attribute("padding") * 2,
        dilations=w.attribute("dilation"),
        group=w.attribute("groups"),
    )


def _linear(w: Writer) -> str:
    x, weight, bias = w.operand(), w.operand(1), w.optional(2)
    if len(w.spec().shape) == len(w.spec(1).shape) == 2:
        return w.emit("Gemm", x, weight, *(() if bias is None else (bias,)), transB=1)
    # Of a weight: turned once, when the session is made.
    product = w.emit("MatMul", x, w.emit("Transpose", weight))
    return product if bias is None else w.emit("Add", product, bias)


def _einsum(w: Writer) -> str:
    values = [w.cast(value, spec) for value, spec in w.several()]
    return w.emit("Einsum", *values, equation=w.attribute("equation"))


def _attention(w: Writer) -> str:
    """softmax(query key^T * scale + mask) value, over the last two axes."""
    dtype, query, key = w.node.spec.dtype, w.spec(), w.spec(1)
    scale = w.attribute("scale")
    if scale is None:
        scale = 1 / math.sqrt(query.shape[-1])
    axes = list(range(len(key.shape)))
    axes[-2:] = axes[-1], axes[-2]
    scaled = w.emit("Mul", w.operand(), w.constant(scale, dtype))
    logits = w.emit("MatMul", scaled, w.emit("Transpose", w.operand(1), perm=axes))
    mask = w.optional(3)
    if w.attribute("is_causal"):
        seen = np.tri(query.shape[-2], key.shape[-2], dtype=bool)
        logits = w.emit("Add", logits, w.constant(np.where(seen, 0.0, -np.inf), dtype))
    if mask is not None:
        if w.spec(3).dtype == "bool":
            zero, never = w.constant(0.0, dtype), w.constant(-np.inf, dtype)
            mask = w.emit("Where", mask, zero, never)
        logits = w.emit("Add", logits, mask)
    return w.emit("MatMul", w.emit("Softmax", logits, axis=-1), w.operand(2))


def _batch_norm(w: Writer) -> str:
    spec = w.spec(3)
    weight, bias = w.optional(1), w.optional(2)
    return w.emit(
        "BatchNormalization",
        w.operand(),
        w.constant(np.ones(spec.shape), spec.dtype) if weight is None else weight,
        w.constant(np.zeros(spec.shape), spec.dtype) if bias is None else bias,
        w.operand(3),
        w.operand(4),
        epsilon=w.attribute("eps"),
    )


def _layer_norm(w: Writer) -> str:
    shape = w.attribute("normalized_shape")
    weight, bias = w.optional(1), w.optional(2)
    return w.emit(
        "LayerNormalization",
        w.operand(),
        w.constant(np.ones(shape), w.spec().dtype) if weight is None else weight,
        *(() if bias is None else (bias,)),
        axis=-len(shape),
        epsilon=w.attribute("eps"),
    )


def _group_norm(w: Writer) -> str:
    """A group is an instance of one channel that is as large as the group."""
    spec, groups = w.spec(), w.attribute("groups")
    x = w.reshape(w.operand(), (0, groups, -1))
    ones = w.constant(np.ones(groups), spec.dtype)
    zeros = w.constant(np.zeros(groups), spec.dtype)
    x = w.emit("InstanceNormalization", x, ones, zeros, epsilon=w.attribute("eps"))
    x = w.reshape(x, (0, *spec.shape[1:]))
    per_channel = (-1,) + (1,) * (len(spec.shape) - 2)
    for op, affine in (("Mul", w.optional(1)), ("Add", w.optional(2))):
        if affine is not None:
            x = w.emit(op, x, w.reshape(affine, per_channel))
    return x


def _clip(w: Writer) -> str:
    dtype = w.spec().dtype
    bounds = [w.attribute(name) for name in ("min", "max")]
    return w.emit("Clip", w.operand(), *("" if b is None else w.constant(b, dtype) for b in bounds))


def _silu(w: Writer) -> str:
    return w.emit("Mul", w.operand(), w.emit("Sigmoid", w.operand()))


def _hardsigmoid(w: Writer) -> str:
    return w.emit("HardSigmoid", w.operand(), alpha=1 / 6, beta=0.5)


def _gelu(w: Writer) -> str:
    approximate = w.attribute("approximate")
    if approximate not in ("none", "tanh"):
        raise w.refuse("approximation", "none | tanh", approximate)
    return w.emit("Gelu", w.operand(), approximate=approximate)


def _rsqrt(w: Writer) -> str:
    return w.emit("Reciprocal", w.emit("Sqrt", w.operand()))


def _window_ends(w: Writer, dilation: tuple[int, int]) -> tuple[int, ...]:
    """The padding behind each axis with which windows give the declared result, rounding down.

    torch rounds up where it is told to, but lets no window begin in the padding, which ONNX's releases do
    not agree on.
    """
    ends = []
    for axis in range(2):
        kernel, stride, padding = (w.attribute(n)[axis] for n in ("kernel", "stride", "padding"))
        size, count = w.spec().shape[axis - 2], w.node.spec.shape[axis - 2]
        needed = (count - 1) * stride + dilation[axis] * (kernel - 1) + 1
        ends.append(max(padding, needed - size - padding))
    return tuple(ends)


def _max_pool2d(w: Writer) -> str:
    dilation = w.attribute("dilation")
    return w.emit(
        "MaxPool",
        w.operand(),
        kernel_shape=w.attribute("kernel"),
        strides=w.attribute("stride"),
        pads=w.attribute("padding") + _window_ends(w, dilation),
        dilations=dilation,
    )


def _avg_pool2d(w: Writer) -> str:
    padding, ends = w.attribute("padding"), _window_ends(w, (1, 1))
    windows: dict[str, Any] = {
        "kernel_shape": w.attribute("kernel"),
        "strides": w.attribute("stride"),
    }
    if ends == padding and w.attribute("divisor") is None:
        return w.emit(
            "AveragePool",
            w.operand(),
            pads=padding * 2,
            count_include_pad=int(w.attribute("count_include_pad")),
            **windows,
        )
    # The mean over whole windows of what is padded by hand, brought to torch's divisors.
    dtype = w.spec().dtype
    around = (0, 0, *padding, 0, 0, *ends)
    padded = w.emit("Pad", w.operand(), w.constant(around), w.constant(0.0, dtype))
    means = w.emit("AveragePool", padded, **windows)
    return w.emit("Mul", means, w.constant(math.prod(w.attribute("kernel")) / _divisors(w), dtype))


def _divisors(w: Writer) -> Array:
    """How many elements torch divides each window's sum by: [height, width] of the result."""
    if w.attribute("divisor") is not None:
        return np.full(w.node.spec.shape[-2:], float(w.attribute("divisor")))
    counts = []
    for axis in range(2):
        kernel, stride, padding = (w.attribute(n)[axis] for n in ("kernel", "stride", "padding"))
        size = w.spec().shape[axis - 2]
        starts = np.arange(w.node.spec.shape[axis - 2]) * stride - padding
        stops = np.minimum(starts + kernel, size + padding)
        if not w.attribute("count_include_pad"):
            starts, stops = np.maximum(starts, 0), np.minimum(stops, size)
        counts.append(stops - starts)
    return np.outer(*counts).astype(np.float64)


def _adaptive_avg_pool2d(w: Writer) -> str:
    sizes, counts = w.spec().shape[-2:], w.node.spec.shape[-2:]
    if len(w.spec().shape) == 4 and counts == (1, 1):
        return w.emit("GlobalAveragePool", w.operand())
    if len(w.spec().shape) == 4 and all(s % c == 0 for s, c in zip(sizes, counts, strict=True)):
        steps = [s // c for s, c in zip(sizes, counts, strict=True)]
        return w.emit("AveragePool", w.operand(), kernel_shape=steps, strides=steps)
    # Windows of unlike sizes: a matrix of weights for each axis.
    dtype = w.spec().dtype
    rows, columns = (_windows(size, count) for size, count in zip(sizes, counts, strict=True))
    x = w.emit("MatMul", w.constant(rows, dtype), w.operand())
    return w.emit("MatMul", x, w.constant(columns.T, dtype))


def _windows(size: int, count: int) -> Array:
    """[count, size]: what each input weighs in each output of torch's adaptive average."""
    weights = np.zeros((count, size))
    for index in range(count):
        start, stop = index * size // count, -(-(index + 1) * size // count)
        weights[index, start:stop] = 1 / (stop - start)
    return weights


def _reduced(w: Writer, op: str, x: str) -> str:
    axes = w.constant(w.attribute("dims"))
    return w.emit(op, x, axes, keepdims=int(w.attribute("keepdim")))


def _reduce(op: str) -> _Convert:
    return lambda w: _reduced(w, op, w.operand())


def _mean(w: Writer) -> str:
    spec = w.spec()
    if len(spec.shape) == 4 and {dim % 4 for dim in w.attribute("dims")} == {2, 3}:
        # The same, in whatever layout the runtime has its images in.
        x = w.emit("GlobalAveragePool", w.operand())
        return x if w.attribute("keepdim") else w.reshape(x, (0, 0))
    return _reduced(w, "ReduceMean", w.operand())


def _vector_norm(w: Writer) -> str:
    order, dtype = w.attribute("ord"), w.node.spec.dtype
    match order:
        case 2:
            return _reduced(w, "ReduceL2", w.operand())
        case 1:
            return _reduced(w, "ReduceL1", w.operand())
        case 0:
            raise w.refuse("ord", "another than 0", order)
    powers = w.emit("Pow", w.emit("Abs", w.operand()), w.constant(order, dtype))
    return w.emit("Pow", _reduced(w, "ReduceSum", powers), w.constant(1 / order, dtype))


def _reshape(w: Writer) -> str:
    return w.reshape(w.operand(), w.attribute("shape"))


def _permute(w: Writer) -> str:
    rank = len(w.spec().shape)
    return w.emit("Transpose", w.operand(), perm=[dim % rank for dim in w.attribute("dims")])


def _expand(w: Writer) -> str:
    # -1 keeps a size in torch, 1 does in ONNX.
    return w.emit("Expand", w.operand(), w.constant([max(1, n) for n in w.attribute("shape")]))


def _repeat(w: Writer) -> str:
    dim, shape = w.attribute("dim"), w.spec().shape
    length = w.emit("Shape", w.operand(1), start=dim, end=dim + 1)
    # Broadcasting: 1 keeps an axis as it is.
    rest = w.constant([1] * (len(shape) - dim - 1))
    wanted = w.emit("Concat", w.constant([1] * dim), length, rest, axis=0)
    return w.emit("Expand", w.operand(), wanted)


def _select(w: Writer) -> str:
    return w.emit("Gather", w.operand(), w.constant(w.attribute("index")), axis=w.attribute("dim"))


def _part(w: Writer, x: str, dim: int, *bounds: int) -> str:
    """Elements [start, stop) of axis `dim`, or of those every `step`th."""
    start, stop, *step = bounds
    return w.emit("Slice", x, *(w.constant([n]) for n in (start, stop, dim, *step)))


def _slice(w: Writer) -> str:
    return _part(w, w.operand(), *(w.attribute(name) for name in ("dim", "start", "stop", "step")))


def _concat(w: Writer) -> str:
    values = [w.cast(value, spec) for value, spec in w.several()]
    return w.emit("Concat", *values, axis=w.attribute("dim"))


_PAD_MODES = {
    "constant": "constant",
    "reflect": "reflect",
    "replicate": "edge",
    "circular": "wrap",
}
"""torch's names and ONNX's."""


def _pad(w: Writer) -> str:
    mode, pads = w.attribute("mode"), w.attribute("pads")
    if mode not in _PAD_MODES:
        raise w.refuse("mode", " | ".join(_PAD_MODES), mode)
    # torch has pairs from the last axis on, ONNX all beginnings and then all ends.
    rest = (0,) * (len(w.spec().shape) - len(pads) // 2)
    around = (*rest, *pads[-2::-2], *rest, *pads[::-2])
    value = w.constant(w.attribute("value"), w.spec().dtype)
    return w.emit("Pad", w.operand(), w.constant(around), value, mode=_PAD_MODES[mode])


def _roll(w: Writer) -> str:
    spec, shifts, dims = w.spec(), w.attribute("shifts"), w.attribute("dims")
    x, shape = w.operand(), spec.shape
    if not dims:  # the whole tensor as one row
        x, shape, dims = w.reshape(x, (-1,)), (math.prod(shape),), (0,)
    for dim, shift in zip(dims, shifts, strict=True):
        cut = -shift % shape[dim]
        parts = (_part(w, x, dim, cut, shape[dim]), _part(w, x, dim, 0, cut))
        x = w.emit("Concat", *parts, axis=dim) if cut else w.emit("Identity", x)
    return x if shape == spec.shape else w.reshape(x, spec.shape)


_TABLE: dict[str, _Convert] = {
    "conv2d": _conv2d,
    "linear": _linear,
    "matmul": _binary("MatMul"),
    "einsum": _einsum,
    "scaled_dot_product_attention": _attention,
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "group_norm": _group_norm,
    "relu": _unary("Relu"),
    "hardtanh": _clip,
    "silu": _silu,
    "sigmoid": _unary("Sigmoid"),
    "hardswish": _unary("HardSwish"),
    "hardsigmoid": _hardsigmoid,
    "gelu": _gelu,
    "mish": _unary("Mish"),
    "leaky_relu": _unary("LeakyRelu", alpha="slope"),
    "elu": _unary("Elu", alpha="alpha"),
    "tanh": _unary("Tanh"),
    "exp": _unary("Exp"),
    "sqrt": _unary("Sqrt"),
    "rsqrt": _rsqrt,
    "reciprocal": _unary("Reciprocal"),
    "neg": _unary("Neg"),
    "abs": _unary("Abs"),
    "log": _unary("Log"),
    "erf": _unary("Erf"),
    "logical_not": _unary("Not"),
    "cast": _cast,
    "softmax": _unary("Softmax", axis="dim"),
    "log_softmax": _unary("LogSoftmax", axis="dim"),
    "clamp": _clip,
    "add": _binary("Add"),
    "sub": _binary("Sub"),
    "mul": _binary("Mul"),
    "div": _binary("Div"),
    "maximum": _binary("Max"),
    "minimum": _binary("Min"),
    "equal": _compare("Equal"),
    "less": _compare("Less"),
    "less_equal": _compare("LessOrEqual"),
    "logical_and": _compare("And"),
    "logical_or": _compare("Or"),
    "where": _where,
    "add_scalar": _scalar("Add"),
    "mul_scalar": _scalar("Mul"),
    "div_scalar": _scalar("Div"),
    "pow_scalar": _scalar("Pow"),
    "max_pool2d": _max_pool2d,
    "avg_pool2d": _avg_pool2d,
    "adaptive_avg_pool2d": _adaptive_avg_pool2d,
    "mean": _mean,
    "sum": _reduce("ReduceSum"),
    "amax": _reduce("ReduceMax"),
    "vector_norm": _vector_norm,
    "reshape": _reshape,
    "permute": _permute,
    "expand": _expand,
    "repeat": _repeat,
    "select": _select,
    "slice": _slice,
    "take": _take,
    "concat": _concat,
    "pad": _pad,
    "roll": _roll,
    **onnx_quantised.TABLE,
}
