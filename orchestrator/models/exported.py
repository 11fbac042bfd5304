"""A `torch.export` archive to our graph: its JSON read by us, its operators looked up in ATen only."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from orchestrator.models.call import Call
from orchestrator.models.exported_archive import AGAIN, DTYPES, Archive, read_archive
from orchestrator.models.importer import ImportedModel, assemble
from orchestrator.models.lowering import RULES
from orchestrator.models.onnx_export import Untraced
from orchestrator.models.reference import Reference, answered
from orchestrator.models.source import ModelSource
from orchestrator.models.trace import lower
from shared.errors import ModelError
from shared.graph import MAX_NODES, Graph, Kernels
from shared.manifest import WeightsMark

_ATEN = "torch.ops.aten."
_LAYOUTS = {7: torch.strided}
_FORMATS = {
    1: torch.contiguous_format,
    2: torch.channels_last,
    3: torch.channels_last_3d,
    4: torch.preserve_format,
}
"""MemoryFormat of torch/_export/serde/schema.py."""
_INFINITE = {"Infinity": float("inf"), "-Infinity": float("-inf"), "NaN": float("nan")}
"""How the archive writes what JSON has no number for."""


@dataclass(frozen=True, slots=True)
class ExportedModel:
    """An archive that was read: the graph, and its placeholders that stand for tensors of the archive."""

    source: ModelSource
    graph: Any
    constants: dict[str, tuple[str, torch.Tensor]]

    @classmethod
    def open(cls, source: ModelSource) -> ExportedModel:
        """Read the archive that `source` names.

        Raises:
            ModelError: see `read_archive`; or a graph with open shapes, control flow, operators beside
                ATen's, or one that writes to its own weights.
        """
        archive = read_archive(Path(source.reference))
        try:
            return cls(source, *_Reader(archive).read())
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError) as error:
            # JSON of another form than torch writes fails wherever it is first looked at.
            text = str(error).strip().partition("\n")[0][:200]
            raise ModelError(
                f"{archive.path}: its graph cannot be read: {type(error).__name__}: {text}; {AGAIN}",
                expected="the JSON that torch.export.save writes",
            ) from error

    def imported(self, level: str, kernels: Kernels) -> ImportedModel:
        """The model in our form; its references are the graph's own results, operator by operator.

        By way of ONNX where it has an operator that is not on the list.

        Raises:
            ModelError: it cannot be had that way either.
        """
        try:
            traced = lower(self.graph, self.constants)
        except ModelError as error:
            return self._by_onnx(error).imported(level, kernels)
        return assemble(
            traced,
            self.source.name,
            level=level,
            weights=WeightsMark.FILE,
            kernels=kernels,
            references=self._references,
        )

    def _references(self, graph: Graph) -> tuple[Reference, ...]:
        inputs = self._inputs()
        names = [node.name for node in inputs]

        def answer(given: dict[str, torch.Tensor]) -> list[torch.Tensor]:
            return self._run(tuple(given[name] for name in names))

        return answered(graph, answer)

    def _by_onnx(self, why: ModelError) -> Untraced:
        inputs = self._inputs()
        example = tuple(
            torch.zeros(node.meta["val"].shape, dtype=node.meta["val"].dtype) for node in inputs
        )
        names = tuple(node.name for node in inputs)
        return Untraced(
            self.source, _Interpreted(self._run), Call(example), names, why, branches=False
        )

    def _inputs(self) -> list[Any]:
        return [
            node
            for node in self.graph.nodes
            if node.op == "placeholder" and node.name not in self.constants
        ]

    def _run(self, inputs: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
        # Without a GraphModule: that would write Python code, with the archive's names in it, and run it.
        program = torch.fx.Interpreter(torch.nn.Module(), graph=self.graph)
        given = iter(inputs)
        # Copies: a graph may write to what it is given.
        arguments = [
            (self.constants[node.name][1] if node.name in self.constants else next(given)).clone()
            for node in self.graph.nodes
            if node.op == "placeholder"
        ]
        return list(program.run(*arguments))


class _Interpreted(torch.nn.Module):
    """The graph as a module, for what takes nothing else."""

    def __init__(self, run: Callable[[tuple[torch.Tensor, ...]], list[torch.Tensor]]) -> None:
        super().__init__()
        self._run = run

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(self._run(inputs))


class _Reader:
    """Builds a `torch.fx.Graph` out of an archive's JSON."""

    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        self._path = archive.path
        module = archive.program["graph_module"]
        self._json = module["graph"]
        self._signature = module["signature"]
        self._graph = torch.fx.Graph()
        self._nodes: dict[str, Any] = {}

    def read(self) -> tuple[Any, dict[str, tuple[str, torch.Tensor]]]:
        """The graph, and the placeholders that are constants."""
        if len(self._json["nodes"]) > MAX_NODES:
            raise self._refuse("number of nodes", f"at most {MAX_NODES}", len(self._json["nodes"]))
        if self._json["sym_int_values"] or self._json.get("sym_float_values"):
            raise self._dynamic()
        constants = self._placeholders()
        for node in self._json["nodes"]:
            self._call(node)
        outputs = []
        for spec in self._signature["output_specs"]:
            ((kind, content),) = spec.items()
            if kind != "user_output" or "as_tensor" not in content["arg"]:
                raise self._refuse(
                    "an output", "tensors only, and no writing to weights or inputs", kind
                )
            outputs.append(self._nodes[content["arg"]["as_tensor"]["name"]])
        self._graph.output(tuple(outputs))
        return self._graph, constants

    def _placeholders(self) -> dict[str, tuple[str, torch.Tensor]]:
        constants: dict[str, tuple[str, torch.Tensor]] = {}
        keys = {
            "parameter": "parameter_name",
            "buffer": "buffer_name",
            "tensor_constant": "tensor_constant_name",
        }
        for spec in self._signature["input_specs"]:
            ((kind, content),) = spec.items()
            if kind == "user_input" and "as_tensor" in content["arg"]:
                self._placeholder(content["arg"]["as_tensor"]["name"])
            elif kind in keys:
                name, path = content["arg"]["name"], content[keys[kind]]
                if path not in self._archive.tensors:
                    raise self._refuse(f"{kind} {path!r}", "its tensor in the archive", "none")
                self._placeholder(name)
                constants[name] = (path, self._archive.tensors[path])
            else:
                raise self._refuse("an input", "tensors only", kind)
        return constants

    def _placeholder(self, name: str) -> None:
        self._add(name, self._graph.placeholder(name), self._fake(name))

    def _add(self, name: str, node: Any, value: Any) -> None:
        if name in self._nodes:
            raise self._refuse("names", "each once", f"{name} again")
        if not name.isidentifier():
            raise self._refuse("names", "Python identifiers", repr(name))
        node.name = name  # fx would avoid Python's own words, such as `input`
        node.meta["val"] = value
        self._nodes[name] = node

    def _fake(self, name: str) -> torch.Tensor:
        """A tensor without memory, of the form that the archive states."""
        meta = self._json["tensor_values"][name]
        if any("as_int" not in size for size in meta["sizes"]):
            raise self._dynamic()
        dtype = DTYPES.get(meta["dtype"])
        if dtype is None:
            raise self._refuse(f"dtype of {name!r}", "one of ours", f"ScalarType {meta['dtype']}")
        sizes, strides = ([int(n["as_int"]) for n in meta[what]] for what in ("sizes", "strides"))
        return torch.empty_strided(sizes, strides, dtype=dtype, device="meta")

    def _call(self, node: dict[str, Any]) -> None:
        target = self._target(node["target"])
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        keywords = {a.name for a in target._schema.arguments if a.kwarg_only}  # noqa: SLF001
        for entry in node["inputs"]:
            value = self._value(entry["arg"])
            by_name = entry["kind"] == 2 if entry.get("kind") else entry["name"] in keywords
            if by_name:
                kwargs[entry["name"]] = value
            else:
                args.append(value)
        made = self._graph.call_function(target, tuple(args), kwargs)
        made.meta["nn_module_stack"] = dict(_modules(node["metadata"].get("nn_module_stack", "")))
        outputs = node["outputs"]
        if len(outputs) == 1 and "as_tensor" in outputs[0]:
            name = outputs[0]["as_tensor"]["name"]
            self._add(name, made, self._fake(name))
            return
        pieces: list[str] = []
        for output in outputs:
            ((kind, value),) = output.items()
            if kind not in ("as_tensor", "as_tensors", "as_none"):
                raise self._refuse(f"output of {node['target']}", "tensors", kind)
            if kind != "as_none":
                pieces += [item["name"] for item in (value if kind == "as_tensors" else [value])]
        made.meta["val"] = [self._fake(name) for name in pieces]
        for index, name in enumerate(pieces):
            picked = self._graph.call_function(operator.getitem, (made, index))
            self._add(name, picked, self._fake(name))

    def _target(self, name: str) -> Any:
        """The ATen operator; never anything else that the name might lead to."""
        found, packet = None, ""
        if name.startswith(_ATEN) and name.count(".") == 4:
            packet, overload = name.removeprefix(_ATEN).split(".")
            found = getattr(getattr(torch.ops.aten, packet, None), overload, None)
        if not isinstance(found, torch._ops.OpOverload):  # noqa: SLF001
            raise self._refuse("operator", "ATen's operators (torch.ops.aten.NAME.OVERLOAD)", name)
        # What takes text may take the name of a file (aten::from_file does).
        texts = [a.name for a in found._schema.arguments if "str" in str(a.type)]  # noqa: SLF001
        if (
            texts
            and name.removeprefix("torch.ops.") not in RULES
            and not packet.startswith("_assert")
        ):
            raise self._refuse("operator", "one that takes no text", name)
        return found

    def _value(self, arg: dict[str, Any]) -> Any:
        ((kind, value),) = arg.items()
        match kind:
            case "as_none":
                return None
            case "as_tensor":
                return self._nodes[value["name"]]
            case "as_tensors":
                return [self._nodes[item["name"]] for item in value]
            case "as_optional_tensor":
                return self._value(value)
            case "as_optional_tensors":
                return [self._value(item) for item in value]
            case "as_int" | "as_ints" | "as_bool" | "as_bools" | "as_string":
                return value
            case "as_sym_int" if "as_int" in value:
                return value["as_int"]
            case "as_sym_ints" if all("as_int" in item for item in value):
                return [item["as_int"] for item in value]
            case "as_float":
                return float(_INFINITE.get(value, value))
            case "as_floats":
                return [float(_INFINITE.get(item, item)) for item in value]
            case "as_scalar_type":
                return DTYPES[value]
            case "as_memory_format":
                return _FORMATS[value]
            case "as_layout":
                return _LAYOUTS[value]
            case "as_device":
                return torch.device("cpu")  # wherever it was exported
            case "as_sym_int" | "as_sym_ints" | "as_sym_bool" | "as_sym_float":
                raise self._dynamic()
            case _:
                raise self._refuse("an operand", "tensors and numbers", kind)

    def _dynamic(self) -> ModelError:
        return self._refuse(
            "open shapes (exported with dynamic_shapes)", f"fixed ones; {AGAIN}", "open ones"
        )

    def _refuse(self, what: str, expected: str, got: object) -> ModelError:
        return ModelError(f"{self._path}: {what}", expected=expected, got=str(got)[:200])


def _modules(text: str) -> Iterator[tuple[str, tuple[str, str]]]:
    """The modules a node is in, outermost first: `key,path,type;key,path,type`."""
    for entry in text.split(";") if text else ():
        key, path, kind = [*entry.split(","), "", ""][:3]
        yield key, (path, kind)
