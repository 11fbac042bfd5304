"""The closed list of operators, bound to torch functions when a stage is loaded.

Each entry makes a step: a function of the list of slots that returns the node's tensor, with slot numbers
and attributes already in it, so that running a stage looks nothing up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch.nn import functional

from shared.graph import Node

Slots: TypeAlias = list[Any]
Step: TypeAlias = Callable[[Slots], torch.Tensor]

FRESH = frozenset(
    {
        *("conv2d", "linear", "matmul", "batch_norm", "layer_norm", "group_norm", "concat"),
        *("relu", "hardtanh", "silu", "sigmoid", "hardswish", "hardsigmoid", "gelu", "mish"),
        *("leaky_relu", "elu", "tanh", "exp", "sqrt", "rsqrt", "neg", "abs", "clamp"),
        *("add", "sub", "mul", "div", "add_scalar", "mul_scalar", "div_scalar", "pow_scalar"),
        *("softmax", "log_softmax", "max_pool2d", "avg_pool2d"),
        *("maximum", "minimum", "equal", "less", "less_equal", "reciprocal", "log", "erf"),
        *("logical_and", "logical_or", "logical_not"),
    }
)
"""Operators whose result is dense memory of its own, never a view of an operand."""


@dataclass(frozen=True, slots=True)
class Binding:
    """Where a node's operands are. `reusable` are the operands whose memory the result may take."""

    node: Node
    slots: Mapping[str, int]
    reusable: frozenset[str]

    def slot(self, index: int = 0) -> int:
        """The slot of operand `index`, which must be there."""
        name = self.node.args[index]
        assert isinstance(name, str)
        return self.slots[name]

    def optional(self, index: int) -> int | None:
        """The slot of operand `index`, or None where it was left out."""
        return None if self.node.args[index] is None else self.slot(index)

    def several(self) -> tuple[int, ...]:
        """The slots of the only operand, a list."""
        names = self.node.args[0]
        assert isinstance(names, tuple)
        return tuple(self.slots[name] for name in names)

    def attribute(self, name: str) -> Any:
        """The attribute `name`; its kind is settled by the operator's signature."""
        return self.node.kwargs[name]

    def reuses(self, index: int = 0) -> bool:
        """Whether the result may overwrite operand `index`."""
        return self.node.args[index] in self.reusable


def bind(binding: Binding) -> Step:
    """The step that computes `binding.node`."""
    return _TABLE[binding.node.op](binding)


def supported() -> frozenset[str]:
    """The operators bound here; a test holds them equal to `shared.operators.OPS` less the int8 ones."""
    return frozenset(_TABLE)


def _unary(
    function: Callable[..., torch.Tensor],
    in_place: Callable[..., torch.Tensor] | None = None,
    *attributes: str,
) -> Callable[[Binding], Step]:
    """An operator of one tensor whose attributes follow it in order."""

    def make(b: Binding) -> Step:
        x, call = b.slot(), in_place if in_place is not None and b.reuses() else function
        match [b.attribute(name) for name in attributes]:
            case []:
                return lambda s: call(s[x])
            case [first]:
                return lambda s: call(s[x], first)
            case rest:
                return lambda s: call(s[x], *rest)

    return make


def _conv2d(b: Binding) -> Step:
    x, weight, bias = b.slot(), b.slot(1), b.optional(2)
    conv = torch.conv2d
    stride, padding, dilation, groups = (
        b.attribute(name) for name in ("stride", "padding", "dilation", "groups")
    )
    if bias is None:
        return lambda s: conv(s[x], s[weight], None, stride, padding, dilation, groups)
    return lambda s: conv(s[x], s[weight], s[bias], stride, padding, dilation, groups)


def _linear(b: Binding) -> Step:
    x, weight, bias, linear = b.slot(), b.slot(1), b.optional(2), functional.linear
    if bias is None:
        return lambda s: linear(s[x], s[weight])
    return lambda s: linear(s[x], s[weight], s[bias])


def _attention(b: Binding) -> Step:
    q, k, v, mask = b.slot(), b.slot(1), b.slot(2), b.optional(3)
    is_causal, scale = b.attribute("is_causal"), b.attribute("scale")
    attention = functional.scaled_dot_product_attention
    return lambda s: attention(
        s[q],
        s[k],
        s[v],
        attn_mask=None if mask is None else s[mask],
        is_causal=is_causal,
        scale=scale,
    )


