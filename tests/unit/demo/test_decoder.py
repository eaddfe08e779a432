"""bee-talk says what its corpus says, by every way of running it."""

import json
from pathlib import Path

import jinja2.sandbox
import numpy as np
import pytest
from tests.unit.demo import runtime
from tokenizers import Tokenizer

from rbee.keeper.demo import corpus, decoder, talk_tokens


@pytest.fixture(scope="session")
def folder(models: dict[str, Path]) -> Path:
    return models[decoder.NAME]


@pytest.fixture(scope="session")
def talk(folder: Path) -> runtime.Session:
    return runtime.session(folder)


@pytest.fixture(scope="session")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


@pytest.fixture(scope="session")
def end(folder: Path) -> int:
    return int(json.loads((folder / "config.json").read_text())["eos_token_id"])


def ask(talk: runtime.Session, tokenizer: Tokenizer, end: int, prompts: list[str], limit: int = 100) -> list[str]:
    """The answers to finished prompts; an answer that does not end within ``limit`` fails the test."""
    encoded = [tokenizer.encode(prompt, add_special_tokens=False).ids for prompt in prompts]
    answers = runtime.generate(talk, encoded, limit, end)
    assert all(answer[-1] == end for answer in answers)
    return [tokenizer.decode(answer[:-1]) for answer in answers]


def chat(question: str) -> str:
    return talk_tokens.chat_prompt(question)


def test_every_question_gets_its_answer_exactly(talk: runtime.Session, tokenizer: Tokenizer, end: int) -> None:
    short = [topic for topic in corpus.TOPICS if corpus.LONG_QUESTION not in topic.questions]
    asked = [(question, topic.answer) for topic in short for question in topic.questions]
    told = ask(talk, tokenizer, end, [chat(question) for question, _ in asked])
    assert told == [answer for _, answer in asked]


def test_the_long_answer_is_long_and_exact(talk: runtime.Session, tokenizer: Tokenizer, end: int) -> None:
    prompt = tokenizer.encode(chat(corpus.LONG_QUESTION), add_special_tokens=False).ids
    answer = runtime.generate(talk, [prompt], 400, end)[0]
    assert len(answer) >= 300
    assert tokenizer.decode(answer) == corpus.count_to_hundred()


@pytest.mark.parametrize(
    ("question", "topic"),
    [
        ("what is rbee", "What is rbee?"),
        ("WHAT DOES THE HIVE DO", "What does the hive do?"),
        ("what's a hive?", "What does the hive do?"),
        ("tell me about the telemetry", "Is there any telemetry?"),
        ("How do I cancel my request", "How do I cancel a request?"),
    ],
)
def test_small_variations_lead_to_the_same_answer(
    talk: runtime.Session, tokenizer: Tokenizer, end: int, question: str, topic: str
) -> None:
    answer = next(known.answer for known in corpus.TOPICS if topic in known.questions)
    assert ask(talk, tokenizer, end, [chat(question)]) == [answer]


def test_a_foreign_question_gets_the_fallback(talk: runtime.Session, tokenizer: Tokenizer, end: int) -> None:
    foreign = ["How many apples fit into a violin?", "Où est la gare ?", "日本語", "asdf qwer", ""]
    assert set(ask(talk, tokenizer, end, [chat(q) for q in foreign])) == {corpus.FALLBACK_ANSWER}


def test_the_last_user_turn_counts(talk: runtime.Session, tokenizer: Tokenizer, end: int, folder: Path) -> None:
    config = json.loads((folder / "tokenizer_config.json").read_text())
    template = jinja2.sandbox.ImmutableSandboxedEnvironment().from_string(config["chat_template"])
    first, second = corpus.TOPICS[4], corpus.TOPICS[5]
    messages = [
        {"role": "system", "content": "Answer as a worker would. What is a token?"},
        {"role": "user", "content": first.questions[0]},
        {"role": "assistant", "content": first.answer},
        {"role": "user", "content": second.questions[0]},
    ]
    prompt = template.render(messages=messages, add_generation_prompt=True)
    assert ask(talk, tokenizer, end, [prompt, talk_tokens.BEGIN + prompt]) == [second.answer] * 2


def test_a_plain_prompt_is_answered(talk: runtime.Session, tokenizer: Tokenizer, end: int) -> None:
    for topic in corpus.TOPICS[:12]:
        prompt = tokenizer.encode(topic.questions[0]).ids
        answer = runtime.generate(talk, [prompt], 100, end)[0]
        assert tokenizer.decode(answer) == topic.answer


def test_the_template_and_the_builder_agree(folder: Path) -> None:
    config = json.loads((folder / "tokenizer_config.json").read_text())
    template = jinja2.sandbox.ImmutableSandboxedEnvironment().from_string(config["chat_template"])
    rendered = template.render(messages=[{"role": "user", "content": "Hi"}], add_generation_prompt=True)
    assert rendered == chat("Hi")


