"""The weights of the talking demo model: attention laid out by hand, the readout solved in closed form.

Nothing is trained by descent. Each head does one nameable thing (look k tokens back, find where the user's turn
began, pool the question), a softmax over remembered questions picks the topic, and ridge regression over random
features of topic and latest tokens gives the next token (Rahimi and Recht 2007, "Random features for large-scale
kernel machines").
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from rbee.keeper.demo import talk_tokens
from rbee.keeper.demo.corpus import FALLBACK_ANSWER, Topic
from rbee.wire.errors import InternalError

Array = NDArray[np.float64]

LAYERS, HEADS, HEAD_DIM, MAX_POSITIONS = 2, 4, 64, 1024
MASKED = -1e9

_WAVES = 24
CODE, MEANING, PLACE = slice(0, 64), slice(64, 256), slice(256, 304)
POSITION, ONE, IS_USER, IS_ROLE, IS_STOP, IS_BEGIN, CLOSES, LOG_WEIGHT = range(304, 312)
START, OUTSIDE = slice(320, 368), 368
RECENT = (slice(384, 448), slice(448, 512), slice(512, 576))
POOLED, TOPIC = slice(576, 768), slice(768, 832)
WIDTH = 832

_SHARP = 2.0  # gain of a match between places: the nearest wrong one is e^-20 or less
_RECENCY = 4.0  # per token; integers and powers of two stay exact even where products are rounded to TF32
_FLAG = 8192.0  # beats the recency of MAX_POSITIONS tokens
_APART = 128.0
_RECALL, _FALLBACK_AT = 150.0, 0.62
_RECENT_SCALE, _TOPIC_SCALE = (1.0, 0.9, 0.8, 0.7), 1.3
_UNSURE, _FLOOR, _RIDGE = 0.12, 1e-4, 1e-6
_STRANGE_QUESTIONS = ("Zebra pineapple?", "Should it rain tomorrow, sing xylophone songs", "42", "")


@dataclass(frozen=True, slots=True)
class Attention:
    """One layer's projections: three from the residual stream to all heads, one back."""

    query: Array
    key: Array
    value: Array
    output: Array


@dataclass(frozen=True, slots=True)
class Weights:
    """Everything that the decoder multiplies by; rows are inputs, columns outputs."""

    tokens: Array
    positions: Array
    layers: tuple[Attention, ...]
    memory_keys: Array
    memory_bias: Array
    memory_values: Array
    hidden: Array
    hidden_bias: Array
    readout: Array


def make(tokenizer: Tokenizer, topics: Sequence[Topic], features: int, seed: int) -> Weights:
    """The weights that answer ``topics``, with ``features`` random features in the last layer.

    Raises InternalError if the corpus cannot be told apart: two answers for one question, or one context of four
    tokens with two continuations inside an answer.
    """
    rng = np.random.default_rng(seed)
    texts = talk_tokens.token_texts(tokenizer)
    tokens = _token_table(texts, [q for topic in topics for q in topic.questions], rng)
    keys, bias, values = _memory(tokenizer, tokens, topics, rng)
    hidden = np.zeros((WIDTH, features))
    for part, scale in zip((CODE, *RECENT, TOPIC), (*_RECENT_SCALE, _TOPIC_SCALE), strict=True):
        hidden[part] = rng.standard_normal((64, features)) * scale
    empty = np.zeros((features, len(texts)))
    weights = Weights(
        tokens, _position_table(rng), _layers(), keys, bias, values, hidden, rng.standard_normal(features) * 0.5, empty
    )
    readout = _solve(weights, tokenizer, topics)
    return Weights(tokens, weights.positions, weights.layers, keys, bias, values, hidden, weights.hidden_bias, readout)


def _token_table(texts: Sequence[str], questions: Sequence[str], rng: np.random.Generator) -> Array:
    table = np.zeros((len(texts), WIDTH))
    codes = rng.standard_normal((len(texts), 64))
    table[:, CODE] = codes / np.linalg.norm(codes, axis=1, keepdims=True)
    table[:, MEANING] = talk_tokens.meaning_vectors(texts, MEANING.stop - MEANING.start)
    table[:, ONE] = 1.0
    table[:, LOG_WEIGHT] = np.log(talk_tokens.meaning_weights(texts, questions))
    for index, text in enumerate(texts):
        stop = text.strip(" ") != "" and all(c in talk_tokens.STOP_MARKS for c in text.strip(" "))
        role = text in (talk_tokens.USER, talk_tokens.ASSISTANT, talk_tokens.SYSTEM, talk_tokens.END)
        table[index, IS_USER] = text == talk_tokens.USER
        table[index, IS_ROLE] = role
        table[index, IS_STOP] = stop
        table[index, IS_BEGIN] = text == talk_tokens.BEGIN
        table[index, CLOSES] = stop or (role and text != talk_tokens.USER)
    return table


