"""A stage's graph as an ONNX model.

Weights are declared as external data, and given to the session as they lie in memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edge_agent.runtimes.onnx_ops import convert_node
from edge_agent.runtimes.onnx_proto import make_external, make_graph, make_model, make_value
from edge_agent.runtimes.onnx_quantised import DOMAIN, DOMAIN_VERSION
from edge_agent.runtimes.onnx_writer import Writer
from shared.graph import StageGraph, TensorSpec

OPSET = 20
"""The first with Gelu; ONNX Runtime 1.17 and later have it."""
IR_VERSION = 9
"""That of the ONNX release which brought the opset; the library's own may be too new for the runtime."""


@dataclass(frozen=True, slots=True)
class Converted:
    """A stage as ONNX, and what its inputs, weights and outputs are called there, by our names.

    Inputs and weights that no node reads are left out, and outputs that are inputs.
    """

    model: Any
    inputs: dict[str, str]
    weights: dict[str, str]
    outputs: dict[str, str]


def convert(graph: StageGraph) -> Converted:
    """`graph`, which must be valid, as an ONNX model without its weights.

    Raises:
        StageError: an operator has no exact counterpart; names it.
    """
    writer = Writer(graph)
    read = {ref for node in graph.nodes for ref in node.refs()}
    inputs = {v.name: writer.names[v.name] for v in graph.inputs if v.name in read}
    weights = {name: writer.names[name] for name in graph.weights if name in read}
    for node in graph.nodes:
        writer.begin(node)
        writer.names[node.name] = convert_node(writer)
    taken = {value.name for value in graph.inputs}
    # ONNX wants an output even of a stage that only passes its inputs on.
    wanted = [name for name in graph.outputs if name not in taken] or [graph.nodes[-1].name]
    outputs = {name: writer.names[name] for name in wanted}
    proto = make_graph(
        writer.nodes,
        [
            make_value(inputs[name], spec.dtype, _shape(spec, open_batch=graph.open_batch))
            for name in inputs
            for spec in (writer.specs[name],)
        ],
        # Without a shape: the runtime infers it, and what the graph declares is compared with that.
        [make_value(outputs[name], writer.specs[name].dtype, None) for name in outputs],
        [
            *writer.constants,
            *(
                make_external(weights[name], spec.dtype, spec.shape, spec.nbytes)
                for name in weights
                for spec in (writer.specs[name],)
            ),
        ],
    )
    model = make_model(proto, [("", OPSET), (DOMAIN, DOMAIN_VERSION)], IR_VERSION)
    return Converted(model, inputs, weights, outputs)


def _shape(spec: TensorSpec, *, open_batch: bool) -> tuple[int | str, ...]:
    return ("items", *spec.shape[1:]) if open_batch else spec.shape
