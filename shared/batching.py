"""Which axis of each tensor counts the items of a batch, and a graph that takes any number of them.

A graph is traced with one item. Whether several may go through it together is worked out from its operators:
an item is followed from axis 0 of the inputs, and every operator has to treat items apart. Where it does,
nothing but shapes that are written down has to change: `open_batch` leaves the item's axis out of them (-1).

A reshape may lay the items' axis together with others, and with which shows only later: `[197, 1, 12, 64]`
as `[197, 768]` is `[197 * n, 768]` if a linear layer follows, while `[197, 1, 768]` as `[197, 12, 64]` is
`[197, n * 12, 64]` if attention does. Both name the same bytes in the same order, so whichever reading lets
all that follows treat items apart is right; they are tried in turn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from shared.graph import Graph, Kernels, Node, TensorSpec

_MOST_TURNS = 10_000
"""How often another reading of a reshape is tried before the search is given up."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where the items are: axis `axis` is `before * items * after` long, written as with one item."""

    axis: int
    before: int = 1


FIRST = Place(0)
Places: TypeAlias = Mapping[str, Place | None]
"""By value; None: the same for every item."""


class _MixedError(Exception):
    """An operator does not treat items apart, or cannot be shown to."""


@dataclass(frozen=True, slots=True)
class Batching:
    """What is known of a graph: `places` of its values, or in `fixed` why it takes one item at a time."""

    places: Places
    fixed: str = ""

    def apart(self, names: Sequence[str], specs: Mapping[str, TensorSpec]) -> bool:
        """Whether each of these tensors is its items one after the other: axis 0 counts nothing else."""
        return not self.fixed and all(
            self.places.get(name) == FIRST and specs[name].shape[0] == 1 for name in names
        )


def find_batching(graph: Graph) -> Batching:
    """Follow the items through a valid graph.

    The graph's inputs and outputs have to have their items along axis 0.
    """
    if graph.kernels is Kernels.PLAIN:
        return Batching({}, "its answers need the original's kernels, which are those of one item")
    if graph.is_whole:
        return Batching({}, "it is computed as the ONNX model that it came as")
    for value in graph.inputs:
        if value.spec.shape[:1] != (1,):
            return Batching(
                {}, f"axis 0 of its input {value.name!r} ({value.spec}) is no batch of 1"
            )
    specs = graph.specs()
    try:
        places = _follow(graph, specs)
    except _MixedError as error:
        return Batching({}, str(error))
    found = Batching(places)
    for name in graph.outputs:
        if not found.apart((name,), specs):
            return Batching(
                {}, f"its output {name!r} ({specs[name]}) has no axis of items in front"
            )
    return found


def cuts_apart(graph: Graph, batching: Batching, positions: Sequence[int]) -> tuple[bool, ...]:
    """Whether items can cross the cut before node p together, for each p of `positions` (ascending)."""
    if batching.fixed:
        return (False,) * len(positions)
    specs = graph.specs()
    last_use = {ref: index for index, node in enumerate(graph.nodes) for ref in node.refs()}
    last_use |= dict.fromkeys(graph.outputs, len(graph.nodes))
    made = {value.name: 0 for value in graph.inputs}
    made |= {node.name: index + 1 for index, node in enumerate(graph.nodes)}
    whole = {name for name in made if not batching.apart((name,), specs)}
    return tuple(
        not any(made[name] <= position <= last_use.get(name, -1) for name in whole)
        for position in positions
    )


def open_batch(stage: Graph, batching: Batching) -> Graph:
    """`stage`, a part of the graph that `batching` is of, for any number of items.

    Its inputs and outputs must be `apart`. What an operator does to one item is as before.
    """
    nodes: list[Node] = []
    for node in stage.nodes:
        nodes += _opened(node, stage, batching.places)
    return replace(stage, nodes=tuple(nodes), open_batch=True)


def _opened(node: Node, stage: Graph, places: Places) -> Iterator[Node]:
    place = places.get(node.name)
    if place is None:
        yield node
    elif node.op in ("reshape", "expand"):
        shape = list(node.spec.shape)
        shape[place.axis] = -1
        yield replace(node, kwargs={"shape": tuple(shape)})
    elif node.op == "concat":
        yield from _repeated(node, stage, places)
    else:
        yield node


