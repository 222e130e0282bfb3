"""Host and Origin of a request: which names the service answers to, and which web pages may send requests.

Any web page can let its own name resolve to 127.0.0.1 (DNS rebinding), and then reads a service on loopback as its own
site. The `Host` header still carries the name of the page, so a service on loopback answers to loopback names only.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

from txclf.core.errors import ConfigError
from txclf.core.text import shown

_DEFAULT_PORTS = {"http": 80, "https": 443}


def is_loopback(host: str) -> bool:
    """Return True if only this machine can reach `host`, a name or an address without brackets."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def host_name(given: str) -> str:
    """Return the name or address in what was given as an allowed host, with a scheme and port or without.

    Raises `ConfigError` if there is none.
    """
    with suppress(ValueError):
        return str(ipaddress.ip_address(given))  # an IPv6 address without brackets too
    name = _split(given.rstrip("/") if "://" in given else f"//{given.rstrip('/')}")[0]
    if not name or set(name) & set(" ,"):
        raise ConfigError(f"--allowed-host {shown(given)}: no name of a host. Pass one as models.example.org.")
    return name


@dataclass(frozen=True)
class HostPolicy:
    """Names that the service answers to."""

    loopback_only: bool = False
    """Answer to loopback names and `names` only; set for a service that listens on loopback."""
    names: frozenset[str] = frozenset()
    """Further names, in lower case. If there are any, all others but loopback names are refused on every address."""

    def refusal(self, headers: Iterable[tuple[bytes, bytes]]) -> str | None:
        """Return the reason to refuse a request with these headers, or None."""
        values: dict[bytes, list[str]] = {b"host": [], b"origin": []}
        for name, value in headers:
            if name in values:
                values[name].append(value.decode("latin-1").strip())
        hosts, origins = values[b"host"], values[b"origin"]
        host = hosts[0] if len(hosts) == 1 else ""
        if (self.loopback_only or self.names) and not self._is_own(_split(f"//{host}")[0]):
            given = f"`{shown(host)}`" if host else "none"
            return f"`Host`: {given} is no name of this service. Use its address, or start it with --allowed-host."
        if any(not self._is_same(origin, host) for origin in origins):
            return (
                f"`Origin`: the page `{shown(origins[0])}` is not of this service. Open the page of the service, or "
                "start it with --allowed-host."
            )
        return None

    def _is_own(self, name: str) -> bool:
        return is_loopback(name) or name in self.names

    def _is_same(self, origin: str, host: str) -> bool:
        """Return True if the page of an `Origin` was loaded from this service."""
        scheme = origin.partition(":")[0].lower()
        if scheme not in _DEFAULT_PORTS:  # `null` too
            return False
        name, port = _split(origin)
        host_name, host_port = _split(f"//{host}")
        default = _DEFAULT_PORTS[scheme]
        return bool(name) and (name in self.names or (name, port or default) == (host_name, host_port or default))


def _split(url: str) -> tuple[str, int | None]:
    """Return the host name in lower case and the port of a URL; an empty name if it is not valid."""
    try:
        parts = urlsplit(url)
        if parts.username is not None or parts.path or parts.query or parts.fragment:
            return "", None
        return (parts.hostname or "").removesuffix("."), parts.port
    except ValueError:
        return "", None
