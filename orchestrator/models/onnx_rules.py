"""ONNX operators to ours: one small rule each (https://onnx.ai/onnx/operators).

A rule emits what computes the node's outputs, or refuses. Shapes are fixed and known, and so is all that does
not depend on the model's inputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from orchestrator.models.onnx_file import dtype_of
from orchestrator.models.onnx_node import Constant, OnnxNode, Operand
from orchestrator.models.onnx_windows import WINDOW_RULES
from shared.graph import MAX_DIM

Rule: TypeAlias = Callable[[OnnxNode], None]


def _plain(op: str) -> Rule:
    """An operator of one tensor, without attributes."""
    return lambda n: n.emit(op, n.operand())


def _with(op: str, **attributes: tuple[str, float]) -> Rule:
    """The same with numbers: by our name, ONNX's name and its default."""

    def rule(n: OnnxNode) -> None:
        numbers = {
            ours: float(n.attribute(theirs, default))
            for ours, (theirs, default) in attributes.items()
        }
        n.emit(op, n.operand(), **numbers)

    return rule


def _same(n: OnnxNode) -> None:
    n.same(n.operand())


def _dropout(n: OnnxNode) -> None:
    if len([name for name in n.results if name]) > 1:
        raise n.refuse("the mask as an output", "the first output only", "both")
    if n.has(2) and bool(n.known(2, "training_mode")):
        raise n.refuse("in training mode", "inference", "training")
    n.same(n.operand())


def _one_number(operand: Operand) -> float | None:
    if (
        isinstance(operand, Constant)
        and operand.array.size == 1
        and operand.array.dtype.kind == "f"
    ):
        return float(operand.array.ravel()[0])
    return None


def _arithmetic(op: str) -> Rule:
    """Add, Sub, Mul, Div, with numbers as attributes where they change no shape."""

    def rule(n: OnnxNode) -> None:
        x, y = n.operand(), n.operand(1)
        if op == "div" and not n.out.dtype.startswith("float"):
            raise n.refuse("of whole numbers", "a division of floats", n.out)
        number = _one_number(y)
        if number is None and op in ("add", "mul"):
            number = _one_number(x)
            x, y = (x, y) if number is None else (y, x)
        if number is not None and math.isfinite(number) and n.spec(x).shape == n.out.shape:
            if op == "sub":
                number = -number
            n.emit(f"{'add' if op == 'sub' else op}_scalar", x, value=number)
        elif op in ("add", "sub"):
            n.emit(op, x, y, alpha=1.0)
        else:
            n.emit(op, x, y)

    return rule


def _many(op: str, **attributes: float) -> Rule:
    """An operator of any number of tensors: two by two."""

    def rule(n: OnnxNode) -> None:
        first, *rest = n.operands()
        if not rest:
            n.same(first)
            return
        for other in rest[:-1]:
            shape = np.broadcast_shapes(n.spec(first).shape, n.spec(other).shape)
            first = n.part(op, first, other, out=shape, **attributes)
        n.emit(op, first, rest[-1], **attributes)

    return rule


def _mean_of_many(n: OnnxNode) -> None:
    total, *rest = n.operands()
    for other in rest:
        shape = np.broadcast_shapes(n.spec(total).shape, n.spec(other).shape)
        total = n.part("add", total, other, out=shape, alpha=1.0)
    n.emit("div_scalar", total, value=float(n.count))


def _compare(op: str, *, turned: bool = False) -> Rule:
    def rule(n: OnnxNode) -> None:
        x, y = n.operand(), n.operand(1)
        n.emit(op, *((y, x) if turned else (x, y)))

    return rule


def _where(n: OnnxNode) -> None:
    n.emit("where", n.operand(), n.operand(1), n.operand(2))


def _pow(n: OnnxNode) -> None:
    exponent = n.known(1, "exponents")
    if exponent.size != 1 or n.spec(n.operand()).shape != n.out.shape:
        raise n.refuse("exponents", "one number", list(exponent.shape))
    n.emit("pow_scalar", n.operand(), value=float(exponent.ravel()[0]))


def _clip(n: OnnxNode) -> None:
    low, high = n.number("min", 1), n.number("max", 2)
    if low is not None and high is not None:
        n.emit("hardtanh", n.operand(), min=low, max=high)
    else:
        n.emit("clamp", n.operand(), min=low, max=high)


def _gelu(n: OnnxNode) -> None:
    n.emit("gelu", n.operand(), approximate=n.attribute("approximate", "none"))


