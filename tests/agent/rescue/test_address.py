import pytest

from agent.protocol.errors import UsageError
from agent.rescue.address import url_in, url_of


@pytest.mark.parametrize(
    ("typed", "url"),
    [
        ("dr.example.com", "https://dr.example.com:8470"),
        (" 192.0.2.7 ", "https://192.0.2.7:8470"),
        ("192.0.2.7:9000", "https://192.0.2.7:9000"),
        ("https://dr.example.com/", "https://dr.example.com:8470"),
        ("https://dr.example.com:443", "https://dr.example.com:443"),
        ("2001:db8::7", "https://[2001:db8::7]:8470"),
        ("[2001:db8::7]:9000", "https://[2001:db8::7]:9000"),
    ],
)
def test_a_name_or_an_address_will_do(typed: str, url: str) -> None:
    assert url_of(typed) == url
    assert url_of(url) == url


@pytest.mark.parametrize(
    "typed",
    ["", " ", "http://dr.example.com", "a b", "https://", "host:port", "host:99999", "a/b", "-x", "https://h/p"],
)
def test_what_is_none_is_said_to_be_none_with_examples(typed: str) -> None:
    with pytest.raises(UsageError, match="no address of a service") as refused:
        url_of(typed)
    assert "dr.example.com" in refused.value.hint


def test_the_boot_loader_may_say_it() -> None:
    assert url_in("quiet understudy.url=192.0.2.7 console=tty0") == "https://192.0.2.7:8470"
    assert url_in("quiet") is None
    assert url_in("understudy.url=a understudy.url=b") == "https://b:8470"
    with pytest.raises(UsageError):
        url_in("understudy.url=http://x")
