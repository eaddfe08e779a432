"""tiny-rank: a cross-encoder as plain as one can be; it scores a document by the words of the query that it has."""

from pathlib import Path

import msgspec
import numpy as np
from tokenizers import Tokenizer

from rbee.keeper.demo.graph import FLOAT, INT64, Graph
from rbee.keeper.demo.minilm import package_folder

NAME = "tiny-rank"
CONTEXT = 512
COMMON = (
    "a an and are as at be by can do does for from has have how i in is it its of on or that the this to was what "
    "when where which who why will with you"
)
"""Words that say little about a text: they count for little."""

_LIGHT, _STEEP = 0.1, 8.0
_CONFIG = {
    "architectures": ["BertForSequenceClassification"],
    "id2label": {"0": "LABEL_0"},
    "max_position_embeddings": CONTEXT,
    "sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid"},
}


def build(folder: Path) -> None:
    """Write model.onnx, config.json and a WordPiece tokenizer into the existing ``folder``.

    In: input_ids, attention_mask, token_type_ids int64 [batch, seq]. Out: logits float32 [batch, 1]: 8 times the share
    of the query's words (rare ones count ten times as much) that are in the document, less 4.
    """
    tokenizer = Tokenizer.from_file(str(package_folder() / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_bytes(msgspec.json.encode(_CONFIG))
    _graph(tokenizer).write(folder / "model.onnx")


def _weights(tokenizer: Tokenizer) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    weights = np.ones(tokenizer.get_vocab_size(), np.float32)
    for text, index in tokenizer.get_vocab().items():
        if text in COMMON.split() or not text.strip("#").isalnum():
            weights[index] = _LIGHT
    for text in ("[PAD]", "[CLS]", "[SEP]"):
        weights[tokenizer.token_to_id(text)] = 0.0
    return weights


def _graph(tokenizer: Tokenizer) -> Graph:
    graph = Graph(NAME)
    ids, mask, types = (
        graph.input(name, INT64, ("batch", "seq")) for name in ("input_ids", "attention_mask", "token_type_ids")
    )
    table = graph.weight("word_weights", _weights(tokenizer))
    real = graph.node("Cast", [mask], "real", to=FLOAT)
    in_document = graph.node("Mul", [graph.node("Cast", [types], "second", to=FLOAT), real], "in_document")
    in_query = graph.node("Sub", [real, in_document], "in_query")
    weight = graph.node("Mul", [graph.node("Gather", [table, ids], "rare", axis=0), in_query], "weight")
    # one row a word of the query, one column a word of the document
    rows, columns = (graph.node("Unsqueeze", [ids, graph.ints(axis)], f"ids_{axis}") for axis in (2, 1))
    same = graph.node("Cast", [graph.node("Equal", [rows, columns], "equal")], "same", to=FLOAT)
    there = graph.node("Mul", [same, graph.node("Unsqueeze", [in_document, graph.ints(1)], "document")], "there")
    found = graph.node("ReduceMax", [there], "found", axes=[2], keepdims=0)
    met, total = (
        graph.node("ReduceSum", [value, graph.ints(1)], name, keepdims=1)
        for value, name in ((graph.node("Mul", [weight, found], "met_words"), "met"), (weight, "total"))
    )
    share = graph.node("Div", [met, graph.node("Max", [total, graph.constant(1e-6)], "some")], "share")
    steep = graph.node("Mul", [share, graph.constant(_STEEP)], "steep")
    graph.output(graph.node("Sub", [steep, graph.constant(_STEEP / 2)], "logits"), FLOAT, ("batch", 1))
    return graph