def _hard_sigmoid(n: OnnxNode) -> None:
    alpha, beta = n.attribute("alpha", 0.2), n.attribute("beta", 0.5)
    if math.isclose(alpha, 1 / 6, rel_tol=1e-6) and beta == 0.5:
        n.emit("hardsigmoid", n.operand())
        return
    x = n.part("mul_scalar", n.operand(), out=n.out.shape, value=float(alpha))
    x = n.part("add_scalar", x, out=n.out.shape, value=float(beta))
    n.emit("hardtanh", x, min=0.0, max=1.0)


def _selu(n: OnnxNode) -> None:
    alpha, gamma = (
        n.attribute("alpha", 1.67326319217681884765625),
        n.attribute("gamma", 1.0507009873554805),
    )
    x = n.part("elu", n.operand(), out=n.out.shape, alpha=float(alpha))
    n.emit("mul_scalar", x, value=float(gamma))


def _prelu(n: OnnxNode) -> None:
    x, slope = n.operand(), n.operand(1)
    above = n.part("relu", x, out=n.out.shape)
    below = n.part("clamp", x, out=n.out.shape, min=None, max=0.0)
    below = n.part("mul", below, slope, out=n.out.shape)
    n.emit("add", above, below, alpha=1.0)


def _softmax(op: str) -> Rule:
    def rule(n: OnnxNode) -> None:
        rank, x = len(n.out.shape), n.operand()
        axis = n.attribute("axis", -1 if n.opset >= 13 else 1) % rank
        if n.opset >= 13 or axis == rank - 1:
            n.emit(op, x, dim=axis)
            return
        # Before opset 13 all axes from `axis` on were one.
        rows = math.prod(n.out.shape[:axis])
        columns = math.prod(n.out.shape[axis:])
        x = n.reshaped(x, (rows, columns))
        x = n.part(op, x, out=(rows, columns), dim=1)
        n.emit("reshape", x, shape=n.out.shape)

    return rule


def _matmul(n: OnnxNode) -> None:
    x, y = n.operand(), n.operand(1)
    if isinstance(y, Constant) and y.array.ndim == 2 and len(n.spec(x).shape) >= 2:
        n.emit("linear", x, _turned(y), None)
    else:
        n.emit("matmul", x, y)


def _turned(matrix: Constant) -> Constant:
    return matrix.made("transposed", lambda array: np.ascontiguousarray(array.T))


def _gemm(n: OnnxNode) -> None:
    """alpha * A' B' + beta * C."""
    alpha, beta = float(n.attribute("alpha", 1.0)), float(n.attribute("beta", 1.0))
    a, b, c = n.operand(), n.operand(1), n.optional(2) if beta else None
    rows, columns = n.out.shape
    if n.attribute("transA", 0):
        a = n.part("permute", a, out=n.spec(a).shape[::-1], dims=(1, 0))
    bias = c if isinstance(c, Constant) and c.array.shape in ((columns,), (1, columns)) else None
    if isinstance(b, Constant):
        weight = b if n.attribute("transB", 0) else _turned(b)
        if alpha != 1:
            weight = weight.made(f"{alpha}", lambda array: (array * alpha).astype(array.dtype))
        if bias is not None:
            bias = bias.made(f"{beta}", lambda array: (array.ravel() * beta).astype(array.dtype))
        if bias is not None or c is None:
            n.emit("linear", a, weight, bias)
            return
        product = n.part("linear", a, weight, None, out=(rows, columns))
    else:
        if n.attribute("transB", 0):
            b = n.part("permute", b, out=n.spec(b).shape[::-1], dims=(1, 0))
        product = n.part("matmul", a, b, out=(rows, columns))
        if alpha != 1:
            product = n.part("mul_scalar", product, out=(rows, columns), value=alpha)
    if c is None:
        n.same(product)
        return
    if beta != 1:
        c = n.part("mul_scalar", c, out=n.spec(c).shape, value=beta)
    n.emit("add", product, c, alpha=1.0)


def _einsum(n: OnnxNode) -> None:
    n.emit("einsum", n.operands(), equation=n.attribute("equation").replace(" ", ""))


def _batch_norm(n: OnnxNode) -> None:
    if n.attribute("training_mode", 0):
        raise n.refuse("in training mode", "inference", "training")
    x, *affine = n.operands()
    n.emit("batch_norm", x, *affine, eps=float(n.attribute("epsilon", 1e-5)))


def _layer_norm(n: OnnxNode) -> None:
    x, weight, bias = n.operand(), n.operand(1), n.optional(2)
    shape = n.out.shape[n.attribute("axis", -1) % len(n.out.shape) :]
    eps = float(n.attribute("epsilon", 1e-5))
    fits = [operand is None or n.spec(operand).shape == shape for operand in (weight, bias)]
    if all(fits):
        n.emit("layer_norm", x, weight, bias, normalized_shape=shape, eps=eps)
        return
    x = n.part("layer_norm", x, None, None, out=n.out.shape, normalized_shape=shape, eps=eps)
    if bias is None:
        n.emit("mul", x, weight)
        return
    n.emit("add", n.part("mul", x, weight, out=n.out.shape), bias, alpha=1.0)


