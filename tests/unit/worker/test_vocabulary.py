"""Which token ids a request may send: every id of the tokenizer, gaps between them or not."""

import pytest
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel

from rbee.wire.errors import InvalidRequest
from rbee.worker.engine.text_model import TextModel
from rbee.worker.engine.tokenise import LengthRule, TextReader, vocabulary_size


@pytest.fixture
def gapped() -> Tokenizer:
    """Two words with ids far apart, and an added one."""
    tokenizer = Tokenizer(WordLevel({"bee": 0, "hive": 9}, unk_token="bee"))
    tokenizer.add_special_tokens([AddedToken("<end>")])
    return tokenizer


def test_a_prompt_may_have_the_highest_id_and_none_above(gapped: Tokenizer) -> None:
    text = TextModel(gapped, eos_ids=frozenset())
    assert text.encode("hive") == text.encode([9]) == (9,)
    with pytest.raises(InvalidRequest, match="outside the vocabulary"):
        text.encode([vocabulary_size(gapped)])


def test_an_input_may_have_the_highest_id_and_none_above(gapped: Tokenizer) -> None:
    reader = TextReader(gapped, LengthRule(8, truncate=False))
    assert [row.ids for row in reader.rows([[9], "hive"], None)] == [[9], [9]]
    with pytest.raises(InvalidRequest, match="outside the vocabulary"):
        reader.rows([[vocabulary_size(gapped)]], None)


def test_no_tokens_are_no_vocabulary() -> None:
    assert vocabulary_size(Tokenizer(WordLevel({}, unk_token="x"))) == 0
