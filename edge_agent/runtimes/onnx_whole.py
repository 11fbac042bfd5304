"""A model that is served whole, out of the blob that it came in: checked before ONNX Runtime sees it.

It names files for weights that are given to the session in memory; one that names any other file is refused,
since the session would read it. Operators are those that ONNX Runtime brings along: no library is loaded for
more.
"""

from __future__ import annotations

from google.protobuf.message import DecodeError

from edge_agent.runtimes.onnx_graph import Converted
from edge_agent.runtimes.onnx_proto import parse
from edge_agent.runtimes.onnx_weights import StageWeights
from shared.errors import StageError
from shared.graph import StageGraph
from shared.onnx_tensors import hidden_external, is_external


def whole_model(graph: StageGraph, weights: StageWeights) -> Converted:
    """The model of `graph`, which must be valid and whole.

    Raises:
        StageError: its blob is missing or damaged, it reads files, or it has other inputs or outputs.
    """
    names = graph.nodes[0].args[1]
    assert isinstance(names, tuple)
    own, *others = names
    try:
        model = parse(weights.get(own).tobytes())
    except DecodeError as error:
        raise StageError(f"stage {graph.name}: weight {own!r}", expected="an ONNX model") from error
    declared = {tensor.name for tensor in model.graph.initializer}
    given = set(others)
    loose = (t for t in model.graph.initializer if is_external(t) and t.name not in given)
    for tensor in (*hidden_external(model), *loose):
        raise StageError(
            f"stage {graph.name}: tensor {tensor.name!r} of the model is in another file",
            expected="only weights that come with it",
            got=str({entry.key: entry.value for entry in tensor.external_data})[:200],
        )
    inputs, outputs = (
        {name: name for name in found}
        for found in ([v.name for v in graph.inputs], [node.name for node in graph.nodes])
    )
    # A name that is not UTF-8 comes as bytes.
    found = {value.name for value in model.graph.input} - declared
    made = {value.name for value in model.graph.output}
    if found != inputs.keys() or not outputs.keys() <= made:
        raise StageError(
            f"stage {graph.name}: inputs and outputs of the model",
            expected=f"{sorted(inputs)} and {sorted(outputs)}",
            got=f"{sorted(map(repr, found))} and {sorted(map(repr, made))}"[:300],
        )
    return Converted(model, inputs, {name: name for name in others if name in declared}, outputs)
