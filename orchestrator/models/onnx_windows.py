"""ONNX's operators that slide a window over an image: convolutions and pools, with ONNX's ways to pad."""

from __future__ import annotations

from collections.abc import Callable

from orchestrator.models.onnx_node import Constant, OnnxNode, Operand

_LEAST = -3.4028234663852886e38
"""What a maximum never takes: the least float32, for JSON has no infinity."""


def _sizes(n: OnnxNode, name: str, rank: int, default: int = 1) -> list[int]:
    return [int(number) for number in n.attribute(name) or [default] * rank]


def _pads(n: OnnxNode, size: tuple[int, ...], kernel: list[int]) -> tuple[list[int], list[int]]:
    """The padding before and behind each axis, computed where ONNX leaves it to the runtime."""
    rank = len(kernel)
    mode = n.attribute("auto_pad", "NOTSET")
    if mode == "NOTSET":
        pads = _sizes(n, "pads", 2 * rank, 0)
        return pads[:rank], pads[rank:]
    if mode == "VALID":
        return [0] * rank, [0] * rank
    if mode not in ("SAME_UPPER", "SAME_LOWER"):
        raise n.refuse("auto_pad", "NOTSET | VALID | SAME_UPPER | SAME_LOWER", mode)
    strides, dilations = _sizes(n, "strides", rank), _sizes(n, "dilations", rank)
    before, behind = [], []
    for axis in range(rank):
        count = -(-size[axis] // strides[axis])
        reach = dilations[axis] * (kernel[axis] - 1) + 1
        total = max(0, (count - 1) * strides[axis] + reach - size[axis])
        small, large = total // 2, total - total // 2
        before.append(small if mode == "SAME_UPPER" else large)
        behind.append(large if mode == "SAME_UPPER" else small)
    return before, behind


def _padded(
    n: OnnxNode, x: Operand, before: list[int], behind: list[int], value: float
) -> tuple[Operand, list[int]]:
    """`x` padded by hand where both ends differ, and the padding that is left for the window operator."""
    if before == behind:
        return x, before
    shape = n.spec(x).shape
    larger = [
        *shape[:2],
        *(size + b + e for size, b, e in zip(shape[2:], before, behind, strict=True)),
    ]
    # Pairs from the last axis on, as torch has them.
    pads = tuple(
        number for pair in zip(reversed(before), reversed(behind), strict=True) for number in pair
    )
    return (
        n.part("pad", x, out=larger, pads=pads, mode="constant", value=value),
        [0] * len(before),
    )


def _conv(n: OnnxNode) -> None:
    x, weight, bias = n.operand(), n.operand(1), n.optional(2)
    shape, kernel = n.spec(x).shape, list(n.spec(weight).shape[2:])
    rank = len(kernel)
    if rank not in (1, 2):
        raise n.refuse("axes", "images or rows: 1 or 2 axes", f"{rank} axes")
    x, padding = _padded(n, x, *_pads(n, shape[2:], kernel), 0.0)
    strides, dilations = _sizes(n, "strides", rank), _sizes(n, "dilations", rank)
    groups = int(n.attribute("group", 1))
    if rank == 2:
        n.emit(
            "conv2d",
            x,
            weight,
            bias,
            stride=tuple(strides),
            padding=tuple(padding),
            dilation=tuple(dilations),
            groups=groups,
        )
        return
    # A row is an image of height 1.
    if not isinstance(weight, Constant):
        raise n.refuse("weights that depend on the model's inputs", "known ones", "unknown ones")
    (batch, channels, width), image = n.spec(x).shape, weight.made("2d", lambda a: a[:, :, None])
    x = n.reshaped(x, (batch, channels, 1, width))
    rows = (*n.out.shape[:2], 1, n.out.shape[2])
    y = n.part(
        "conv2d",
        x,
        image,
        bias,
        out=rows,
        stride=(1, *strides),
        padding=(0, *padding),
        dilation=(1, *dilations),
        groups=groups,
    )
    n.emit("reshape", y, shape=n.out.shape)


def _windows(n: OnnxNode, x: Operand) -> tuple[list[int], list[int], list[int], list[int]]:
    """Kernel, strides and the padding before and behind, of a pool over an image."""
    shape, kernel = n.spec(x).shape, _sizes(n, "kernel_shape", 2)
    if len(shape) != 4 or len(kernel) != 2:
        raise n.refuse("axes", "images: 2 axes beside batch and channels", f"{len(shape) - 2} axes")
    before, behind = _pads(n, shape[2:], kernel)
    return kernel, _sizes(n, "strides", 2), before, behind


def _check_count(
    n: OnnxNode, size: tuple[int, ...], reach: list[int], strides: list[int], padding: list[int]
) -> None:
    """That our windows are as many as ONNX's where the last ones are not whole.

    We let no window begin behind the image and the padding before it; ONNX's releases do not agree on that.
    """
    for axis in range(2):
        span = size[axis] + 2 * padding[axis] - reach[axis]
        count = (
            -(-span // strides[axis]) if n.attribute("ceil_mode", 0) else span // strides[axis]
        ) + 1
        if (
            n.attribute("ceil_mode", 0)
            and (count - 1) * strides[axis] >= size[axis] + padding[axis]
        ):
            count -= 1
        if count != n.out.shape[2 + axis]:
            raise n.refuse("windows along an axis", str(count), n.out.shape[2 + axis])


def _max_pool(n: OnnxNode) -> None:
    if len([name for name in n.results if name]) > 1:
        raise n.refuse("indices as an output", "the first output only", "both")
    x = n.operand()
    kernel, strides, before, behind = _windows(n, x)
    x, padding = _padded(n, x, before, behind, _LEAST)
    dilations = _sizes(n, "dilations", 2)
    reach = [d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True)]
    _check_count(n, n.spec(x).shape[2:], reach, strides, padding)
    if any(2 * p > k for p, k in zip(padding, kernel, strict=True)):
        raise n.refuse("padding", "at most half of the kernel", padding)
    n.emit(
        "max_pool2d",
        x,
        kernel=tuple(kernel),
        stride=tuple(strides),
        padding=tuple(padding),
        dilation=tuple(dilations),
        ceil_mode=bool(n.attribute("ceil_mode", 0)),
    )


def _average_pool(n: OnnxNode) -> None:
    x = n.operand()
    kernel, strides, before, behind = _windows(n, x)
    included = bool(n.attribute("count_include_pad", 0))
    if before != behind and not included:
        raise n.refuse("padding that is not counted", "alike at both ends", f"{before}, {behind}")
    if any(size != 1 for size in _sizes(n, "dilations", 2)):
        raise n.refuse("dilations", "1", n.attribute("dilations"))
    x, padding = _padded(n, x, before, behind, 0.0)
    _check_count(n, n.spec(x).shape[2:], kernel, strides, padding)
    if any(2 * p > k for p, k in zip(padding, kernel, strict=True)):
        raise n.refuse("padding", "at most half of the kernel", padding)
    n.emit(
        "avg_pool2d",
        x,
        kernel=tuple(kernel),
        stride=tuple(strides),
        padding=tuple(padding),
        ceil_mode=bool(n.attribute("ceil_mode", 0)),
        count_include_pad=included,
        divisor=None,
    )


def _global_average(n: OnnxNode) -> None:
    rank = len(n.out.shape)
    if rank == 4:
        n.emit("adaptive_avg_pool2d", n.operand(), output_size=(1, 1))
    else:
        n.emit("mean", n.operand(), dims=tuple(range(2, rank)), keepdim=True)


def _global_max(n: OnnxNode) -> None:
    n.emit("amax", n.operand(), dims=tuple(range(2, len(n.out.shape))), keepdim=True)


WINDOW_RULES: dict[str, Callable[[OnnxNode], None]] = {
    "Conv": _conv,
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalAveragePool": _global_average,
    "GlobalMaxPool": _global_max,
}
