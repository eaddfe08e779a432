"""Cuts a decoder's graph so that scores are computed after the tokens that are asked for alone, not after every one.

Of a prompt only the scores after its last token are wanted. A file that computes them after each spends much of a
prompt's time on them (a vocabulary is wide) and takes memory for them all. The cut graph has one more input,
``PLACES``: int64 (rows, 1), counted through all rows' tokens; its scores are (rows, 1, vocabulary).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rbee.worker.engine.onnx_file import (
    GRAPH_INPUT,
    GRAPH_NODE,
    GRAPH_OUTPUT,
    GRAPH_VALUE,
    MODEL_GRAPH,
    NODE_INPUT,
    NODE_OP_TYPE,
    NODE_OUTPUT,
    VALUE_NAME,
)
from rbee.worker.engine.onnx_writer import SmallGraph, bytes_field, text_fields
from rbee.worker.engine.protobuf import LENGTH, Field, fields, text

PLACES = "rbee.places"
_FLAT, _WANTED = "rbee.flat", "rbee.wanted"
_HEADS = frozenset({"MatMul", "MatMulNBits"})
MOST_BYTES = 64 << 20
"""Size of a file that is rewritten in memory: one that is larger has its weights inside."""


@dataclass(frozen=True, slots=True)
class _Node:
    """A node of the graph: where it stands in the file, its operator, and the tensors that it reads and writes."""

    field: Field
    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def cut_scores(file: Path, scores: str, element: str) -> bytes | None:
    """The cut model of the file, whose output ``scores`` has that element type and three axes; weights stay outside.

    None where the file is too large for it, or its scores are not a product that a cast at most follows.
    """
    if file.stat().st_size > MOST_BYTES:
        return None
    data = memoryview(file.read_bytes())
    graph = next(part for part in fields(data, 0, len(data)) if part.number == MODEL_GRAPH)
    parts = fields(data, graph.start, graph.end)
    nodes = [_node(data, part) for part in parts if part.number == GRAPH_NODE and part.wire == LENGTH]
    chain = _chain(nodes, scores)
    if not chain:
        return None
    changed = b"".join(_changed_graph(data, graph, chain[-1], {name for node in chain for name in node.outputs}))
    more = SmallGraph()
    more.input(PLACES, "int64", 2)
    more.output(scores, element, 3)
    declared = bytes_field(GRAPH_INPUT, more.inputs[0]) + bytes_field(GRAPH_OUTPUT, more.outputs[0])
    whole = bytes_field(MODEL_GRAPH, changed + declared)
    raw = _raw_fields(data, Field(0, LENGTH, 0, 0, len(data)))
    return b"".join(whole if part.number == MODEL_GRAPH else bytes(each) for part, each in raw)


def _chain(nodes: Sequence[_Node], scores: str) -> list[_Node]:
    """The nodes from that which writes ``scores`` back to the product; empty where there is something else."""
    writers = {name: node for node in nodes for name in node.outputs}
    readers: Mapping[str, int] = _count_readers(nodes)
    chain: list[_Node] = []
    name = scores
    while name in writers and readers.get(name, 0) == len(chain[-1:]):
        node = writers[name]
        chain.append(node)
        if node.operator in _HEADS:
            return chain
        if node.operator != "Cast":
            return []
        name = node.inputs[0]
    return []


def _count_readers(nodes: Sequence[_Node]) -> dict[str, int]:
    found: dict[str, int] = {}
    for node in nodes:
        for name in node.inputs:
            found[name] = found.get(name, 0) + 1
    return found


def _node(data: memoryview, field: Field) -> _Node:
    parts = [part for part in fields(data, field.start, field.end) if part.wire == LENGTH]
    names = {
        number: tuple(text(data, part) for part in parts if part.number == number)
        for number in (NODE_INPUT, NODE_OUTPUT, NODE_OP_TYPE)
    }
    return _Node(field, "".join(names[NODE_OP_TYPE]), names[NODE_INPUT], names[NODE_OUTPUT])


def _changed_graph(data: memoryview, graph: Field, head: _Node, narrowed: set[str]) -> Iterator[bytes]:
    """The graph's fields: the product reads what is wanted, and what is said of ``narrowed`` tensors is left out."""
    for part, raw in _raw_fields(data, graph):
        if part == head.field:
            yield from _wanted_head(data, head)
        elif part.number not in (GRAPH_OUTPUT, GRAPH_VALUE) or _name(data, part) not in narrowed:
            yield bytes(raw)


def _wanted_head(data: memoryview, head: _Node) -> Iterator[bytes]:
    more = SmallGraph()
    more.node("Flatten", head.inputs[:1], [_FLAT], axis=2)
    more.node("Gather", [_FLAT, PLACES], [_WANTED], axis=0)
    yield from (bytes_field(GRAPH_NODE, node) for node in more.nodes)
    others = (bytes(raw) for part, raw in _raw_fields(data, head.field) if part.number != NODE_INPUT)
    yield bytes_field(GRAPH_NODE, text_fields(NODE_INPUT, (_WANTED, *head.inputs[1:])) + b"".join(others))


def _name(data: memoryview, value: Field) -> str:
    return "".join(text(data, part) for part in fields(data, value.start, value.end) if part.number == VALUE_NAME)


def _raw_fields(data: memoryview, message: Field) -> Iterator[tuple[Field, memoryview]]:
    """Each field of a message, and its bytes with its number before them."""
    at = message.start
    for part in fields(data, message.start, message.end):
        yield part, data[at : part.end]
        at = part.end