def _position_table(rng: np.random.Generator) -> Array:
    """Waves of random lengths: a place is like itself only, and k places back is a rotation."""
    places = np.arange(MAX_POSITIONS, dtype=np.float64)
    angles = places[:, None] * _wave_numbers()
    table = np.zeros((MAX_POSITIONS, WIDTH))
    table[:, PLACE] = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
    table[:, POSITION] = places
    return table


def _wave_numbers() -> Array:
    return np.random.default_rng(7).uniform(0.05, np.pi, _WAVES)


def _layers() -> tuple[Attention, ...]:
    first, second = (_blank() for _ in range(LAYERS))
    _look_back(first, 0, 1)
    _look_back(first, 1, 2)
    _find_latest(first, 2, ((IS_USER, 4 * _FLAG), (IS_BEGIN, _FLAG)))
    first.value[PLACE, _head(2)] = np.eye(64)[: 2 * _WAVES]
    first.output[_head(2), START] = np.eye(64)[:, : 2 * _WAVES]
    _find_latest(first, 3, ((IS_ROLE, 2 * _FLAG), (IS_STOP, _FLAG)))
    first.value[CLOSES, 3 * HEAD_DIM] = 1.0
    first.output[3 * HEAD_DIM, OUTSIDE] = 1.0
    for head in range(3):
        _pool_question(second, head)
    _look_back(second, 3, 3)
    return first, second


def _blank() -> Attention:
    wide = HEADS * HEAD_DIM
    query, key, value = (np.zeros((WIDTH, wide)) for _ in range(3))
    return Attention(query, key, value, np.zeros((wide, WIDTH)))


def _head(index: int) -> slice:
    return slice(index * HEAD_DIM, (index + 1) * HEAD_DIM)


def _look_back(layer: Attention, head: int, distance: int) -> None:
    """Make ``head`` copy the code of the token ``distance`` places back into its slot of the stream."""
    turn = _wave_numbers() * distance
    cos, sin = np.diag(np.cos(turn)), np.diag(np.sin(turn))
    rotation = np.block([[cos, -sin], [sin, cos]])
    gain = _SHARP * np.sqrt(HEAD_DIM)
    layer.query[PLACE, _head(head)] = gain * rotation @ np.eye(64)[: 2 * _WAVES]
    layer.key[PLACE, _head(head)] = np.eye(64)[: 2 * _WAVES]
    layer.value[CODE, _head(head)] = np.eye(64)
    layer.output[_head(head), RECENT[distance - 1]] = np.eye(64)


def _find_latest(layer: Attention, head: int, flags: Sequence[tuple[int, float]]) -> None:
    """Make ``head`` attend to the latest token with a flag; a greater gain outranks any recency."""
    gain = np.sqrt(HEAD_DIM)
    first = head * HEAD_DIM
    for offset, (flag, weight) in enumerate([*flags, (POSITION, _RECENCY)]):
        layer.query[ONE, first + offset] = gain * weight
        layer.key[flag, first + offset] = 1.0


def _pool_question(layer: Attention, head: int) -> None:
    """Make ``head`` average a third of the meaning over the tokens of the present question, by their weights."""
    first, waves, gain = head * HEAD_DIM, 2 * _WAVES, np.sqrt(HEAD_DIM)
    layer.query[START, first : first + waves] = gain * _SHARP * np.eye(waves)
    layer.key[START, first : first + waves] = np.eye(waves)
    for offset, (source, weight) in enumerate(((OUTSIDE, -_APART), (LOG_WEIGHT, 1.0)), start=waves):
        layer.query[ONE, first + offset] = gain * weight
        layer.key[source, first + offset] = 1.0
    third = slice(MEANING.start + head * 64, MEANING.start + (head + 1) * 64)
    layer.value[third, _head(head)] = np.eye(64)
    layer.output[_head(head), POOLED.start + head * 64 : POOLED.start + (head + 1) * 64] = np.eye(64)


def _memory(
    tokenizer: Tokenizer, tokens: Array, topics: Sequence[Topic], rng: np.random.Generator
) -> tuple[Array, Array, Array]:
    """Keys (one a question), their bias, and values (the topic's code); the last entry is the fallback."""
    codes = rng.standard_normal((len(topics) + 1, 64))
    codes /= np.linalg.norm(codes, axis=1, keepdims=True)
    owners = [index for index, topic in enumerate(topics) for _ in topic.questions]
    keys = np.array([_gist(tokenizer, tokens, q) for topic in topics for q in topic.questions])
    likeness = keys @ keys.T
    for one, other in zip(*np.nonzero(likeness > 0.97), strict=True):
        if owners[one] != owners[other]:
            shown = [topics[owners[one]].questions[0], topics[owners[other]].questions[0]]
            raise InternalError(f"Two questions of the demo corpus are too alike: {shown}. Reword one of them.")
    bias = np.append(np.zeros(len(keys)), _RECALL * _FALLBACK_AT)
    return np.vstack([keys, np.zeros(keys.shape[1])]).T * _RECALL, bias, codes[[*owners, len(topics)]]


