"""Tokens: every form of header, roles, and that a secret never shows."""

import gc
import hashlib
import pickle

import pytest

from rbee.wire.auth import Identity, Role, Secret, TokenVerifier, fingerprint, redacted
from rbee.wire.errors import InvalidApiKey, MissingApiKey, RbeeError

CLIENT = Secret("client-t0ken!#$%&'*+-.^_`|~:/=")
HIVE = Secret("hive-token")


@pytest.fixture
def verifier() -> TokenVerifier:
    return TokenVerifier({Role.API: [CLIENT], Role.HIVE: [HIVE]})


def test_each_token_speaks_for_its_role(verifier: TokenVerifier) -> None:
    assert verifier.verify(f"Bearer {CLIENT.reveal()}") == Identity(Role.API, CLIENT.fingerprint)
    assert verifier.verify(f"Bearer {HIVE.reveal()}").role is Role.HIVE


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (None, "missing_header"),
        ("", "invalid_format"),
        ("Basic abc", "invalid_format"),
        ("bearer hive-token", "invalid_format"),
        ("BEARER hive-token", "invalid_format"),
        ("Bearer  hive-token", "invalid_format"),
        ("Bearerhive-token", "invalid_format"),
        ("Bearer ", "empty_token"),
        ("Bearer", "empty_token"),
        ("Bearer wrong", "unknown_token"),
        ("Bearer hive-token ", "unknown_token"),
        ("Bearer hive-toke", "unknown_token"),
        ("Bearer \udce9", "unknown_token"),
    ],
)
def test_other_headers_are_refused_with_their_reason(verifier: TokenVerifier, header: str | None, reason: str) -> None:
    with pytest.raises(RbeeError) as caught:
        verifier.verify(header)
    assert isinstance(caught.value, MissingApiKey if header is None else InvalidApiKey)
    assert caught.value.status == 401
    assert caught.value.details["reason"] == reason


def test_replaced_tokens_are_in_force_at_once(verifier: TokenVerifier) -> None:
    verifier.replace({Role.API: [Secret("new")]})
    assert verifier.verify("Bearer new").role is Role.API
    with pytest.raises(InvalidApiKey):
        verifier.verify(f"Bearer {CLIENT.reveal()}")
    assert not verifier.empty
    verifier.replace({})
    assert verifier.empty


def test_a_role_opens_its_own_routes_only_and_an_administrator_all() -> None:
    hive_routes = frozenset({Role.HIVE})
    assert not Identity(Role.API, "x").may(hive_routes)
    assert Identity(Role.HIVE, "x").may(hive_routes)
    assert Identity(Role.API, "uid:0", admin=True).may(hive_routes)


def test_a_secret_shows_its_fingerprint_only() -> None:
    secret = Secret("very-secret-value")
    expected = "token:" + hashlib.sha256(b"very-secret-value").hexdigest()[:6]
    assert secret.fingerprint == expected == fingerprint("very-secret-value")
    for shown in (repr(secret), str(secret), f"{secret}", "%s" % secret, repr([secret])):  # noqa: UP031
        assert "very-secret" not in shown
        assert expected in shown
    with pytest.raises(TypeError):
        pickle.dumps(secret)


def test_a_held_secret_is_redacted_and_one_let_go_is_forgotten() -> None:
    held, let_go, short = Secret("long-enough-1"), Secret("long-enough-2"), Secret("worker")
    assert redacted("a long-enough-1 and long-enough-2, worker") == "a [REDACTED] and [REDACTED], worker"
    del let_go
    gc.collect()
    assert redacted("a long-enough-1 and long-enough-2") == "a [REDACTED] and long-enough-2"
    assert (held.reveal(), short.reveal()) == ("long-enough-1", "worker")


def test_a_token_that_the_latest_rotation_took_out_of_force_is_told_from_one_that_never_was() -> None:
    def reason(token: str) -> object:
        with pytest.raises(InvalidApiKey) as refused:
            verifier.verify(f"Bearer {token}")
        return refused.value.details["reason"]

    verifier = TokenVerifier({Role.HIVE: [Secret("first-token")]})
    verifier.replace({Role.HIVE: [Secret("second-token")]})
    verifier.replace({Role.HIVE: [Secret("second-token")]})  # a reload that rotates nothing
    assert (reason("first-token"), reason("stranger")) == ("replaced_token", "unknown_token")
    verifier.replace({Role.HIVE: [Secret("first-token")]})  # back again
    assert verifier.verify("Bearer first-token").role is Role.HIVE
    assert reason("second-token") == "replaced_token"


def test_tokens_in_force_are_redacted_and_replaced_ones_are_not_held() -> None:
    verifier = TokenVerifier({Role.API: [Secret("in-force-token-1")]}, {"mara": Secret("in-force-token-2")})
    gc.collect()
    assert redacted("in-force-token-1 in-force-token-2") == "[REDACTED] [REDACTED]"
    verifier.replace({Role.API: [Secret("in-force-token-3")]})
    gc.collect()
    assert redacted("in-force-token-1 in-force-token-3") == "in-force-token-1 [REDACTED]"
