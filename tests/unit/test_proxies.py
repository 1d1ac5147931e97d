"""Which proxy leads where: the environment's, never for this machine."""

from __future__ import annotations

import pytest

from matrix_graph.errors import ConfigError
from matrix_graph.models.client.proxies import is_loopback, proxy_for

PROXY = "http://proxy.internal:3128"
NAMES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.mark.parametrize("upper", [False, True])
def test_each_scheme_has_its_variable(upper: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    name = str.upper if upper else str.lower
    assert proxy_for("http://models.internal/v1") is None
    monkeypatch.setenv(name("http_proxy"), PROXY)
    assert proxy_for("http://models.internal:8000/v1") == PROXY
    assert proxy_for("https://models.internal/v1") is None
    monkeypatch.setenv(name("https_proxy"), "proxy.internal:3129")
    assert proxy_for("https://models.internal/v1") == "http://proxy.internal:3129"


def test_all_proxy_stands_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", PROXY)
    assert proxy_for("https://models.internal/v1") == PROXY
    monkeypatch.setenv("ALL_PROXY", "socks5://proxy.internal:1080")
    with pytest.raises(ConfigError, match=r"socks5 proxy for models\.internal"):
        proxy_for("https://models.internal/v1")
    assert proxy_for("http://127.0.0.1:8000/v1") is None


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.8.9.1", "localhost", "LOCALHOST.", "api.localhost", "[::1]", "[::ffff:127.0.0.1]", "127.1",
     "0x7f000001", "0.0.0.0", "[::]"],
)  # fmt: skip
def test_nothing_for_this_machine_goes_through_a_proxy(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, PROXY)
    assert is_loopback(host)
    assert proxy_for(f"http://{host}:8000/v1") is None and proxy_for(f"https://{host}/v1") is None


def test_nor_does_what_is_for_another_address_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", PROXY)
    bound: list[tuple[str, int]] = []

    def bind(self: object, address: tuple[str, int]) -> None:
        bound.append(address)
        if address[0] != "192.0.2.7":
            raise OSError("Cannot assign requested address")

    monkeypatch.setattr("socket.socket.bind", bind)
    assert proxy_for("http://192.0.2.7:8000/v1") is None
    assert proxy_for("http://192.0.2.8:8000/v1") == proxy_for("http://models.internal/v1") == PROXY
    assert bound == [("192.0.2.7", 0), ("192.0.2.8", 0)]  # a name is not looked up


@pytest.mark.parametrize("host", ["10.0.0.1", "localhost.example.com", "128.0.0.1", "[2001:db8::1]", "127.example.com"])
def test_other_machines_are_other_machines(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", PROXY)
    assert proxy_for(f"http://{host}:8000/v1") == PROXY


@pytest.mark.parametrize(
    ("listed", "url", "through"),
    [
        ("*", "http://models.internal/v1", False),
        ("models.internal", "http://models.internal:8000/v1", False),
        ("other, models.internal", "http://Models.Internal/v1", False),
        (".internal", "http://models.internal/v1", False),
        ("internal", "http://models.internal/v1", False),
        ("*.internal", "http://models.internal/v1", False),
        ("models.internal:8000", "http://models.internal:8000/v1", False),
        ("models.internal:8001", "http://models.internal:8000/v1", True),
        ("odels.internal", "http://models.internal/v1", True),
        ("10.0.0.0/8", "http://10.1.2.3/v1", False),
        ("10.0.0.0/8", "http://11.1.2.3/v1", True),
        ("10.1.2.3", "http://10.1.2.3:80/v1", False),
        ("[2001:db8::1]", "http://[2001:db8::1]:80/v1", False),
        ("2001:db8::/32", "http://[2001:db8::1]/v1", False),
        ("", "http://models.internal/v1", True),
    ],
)
def test_no_proxy(listed: str, url: str, through: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", PROXY)
    monkeypatch.setenv("NO_PROXY", listed)
    assert (proxy_for(url) == PROXY) is through