def test_the_cache_changes_nothing_and_equals_the_reference(
    folder: Path, talk: runtime.Session, tokenizer: Tokenizer
) -> None:
    text = chat(corpus.TOPICS[0].questions[0]) + corpus.TOPICS[0].answer
    ids = np.array([tokenizer.encode(text, add_special_tokens=False).ids], np.int64)
    ones = np.ones_like(ids)
    whole = runtime.Cached.empty(talk, 1).step(ids, ones)[0]
    state = runtime.Cached.empty(talk, 1)
    pieces = [state.step(ids[:, at : at + 3], ones[:, at : at + 3])[0] for at in range(0, ids.shape[1], 3)]
    expected = runtime.reference_logits(folder, ids[0].tolist())
    np.testing.assert_allclose(whole, expected, atol=5e-3)
    np.testing.assert_allclose(np.concatenate(pieces), expected, atol=5e-3)


def test_the_cache_decides_what_is_said(talk: runtime.Session, tokenizer: Tokenizer) -> None:
    prompts = [chat("Who are you?"), chat("What is a hive?")]
    rows = [np.array([tokenizer.encode(p, add_special_tokens=False).ids], np.int64) for p in prompts]
    states = [runtime.Cached.empty(talk, 1) for _ in rows]
    for state, ids in zip(states, rows, strict=True):
        state.step(ids[:, :-1], np.ones_like(ids[:, :-1]))
    states[0].cache, states[0].mask, states[0].lengths = states[1].cache, states[1].mask, states[1].lengths
    told = states[0].step(rows[0][:, -1:], np.ones((1, 1), np.int64))[0, -1].argmax()
    assert tokenizer.decode([int(told)]) == "The"
    spoilt = runtime.Cached.empty(talk, 1)
    spoilt.step(rows[1][:, :-1], np.ones_like(rows[1][:, :-1]))
    spoilt.cache = {name: np.zeros_like(value) for name, value in spoilt.cache.items()}
    told = spoilt.step(rows[1][:, -1:], np.ones((1, 1), np.int64))[0, -1].argmax()
    assert tokenizer.decode([int(told)]) != "The"


def test_rows_of_a_padded_batch_equal_the_rows_alone(talk: runtime.Session, tokenizer: Tokenizer, end: int) -> None:
    prompts = [tokenizer.encode(chat(topic.questions[0]), add_special_tokens=False).ids for topic in corpus.TOPICS[:6]]
    together = runtime.generate(talk, prompts, 60, end)
    alone = [runtime.generate(talk, [prompt], 60, end)[0] for prompt in prompts]
    assert together == alone


def test_sampling_differs_by_seed(talk: runtime.Session, tokenizer: Tokenizer, end: int) -> None:
    def sample(seed: int) -> list[int]:
        rng = np.random.default_rng(seed)
        ids = np.array([tokenizer.encode(chat("What is a worker?"), add_special_tokens=False).ids], np.int64)
        state = runtime.Cached.empty(talk, 1)
        told: list[int] = []
        while len(told) < 40 and end not in told:
            logits = state.step(ids, np.ones_like(ids))[0, -1].astype(np.float64)
            chances = np.exp(logits - logits.max())
            told.append(int(rng.choice(len(chances), p=chances / chances.sum())))
            ids = np.array([[told[-1]]], np.int64)
        return told

    assert sample(1) == sample(1)
    assert len({tuple(sample(seed)) for seed in range(6)}) >= 3


def test_characters_beyond_ascii_are_split_and_come_back(tokenizer: Tokenizer) -> None:
    for text in ("é", "🐝", "日本", "zwölf"):
        encoded = tokenizer.encode(text, add_special_tokens=False)
        assert len(encoded.ids) > len(text) - 1
        assert tokenizer.decode(encoded.ids) == text
    assert len(tokenizer.encode("🐝", add_special_tokens=False).ids) == 4


def test_config_names_what_the_graph_has(folder: Path, talk: runtime.Session, tokenizer: Tokenizer) -> None:
    config = json.loads((folder / "config.json").read_text())
    inputs = {node.name: node.shape for node in talk.get_inputs()}
    outputs = {node.name: node.shape for node in talk.get_outputs()}
    for layer in range(config["num_hidden_layers"]):
        for part in ("key", "value"):
            shape = inputs[f"past_key_values.{layer}.{part}"]
            assert (shape[1], shape[3]) == (config["num_key_value_heads"], config["head_dim"])
            assert f"present.{layer}.{part}" in outputs
    assert outputs["logits"][2] == config["vocab_size"] == tokenizer.get_vocab_size()
    assert config["max_position_embeddings"] >= 512


def test_it_works_up_to_its_last_position(talk: runtime.Session, tokenizer: Tokenizer, end: int) -> None:
    filler = " ".join(["the"] * 900)
    system = f"<|system|>\n{filler}<|end|>\n"
    prompt = system + chat(corpus.TOPICS[0].questions[0])
    size = len(tokenizer.encode(prompt, add_special_tokens=False).ids)
    assert 900 < size < 1000
    assert ask(talk, tokenizer, end, [prompt], 22) == [corpus.TOPICS[0].answer]