def _repeated(node: Node, stage: Graph, places: Places) -> Iterator[Node]:
    """A concatenation, after what is the same for every item was made as long as the items."""
    refs = node.refs()
    like = next(ref for ref in refs if places.get(ref) is not None)
    specs = stage.specs()
    parts: list[str] = []
    for index, ref in enumerate(refs):
        if places.get(ref) is not None:
            parts.append(ref)
            continue
        name = f"{node.name}:{index}"
        place = places[node.name]
        assert place is not None
        yield Node(name, "repeat", (ref, like), {"dim": place.axis}, specs[ref], node.module)
        parts.append(name)
    yield replace(node, args=(tuple(parts),))


# --- how operators treat items


def _follow(graph: Graph, specs: Mapping[str, TensorSpec]) -> Places:
    places: dict[str, Place | None] = {value.name: FIRST for value in graph.inputs}
    places |= dict.fromkeys(graph.weights)
    # Readings that were not tried yet, by the node that has them.
    open_readings: list[tuple[int, Sequence[Place | None]]] = []
    index, turns = 0, 0
    while index < len(graph.nodes):
        node = graph.nodes[index]
        try:
            readings = _readings(node, specs, places)
        except _MixedError:
            if not open_readings or turns >= _MOST_TURNS:
                raise
            turns += 1
            index, readings = open_readings.pop()
            node = graph.nodes[index]
        first, *others = readings
        places[node.name] = first
        if others:
            open_readings.append((index, others))
        index += 1
    return places


def _readings(
    node: Node, specs: Mapping[str, TensorSpec], places: Places
) -> Sequence[Place | None]:
    """Where the items of the node's value may be, likeliest first; at least one."""
    if all(places[ref] is None for ref in node.refs()):
        return (None,)
    rule = _RULES.get(node.op)
    if rule is None:
        raise _mixed(node, "is not known to treat items apart")
    return rule(_Step(node, specs, places))


def _mixed(node: Node, why: str) -> _MixedError:
    return _MixedError(f"operator {node.name!r} ({node.op}) {why}")


@dataclass(frozen=True, slots=True)
class _Step:
    """A node some operand of which has items."""

    node: Node
    specs: Mapping[str, TensorSpec]
    places: Places

    def place(self, index: int = 0) -> Place:
        """Of operand `index`, which must have items."""
        ref = self.node.args[index]
        place = self.places[ref] if isinstance(ref, str) else None
        if place is None:
            raise _mixed(self.node, f"has no items in operand {index}")
        return place

    def shape(self, index: int = 0) -> tuple[int, ...]:
        ref = self.node.args[index]
        assert isinstance(ref, str)
        return self.specs[ref].shape

    def same_for_all(self, *indices: int) -> None:
        """These operands, where they are there, must have no items."""
        for index in indices:
            ref = self.node.args[index]
            if isinstance(ref, str) and self.places[ref] is not None:
                raise _mixed(self.node, f"has items in operand {index}")

    def dims(self, name: str) -> set[int]:
        """An attribute of axes, counted from the front; of all of them where it is empty."""
        rank = len(self.shape())
        given = self.node.kwargs[name]
        axes = given if isinstance(given, tuple) else (given,)
        return {int(axis) % rank for axis in axes if axis is not None} or set(range(rank))

    def apart_from(self, axes: set[int]) -> Place:
        """The place in operand 0, which these axes must not touch."""
        place = self.place()
        if place.axis in axes:
            raise _mixed(self.node, "works across items")
        return place

    def broadcast(self, refs: Sequence[str], rank: int) -> Place:
        """The one place, counted in `rank` axes, that operands laid over each other from the last axis have.

        What has no items must be 1 long there.
        """
        found: set[Place] = set()
        lengths: set[int] = set()
        for ref in refs:
            place, shape = self.places[ref], self.specs[ref].shape
            if place is not None:
                found.add(replace(place, axis=place.axis + rank - len(shape)))
                lengths.add(shape[place.axis])
        if len(found) != 1 or len(lengths) != 1:
            raise _mixed(self.node, "has the items of its operands in unlike places")
        (place,) = found
        for ref in refs:
            shape = self.specs[ref].shape
            axis = place.axis - rank + len(shape)
            if self.places[ref] is None and axis >= 0 and shape[axis] != 1:
                raise _mixed(self.node, "lays one tensor over several items")
        return place


