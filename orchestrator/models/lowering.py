"""ATen operators to ours: one small rule each.

A rule takes the operator's arguments by name, defaults filled in (and under `op` the operator's own bare
name, under `like` the fake tensor of its first tensor), and the fake tensor of its result, and returns what
to emit. Operands are whatever the tracer uses for tensors; a rule looks only at attributes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import torch

from shared.errors import ModelError
from shared.graph import MAX_DIM, Attribute

Arguments: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Lowered:
    """One of our operators: `operands` are tensors, lists of tensors, None, or other operators' results.

    `shape` is that of an operand made so, where it is not the whole result's; the dtype is the result's.
    """

    op: str
    operands: tuple[Any, ...]
    attributes: dict[str, Attribute] = field(default_factory=dict)
    shape: tuple[int, ...] | None = None


Rule: TypeAlias = Callable[[Arguments, Any], Lowered]
RULES: dict[str, Rule] = {}
IDENTITIES = frozenset(
    f"aten.{name}"
    for name in (
        "alias.default",
        "clone.default",
        "contiguous.default",
        "detach.default",
        "dropout.default",
        "feature_dropout.default",
        "lift_fresh_copy.default",
        "to.dtype",
        "to.dtype_layout",
        "to.device",
        "type_as.default",
    )
)
"""What gives its first argument back at inference (dropout in training mode is refused)."""
SHAPE_ONLY = frozenset(
    f"aten.{name}.default"
    for name in (
        "new_zeros",
        "new_ones",
        "new_full",
        "new_empty",
        "zeros_like",
        "ones_like",
        "full_like",
        "empty_like",
    )
)
"""What reads its first argument's shape and dtype but not its values: a constant, since shapes are fixed."""
VIEWS = frozenset(
    "aten." + name
    for name in (
        "view.default",
        "reshape.default",
        "flatten.using_ints",
        "unflatten.int",
        "squeeze.dim",
        "squeeze.dims",
        "squeeze.default",
        "unsqueeze.default",
        "permute.default",
        "transpose.int",
        "t.default",
        "swapaxes.default",
        "movedim.int",
        "expand.default",
        "expand_as.default",
        "select.int",
        "slice.Tensor",
        "narrow.default",
        "chunk.default",
        "split.Tensor",
        "split_with_sizes.default",
        "unbind.int",
    )
)
"""What may share memory with its first argument."""


def _rule(*names: str) -> Callable[[Rule], Rule]:
    def register(rule: Rule) -> Rule:
        RULES.update((f"aten.{name}", rule) for name in names)
        return rule

    return register


def _ints(value: Any) -> tuple[int, ...]:
    return (int(value),) if isinstance(value, int) else tuple(int(item) for item in value)


def _pair(value: Any) -> tuple[int, int]:
    ints = _ints(value)
    return (ints[0], ints[0]) if len(ints) == 1 else (ints[0], ints[1])


def _dtype(fake: Any) -> str:
    return str(fake.dtype).removeprefix("torch.")


def _scalar(value: float, like: Any) -> Any:
    """A constant tensor without axes, of the dtype of `like`."""
    return torch.scalar_tensor(value, dtype=like.dtype)


def _shape(out: Any) -> tuple[int, ...]:
    return _ints(out.shape)


_PLAIN = (
    *("relu", "silu", "sigmoid", "hardswish", "hardsigmoid", "mish"),
    *("tanh", "exp", "sqrt", "rsqrt", "neg", "abs", "reciprocal", "log", "erf"),
)


@_rule(*(f"{name}.default" for name in _PLAIN))
def _plain(a: Arguments, _out: Any) -> Lowered:
    return Lowered(a["op"], (a["self"],))


@_rule("gelu.default")
def _gelu(a: Arguments, _out: Any) -> Lowered:
    return Lowered("gelu", (a["self"],), {"approximate": a["approximate"]})


@_rule("hardtanh.default")
def _hardtanh(a: Arguments, _out: Any) -> Lowered:
    bounds: dict[str, Attribute] = {"min": float(a["min_val"]), "max": float(a["max_val"])}
    return Lowered("hardtanh", (a["self"],), bounds)


@_rule("relu6.default")
def _relu6(a: Arguments, _out: Any) -> Lowered:
    return Lowered("hardtanh", (a["self"],), {"min": 0.0, "max": 6.0})


@_rule("leaky_relu.default")
def _leaky_relu(a: Arguments, _out: Any) -> Lowered:
    return Lowered("leaky_relu", (a["self"],), {"slope": float(a["negative_slope"])})