def _gist(tokenizer: Tokenizer, tokens: Array, question: str) -> Array:
    rows = tokens[tokenizer.encode(question, add_special_tokens=False).ids]
    pooled: Array = np.exp(rows[:, LOG_WEIGHT]) @ rows[:, MEANING]
    return pooled / np.linalg.norm(pooled)


def stream(weights: Weights, ids: Sequence[int]) -> Array:
    """The residual stream [len(ids), WIDTH] of one sequence before the last layer, without a cache."""
    x = weights.tokens[list(ids)] + weights.positions[: len(ids)]
    future = np.triu(np.full((len(ids), len(ids)), MASKED), 1)
    for layer in weights.layers:
        query, key, value = (
            (x @ part).reshape(len(ids), HEADS, HEAD_DIM).transpose(1, 0, 2)
            for part in (layer.query, layer.key, layer.value)
        )
        chances = _softmax(query @ key.transpose(0, 2, 1) / np.sqrt(HEAD_DIM) + future)
        x = x + (chances @ value).transpose(1, 0, 2).reshape(len(ids), -1) @ layer.output
    pooled = x[:, POOLED]
    unit = pooled / np.maximum(np.linalg.norm(pooled, axis=1, keepdims=True), 1e-3)
    x[:, TOPIC] += _softmax(unit @ weights.memory_keys + weights.memory_bias) @ weights.memory_values
    return x


def _softmax(scores: Array) -> Array:
    raised: Array = np.exp(scores - scores.max(axis=-1, keepdims=True))
    chances: Array = raised / raised.sum(axis=-1, keepdims=True)
    return chances


def _lessons(tokenizer: Tokenizer, topics: Sequence[Topic]) -> list[tuple[list[int], int]]:
    """Token sequences to learn by heart, each with the place from which on the next token counts."""
    end = tokenizer.encode(talk_tokens.END, add_special_tokens=False).ids

    def lesson(prompt: str, answer: str) -> tuple[list[int], int]:
        asked = tokenizer.encode(prompt).ids
        told = tokenizer.encode(answer, add_special_tokens=False).ids
        return [*asked, *told, *end], len(asked) - 1

    found = [lesson(talk_tokens.chat_prompt(topic.questions[0]), topic.answer) for topic in topics]
    found += [lesson(talk_tokens.chat_prompt(question), FALLBACK_ANSWER) for question in _STRANGE_QUESTIONS]
    # A plain prompt has no roles: its first answer tokens still see the tail of the question.
    found += [lesson(question, topic.answer) for topic in topics for question in topic.questions]
    return found


def _solve(weights: Weights, tokenizer: Tokenizer, topics: Sequence[Topic]) -> Array:
    inputs, nexts = [], []
    for ids, first in _lessons(tokenizer, topics):
        inputs.append(stream(weights, ids[:-1])[first:])
        nexts.append(np.array(ids[first + 1 :]))
    known, wanted = _without_repeats(np.vstack(inputs), np.concatenate(nexts))
    features = np.maximum(known @ weights.hidden + weights.hidden_bias, 0.0)
    gram = features @ features.T
    gram[np.diag_indices_from(gram)] += _RIDGE * np.trace(gram) / len(gram)
    readout: Array = features.T @ np.linalg.solve(gram, _targets(wanted, weights.readout.shape[1]))
    missed = int((np.argmax(features @ readout, axis=1) != wanted).sum())
    if missed:
        raise InternalError(
            f"The demo model cannot learn {missed} tokens of its corpus. Make it wider, or reword answers that repeat "
            "four tokens with different words after them."
        )
    return readout


def _without_repeats(inputs: Array, nexts: NDArray[np.int64]) -> tuple[Array, NDArray[np.int64]]:
    """Rows that the last layer cannot tell apart count once."""
    seen = np.round(np.hstack([inputs[:, part] for part in (CODE, *RECENT, TOPIC)]), 3)
    rows = np.hstack([seen, nexts[:, None].astype(np.float64)])
    kept = np.sort(np.unique(rows, axis=0, return_index=True)[1])
    return inputs[kept], nexts[kept]


def _targets(wanted: NDArray[np.int64], vocabulary: int) -> Array:
    """Log chances: the right token mostly, else a token that follows the same one elsewhere in the corpus.

    The rest gives sampling at a temperature something sensible to choose from.
    """
    counts = np.zeros((vocabulary, vocabulary))
    np.add.at(counts, (wanted[:-1], wanted[1:]), 1.0)
    common = np.bincount(wanted, minlength=vocabulary) + 1.0
    follows = counts + 0.2 * common / common.sum()
    follows /= follows.sum(axis=1, keepdims=True)
    before = np.concatenate([wanted[:1], wanted[:-1]])
    chances = _UNSURE * follows[before] + _FLOOR
    chances[np.arange(len(wanted)), wanted] += 1.0 - _UNSURE
    logs: Array = np.log(chances / chances.sum(axis=1, keepdims=True))
    centred: Array = logs - logs.mean(axis=1, keepdims=True)
    return centred