def _group_norm(n: OnnxNode) -> None:
    x, weight, bias = n.operands()
    channels = n.out.shape[1]
    groups = channels if n.op == "InstanceNormalization" else int(n.attribute("num_groups"))
    if n.spec(weight).shape != (channels,):  # opset 18: one per group
        raise n.refuse(
            "scale", f"one per channel ({channels}), as from opset 21 on", n.spec(weight)
        )
    n.emit("group_norm", x, weight, bias, groups=groups, eps=float(n.attribute("epsilon", 1e-5)))


def _reduce(op: str, **attributes: float) -> Rule:
    def rule(n: OnnxNode) -> None:
        axes, x = n.ints("axes", 1), n.operand()
        if not axes and n.attribute("noop_with_empty_axes", 0):
            n.same(x)
            return
        rank = len(n.spec(x).shape)
        dims = tuple(sorted(axis % rank for axis in axes)) if axes else tuple(range(rank))
        keepdim = bool(n.attribute("keepdims", 1))
        if n.op == "ReduceMin":  # the least is what is most when turned round
            x = n.part("neg", x, out=n.spec(x).shape)
            x = n.part("amax", x, out=n.out.shape, dims=dims, keepdim=keepdim)
            n.emit("neg", x)
            return
        if n.op == "ReduceSumSquare":
            x = n.part("mul", x, x, out=n.spec(x).shape)
        n.emit(op, x, dims=dims, keepdim=keepdim, **attributes)

    return rule


def _reshape(n: OnnxNode) -> None:
    x = n.operand()
    if n.spec(x).shape == n.out.shape:
        n.same(x)
    else:
        n.emit("reshape", x, shape=n.out.shape)


def _transpose(n: OnnxNode) -> None:
    rank = len(n.out.shape)
    n.emit("permute", n.operand(), dims=tuple(n.attribute("perm", range(rank)[::-1])))


def _expand(n: OnnxNode) -> None:
    x = n.operand()
    if n.spec(x).shape == n.out.shape:
        n.same(x)
    else:
        n.emit("expand", x, shape=n.out.shape)


def _tile(n: OnnxNode) -> None:
    x = n.operand()
    shape = list(n.spec(x).shape)
    for dim, count in enumerate(np.ravel(n.known(1, "repeats")).tolist()):
        if count > 1:
            shape[dim] *= count
            x = n.part("concat", [x] * count, out=shape, dim=dim)
    n.same(x)


def _concat(n: OnnxNode) -> None:
    n.emit("concat", n.operands(), dim=n.attribute("axis") % len(n.out.shape))


def _split(n: OnnxNode) -> None:
    x = n.operand()
    dim, start = n.attribute("axis", 0) % len(n.spec(x).shape), 0
    for index, name in enumerate(n.results):
        stop = start + n.result_spec(index).shape[dim] if name else start
        if not name:
            raise n.refuse("outputs", "all of them", "some left out")
        n.emit_as(index, "slice", x, dim=dim, start=start, stop=stop, step=1)
        start = stop


def _slice(n: OnnxNode) -> None:
    x = n.operand()
    starts, ends = n.ints("starts", 1) or [], n.ints("ends", 2) or []
    axes, steps = (
        n.ints("axes", 3) or list(range(len(starts))),
        n.ints("steps", 4) or [1] * len(starts),
    )
    shape = list(n.spec(x).shape)
    for first, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        dim = axis % len(shape)
        if step < 1:
            raise n.refuse("steps", "1 or more", step)
        start, stop, _ = slice(first, end, step).indices(shape[dim])
        size = len(range(start, stop, step))
        if size != shape[dim]:
            shape[dim] = size
            x = n.part(
                "slice", x, out=shape, dim=dim, start=start, stop=min(stop, MAX_DIM), step=step
            )
    n.same(x)


def _gather(n: OnnxNode) -> None:
    x, indices = n.operand(), n.operand(1)
    shape = n.spec(x).shape
    dim = n.attribute("axis", 0) % len(shape)
    if not isinstance(indices, Constant):
        n.emit("take", x, indices, dim=dim)
        return
    picks = np.where(indices.array < 0, indices.array + shape[dim], indices.array).astype(np.int64)
    if picks.ndim == 0:
        n.emit("select", x, dim=dim, index=int(picks))
    elif picks.ndim == 1 and np.array_equal(picks, np.arange(picks[0], picks[0] + picks.size)):
        n.emit("slice", x, dim=dim, start=int(picks[0]), stop=int(picks[-1]) + 1, step=1)
    else:
        n.emit("take", x, indices.made(f"of {shape[dim]}", lambda _: picks), dim=dim)


