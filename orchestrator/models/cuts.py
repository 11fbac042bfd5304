"""Where a graph may be cut, and the blocks between.

Position p lies before node p. What crosses it is the set of live activations: made before p and read at p
or later, graph outputs included; weights do not count. So every position is legal, residuals and
concatenations included; the question is which are worth offering. Between two operators that carry
multiply-adds the cheapest position is kept: elementwise operators stay with their producer, and each block
has exactly one operator that computes.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from orchestrator.models.macs import macs
from shared.graph import Graph
from shared.manifest import Block
from shared.operators import OPS
from shared.profile import CutProfile


@dataclass(frozen=True, slots=True)
class Liveness:
    """For each value the position from which it exists and the last node that reads it.

    `order` has graph inputs first and then nodes in order: the order in which tensors cross a cut. An input
    is made at 0, node i's value at i + 1. A graph output is read at `len(nodes)`.
    """

    order: tuple[str, ...]
    made: dict[str, int]
    last_use: dict[str, int]
    nbytes: dict[str, int]

    def at(self, position: int) -> tuple[str, ...]:
        """The tensors that cross `position`, in order."""
        return tuple(
            name
            for name in self.order
            if self.made[name] <= position <= self.last_use.get(name, -1)
        )

    def bytes_at(self, position: int) -> int:
        """Their bytes."""
        return sum(self.nbytes[name] for name in self.at(position))


def liveness(graph: Graph) -> Liveness:
    """Who lives when. Values nobody reads and that are no output never cross anything."""
    made = {value.name: 0 for value in graph.inputs}
    nbytes = {value.name: value.spec.nbytes for value in graph.inputs}
    last_use: dict[str, int] = {}
    for index, node in enumerate(graph.nodes):
        made[node.name] = index + 1
        nbytes[node.name] = node.spec.nbytes
        for ref in node.refs():
            if ref in made:
                last_use[ref] = index
    for output in graph.outputs:
        last_use[output] = len(graph.nodes)
    return Liveness(tuple(made), made, last_use, nbytes)


def cut_positions(graph: Graph, live: Liveness) -> list[int]:
    """The positions worth offering, ascending.

    Between neighbouring computing nodes the one with the fewest bytes (tie: fewer tensors, then the later).
    """
    computing = [index for index, node in enumerate(graph.nodes) if OPS[node.op].computes]

    def cost(position: int) -> tuple[int, int, int]:
        return live.bytes_at(position), len(live.at(position)), -position

    return [min(range(before + 1, after + 1), key=cost) for before, after in pairwise(computing)]


def find_blocks(graph: Graph) -> tuple[tuple[Block, ...], tuple[CutProfile, ...]]:
    """The blocks of `graph` and the cuts between them; weight bytes are filled in, blobs are not."""
    live = liveness(graph)
    specs = graph.specs()
    positions = cut_positions(graph, live)
    bounds = [0, *positions, len(graph.nodes)]
    names = _names(graph, bounds)
    blocks = []
    for index, (start, stop) in enumerate(pairwise(bounds)):
        nodes = graph.nodes[start:stop]
        weights = {ref for node in nodes for ref in node.refs() if ref in graph.weights}
        blocks.append(
            Block(
                index=index,
                name=names[index],
                nodes=(start, stop),
                macs=sum(macs(node, specs) for node in nodes),
                weight_bytes=sum(graph.weights[name].spec.nbytes for name in weights),
                peak_bytes=max(_bytes_during(live, graph, at) for at in range(start, stop)),
            )
        )
    cuts = [
        CutProfile(index, live.bytes_at(position), len(live.at(position)))
        for index, position in enumerate(positions, start=1)
    ]
    return tuple(blocks), tuple(cuts)


def _bytes_during(live: Liveness, graph: Graph, index: int) -> int:
    """Live bytes while node `index` runs: what is there before it, and its result."""
    return live.bytes_at(index) + live.nbytes[graph.nodes[index].name]


def _names(graph: Graph, bounds: list[int]) -> list[str]:
    """The module path of each block's computing node (else of its first node), made unique."""
    names: list[str] = []
    seen: dict[str, int] = {}
    for start, stop in pairwise(bounds):
        nodes = graph.nodes[start:stop]
        head = next((node for node in nodes if OPS[node.op].computes), nodes[0])
        name = head.module or head.name
        seen[name] = seen.get(name, 0) + 1
        names.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return names