def _batch_norm(b: Binding) -> Step:
    x, weight, bias, mean, var = b.slot(), b.optional(1), b.optional(2), b.slot(3), b.slot(4)
    eps, norm = b.attribute("eps"), torch.batch_norm
    return lambda s: norm(
        s[x],
        None if weight is None else s[weight],
        None if bias is None else s[bias],
        s[mean],
        s[var],
        False,
        0.0,
        eps,
        False,
    )


def _affine_norm(
    function: Callable[..., torch.Tensor], attribute: str
) -> Callable[[Binding], Step]:
    """layer_norm and group_norm: (x, shape or groups, weight, bias, eps)."""

    def make(b: Binding) -> Step:
        x, weight, bias = b.slot(), b.optional(1), b.optional(2)
        first, eps = b.attribute(attribute), b.attribute("eps")
        return lambda s: function(
            s[x],
            first,
            None if weight is None else s[weight],
            None if bias is None else s[bias],
            eps,
        )

    return make


def _binary(
    function: Callable[..., torch.Tensor],
    in_place: Callable[..., torch.Tensor] | None = None,
    *,
    commutes: bool = False,
) -> Callable[[Binding], Step]:
    def make(b: Binding) -> Step:
        x, y = b.slot(), b.slot(1)
        alpha = b.node.kwargs.get("alpha", 1.0)
        if alpha != 1.0:
            return lambda s: function(s[x], s[y], alpha=alpha)
        if in_place is not None and b.reuses(0):
            return lambda s: in_place(s[x], s[y])
        if in_place is not None and commutes and b.reuses(1):
            return lambda s: in_place(s[y], s[x])
        return lambda s: function(s[x], s[y])

    return make


def _max_pool2d(b: Binding) -> Step:
    x, pool = b.slot(), torch.max_pool2d
    names = ("kernel", "stride", "padding", "dilation", "ceil_mode")
    rest = tuple(b.attribute(name) for name in names)
    return lambda s: pool(s[x], *rest)


def _avg_pool2d(b: Binding) -> Step:
    x, pool = b.slot(), functional.avg_pool2d
    names = ("kernel", "stride", "padding", "ceil_mode", "count_include_pad", "divisor")
    rest = tuple(b.attribute(name) for name in names)
    return lambda s: pool(s[x], *rest)


def _reduce(function: Callable[..., torch.Tensor]) -> Callable[[Binding], Step]:
    def make(b: Binding) -> Step:
        x, dims, keepdim = b.slot(), b.attribute("dims"), b.attribute("keepdim")
        return lambda s: function(s[x], dims, keepdim)

    return make


def _vector_norm(b: Binding) -> Step:
    x, norm = b.slot(), torch.linalg.vector_norm
    order, dims, keepdim = b.attribute("ord"), b.attribute("dims"), b.attribute("keepdim")
    return lambda s: norm(s[x], order, dims, keepdim)


def _slice(b: Binding) -> Step:
    x, dim, step = b.slot(), b.attribute("dim"), b.attribute("step")
    start, stop = b.attribute("start"), b.attribute("stop")
    rank = len(b.node.spec.shape)
    index = (slice(None),) * (dim % rank) + (slice(start, stop, step),)
    return lambda s: s[x][index]


def _take(b: Binding) -> Step:
    x, indices, dim = b.slot(), b.slot(1), b.attribute("dim")
    pick = torch.index_select

    def take(s: Slots) -> torch.Tensor:
        picked = pick(s[x], dim, s[indices].reshape(-1))
        return picked.unflatten(dim, s[indices].shape) if s[indices].dim() else picked.squeeze(dim)

    return take


def _repeat(b: Binding) -> Step:
    x, like, dim = b.slot(), b.slot(1), b.attribute("dim")
    kept = (-1,) * dim

    def repeat(s: Slots) -> torch.Tensor:
        tensor: torch.Tensor = s[x]
        return tensor.expand(*kept, s[like].shape[dim], *tensor.shape[dim + 1 :])

    return repeat


def _where(b: Binding) -> Step:
    condition, x, y = b.slot(), b.slot(1), b.slot(2)
    return lambda s: torch.where(s[condition], s[x], s[y])


def _cast(b: Binding) -> Step:
    x, dtype = b.slot(), getattr(torch, b.attribute("dtype"))
    return lambda s: s[x].to(dtype)


def _concat(b: Binding) -> Step:
    xs, dim, cat = b.several(), b.attribute("dim"), torch.cat
    return lambda s: cat([s[x] for x in xs], dim)


def _einsum(b: Binding) -> Step:
    xs, equation, einsum = b.several(), b.attribute("equation"), torch.einsum
    return lambda s: einsum(equation, [s[x] for x in xs])


