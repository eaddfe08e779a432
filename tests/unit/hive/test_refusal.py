"""A refused token names the side that has to read it anew."""

from rbee.hive.refusal import is_refusal, sentence
from rbee.wire.errors import Forbidden, InvalidApiKey, Unavailable


def test_the_side_with_the_old_token_is_named() -> None:
    stale_here = InvalidApiKey("no", details={"reason": "replaced_token"})
    stale_there = InvalidApiKey("no", details={"reason": "unknown_token"})
    assert sentence(stale_here).endswith("systemctl reload rbee-hive")
    assert "systemctl reload rbee-queen on her machine" in sentence(stale_there)


def test_what_is_no_refusal_is_told_as_it_is() -> None:
    assert [is_refusal(error("no")) for error in (InvalidApiKey, Forbidden, Unavailable)] == [True, True, False]
    assert sentence(Unavailable("the connection failed")) == f"{Unavailable.code}: the connection failed"
