"""The tokenizer of the talking demo model: byte-level BPE trained on its corpus, and what each token means."""

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from rbee.keeper.demo.corpus import Topic

PAD, BEGIN, END, USER, ASSISTANT, SYSTEM = "<|pad|>", "<|begin|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"
SPECIAL = (PAD, BEGIN, END, USER, ASSISTANT, SYSTEM)
STOP_MARKS = "?.!\n"

CHAT_TEMPLATE = (
    "{% if tools %}{{ '<|system|>\n' }}"
    "{% for tool in tools %}{{ tool.function | tojson }}{{ '\n' }}{% endfor %}"
    "{{ 'Call them by <tool_call>.<|end|>\n' }}{% endif %}"
    "{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant', 'tool'] %}"
    "{{ raise_exception('The roles are system, user, assistant and tool.') }}{% endif %}"
    "{% set role = 'user' if message['role'] == 'tool' else message['role'] %}"
    "{{ '<|' + role + '|>\n' + message['content'] }}"
    "{% for call in message.tool_calls or [] %}"
    "{{ '<tool_call>\n' }}{{ call.function | tojson }}{{ '\n</tool_call>' }}"
    "{% endfor %}"
    "{{ '<|end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
"""Tools and their calls are written as Hermes and Qwen models write them."""

FULL_WEIGHT, COMMON_WEIGHT, SILENT_WEIGHT = 1.0, 0.03, 1e-6
_FUNCTION_WORDS = """
    a about an and any are at be can could did do does for from had has have how i if in is it its may me my now of
    on or please say should something tell that the there to was what when where which who why will with you your
"""
_COMMON = frozenset(_FUNCTION_WORDS.split())
_TRIGRAM_SHARE = 0.5
_SUFFIXES = ("ing", "ed", "es", "s")


def chat_prompt(question: str) -> str:
    """What the chat template makes of one user message, ready for the answer."""
    return f"{USER}\n{question}{END}\n{ASSISTANT}\n"


def train(topics: Sequence[Topic], extra: Iterable[str]) -> Tokenizer:
    """A byte-level BPE tokenizer of the corpus; any text encodes and decodes to itself.

    Characters beyond ASCII, but for the arrow, are left out of the training, so each takes several tokens, one a
    byte: a reader that detokenises step by step has to wait for the last of them.
    """
    texts = [text for topic in topics for text in (*topic.questions, topic.answer)] + list(extra)
    lines = ["".join(c for c in text if c.isascii() or c == "→") for text in texts]
    # Questions come in any case; their words shall be whole in each.
    lines += [line.lower() for line in lines]
    lines += [question.upper() for topic in topics for question in topic.questions for _ in range(2)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1500,
        min_frequency=2,
        show_progress=False,
        special_tokens=[AddedToken(text, special=True, normalized=False) for text in SPECIAL],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(lines, trainer)
    begin = tokenizer.token_to_id(BEGIN)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", pair=f"{BEGIN} $A $B", special_tokens=[(BEGIN, begin)]
    )
    return tokenizer


def token_texts(tokenizer: Tokenizer) -> list[str]:
    """The text of each token by its id; bytes that are no character alone show as U+FFFD."""
    texts: list[str] = []
    for index in range(tokenizer.get_vocab_size()):
        name = tokenizer.id_to_token(index) or ""
        texts.append(name if name in SPECIAL else tokenizer.decode([index]))
    return texts


def meaning_vectors(texts: Sequence[str], width: int) -> NDArray[np.float64]:
    """A row of ``width`` for each token: near for words of one stem or similar spelling, whatever the case.

    Tokens without a letter or digit are zero. Vectors of character n-grams as in Bojanowski et al. 2017,
    arXiv:1607.04606, with random instead of learned parts.
    """
    rows = np.zeros((len(texts), width))
    for index, text in enumerate(texts):
        word = _word(text)
        if not word:
            continue
        padded = f"<{word}>"
        grams = [padded[at : at + 3] for at in range(len(padded) - 2)]
        spelling = np.sum([_random_vector(f"gram {gram}", width) for gram in grams], axis=0) / math.sqrt(len(grams))
        row = _random_vector(f"stem {_stem(word)}", width) + _TRIGRAM_SHARE * spelling
        rows[index] = row / np.linalg.norm(row)
    return rows


def meaning_weights(texts: Sequence[str], questions: Sequence[str]) -> NDArray[np.float64]:
    """How much each token says about its question: function words say little, marks nothing."""
    seen = Counter(stem for question in questions for stem in {_stem(word) for word in _words(question)})
    weights = np.full(len(texts), SILENT_WEIGHT)
    for index, text in enumerate(texts):
        word = _word(text)
        if word:
            known = seen.get(_stem(word), 0)
            rare = FULL_WEIGHT / known**0.8 if known else 0.3
            common = len(word) < 2 or word in _COMMON
            weights[index] = COMMON_WEIGHT if common else max(COMMON_WEIGHT, rare)
    return weights


def _words(text: str) -> list[str]:
    return "".join(c.lower() if c.isalnum() else " " for c in text).split()


def _word(text: str) -> str:
    return "" if text in SPECIAL or "\ufffd" in text else "".join(c for c in text.lower() if c.isalnum())


def _stem(word: str) -> str:
    for suffix in _SUFFIXES:
        if word.endswith(suffix) and len(word) - len(suffix) >= 3:
            return word.removesuffix(suffix)
    return word


def _random_vector(key: str, width: int) -> NDArray[np.float64]:
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little")
    return np.random.default_rng(seed).standard_normal(width) / math.sqrt(width)
