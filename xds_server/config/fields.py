"""Field types of the schema: what one value must look like, and what to write instead."""

import ipaddress
import re
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, PlainValidator
from pydantic_core import PydanticCustomError

from xds_server.model.topology import Address

_HOSTNAME: Final = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9_]([\w-]*\w)?(\.[A-Za-z0-9_]([\w-]*\w)?)*")
_DURATION_PART: Final = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(ms|s|m|h|d)")
_DURATION: Final = re.compile(rf"(?:{_DURATION_PART.pattern})+")
_UNIT_S: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
QUERY_CHARS_MAX: Final = 10_000
_UNIX_PATH_MAX: Final = 107  # sockaddr_un.sun_path less its NUL


def wrong(message: str, remedy: str) -> PydanticCustomError:
    """Return the error of a value, with the remedy that a Problem needs."""
    return PydanticCustomError("wrong", "{message}", {"message": message, "remedy": remedy})


def duration_s(text: str) -> float | None:
    """Return the seconds in text like ``90s`` or ``1h30m``; None if it is not a duration."""
    if len(text) > 60 or not _DURATION.fullmatch(text):
        return None
    return sum(float(n) * _UNIT_S[unit] for n, unit in _DURATION_PART.findall(text))


def is_ip(host: str) -> bool:
    """Whether ``host`` is an IPv4 or IPv6 address."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_hostname(text: str) -> bool:
    """Whether ``text`` can be a DNS name; a last label of digits alone cannot."""
    last = text.rstrip(".").rpartition(".")[2]
    name = text.removesuffix(".")
    short = all(len(label) <= 63 for label in name.split("."))
    return bool(_HOSTNAME.fullmatch(name)) and name.isascii() and short and not last.isdigit()


def parse_address(value: object) -> Address:
    """Parse ``host:port``, ``[v6]:port`` or ``unix:/path``."""
    if not isinstance(value, str):
        raise wrong(f"{_shown(value)} is not an address", "write it like `127.0.0.1:18000`")
    if value.startswith("unix:"):
        path = value.removeprefix("unix:")
        if not path.startswith("/") or len(path.encode()) > _UNIX_PATH_MAX or "\0" in path:
            remedy = f"write `unix:/path`, absolute, at most {_UNIX_PATH_MAX} bytes"
            raise wrong(f"{_shown(value)} is not a unix socket", remedy)
        return Address(value)
    host, colon, port = value.rpartition(":")
    if not colon or not (port.isascii() and port.isdecimal()) or len(port) > 5:
        remedy = "write `host:port`, `[v6]:port` or `unix:/path`"
        raise wrong(f"{_shown(value)} is not an address with a port", remedy)
    if int(port) > 65535:
        raise wrong(f"port {port} does not exist", "write a port from 0 to 65535")
    if host.startswith("[") and host.endswith("]") and ":" in host and is_ip(host[1:-1]):
        return Address(host[1:-1], int(port))
    if ":" in host:
        remedy = "write IPv6 addresses in brackets, like `[::1]:18000`"
        raise wrong(f"{_shown(value)} is not an address with a port", remedy)
    if not (is_ip(host) or is_hostname(host)):
        raise wrong(f"{host[:60]!r} is no host", "write an IP address or a host name")
    return Address(host, int(port))


def _parse_ip_address(value: object) -> Address:
    address = parse_address(value)
    if address.is_pipe or not is_ip(address.host):
        host = "127.0.0.1" if address.host == "localhost" else "the IP address"
        remedy = f"write {host} and a port, like `127.0.0.1:15001`"
        raise wrong(f"{_shown(value)} needs an IP address: it is not resolved", remedy)
    if address.port == 0:
        raise wrong("port 0 means any port", "write a port from 1 to 65535")
    return address


def _parse_duration_s(value: object) -> float:
    seconds = duration_s(value) if isinstance(value, str) else None
    if seconds is None:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        remedy = f"write `{value}s` for seconds" if number else "write it like `90s`, `15m`, `1h`"
        raise wrong(f"{_shown(value)} is not a duration with a unit", f"{remedy} (ms s m h d)")
    if seconds <= 0.0:
        raise wrong("a duration must be above 0", "write it like `1h`")
    return seconds


def _check_endpoint_host(value: str) -> str:
    if value.startswith("unix:"):
        parse_address(value)
    elif not is_ip(value):
        found = value if is_hostname(value) else "<name>"
        remedy = "write an IP address, or `discovery: {adapter: dns, name: %s, port: <port>}`"
        raise wrong(f"{_shown(value)} is not an IP address: Envoy does not resolve it here",
                    remedy % found)  # fmt: skip
    return value


def _check_dns_name(value: str) -> str:
    if not is_hostname(value):
        remedy = "write a full name, like `search.example.com`"
        raise wrong(f"{_shown(value)} is not a DNS name", remedy)
    return value


def _check_url(value: str) -> str:
    scheme, separator, rest = value.partition("://")
    readable = value.isprintable() and " " not in value
    try:
        parsed = urlsplit(value)
        host, port = parsed.hostname, parsed.port  # the port is read here, and may not be one
    except ValueError:
        host, port, readable = None, None, False
    pipe = scheme.lower() == "unix" and rest.startswith("/")
    if not readable or not separator or not (pipe or host) or port == 0:
        remedy = "write it like `http://127.0.0.1:8500/search`"
        raise wrong(f"{_shown(value)} is not a URL", remedy)
    return value


def _check_not_blank(value: str) -> str:
    if not value.strip() or value != value.strip() or not value.isprintable():
        remedy = "write a word, without spaces around it"
        raise wrong(f"{_shown(value)} is not a name", remedy)
    return value


def _check_query(value: str) -> str:
    if not value.strip() or len(value) > QUERY_CHARS_MAX:
        remedy = f"write PromQL of at most {QUERY_CHARS_MAX} characters"
        raise wrong(f"{_shown(value)} is no query", remedy)
    return value


def check_metadata(value: dict[str, Any]) -> dict[str, Any]:
    """Refuse a list: what part of it should match is anybody's guess."""
    for key, inner in value.items():
        if isinstance(inner, dict):
            check_metadata(inner)
        elif not isinstance(inner, str | int | float | bool):
            remedy = "write text, a number, true or false, or a mapping of those"
            raise wrong(f"{key[:60]!r} is {_shown(inner)}", remedy)
    return value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


SocketAddress = Annotated[Address, PlainValidator(parse_address)]
IpAddress = Annotated[Address, PlainValidator(_parse_ip_address)]
Duration = Annotated[float, PlainValidator(_parse_duration_s)]
EndpointHost = Annotated[str, AfterValidator(_check_endpoint_host)]
DnsName = Annotated[str, AfterValidator(_check_dns_name)]
Word = Annotated[str, AfterValidator(_check_not_blank)]
Query = Annotated[str, AfterValidator(_check_query)]
Url = Annotated[str, AfterValidator(_check_url)]

Positive = Annotated[float, Field(gt=0.0, le=1e9)]
NotNegative = Annotated[float, Field(ge=0.0, le=1e12)]
Ratio = Annotated[float, Field(ge=0.0, le=1.0)]
Port = Annotated[int, Field(ge=1, le=65535)]
Band = tuple[NotNegative, NotNegative]
RatioBand = tuple[Ratio, Ratio]
