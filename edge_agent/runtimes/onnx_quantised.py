"""The operators of int8 graphs in terms of ONNX's, and of ONNX Runtime's own for what the standard lacks.

The integer kernels are named outright and not left to be found by fusing DequantizeLinear, an operator and
QuantizeLinear: what is fused depends on the neighbours, and so on where a model is cut; a kernel that is
named gives the same bits in every stage. They are in every build of ONNX Runtime for CPUs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from edge_agent.runtimes.onnx_writer import Writer

DOMAIN, DOMAIN_VERSION = "com.microsoft", 1
"""Of ONNX Runtime's own operators."""
_Convert: TypeAlias = Callable[[Writer], str]


def _scale(w: Writer, name: str = "scale") -> tuple[str, str]:
    """The constants of a value's scale and zero point, from the attributes of that prefix."""
    zero = "zero" if name == "scale" else name.replace("scale", "zero")
    return w.constant(w.attribute(name), "float32"), w.constant(w.attribute(zero), "uint8")


def _weight(w: Writer) -> tuple[str, str, str]:
    """Weight, scales by channel, and the zero points: none."""
    return w.operand(1), w.operand(2), w.constant(np.zeros(w.spec(2).shape), "int8")


def _quantize(w: Writer) -> str:
    return w.emit("QuantizeLinear", w.operand(), *_scale(w))


def _dequantize(w: Writer) -> str:
    return w.emit("DequantizeLinear", w.operand(), *_scale(w, "x_scale"))


def _conv2d(w: Writer) -> str:
    bias = w.optional(3)
    return w.emit(
        "QLinearConv",
        w.operand(),
        *_scale(w, "x_scale"),
        *_weight(w),
        *_scale(w),
        *(() if bias is None else (bias,)),
        strides=w.attribute("stride"),
        pads=w.attribute("padding") * 2,
        dilations=w.attribute("dilation"),
        group=w.attribute("groups"),
    )


def _linear(w: Writer) -> str:
    """QGemm multiplies matrices: other rows are laid under each other, and apart again, without a copy."""
    shape, wanted = w.spec().shape, w.node.spec
    exact = w.attribute("scale") is None
    if exact != (w.attribute("zero") is None):
        raise w.refuse("scale and zero", "both or neither", w.node.kwargs)
    x = w.operand() if len(shape) == 2 else w.reshape(w.operand(), (-1, shape[-1]))
    result = () if exact else _scale(w)
    rows = w.emit(
        "QGemm",
        x,
        *_scale(w, "x_scale"),
        *_weight(w),
        w.optional(3) or "",
        *result,
        domain=DOMAIN,
        transB=1,
    )
    return rows if len(shape) == 2 else w.reshape(rows, (-1, *wanted.shape[1:]))


def _binary(op: str) -> _Convert:
    def make(w: Writer) -> str:
        x = w.operand(), *_scale(w, "x_scale")
        y = w.operand(1), *_scale(w, "y_scale")
        return w.emit(op, *x, *y, *_scale(w), domain=DOMAIN)

    return make


def _sigmoid(w: Writer) -> str:
    x = w.operand(), *_scale(w, "x_scale")
    return w.emit("QLinearSigmoid", *x, *_scale(w), domain=DOMAIN)


def _global_avg_pool2d(w: Writer) -> str:
    x = w.operand(), *_scale(w, "x_scale")
    return w.emit("QLinearGlobalAveragePool", *x, *_scale(w), domain=DOMAIN, channels_last=0)


def _concat(w: Writer) -> str:
    parts: list[str] = []
    of_each = zip(w.several(), w.attribute("xs_scale"), w.attribute("xs_zero"), strict=True)
    for (value, _spec), scale, zero in of_each:
        parts += value, w.constant(scale, "float32"), w.constant(zero, "uint8")
    return w.emit("QLinearConcat", *_scale(w), *parts, domain=DOMAIN, axis=w.attribute("dim"))


TABLE: dict[str, _Convert] = {
    "quantize": _quantize,
    "dequantize": _dequantize,
    "q_conv2d": _conv2d,
    "q_linear": _linear,
    "q_add": _binary("QLinearAdd"),
    "q_mul": _binary("QLinearMul"),
    "q_sigmoid": _sigmoid,
    "q_global_avg_pool2d": _global_avg_pool2d,
    "q_concat": _concat,
}
"""One function per operator; see `onnx_ops.convert_node`."""