def _pad(n: OnnxNode) -> None:
    x = n.operand()
    rank = len(n.out.shape)
    pads = n.ints("pads", 1) or []
    axes = [axis % rank for axis in n.ints("axes", 3) or range(rank)]
    around = [(0, 0)] * rank
    for index, axis in enumerate(axes):
        around[axis] = (pads[index], pads[index + len(axes)])
    if not any(map(any, around)):
        n.same(x)
        return
    modes = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}
    mode = n.attribute("mode", "constant")
    # Whole images are padded by copies; zeros go anywhere.
    least = 1 if mode == "constant" else max(1, rank - 2)
    while len(around) > least and around[0] == (0, 0):
        around.pop(0)
    if mode != "constant" and len(around) > least:
        raise n.refuse("axes padded by copies", f"the last {least}", f"the last {len(around)}")
    # Ours is torch's: pairs from the last axis on.
    flat = tuple(number for pair in reversed(around) for number in pair)
    n.emit("pad", x, pads=flat, mode=modes.get(mode, mode), value=n.number("value", 2) or 0.0)


def _cast(n: OnnxNode) -> None:
    x = n.operand()
    dtype = dtype_of(f"node {n.label!r}", n.attribute("to"))
    if n.spec(x).dtype == dtype:
        n.same(x)
    else:
        n.emit("cast", x, dtype=dtype)


def _depth_to_space(n: OnnxNode) -> None:
    x, size = n.operand(), int(n.attribute("blocksize"))
    batch, channels, height, width = n.spec(x).shape
    rest = channels // size**2
    if n.attribute("mode", "DCR") == "DCR":
        split, dims = (batch, size, size, rest, height, width), (0, 3, 4, 1, 5, 2)
    else:
        split, dims = (batch, rest, size, size, height, width), (0, 1, 4, 2, 5, 3)
    x = n.reshaped(x, split)
    x = n.part("permute", x, out=[split[dim] for dim in dims], dims=dims)
    n.emit("reshape", x, shape=n.out.shape)


RULES: dict[str, Rule] = {
    **{
        name: _plain(name.lower())
        for name in (
            *("Relu", "Sigmoid", "Tanh", "Exp", "Log", "Sqrt", "Neg", "Abs", "Erf", "Mish"),
            *("HardSwish", "Reciprocal"),
        )
    },
    "Not": _plain("logical_not"),
    "LeakyRelu": _with("leaky_relu", slope=("alpha", 0.01)),
    "Elu": _with("elu", alpha=("alpha", 1.0)),
    "Selu": _selu,
    "PRelu": _prelu,
    "HardSigmoid": _hard_sigmoid,
    "Gelu": _gelu,
    "Clip": _clip,
    "Softmax": _softmax("softmax"),
    "LogSoftmax": _softmax("log_softmax"),
    "Identity": _same,
    "Dropout": _dropout,
    "Cast": _cast,
    "Add": _arithmetic("add"),
    "Sub": _arithmetic("sub"),
    "Mul": _arithmetic("mul"),
    "Div": _arithmetic("div"),
    "Pow": _pow,
    "Sum": _many("add", alpha=1.0),
    "Mean": _mean_of_many,
    "Max": _many("maximum"),
    "Min": _many("minimum"),
    "Equal": _compare("equal"),
    "Less": _compare("less"),
    "LessOrEqual": _compare("less_equal"),
    "Greater": _compare("less", turned=True),
    "GreaterOrEqual": _compare("less_equal", turned=True),
    "And": _compare("logical_and"),
    "Or": _compare("logical_or"),
    "Where": _where,
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Einsum": _einsum,
    "BatchNormalization": _batch_norm,
    "LayerNormalization": _layer_norm,
    "InstanceNormalization": _group_norm,
    "GroupNormalization": _group_norm,
    "ReduceMean": _reduce("mean"),
    "ReduceSum": _reduce("sum"),
    "ReduceMax": _reduce("amax"),
    "ReduceMin": _reduce("amax"),
    "ReduceSumSquare": _reduce("sum"),
    "ReduceL1": _reduce("vector_norm", ord=1.0),
    "ReduceL2": _reduce("vector_norm", ord=2.0),
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _reshape),
    "Transpose": _transpose,
    "Expand": _expand,
    "Tile": _tile,
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
    "Pad": _pad,
    "DepthToSpace": _depth_to_space,
    **WINDOW_RULES,
}
"""What is translated; anything else is refused by name. What depends on shapes alone needs no rule."""
