"""Every exception that this package raises.

::

    XdsServerError
        ConfigError                  the operator can mend it; names file, line, key, remedy
        ProtocolError                a stream broke the xDS rules
            RemoteProtocolError      the client did: end that stream, keep the rest
                UnknownApplicationError  a node of an application that is not configured
            LocalProtocolError       we did: a bug
        InconsistentSnapshotError    a snapshot names resources that it lacks; never served
        InvalidWeightsError          weights that Envoy would accept and then fail on
        AdapterError                 the outside world; ``retryable`` says what to do
        RecordingFullError           a recording has reached its bound; serving goes on
        UnreadableTapeError          a recording that cannot be replayed
        HistoryError                 a history file that cannot be used; names the remedy

A NACK, a hold and a missed deadline are not exceptions: they are an event, a decision
and an outcome.
"""

from collections.abc import Iterable
from dataclasses import dataclass


class XdsServerError(Exception):
    """Whatever this package raises on purpose."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a configuration file, and how to mend it."""

    path: str  # file
    line: int  # 1-based; 0 when the file has no such place
    key: str  # dotted path inside the file
    message: str
    remedy: str

    def __str__(self) -> str:
        where = f"{self.path}:{self.line}" if self.line else self.path
        return f"{where}: {self.key}: {self.message}; {self.remedy}"


class ConfigError(XdsServerError):
    """A configuration that cannot be served; carries every problem found."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        self.problems = problems
        super().__init__("\n".join(str(p) for p in problems))


class ProtocolError(XdsServerError):
    """A stream broke the xDS rules."""


class RemoteProtocolError(ProtocolError):
    """The client did: its stream ends with INVALID_ARGUMENT, no other is touched."""


class UnknownApplicationError(RemoteProtocolError):
    """A node announced an application or a template that is not configured."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        self.name = name
        names = ", ".join(sorted(known)) or "none"
        super().__init__(f"{kind} {name!r} is not configured; configured are: {names}")


class LocalProtocolError(ProtocolError):
    """We did. A bug."""


class InconsistentSnapshotError(XdsServerError):
    """A snapshot names resources that it lacks. It is never served."""

    def __init__(self, type_url: str, missing: frozenset[str]) -> None:
        self.type_url, self.missing = type_url, missing
        super().__init__(f"{type_url}: {len(missing)} missing, e.g. {min(missing)!r}")


class InvalidWeightsError(XdsServerError):
    """Weights that Envoy would take without checking, and fail every request on."""


class AdapterError(XdsServerError):
    """The outside world failed; ``retryable`` says whether trying again can help."""

    def __init__(self, message: str, *, retryable: bool) -> None:
        self.retryable = retryable
        super().__init__(message)


class RecordingFullError(XdsServerError):
    """A recording has reached its bound. Recording ends, serving goes on."""


class UnreadableTapeError(XdsServerError):
    """A recording that cannot be replayed: not one of ours, or damaged."""


class HistoryError(XdsServerError):
    """A history file that cannot be opened, read or written. Serving goes on without it."""

    def __init__(self, path: str, why: str, remedy: str) -> None:
        self.path, self.why, self.remedy = path, why, remedy
        super().__init__(f"{path}: {why}; {remedy}")