def _pad(b: Binding) -> Step:
    x, pads, mode, pad = b.slot(), b.attribute("pads"), b.attribute("mode"), functional.pad
    value: float | None = b.attribute("value") if mode == "constant" else None
    return lambda s: pad(s[x], pads, mode, value)


def _clamp(b: Binding) -> Step:
    x, low, high = b.slot(), b.attribute("min"), b.attribute("max")
    if low is None and high is None:
        low = -math.inf
    return lambda s: torch.clamp(s[x], low, high)


def _gelu(b: Binding) -> Step:
    x, approximate, gelu = b.slot(), b.attribute("approximate"), functional.gelu
    return lambda s: gelu(s[x], approximate=approximate)


_Tensor = torch.Tensor
_nn = torch._C._nn  # noqa: SLF001  # the functions that torch.nn.functional wraps, without the wrapping

_TABLE: dict[str, Callable[[Binding], Step]] = {
    "conv2d": _conv2d,
    "linear": _linear,
    "matmul": _binary(torch.matmul),
    "einsum": _einsum,
    "scaled_dot_product_attention": _attention,
    "batch_norm": _batch_norm,
    "layer_norm": _affine_norm(functional.layer_norm, "normalized_shape"),
    "group_norm": _affine_norm(functional.group_norm, "groups"),
    "relu": _unary(torch.relu, torch.relu_),
    "hardtanh": _unary(_nn.hardtanh, _nn.hardtanh_, "min", "max"),
    "silu": _unary(_nn.silu, _nn.silu_),
    "sigmoid": _unary(torch.sigmoid, torch.sigmoid_),
    "hardswish": _unary(_nn.hardswish, _nn.hardswish_),
    "hardsigmoid": _unary(_nn.hardsigmoid, _nn.hardsigmoid_),
    "gelu": _gelu,
    "mish": _unary(functional.mish),
    "leaky_relu": _unary(_nn.leaky_relu, _nn.leaky_relu_, "slope"),
    "elu": _unary(functional.elu, None, "alpha"),
    "tanh": _unary(torch.tanh, torch.tanh_),
    "exp": _unary(torch.exp, torch.exp_),
    "sqrt": _unary(torch.sqrt),
    "rsqrt": _unary(torch.rsqrt),
    "reciprocal": _unary(torch.reciprocal),
    "neg": _unary(torch.neg),
    "abs": _unary(torch.abs),
    "log": _unary(torch.log),
    "erf": _unary(torch.erf),
    "logical_not": _unary(torch.logical_not),
    "cast": _cast,
    "softmax": _unary(torch.softmax, None, "dim"),
    "log_softmax": _unary(torch.log_softmax, None, "dim"),
    "clamp": _clamp,
    "add": _binary(torch.add, _Tensor.add_, commutes=True),
    "sub": _binary(torch.sub, _Tensor.sub_),
    "mul": _binary(torch.mul, _Tensor.mul_, commutes=True),
    "div": _binary(torch.div, _Tensor.div_),
    "maximum": _binary(torch.maximum),
    "minimum": _binary(torch.minimum),
    "equal": _binary(torch.eq),
    "less": _binary(torch.lt),
    "less_equal": _binary(torch.le),
    "logical_and": _binary(torch.logical_and),
    "logical_or": _binary(torch.logical_or),
    "where": _where,
    "add_scalar": _unary(torch.add, _Tensor.add_, "value"),
    "mul_scalar": _unary(torch.mul, _Tensor.mul_, "value"),
    "div_scalar": _unary(torch.div, _Tensor.div_, "value"),
    "pow_scalar": _unary(torch.pow, None, "value"),
    "max_pool2d": _max_pool2d,
    "avg_pool2d": _avg_pool2d,
    "adaptive_avg_pool2d": _unary(functional.adaptive_avg_pool2d, None, "output_size"),
    "mean": _reduce(torch.mean),
    "sum": _reduce(torch.sum),
    "amax": _reduce(torch.amax),
    "vector_norm": _vector_norm,
    "reshape": _unary(torch.reshape, None, "shape"),
    "permute": _unary(torch.permute, None, "dims"),
    "expand": _unary(_Tensor.expand, None, "shape"),
    "repeat": _repeat,
    "select": _unary(torch.select, None, "dim", "index"),
    "slice": _slice,
    "take": _take,
    "concat": _concat,
    "pad": _pad,
    "roll": _unary(torch.roll, None, "shifts", "dims"),
}
