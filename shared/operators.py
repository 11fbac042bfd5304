"""The closed list of operators that graphs are made of, each with its signature.

Each does what torch's operator of that name does, but for what `shared.graph` says of it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class OpSpec:
    """The signature of one operator.

    `operands` are names, `?` marks one that may be null and `*` one that is a list. `attributes` map a name
    to its kind: int, float, bool, str, dtype, ints or int2 (exactly two), scale (a float above 0) or zero
    (0..255), the last two with `*` for one of each operand in a list; with `?` where null is allowed.
    """

    operands: tuple[str, ...]
    attributes: dict[str, str]
    computes: bool
    """Whether it carries multiply-adds, so that a block may be built around it."""


def _op(operands: str, *, computes: bool = False, **attributes: str) -> OpSpec:
    return OpSpec(tuple(operands.split()), attributes, computes)


def _int8(operands: str, of: str, *, computes: bool = False, **attributes: str) -> OpSpec:
    """An operator of int8 graphs: with scale and zero point of the operands `of`, and of the result."""
    kinds = {"scale": "scale", "zero": "zero"}
    for name in of:
        kinds |= {f"{name}_scale": "scale", f"{name}_zero": "zero"}
    return OpSpec(tuple(operands.split()), kinds | attributes, computes)


OPS: dict[str, OpSpec] = {
    "conv2d": _op(
        "x weight bias?",
        computes=True,
        stride="int2",
        padding="int2",
        dilation="int2",
        groups="int",
    ),
    "linear": _op("x weight bias?", computes=True),
    "matmul": _op("x y", computes=True),
    "einsum": _op("xs*", computes=True, equation="str"),
    "scaled_dot_product_attention": _op(
        "query key value mask?", computes=True, is_causal="bool", scale="float?"
    ),
    "batch_norm": _op("x weight? bias? mean var", eps="float"),
    "layer_norm": _op("x weight? bias?", normalized_shape="ints", eps="float"),
    "group_norm": _op("x weight? bias?", groups="int", eps="float"),
    "relu": _op("x"),
    "hardtanh": _op("x", min="float", max="float"),
    "silu": _op("x"),
    "sigmoid": _op("x"),
    "hardswish": _op("x"),
    "hardsigmoid": _op("x"),
    "gelu": _op("x", approximate="str"),
    "mish": _op("x"),
    "leaky_relu": _op("x", slope="float"),
    "elu": _op("x", alpha="float"),
    "tanh": _op("x"),
    "exp": _op("x"),
    "sqrt": _op("x"),
    "rsqrt": _op("x"),
    "reciprocal": _op("x"),
    "neg": _op("x"),
    "abs": _op("x"),
    "log": _op("x"),
    "erf": _op("x"),
    "logical_not": _op("x"),
    "cast": _op("x", dtype="dtype"),
    "softmax": _op("x", dim="int"),
    "log_softmax": _op("x", dim="int"),
    "clamp": _op("x", min="float?", max="float?"),
    "add": _op("x y", alpha="float"),
    "sub": _op("x y", alpha="float"),
    "mul": _op("x y"),
    "div": _op("x y"),
    "maximum": _op("x y"),
    "minimum": _op("x y"),
    "equal": _op("x y"),
    "less": _op("x y"),
    "less_equal": _op("x y"),
    "logical_and": _op("x y"),
    "logical_or": _op("x y"),
    "where": _op("condition x y"),
    "add_scalar": _op("x", value="float"),
    "mul_scalar": _op("x", value="float"),
    "div_scalar": _op("x", value="float"),
    "pow_scalar": _op("x", value="float"),
    "max_pool2d": _op(
        "x", kernel="int2", stride="int2", padding="int2", dilation="int2", ceil_mode="bool"
    ),
    "avg_pool2d": _op(
        "x",
        kernel="int2",
        stride="int2",
        padding="int2",
        ceil_mode="bool",
        count_include_pad="bool",
        divisor="int?",
    ),
    "adaptive_avg_pool2d": _op("x", output_size="int2"),
    "mean": _op("x", dims="ints", keepdim="bool"),
    "sum": _op("x", dims="ints", keepdim="bool"),
    "amax": _op("x", dims="ints", keepdim="bool"),
    "vector_norm": _op("x", ord="float", dims="ints", keepdim="bool"),
    "reshape": _op("x", shape="ints"),
    "permute": _op("x", dims="ints"),
    "expand": _op("x", shape="ints"),
    # 1 long along `dim`, as often as `like` is long there: what is the same for every item of a batch.
    "repeat": _op("x like", dim="int"),
    "select": _op("x", dim="int", index="int"),
    "slice": _op("x", dim="int", start="int", stop="int", step="int"),
    "take": _op("x indices", dim="int"),
    "concat": _op("xs*", dim="int"),
    "pad": _op("x", pads="ints", mode="str", value="float"),
    "roll": _op("x", shifts="ints", dims="ints"),
    "quantize": _int8("x", ""),
    "dequantize": _op("x", x_scale="scale", x_zero="zero"),
    "q_conv2d": _int8(
        "x weight weight_scale bias?",
        "x",
        computes=True,
        stride="int2",
        padding="int2",
        dilation="int2",
        groups="int",
    ),
    # Without a scale and a zero point of the result it is float32, not rounded again.
    "q_linear": _int8(
        "x weight weight_scale bias?", "x", computes=True, scale="scale?", zero="zero?"
    ),
    "q_add": _int8("x y", "xy"),
    "q_mul": _int8("x y", "xy"),
    "q_sigmoid": _int8("x", "x"),
    "q_global_avg_pool2d": _int8("x", "x"),
    "q_concat": _int8("xs*", "", dim="int", xs_scale="scale*", xs_zero="zero*"),
    "onnx": _op("xs* model*", computes=True),
}
WHOLE = "onnx"
"""The operator of a model that is served whole."""
QUANTISED = frozenset(op for op in OPS if op in ("quantize", "dequantize") or op.startswith("q_"))
"""The operators of int8 graphs; not every runtime has them."""
