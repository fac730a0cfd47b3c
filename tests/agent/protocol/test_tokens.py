import pytest

from agent.protocol.errors import TokenError
from agent.protocol.tokens import AdminToken, EnrollToken

SECRET = "-a_b" * 11  # base64url may hold both, also where they mislead
FINGERPRINT = "0f" * 32


def test_a_token_survives_being_written_and_read() -> None:
    token = EnrollToken(SECRET, FINGERPRINT)
    assert EnrollToken.parse(f" {token.text}\n") == token


def test_the_two_kinds_are_not_taken_for_one_another() -> None:
    with pytest.raises(TokenError, match=r"this is an operator's token, and an enrolment token is needed \(ask for"):
        EnrollToken.parse(AdminToken(SECRET, FINGERPRINT).text)
    with pytest.raises(TokenError, match="an enrolment token, and an operator's token is needed"):
        AdminToken.parse(EnrollToken(SECRET, FINGERPRINT).text)


@pytest.mark.parametrize(
    "text",
    ["", "hello", "ust1", "ust1_", f"ust1_{SECRET}", f"ust1_{SECRET}_{FINGERPRINT[:-1]}", f"ust1__{FINGERPRINT}"],
)
def test_what_is_no_token_is_refused_without_repeating_it(text: str) -> None:
    with pytest.raises(TokenError) as refused:
        EnrollToken.parse(text)
    assert SECRET not in str(refused.value)


def test_a_secret_does_not_end_up_in_a_log() -> None:
    assert SECRET not in repr(EnrollToken(SECRET, FINGERPRINT))