_Rule: TypeAlias = Callable[[_Step], Sequence[Place]]


def _each(s: _Step) -> Sequence[Place]:
    """Element by element, operands laid over each other."""
    return (s.broadcast(s.node.refs(), len(s.node.spec.shape)),)


def _image(s: _Step) -> Sequence[Place]:
    """Along axis 0 one by one; whatever else there is, is a weight."""
    s.same_for_all(*range(1, len(s.node.args)))
    if s.place().axis != 0:
        raise _mixed(s.node, "works across items")
    return (s.place(),)


def _linear(s: _Step) -> Sequence[Place]:
    s.same_for_all(*range(1, len(s.node.args)))
    return (s.apart_from({len(s.shape()) - 1}),)


def _q_linear(s: _Step) -> Sequence[Place]:
    """A runtime lays all rows under each other, and takes them apart again by the axes behind the first."""
    place = _linear(s)
    return place if len(s.shape()) == 2 else _image(s)


def _matmul(s: _Step) -> Sequence[Place]:
    """Items among the matrices, or among the rows of those on the left."""
    left, right = len(s.shape()), len(s.shape(1))
    rank = len(s.node.spec.shape)
    if min(left, right) < 2:
        raise _mixed(s.node, "multiplies a vector")
    of_left, of_right = (s.places[str(ref)] for ref in s.node.args)
    if of_left is not None and of_left.axis == left - 2 and of_right is None:
        return (replace(of_left, axis=rank - 2),)
    place = s.broadcast(s.node.refs(), rank)
    if place.axis >= rank - 2:
        raise _mixed(s.node, "works across items")
    return (place,)


def _attention(s: _Step) -> Sequence[Place]:
    rank = len(s.node.spec.shape)
    for index in range(3):
        s.place(index)
    place = s.broadcast(s.node.refs(), rank)
    if place.axis >= rank - 2:
        raise _mixed(s.node, "works across items")
    return (place,)


def _einsum(s: _Step) -> Sequence[Place]:
    equation = str(s.node.kwargs["equation"]).replace(" ", "")
    terms, arrow, result = equation.partition("->")
    letters: set[str] = set()
    before: set[int] = set()
    for ref, term in zip(s.node.refs(), terms.split(","), strict=True):
        place = s.places[ref]
        if place is not None and "." not in term:
            letters.add(term[place.axis])
            before.add(place.before)
    if len(letters) != 1 or len(before) != 1 or not arrow or "." in equation:
        raise _mixed(s.node, "is not known to treat items apart")
    (letter,) = letters
    for ref, term in zip(s.node.refs(), terms.split(","), strict=True):
        if letter in term and (s.places[ref] is None or term.count(letter) > 1):
            raise _mixed(s.node, "works across items")
    if letter not in result:
        raise _mixed(s.node, "works across items")
    return (Place(result.index(letter), *before),)


def _layer_norm(s: _Step) -> Sequence[Place]:
    s.same_for_all(1, 2)
    normalized = s.node.kwargs["normalized_shape"]
    assert isinstance(normalized, tuple)
    rank = len(s.shape())
    return (s.apart_from(set(range(rank - len(normalized), rank))),)


def _along(s: _Step) -> Sequence[Place]:
    """Along one axis, which stays."""
    return (s.apart_from(s.dims("dim")),)


def _reduce(s: _Step) -> Sequence[Place]:
    axes = s.dims("dims")
    place = s.apart_from(axes)
    if s.node.kwargs["keepdim"]:
        return (place,)
    return (replace(place, axis=place.axis - sum(axis < place.axis for axis in axes)),)


def _reshape(s: _Step) -> Sequence[Place]:
    """The items begin after as many elements as before; which axis that is in may be read in several ways."""
    place, shape = s.place(), s.node.spec.shape
    ahead = math.prod(s.shape()[: place.axis]) * place.before
    alone: list[Place] = []
    in_front: list[Place] = []
    within: list[Place] = []
    for axis, size in enumerate(shape):
        outside = math.prod(shape[:axis])
        if ahead % outside:
            break
        before = ahead // outside
        if size % before:
            continue
        if size == 1:
            alone.append(Place(axis))
        elif before == 1:
            in_front.append(Place(axis))
        else:
            within.append(Place(axis, before))
    found = [*alone, *in_front, *within]
    if not found:
        raise _mixed(s.node, "lays items and other axes together across each other")
    return found


