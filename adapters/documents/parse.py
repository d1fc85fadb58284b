"""What documents say: endpoints, or a price. Faults name the line.

Endpoints are ``[{address: 10.0.0.1, port: 80}, ...]``, or the same under ``endpoints``; other
keys beside these are somebody else's. A price has one or more of the keys of ``Price`` and no
other: a misspelt one would be a wrong bill.
"""

import ipaddress
import json
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, Final

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, SequenceNode

from adapters.documents.feed import Document
from xds_server.errors import AdapterError
from xds_server.model.topology import Address, Price

ENDPOINTS_MAX: Final = 10_000
YAML_BYTES_MAX: Final = 131_072
"""About 2,500 endpoints, which take half a second; JSON is a thousand times faster."""
PRICE_MAX_USD: Final = 1e12
_PRICE_KEYS: Final = tuple(f.name for f in fields(Price))


def read_endpoints(document: Document) -> tuple[Address, ...]:
    """Return the endpoints, sorted, each once. Raises AdapterError."""
    value, at = _load(document), []
    if isinstance(value, Mapping) and "endpoints" in value:
        value, at = value["endpoints"], ["endpoints"]
    if not isinstance(value, list):
        raise _fault(document, at, "is no list of endpoints; write [{address: ..., port: ...}]")
    if len(value) > ENDPOINTS_MAX:
        raise _fault(document, at, f"has more than {ENDPOINTS_MAX} endpoints")
    return tuple(sorted({_endpoint(document, [*at, i], e) for i, e in enumerate(value)}))


def read_price(document: Document, declared: Price) -> Price:
    """Return the price; what the document does not say is as declared. Raises AdapterError."""
    value = _load(document)
    if not isinstance(value, Mapping) or not value:
        raise _fault(document, [], f"is no price; write one of {', '.join(_PRICE_KEYS)}")
    said: dict[str, float] = {}
    for key, usd in value.items():
        if key not in _PRICE_KEYS:
            raise _fault(document, [key], f"is not one of {', '.join(_PRICE_KEYS)}")
        number = isinstance(usd, int | float) and not isinstance(usd, bool)
        if not number or not 0.0 <= usd <= PRICE_MAX_USD:  # nor is NaN
            raise _fault(document, [key], f"{_shown(usd)} is no price in dollars")
        said[key] = float(usd)
    return replace(declared, **said)


def parse_ip(text: object) -> str:
    """Return an IP address as it is written usually. Raises ValueError."""
    if not isinstance(text, str) or "%" in text:  # a zone means something on one host alone
        raise ValueError(text)
    return str(ipaddress.ip_address(text))


def _endpoint(document: Document, at: list[Any], value: object) -> Address:
    if not isinstance(value, Mapping):
        raise _fault(document, at, f"{_shown(value)} is no endpoint; write {{address, port}}")
    host, port = value.get("address"), value.get("port")
    if isinstance(host, str) and host.startswith("unix:/") and port is None:
        return Address(host)
    try:
        host = parse_ip(host)
    except ValueError:
        where = [*at, "address"]
        raise _fault(document, where, f"{_shown(host)} is no IP address") from None
    if not isinstance(port, int) or isinstance(port, bool) or not 0 < port < 65_536:
        raise _fault(document, [*at, "port"], f"{_shown(port)} is no port from 1 to 65535")
    return Address(host, port)


def _load(document: Document) -> Any:
    if not document.is_yaml:
        try:
            return json.loads(document.text)
        except json.JSONDecodeError as error:
            raise _at_line(document, error.lineno, f"is not JSON: {error.msg}") from error
        except (ValueError, RecursionError) as error:
            raise _at_line(document, 1, f"is not JSON: {type(error).__name__}") from error
    if len(document.text) > YAML_BYTES_MAX:
        message = f"has more than {YAML_BYTES_MAX} bytes, which is too much YAML; write JSON"
        raise _at_line(document, 1, message)
    try:
        return YAML(typ="safe", pure=True).load(document.text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark is not None else 1
        raise _at_line(document, line, f"is not YAML: {error.problem}") from error
    except (YAMLError, RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
        # What ruamel.yaml lets through on malformed input, beside its own errors.
        raise _at_line(document, 1, f"is not YAML: {type(error).__name__}") from error


def _fault(document: Document, at: list[Any], message: str) -> AdapterError:
    key = ".".join(str(k)[:60] for k in at)
    return _at_line(document, _line(document, at), f"{key}: {message}" if key else message)


def _at_line(document: Document, line: int, message: str) -> AdapterError:
    text = f"{document.where}:{line}: {message}"
    printable = "".join(c if c.isprintable() else "?" for c in text)
    return AdapterError(printable, retryable=True)


def _line(document: Document, at: list[Any]) -> int:
    """Return where that key, or what holds it, is written; JSON is YAML enough for this."""
    if not at or len(document.text) > YAML_BYTES_MAX:
        return 1
    try:
        node = YAML(typ="safe", pure=True).compose(document.text)
    except (YAMLError, RuntimeError, ValueError, LookupError, TypeError, AttributeError):
        return 1
    line = 1
    for key in at:
        if isinstance(node, SequenceNode) and isinstance(key, int):
            node = node.value[key]
            line = int(node.start_mark.line) + 1
            continue
        inner = node.value if isinstance(node, MappingNode) else ()
        found = next(((k, v) for k, v in inner if k.value == key), None)
        if found is None:
            break
        line, node = int(found[0].start_mark.line) + 1, found[1]
    return line


def _shown(value: object) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, int) and value.bit_length() > 64:
        return "a huge number"  # Python refuses to print some
    if not isinstance(value, str | int | float):
        return f"a {type(value).__name__}"  # aliases can make a small one endless
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
