"""A torch module to our graph: `torch.export`, constant folding, functional form.

`torch.export` gives a flat list of ATen operators in the order of the program. Walking it once:

- what does not depend on the input is computed here and becomes a weight (Swin's masks and position bias);
- an in-place operator becomes its functional form, and later uses of what it changed read the new value;
- what gives its input back at inference (dropout, contiguous) vanishes;
- everything else goes through the rules in `lowering`, or is refused by name.
"""

from __future__ import annotations

import logging
import operator
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from orchestrator.models.call import Call
from orchestrator.models.lowering import (
    IDENTITIES,
    RULES,
    SHAPE_ONLY,
    VIEWS,
    Lowered,
    slice_of,
)
from shared.errors import ModelError
from shared.graph import DTYPE_BYTES, Node, Operand, TensorSpec, Value


class UntraceableError(ModelError):
    """`torch.export` cannot follow a module: its control flow may depend on values."""


@dataclass(slots=True)
class Traced:
    """A graph under construction: our nodes, and its weights as tensors."""

    inputs: tuple[Value, ...]
    nodes: list[Node]
    outputs: tuple[str, ...]
    weights: dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class _Dynamic:
    """A value that depends on the input. Equal `storage` means the memory may be shared."""

    name: str
    storage: int


@dataclass(slots=True)
class _Tracer:
    graph: Any
    taken: set[str]
    nodes: list[Node] = field(default_factory=list)
    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    env: dict[Any, Any] = field(default_factory=dict)
    named: dict[tuple[int, int], tuple[str, torch.Tensor]] = field(default_factory=dict)
    hints: dict[int, str] = field(default_factory=dict)
    position: dict[Any, int] = field(default_factory=dict)
    storages: int = 0


def trace(module: torch.nn.Module, example: Call) -> Traced:
    """Trace `module` (in eval mode) on inputs shaped like those of `example`.

    Raises:
        UntraceableError: `torch.export` cannot trace it.
        ModelError: it uses an operator that is not on the list.
    """
    program = _program(module, example)
    return lower(program.graph, _constants(program))


def _program(module: torch.nn.Module, example: Call) -> Any:
    chatter = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    fastpath, silent = torch.backends.mha.get_fastpath_enabled(), chatter.disabled
    chatter.disabled = True  # what it has to say stands in the error
    # The shortcut for transformers is one opaque operator; without it their layers are traced as they are.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # as above
            # Copies, because torch.export takes one tensor given twice for one input.
            call = example.copied()
            return torch.export.export(module, call.args, dict(call.kwargs))
    except Exception as error:
        # torch.export raises errors of a dozen unrelated types, all meaning the same to the caller.
        first_line = str(error).strip().partition("\n")[0][:300]
        raise UntraceableError(
            f"the model cannot be traced: {type(error).__name__}: {first_line}",
            expected="a forward without control flow that depends on the values of tensors",
        ) from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)
        chatter.disabled = silent


def lower(graph: Any, constants: Mapping[str, tuple[str, torch.Tensor]]) -> Traced:
    """Walk a `torch.fx.Graph` of ATen operators once, as this module's docstring has it.

    Args:
        graph: its placeholders and nodes have a (fake) tensor of their form under `meta["val"]`.
        constants: the placeholders that stand for parameters, buffers and constants: path and tensor by name.

    Raises:
        ModelError: it uses an operator that is not on the list, or writes where it must not.
    """
    with torch.no_grad():
        return _walk(_Tracer(graph, {node.name for node in graph.nodes}), constants)


def _walk(t: _Tracer, constants: Mapping[str, tuple[str, torch.Tensor]]) -> Traced:
    inputs: list[Value] = []
    outputs: tuple[str, ...] = ()
    for index, node in enumerate(t.graph.nodes):
        t.position[node] = index
    for node in t.graph.nodes:
        match node.op:
            case "placeholder" if node.name in constants:
                path, tensor = constants[node.name]
                t.hints[id(tensor)] = path
                t.env[node] = tensor
            case "placeholder":
                inputs.append(Value(node.name, _spec(node.name, node.meta["val"])))
                t.env[node] = _Dynamic(node.name, _new_storage(t))
            case "call_function":
                t.env[node] = _call(t, node)
            case "output":
                outputs = tuple(_output(t.env[item]) for item in node.args[0] if item is not None)
            case other:
                raise ModelError(f"the traced model has a node of kind {other!r}")
    return Traced(tuple(inputs), t.nodes, outputs, t.weights)


def _constants(program: Any) -> dict[str, tuple[str, torch.Tensor]]:
    """Placeholders that stand for parameters, buffers and lifted constants: name -> (path, tensor)."""
    signature = program.graph_signature
    found: dict[str, tuple[str, torch.Tensor]] = {}
    for name, path in {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }.items():
        tensor = program.state_dict[path] if path in program.state_dict else program.constants[path]
        found[name] = (path, tensor.detach())
    return found


