"""Detokenising, stop strings and chat templates: pure decisions."""

import time
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbee.wire.errors import ConfigError, InvalidRequest
from rbee.worker.engine import template_limits
from rbee.worker.engine.chat import ChatTemplate, Conversation
from rbee.worker.engine.detokenise import Detokeniser, StopStrings


def decode_bytes(ids: Sequence[int]) -> str:
    """A tokenizer whose every token is one byte: the hardest case for characters."""
    return bytes(ids).decode("utf-8", "replace")


@given(st.text(max_size=60))
def test_no_character_is_ever_split(text: str) -> None:
    detokeniser = Detokeniser(decode_bytes)
    pieces = [detokeniser.add(byte) for byte in text.encode()]
    assert "".join(pieces) + detokeniser.flush() == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


def test_bytes_that_never_become_a_character_go_out_in_the_end() -> None:
    detokeniser = Detokeniser(decode_bytes)
    assert [detokeniser.add(0xE2), detokeniser.add(0x82)] == ["", ""]
    assert detokeniser.flush() == "\ufffd"


@given(
    st.lists(st.text("abc", min_size=1, max_size=4), max_size=10),
    st.lists(st.text("abc", min_size=1, max_size=3), min_size=1, max_size=3),
)
def test_stop_strings_cut_as_a_search_of_the_whole_text_would(pieces: list[str], stops: list[str]) -> None:
    strings, out, stopped = StopStrings(stops), "", False
    for piece in pieces:
        released = strings.add(piece)
        out += released.text
        if released.stopped:
            stopped = True
            break
    if not stopped:
        out += strings.flush()
    whole = "".join(pieces)
    found = [whole.find(stop) for stop in stops if stop in whole]
    assert stopped == bool(found)
    if found:
        assert not any(stop in out for stop in stops)
        assert whole.startswith(out)
    else:
        assert out == whole


def test_a_chat_template_renders_and_its_refusal_is_the_callers_error() -> None:
    source = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
        "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}"
        "{% if add_generation_prompt %}{{ bos_token }}{% endif %}"
    )
    template = ChatTemplate(source, {"bos_token": "<s>"})
    assert template.render(Conversation([{"role": "user", "content": "a"}])) == "<user>a<s>"
    with pytest.raises(InvalidRequest, match="no system here"):
        template.render(Conversation([{"role": "system", "content": "a"}]))


def test_a_chat_template_of_the_newer_kind_renders() -> None:
    source = (
        "{% for m in messages %}{% generation %}{% set c = m.content %}{{ c }}{% endgeneration %}{% endfor %}"
        "{{ {'b': 'ä', 'a': 1} | tojson(ensure_ascii=False, separators=(',', ':'), sort_keys=True) }}"
        "{{ ['<'] | tojson(indent=1) }}"
    )
    messages = [{"role": "user", "content": "one"}, {"role": "user", "content": "two"}]
    assert ChatTemplate(source, {}).render(Conversation(messages)) == 'onetwo{"a":1,"b":"ä"}[\n "<"\n]'
    with pytest.raises(ConfigError, match="does not compile"):
        ChatTemplate("{% generation %}without an end", {})


def test_a_chat_template_cannot_reach_python() -> None:
    template = ChatTemplate("{{ ''.__class__.__mro__[1].__subclasses__() }}", {})
    with pytest.raises(InvalidRequest):
        template.render(Conversation([]))
    with pytest.raises(ConfigError, match="does not compile"):
        ChatTemplate("{% for %}", {})


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ 9 ** (9 ** 9) }}",
        "{% set ns = namespace(n=9) %}{% for i in range(99) %}{% set ns.n = ns.n * ns.n %}{% endfor %}",
        "{{ 'a' * 10 ** 11 }}",
        "{{ messages * 10 ** 11 }}",
        "{{ messages[0].content + 1 }}",
        "{{ 1 // 0 }}",
        "{% set ns = namespace(s='a') %}{% for i in range(99) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
        "{% set ns = namespace(s='a') %}{% for i in range(99) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
        "{% for a in range(99999) %}{% for b in range(99999) if false %}{% endfor %}{% endfor %}",
    ],
)
def test_a_chat_template_without_end_or_sense_is_refused_in_time(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_limits, "RENDER_LIMIT_S", 0.5)
    template = ChatTemplate(source, {})
    started = time.monotonic()
    with pytest.raises(InvalidRequest):
        template.render(Conversation([{"role": "user", "content": "a"}]))
    assert time.monotonic() - started < 5


def test_a_long_conversation_is_rendered() -> None:
    template = ChatTemplate("{% for m in messages %}{{ m.role }}{{ loop.index }}{% endfor %}", {})
    assert template.render(Conversation([{"role": "u", "content": ""}] * 3)) == "u1u2u3"
    assert len(template.render(Conversation([{"role": "u", "content": ""}] * 30_000))) > 30_000
