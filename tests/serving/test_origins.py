"""Hosts and web pages whose requests are answered."""

from __future__ import annotations

import pytest

from txclf.core.errors import ConfigError
from txclf.serving.origins import HostPolicy, host_name, is_loopback


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("example.org", False),
        ("localhost.example.org", False),
        ("", False),
    ],
)
def test_is_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


def refusal(policy: HostPolicy, *hosts: str, origin: str | None = None) -> str | None:
    """Return the refusal of a request with these headers."""
    headers = [(b"host", host.encode("latin-1")) for host in hosts]
    return policy.refusal(headers if origin is None else [*headers, (b"origin", origin.encode("latin-1"))])


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1:1", "127.1.2.3", "[::1]:8000", "[::1]"])
def test_refusal_loopback_service_answers_loopback_names(host: str) -> None:
    assert refusal(HostPolicy(loopback_only=True), host) is None
    assert refusal(HostPolicy(loopback_only=True), host, origin=f"http://{host}") is None


@pytest.mark.parametrize(
    "hosts",
    [
        ("evil.example",),
        ("evil.example:8000",),
        ("localhost.evil.example",),
        ("127.0.0.1.evil.example",),
        ("localhost@evil.example",),
        ("evil.example@localhost",),
        ("localhost/evil",),
        ("localhost:8000:1",),
        ("[::1",),
        ("0.0.0.0:8000",),
        ("10.0.0.1",),
        ("\xe9",),
        ("",),
        (),
        ("localhost", "evil.example"),
        ("evil.example", "localhost"),
    ],
)
def test_refusal_loopback_service_refuses_other_hosts(hosts: tuple[str, ...]) -> None:
    assert "`Host`" in str(refusal(HostPolicy(loopback_only=True), *hosts))


def test_refusal_allowed_names_are_answered_on_every_address() -> None:
    names = frozenset({"models.example"})
    for policy in (HostPolicy(True, names), HostPolicy(False, names)):
        assert refusal(policy, "Models.example:443", origin="https://models.example") is None
        assert refusal(policy, "localhost:8000") is None
        assert refusal(policy, "localhost:8000", origin="https://models.example") is None  # a proxy that changes `Host`
        assert "`Host`" in str(refusal(policy, "evil.example"))
    assert refusal(HostPolicy(), "any.example") is None


@pytest.mark.parametrize(
    "origin",
    [
        "null",
        "",
        "http://evil.example",
        "http://localhost:3000",
        "https://localhost:8000x",
        "http://localhost:8000/path",
        "http://localhost:8000@evil.example",
        "chrome-extension://localhost:8000",
        "//localhost:8000",
        "http://[::1",
    ],
)
def test_refusal_page_of_another_origin(origin: str) -> None:
    for policy in (HostPolicy(loopback_only=True), HostPolicy()):
        assert "`Origin`" in str(refusal(policy, "localhost:8000", origin=origin))


def test_refusal_default_port_may_be_left_out() -> None:
    assert refusal(HostPolicy(), "models.example", origin="https://models.example") is None
    assert refusal(HostPolicy(), "models.example:443", origin="https://models.example") is None
    assert "`Origin`" in str(refusal(HostPolicy(), "models.example:80", origin="https://models.example"))


@pytest.mark.parametrize(
    "given",
    [
        "models.example",
        "Models.Example",
        "models.example.",
        "models.example:443",
        "models.example/",
        "https://models.example/",
    ],
)
def test_host_name_is_found_in_what_users_pass(given: str) -> None:
    assert host_name(given) == "models.example"


@pytest.mark.parametrize("given", ["2001:db8::5", "[2001:db8::5]:8000", "http://[2001:DB8::5]"])
def test_host_name_of_an_address_is_the_address(given: str) -> None:
    assert host_name(given) == "2001:db8::5"


@pytest.mark.parametrize("given", ["", "https://", "a b", "a.b,c.d", "a/b", "user@models.example"])
def test_host_name_of_nothing_is_refused(given: str) -> None:
    with pytest.raises(ConfigError, match=r"--allowed-host .*: no name of a host"):
        host_name(given)