def _output(value: Any) -> str:
    if not isinstance(value, _Dynamic):
        raise ModelError("an output of the model does not depend on its input")
    return value.name


def _new_storage(t: _Tracer) -> int:
    t.storages += 1
    return t.storages


def _lookup(t: _Tracer, value: Any) -> Any:
    if isinstance(value, torch.fx.Node):
        return t.env[value]
    if isinstance(value, list | tuple):
        return [_lookup(t, item) for item in value]
    return value


def _depends(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(_depends(item) for item in value)
    return isinstance(value, _Dynamic)


def _call(t: _Tracer, node: Any) -> Any:
    args = [_lookup(t, arg) for arg in node.args]
    kwargs = {key: _lookup(t, value) for key, value in node.kwargs.items()}
    if node.target is operator.getitem:
        return args[0][args[1]]
    name = str(node.target)
    if name.startswith("aten._assert"):
        # A check of what is fixed here: it gives no value.
        return None
    mutates = _mutates(node)
    if name in SHAPE_ONLY and isinstance(args[0], _Dynamic):
        fake = node.args[0].meta["val"]
        args[0] = torch.empty(fake.shape, dtype=fake.dtype)
    if not _depends(args) and not _depends(list(kwargs.values())):
        return _evaluate(t, node, args, kwargs, mutates=mutates)
    bound = _bind(node, args, kwargs)
    functional = name.replace("_.", ".", 1) if mutates else name
    if functional in IDENTITIES:
        return _identity(t, node, functional, bound)
    if functional in ("aten.chunk.default", "aten.split.Tensor", "aten.split_with_sizes.default"):
        return _pieces(t, node, bound)
    if functional == "aten.unbind.int":
        dim = int(bound["dim"])
        picks = range(len(node.meta["val"]))
        source = bound["self"]
        return [
            _emit(t, node, Lowered("select", (source,), {"dim": dim, "index": i}), i, source)
            for i in picks
        ]
    rule = RULES.get(functional)
    if rule is None:
        raise ModelError(
            f"operator {name} is not on the list of what can be cut and run on nodes",
            expected="operators of the list: write this part of the model with others, or try its export to"
            " ONNX (torch.onnx.export), which may do so by itself",
            got=f"{name} in {_module(node) or 'the model itself'}",
        )
    bound["like"] = node.all_input_nodes[0].meta["val"]
    if functional.startswith("aten.conv2d"):
        bound["kernel"] = tuple(node.args[1].meta["val"].shape[-2:])
    lowered = rule(bound, node.meta["val"])
    source = bound.get("self") if functional in VIEWS else None
    made = _emit(t, node, lowered, None, source)
    if mutates:
        _supersede(t, node, made)
    return made


def _mutates(node: Any) -> bool:
    return bool(getattr(node.target, "_schema", None) and node.target._schema.is_mutable)  # noqa: SLF001


def _bind(node: Any, args: list[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments by name with the schema's defaults, and the operator's bare name under `op`."""
    bound: dict[str, Any] = {"op": node.target._schema.name.partition("::")[2].rstrip("_")}  # noqa: SLF001
    for index, argument in enumerate(node.target._schema.arguments):  # noqa: SLF001
        if index < len(args):
            bound[argument.name] = args[index]
        elif argument.name in kwargs:
            bound[argument.name] = kwargs[argument.name]
        else:
            bound[argument.name] = argument.default_value
    return bound


def _evaluate(
    t: _Tracer, node: Any, args: list[Any], kwargs: Mapping[str, Any], *, mutates: bool
) -> Any:
    """Compute what does not depend on the input; views share memory as they would in the model."""
    if mutates and id(args[0]) in t.hints:
        raise ModelError(
            f"the model writes to its own parameter or buffer {t.hints[id(args[0])]!r} when it runs"
        )
    try:
        return node.target(*args, **kwargs)
    except Exception as error:
        raise ModelError(f"constant part of the model failed in {node.target}: {error}") from error


def _identity(t: _Tracer, node: Any, name: str, bound: dict[str, Any]) -> Any:
    if bound.get("train"):
        raise ModelError("dropout in training mode: call eval() on the model first")
    source = bound["self"] if "self" in bound else bound["input"]
    before = node.args[0].meta["val"]
    if before.dtype != node.meta["val"].dtype:
        dtype = str(node.meta["val"].dtype).removeprefix("torch.")
        return _emit(t, node, Lowered("cast", (source,), {"dtype": dtype}), None, None)
    copies = name in ("aten.clone.default", "aten.lift_fresh_copy.default") or (
        name == "aten.contiguous.default" and not before.is_contiguous()
    )
    return _Dynamic(source.name, _new_storage(t)) if copies else source


def _pieces(t: _Tracer, node: Any, bound: dict[str, Any]) -> list[_Dynamic]:
    """chunk and split: one slice per piece, sizes from the traced results."""
    source, dim = bound["self"], int(bound["dim"])
    pieces: list[_Dynamic] = []
    start = 0
    for index, fake in enumerate(node.meta["val"]):
        stop = start + int(fake.shape[dim])
        pieces.append(_emit(t, node, slice_of(source, dim, start, stop), index, source))
        start = stop
    return pieces


def _emit(t: _Tracer, node: Any, lowered: Lowered, piece: int | None, source: Any) -> _Dynamic:
    """Append one node; `source` is what its value may share memory with."""
    fake = node.meta["val"] if piece is None else node.meta["val"][piece]
    name = node.name if piece is None else _unique(t, f"{node.name}_{piece}")
    args = tuple(_operand(t, operand, node) for operand in lowered.operands)
    t.nodes.append(
        Node(name, lowered.op, args, lowered.attributes, _spec(name, fake), _module(node))
    )
    storage = source.storage if isinstance(source, _Dynamic) else _new_storage(t)
    return _Dynamic(name, storage)


def _operand(t: _Tracer, value: Any, node: Any) -> Operand:
    if value is None:
        return None
    if isinstance(value, list | tuple):
        return tuple(str(_operand(t, item, node)) for item in value)
    if isinstance(value, _Dynamic):
        return value.name
    if isinstance(value, Lowered):
        return _part(t, value, node)
    if isinstance(value, torch.Tensor):
        return _weight(t, value, f"{_module(node) or 'constant'}.{node.name}")
    raise ModelError(
        f"operator {node.target}: operand", expected="a tensor", got=type(value).__name__
    )


def _part(t: _Tracer, lowered: Lowered, node: Any) -> str:
    """A value on the way to the node's own."""
    args = tuple(_operand(t, operand, node) for operand in lowered.operands)
    name, spec = _unique(t, f"{node.name}_part"), _spec(node.name, node.meta["val"])
    if lowered.shape is not None:
        spec = replace(spec, shape=lowered.shape)
    t.nodes.append(Node(name, lowered.op, args, lowered.attributes, spec, _module(node)))
    return name


def _weight(t: _Tracer, tensor: torch.Tensor, fallback: str) -> str:
    """The name of a constant as it is now; the version tells apart what is written to in between."""
    key = (id(tensor), tensor._version)  # noqa: SLF001
    if key not in t.named:
        name = _unique(t, t.hints.get(id(tensor), fallback))
        # Holding the tensor keeps its id from being used again.
        t.named[key] = (name, tensor)
        t.weights[name] = tensor.detach().clone(memory_format=torch.contiguous_format)
    return t.named[key][0]


def _supersede(t: _Tracer, node: Any, made: _Dynamic) -> None:
    """After an in-place operator, whoever reads what it changed reads the new value.

    That may have been a constant until then: zeros, say, filled where the input's mask says so.
    """
    changed = t.env[node.args[0]]
    if id(changed) in t.hints:
        raise ModelError(
            f"the model writes to its own parameter or buffer {t.hints[id(changed)]!r} when it runs"
        )
    now = t.position[node]
    for other, value in t.env.items():
        if _is_same(value, changed):
            t.env[other] = made
        elif _shares(value, changed) and any(t.position[user] > now for user in other.users):
            raise ModelError(
                f"{node.target} in {_module(node)!r} changes a tensor that is also seen through the view"
                f" {other.name!r}, which is read later",
                expected="in-place operators only where no other view is read afterwards",
            )


def _is_same(value: Any, changed: Any) -> bool:
    if isinstance(changed, _Dynamic):
        return bool(value == changed)
    return value is changed


def _shares(value: Any, changed: Any) -> bool:
    """Whether what is written to `changed` may be seen in `value`."""
    if isinstance(changed, _Dynamic):
        return isinstance(value, _Dynamic) and value.storage == changed.storage
    if not isinstance(value, torch.Tensor):
        return False
    return bool(value.untyped_storage().data_ptr() == changed.untyped_storage().data_ptr())


def _unique(t: _Tracer, name: str) -> str:
    candidate, count = name, 1
    while candidate in t.taken:
        count += 1
        candidate = f"{name}#{count}"
    t.taken.add(candidate)
    return candidate


def _module(node: Any) -> str:
    stack = node.meta.get("nn_module_stack")
    return str(list(stack.values())[-1][0]) if stack else ""


def _spec(name: str, tensor: Any) -> TensorSpec:
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in DTYPE_BYTES:
        raise ModelError(f"value {name!r}: dtype", expected=" | ".join(DTYPE_BYTES), got=dtype)
    return TensorSpec(dtype, tuple(int(dim) for dim in tensor.shape))