def _permute(s: _Step) -> Sequence[Place]:
    place, dims = s.place(), s.node.kwargs["dims"]
    assert isinstance(dims, tuple)
    order = [int(dim) % len(dims) for dim in dims]
    return (replace(place, axis=order.index(place.axis)),)


def _expand(s: _Step) -> Sequence[Place]:
    place, shape = s.place(), s.node.spec.shape
    axis = place.axis + len(shape) - len(s.shape())
    if shape[axis] != s.shape()[place.axis]:
        raise _mixed(s.node, "repeats along the axis of items")
    return (replace(place, axis=axis),)


def _select(s: _Step) -> Sequence[Place]:
    (dim,) = s.dims("dim")
    place = s.apart_from({dim})
    return (replace(place, axis=place.axis - (dim < place.axis)),)


def _take(s: _Step) -> Sequence[Place]:
    """Of the same table for all, or by the same indices from each."""
    (dim,) = s.dims("dim")
    x, indices = (s.places[str(ref)] for ref in s.node.args)
    if x is None:
        place = s.place(1)
        return (replace(place, axis=dim + place.axis),)
    s.same_for_all(1)
    if indices is None and x.axis != dim:
        wider = len(s.shape(1)) - 1 if dim < x.axis else 0
        return (replace(x, axis=x.axis + wider),)
    raise _mixed(s.node, "works across items")


def _concat(s: _Step) -> Sequence[Place]:
    refs = s.node.refs()
    rank = len(s.node.spec.shape)
    place = s.broadcast(refs, rank)
    (dim,) = {int(axis) % rank for axis in (s.node.kwargs["dim"],) if isinstance(axis, int)}
    if place.axis == dim:
        raise _mixed(s.node, "lays items behind each other")
    if s.node.op != "concat" and any(s.places[ref] is None for ref in refs):
        raise _mixed(s.node, "joins what has items and what has none")
    return (place,)


def _pad(s: _Step) -> Sequence[Place]:
    pads = s.node.kwargs["pads"]
    assert isinstance(pads, tuple)
    rank = len(s.shape())
    return (s.apart_from(set(range(rank - len(pads) // 2, rank))),)


def _roll(s: _Step) -> Sequence[Place]:
    return (s.apart_from(s.dims("dims")),)


_IMAGES = (
    *("conv2d", "q_conv2d", "batch_norm", "group_norm", "max_pool2d", "avg_pool2d"),
    *("adaptive_avg_pool2d", "q_global_avg_pool2d"),
)
_ELEMENTWISE = (
    *("relu", "hardtanh", "silu", "sigmoid", "hardswish", "hardsigmoid", "gelu", "mish"),
    *(
        "leaky_relu",
        "elu",
        "tanh",
        "exp",
        "sqrt",
        "rsqrt",
        "reciprocal",
        "neg",
        "abs",
        "log",
        "erf",
    ),
    *("logical_not", "cast", "clamp", "add", "sub", "mul", "div", "maximum", "minimum", "equal"),
    *("less", "less_equal", "logical_and", "logical_or", "where", "add_scalar", "mul_scalar"),
    *("div_scalar", "pow_scalar", "quantize", "dequantize", "q_add", "q_mul", "q_sigmoid"),
)
_RULES: dict[str, _Rule] = {
    **dict.fromkeys(_ELEMENTWISE, _each),
    **dict.fromkeys(_IMAGES, _image),
    "linear": _linear,
    "q_linear": _q_linear,
    **dict.fromkeys(("softmax", "log_softmax", "slice"), _along),
    **dict.fromkeys(("mean", "sum", "amax", "vector_norm"), _reduce),
    **dict.fromkeys(("concat", "q_concat"), _concat),
    "matmul": _matmul,
    "scaled_dot_product_attention": _attention,
    "einsum": _einsum,
    "layer_norm": _layer_norm,
    "reshape": _reshape,
    "permute": _permute,
    "expand": _expand,
    "select": _select,
    "take": _take,
    "pad": _pad,
    "roll": _roll,
}