@_rule("elu.default")
def _elu(a: Arguments, _out: Any) -> Lowered:
    if a["scale"] != 1 or a["input_scale"] != 1:
        raise ModelError("elu", expected="scale 1", got=f"{a['scale']}, {a['input_scale']}")
    return Lowered("elu", (a["self"],), {"alpha": float(a["alpha"])})


@_rule("softmax.int", "log_softmax.int")
def _softmax(a: Arguments, out: Any) -> Lowered:
    if a["dtype"] is not None and a["dtype"] != out.dtype:
        raise ModelError("softmax with a change of dtype is not on the list")
    return Lowered(a["op"], (a["self"],), {"dim": int(a["dim"])})


@_rule("clamp.default", "clamp_min.default", "clamp_max.default")
def _clamp(a: Arguments, _out: Any) -> Lowered:
    # An infinite bound is none; JSON could not hold it.
    bounds: dict[str, Attribute] = {
        name: float(a[name]) if a.get(name) is not None and math.isfinite(a[name]) else None
        for name in ("min", "max")
    }
    return Lowered("clamp", (a["self"],), bounds)


@_rule("conv2d.default", "conv2d.padding")
def _conv2d(a: Arguments, _out: Any) -> Lowered:
    stride, dilation, padding = _pair(a["stride"]), _pair(a["dilation"]), a["padding"]
    if padding == "valid":
        padding = 0
    elif padding == "same":
        spans = [d * (k - 1) for d, k in zip(dilation, a["kernel"], strict=True)]
        if any(span % 2 for span in spans):
            raise ModelError("conv2d with an even kernel and padding 'same' pads unevenly")
        padding = [span // 2 for span in spans]
    attributes: dict[str, Attribute] = {
        "stride": stride,
        "padding": _pair(padding),
        "dilation": dilation,
        "groups": int(a["groups"]),
    }
    return Lowered("conv2d", (a["input"], a["weight"], a["bias"]), attributes)


@_rule("conv1d.default")
def _conv1d(a: Arguments, out: Any) -> Lowered:
    """A row is an image of height 1."""
    batch, channels, width = _shape(a["like"])
    image = Lowered("reshape", (a["input"],), {"shape": (batch, channels, 1, width)})
    attributes: dict[str, Attribute] = {
        "stride": (1, *_ints(a["stride"])),
        "padding": (0, *_ints(a["padding"])),
        "dilation": (1, *_ints(a["dilation"])),
        "groups": int(a["groups"]),
    }
    operands = (
        replace(image, shape=(batch, channels, 1, width)),
        a["weight"].unsqueeze(2),
        a["bias"],
    )
    rows = (out.shape[0], out.shape[1], 1, out.shape[2])
    made = Lowered("conv2d", operands, attributes, shape=_ints(rows))
    return Lowered("reshape", (made,), {"shape": _shape(out)})


@_rule("linear.default")
def _linear(a: Arguments, _out: Any) -> Lowered:
    return Lowered("linear", (a["input"], a["weight"], a["bias"]))


@_rule("matmul.default", "bmm.default", "mm.default")
def _matmul(a: Arguments, _out: Any) -> Lowered:
    return Lowered("matmul", (a["self"], a["mat2"] if "mat2" in a else a["other"]))


@_rule("einsum.default")
def _einsum(a: Arguments, _out: Any) -> Lowered:
    return Lowered("einsum", (tuple(a["tensors"]),), {"equation": a["equation"].replace(" ", "")})


@_rule("scaled_dot_product_attention.default")
def _attention(a: Arguments, _out: Any) -> Lowered:
    if a["dropout_p"] or a.get("enable_gqa"):
        raise ModelError("attention with dropout or grouped queries is not on the list")
    scale = a["scale"]
    return Lowered(
        "scaled_dot_product_attention",
        (a["query"], a["key"], a["value"], a["attn_mask"]),
        {"is_causal": bool(a["is_causal"]), "scale": None if scale is None else float(scale)},
    )


@_rule("batch_norm.default")
def _batch_norm(a: Arguments, _out: Any) -> Lowered:
    if a["training"]:
        raise ModelError("batch_norm in training mode: call eval() on the model first")
    operands = (a["input"], a["weight"], a["bias"], a["running_mean"], a["running_var"])
    return Lowered("batch_norm", operands, {"eps": float(a["eps"])})


@_rule("layer_norm.default")
def _layer_norm(a: Arguments, _out: Any) -> Lowered:
    attributes: dict[str, Attribute] = {
        "normalized_shape": _ints(a["normalized_shape"]),
        "eps": float(a["eps"]),
    }
    return Lowered("layer_norm", (a["input"], a["weight"], a["bias"]), attributes)


@_rule("group_norm.default")
def _group_norm(a: Arguments, _out: Any) -> Lowered:
    attributes: dict[str, Attribute] = {"groups": int(a["num_groups"]), "eps": float(a["eps"])}
    return Lowered("group_norm", (a["input"], a["weight"], a["bias"]), attributes)


@_rule("add.Tensor", "sub.Tensor")
def _add(a: Arguments, _out: Any) -> Lowered:
    name, alpha, other = a["op"], float(a["alpha"]), a["other"]
    if isinstance(other, int | float):
        value = alpha * other
        return Lowered("add_scalar", (a["self"],), {"value": value if name == "add" else -value})
    return Lowered(name, (a["self"], other), {"alpha": alpha})


@_rule("mul.Tensor", "div.Tensor", "mul.Scalar", "div.Scalar")
def _mul(a: Arguments, _out: Any) -> Lowered:
    if isinstance(a["other"], int | float):
        return Lowered(f"{a['op']}_scalar", (a["self"],), {"value": float(a["other"])})
    return Lowered(a["op"], (a["self"], a["other"]))


@_rule("rsub.Scalar")
def _rsub(a: Arguments, out: Any) -> Lowered:
    if a["alpha"] != 1:
        raise ModelError("rsub", expected="alpha 1", got=str(a["alpha"]))
    return Lowered("sub", (_scalar(a["other"], out), a["self"]), {"alpha": 1.0})


@_rule("maximum.default", "minimum.default", "logical_and.default", "logical_or.default")
def _plain_binary(a: Arguments, _out: Any) -> Lowered:
    return Lowered(a["op"], (a["self"], a["other"]))


_COMPARISONS = {"eq": "equal", "lt": "less", "le": "less_equal", "gt": "less", "ge": "less_equal"}
"""ATen's and ours; "greater" is "less" with its operands turned round."""


@_rule(*(f"{name}.{kind}" for name in _COMPARISONS for kind in ("Tensor", "Scalar")))
def _compare(a: Arguments, _out: Any) -> Lowered:
    x, y = a["self"], a["other"]
    if isinstance(y, bool | int | float):
        y = _scalar(y, a["like"])
    operands = (y, x) if a["op"] in ("gt", "ge") else (x, y)
    return Lowered(_COMPARISONS[a["op"]], operands)


@_rule("ne.Tensor", "ne.Scalar")
def _unlike(a: Arguments, out: Any) -> Lowered:
    return Lowered("logical_not", (_compare({**a, "op": "eq"}, out),))


@_rule("logical_not.default", "bitwise_not.default")
def _not(a: Arguments, out: Any) -> Lowered:
    if _dtype(a["like"]) != _dtype(out) or _dtype(out) != "bool":
        raise ModelError(f"{a['op']} of whole numbers is not on the list", got=_dtype(a["like"]))
    return Lowered("logical_not", (a["self"],))


@_rule("where.self")
def _where(a: Arguments, _out: Any) -> Lowered:
    return Lowered("where", (a["condition"], a["self"], a["other"]))


@_rule("masked_fill.Scalar", "masked_fill.Tensor")
def _masked_fill(a: Arguments, out: Any) -> Lowered:
    value = a["value"]
    if isinstance(value, bool | int | float):
        value = _scalar(value, out)
    return Lowered("where", (a["mask"], value, a["self"]))


@_rule("embedding.default")
def _embedding(a: Arguments, _out: Any) -> Lowered:
    return Lowered("take", (a["weight"], a["indices"]), {"dim": 0})


@_rule("index_select.default")
def _index_select(a: Arguments, out: Any) -> Lowered:
    return Lowered("take", (a["self"], a["index"]), {"dim": int(a["dim"]) % out.ndim})


@_rule("pow.Tensor_Scalar")
def _pow(a: Arguments, _out: Any) -> Lowered:
    return Lowered("pow_scalar", (a["self"],), {"value": float(a["exponent"])})


@_rule("max_pool2d.default")
def _max_pool2d(a: Arguments, _out: Any) -> Lowered:
    attributes: dict[str, Attribute] = {
        "kernel": _pair(a["kernel_size"]),
        "stride": _pair(a["stride"] or a["kernel_size"]),
        "padding": _pair(a["padding"]),
        "dilation": _pair(a["dilation"]),
        "ceil_mode": bool(a["ceil_mode"]),
    }
    return Lowered("max_pool2d", (a["self"],), attributes)


@_rule("avg_pool2d.default")
def _avg_pool2d(a: Arguments, _out: Any) -> Lowered:
    attributes: dict[str, Attribute] = {
        "kernel": _pair(a["kernel_size"]),
        "stride": _pair(a["stride"] or a["kernel_size"]),
        "padding": _pair(a["padding"]),
        "ceil_mode": bool(a["ceil_mode"]),
        "count_include_pad": bool(a["count_include_pad"]),
        "divisor": a["divisor_override"],
    }
    return Lowered("avg_pool2d", (a["self"],), attributes)


@_rule("adaptive_avg_pool2d.default")
def _adaptive_avg_pool2d(a: Arguments, out: Any) -> Lowered:
    return Lowered("adaptive_avg_pool2d", (a["self"],), {"output_size": _pair(_shape(out)[-2:])})


@_rule("mean.dim", "mean.default", "sum.dim_IntList", "sum.default", "amax.default")
def _reduce(a: Arguments, out: Any) -> Lowered:
    if a.get("dtype") not in (None, out.dtype) or _dtype(a["like"]) != _dtype(out):
        raise ModelError(f"{a['op']} with a change of dtype is not on the list", got=_dtype(out))
    attributes: dict[str, Attribute] = {
        "dims": _ints(a["dim"]) if a.get("dim") else tuple(range(a["like"].ndim)),
        "keepdim": bool(a.get("keepdim")),
    }
    return Lowered(a["op"], (a["self"],), attributes)


@_rule("linalg_vector_norm.default")
def _vector_norm(a: Arguments, _out: Any) -> Lowered:
    if not a["dim"]:
        raise ModelError("vector norm over all axes is not on the list")
    attributes: dict[str, Attribute] = {
        "ord": float(a["ord"]),
        "dims": _ints(a["dim"]),
        "keepdim": bool(a["keepdim"]),
    }
    return Lowered("vector_norm", (a["self"],), attributes)


@_rule(
    "view.default",
    "reshape.default",
    "flatten.using_ints",
    "unflatten.int",
    "squeeze.dim",
    "squeeze.dims",
    "squeeze.default",
    "unsqueeze.default",
)
def _reshape(a: Arguments, out: Any) -> Lowered:
    # Shapes are fixed, so all of these are a reshape to the result's shape.
    return Lowered("reshape", (a["self"],), {"shape": _shape(out)})


@_rule("permute.default")
def _permute(a: Arguments, out: Any) -> Lowered:
    return Lowered("permute", (a["self"],), {"dims": tuple(d % out.ndim for d in a["dims"])})


@_rule("transpose.int", "swapaxes.default", "t.default")
def _transpose(a: Arguments, out: Any) -> Lowered:
    first = a.get("dim0", a.get("axis0", 0)) % out.ndim
    second = a.get("dim1", a.get("axis1", 1)) % out.ndim
    dims = list(range(out.ndim))
    dims[first], dims[second] = dims[second], dims[first]
    return Lowered("permute", (a["self"],), {"dims": tuple(dims)})


@_rule("expand.default", "expand_as.default")
def _expand(a: Arguments, out: Any) -> Lowered:
    return Lowered("expand", (a["self"],), {"shape": _shape(out)})


@_rule("select.int")
def _select(a: Arguments, _out: Any) -> Lowered:
    return Lowered("select", (a["self"],), {"dim": int(a["dim"]), "index": int(a["index"])})


def slice_of(tensor: Any, dim: int, start: int, stop: int, step: int = 1) -> Lowered:
    """Elements [start, stop) of axis `dim`."""
    attributes: dict[str, Attribute] = {"dim": dim, "start": start, "stop": stop, "step": step}
    return Lowered("slice", (tensor,), attributes)


@_rule("slice.Tensor")
def _slice(a: Arguments, _out: Any) -> Lowered:
    # "To the end" is 2**63 - 1 in ATen, which JSON readers elsewhere cannot hold.
    stop = MAX_DIM if a["end"] is None else min(int(a["end"]), MAX_DIM)
    return slice_of(a["self"], int(a["dim"]), int(a["start"] or 0), stop, int(a["step"]))


@_rule("narrow.default")
def _narrow(a: Arguments, _out: Any) -> Lowered:
    start = int(a["start"])
    return slice_of(a["self"], int(a["dim"]), start, start + int(a["length"]))


@_rule("cat.default")
def _concat(a: Arguments, _out: Any) -> Lowered:
    return Lowered("concat", (tuple(a["tensors"]),), {"dim": int(a["dim"])})


@_rule("pad.default", "constant_pad_nd.default")
def _pad(a: Arguments, _out: Any) -> Lowered:
    attributes: dict[str, Attribute] = {
        "pads": _ints(a["pad"]),
        "mode": str(a.get("mode", "constant")),
        "value": float(a["value"] or 0.0),
    }
    return Lowered("pad", (a["self"],), attributes)


@_rule("roll.default")
def _roll(a: Arguments, _out: Any) -> Lowered:
    attributes: dict[str, Attribute] = {"shifts": _ints(a["shifts"]), "dims": _ints(a["dims"])}
    return Lowered("roll", (a["self"],), attributes)
