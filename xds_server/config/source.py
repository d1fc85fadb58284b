"""YAML to plain values, with the line of every key; nothing here knows the schema."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError

from xds_server.errors import ConfigError, Problem

KeyPath: TypeAlias = tuple[str | int, ...]
Value: TypeAlias = "str | int | float | bool | tuple[Value, ...] | dict[str, Value] | None"

MAX_NODES: Final = 1_000_000
"""Bound on values after aliases are followed; a larger file is refused, not cut."""

_DIGITS_MAX: Final = 40  # no key takes a longer whole number; Python would refuse to print some
_TAG: Final = "tag:yaml.org,2002:"


@dataclass(frozen=True, slots=True)
class Written:
    """One document of a file: where each of its values is written."""

    path: str
    lines: dict[KeyPath, int]  # 1-based
    last_line: int

    def line(self, at: KeyPath) -> int:
        """Return the line of the key, or of the nearest key around it."""
        while at and at not in self.lines:
            at = at[:-1]
        return self.lines.get(at, 1)

    def problem(self, at: KeyPath, message: str, remedy: str) -> Problem:
        """Say what is wrong at a key."""
        return _problem(self.path, self.line(at), at, message, remedy)


@dataclass(frozen=True, slots=True)
class Tree(Written):
    """A document that may have any value at its top."""

    data: Value


@dataclass(frozen=True, slots=True)
class Document(Written):
    """A document that has keys at its top."""

    data: dict[str, Value]

    def names(self, *at: str | int) -> tuple[str, ...]:
        """Return the keys that the file itself has under ``at``, right or wrong."""
        value: Value = self.data
        for key in at:
            if isinstance(value, dict):
                value = value.get(str(key))
            elif isinstance(value, tuple) and isinstance(key, int) and key < len(value):
                value = value[key]
            else:
                return ()
        return tuple(value) if isinstance(value, dict) else ()


def dotted(at: KeyPath) -> str:
    """Write a path as operators read it."""
    return ".".join(_one_line(str(k)[:100]) for k in at) or "(file)"


def _problem(path: str, line: int, at: KeyPath, message: str, remedy: str) -> Problem:
    return Problem(path, line, dotted(at), _one_line(message), _one_line(remedy))


def _one_line(text: str) -> str:
    """Replace what would break a line or hide in it: operators' text is quoted in problems."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


def read_text(path: Path) -> str:
    """Return a file's text; raise ConfigError if there is none."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        why = error.strerror or type(error).__name__
        remedy = "name a file that exists and that this user may read"
        problem = Problem(str(path), 0, "(file)", f"cannot be read: {why}", remedy)
        raise ConfigError((problem,)) from error
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        message = f"is not UTF-8: byte 0x{raw[error.start]:02x}"
        problem = Problem(str(path), line, "(file)", message, "save the file as UTF-8")
        raise ConfigError((problem,)) from error


def read_document(text: str, path: str) -> tuple[Document, list[Problem]]:
    """Read mesh.yaml, one document; raise ConfigError if there is nothing to go on with."""
    trees, problems = read_trees(text, path)
    if len(trees) > 1:
        line = trees[1].line(())
        remedy = "keep one document: remove the `---` and what follows it"
        raise ConfigError((_problem(path, line, (), "has several documents", remedy),))
    data = trees[0].data if trees else None
    if data is None and not problems:
        raise ConfigError((_at_top(path, "is empty", "start with `mesh: <name>`"),))
    if data is not None and not isinstance(data, dict):
        kind = "a list" if isinstance(data, tuple) else "a single value"
        remedy = "write keys at the top, starting with `mesh: <name>`"
        raise ConfigError((_at_top(path, f"is {kind}", remedy),))
    lines, last_line = (trees[0].lines, trees[0].last_line) if trees else ({}, 1)
    return Document(path, lines, last_line, data or {}), problems


def read_trees(text: str, path: str) -> tuple[list[Tree], list[Problem]]:
    """Read all YAML documents of a file; raise ConfigError if it is not YAML."""
    last_line = max(1, len(text.splitlines()))
    trees: list[Tree] = []
    problems: list[Problem] = []
    try:
        for root in YAML(typ="safe", pure=True).compose_all(text):
            reader = _Reader(path, last_line)
            data = None if root is None else reader.read(root, ())
            problems += reader.problems
            trees.append(Tree(path, reader.lines, last_line, data))
    except YAMLError as error:
        raise ConfigError((_syntax_problem(error, text, path, last_line),)) from error
    except RecursionError as error:
        raise ConfigError((_at_top(path, "is nested too deeply", "flatten it"),)) from error
    except (ValueError, LookupError, TypeError, AttributeError, NotImplementedError) as error:
        # What ruamel.yaml lets through on malformed input, beside its own errors.
        remedy = f"mend the YAML ({type(error).__name__}: {error})"
        raise ConfigError((_at_top(path, "is not YAML", remedy),)) from error
    return trees, problems


def _at_top(path: str, message: str, remedy: str) -> Problem:
    return _problem(path, 1, (), message, remedy)


def _syntax_problem(error: YAMLError, text: str, path: str, last_line: int) -> Problem:
    line, said = 1, str(error).partition("\n")[0]
    if isinstance(error, MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark is not None else 1
        said = " ".join(p for p in (error.context, error.problem) if p) or said
        if mark is not None and mark.column is not None:
            said += f" (column {mark.column + 1})"
    elif isinstance(error, ReaderError):
        line = text.count("\n", 0, error.position) + 1
        said = f"character {error.character!r} is not allowed"
    remedy = "mend the syntax: keys as `key: value`, two spaces per level, text with `: ` in quotes"
    return _problem(path, min(line, last_line), (), f"is not YAML: {said}", remedy)


def _whole_number(text: str) -> int:
    if len(text) > _DIGITS_MAX:
        raise ValueError(text)
    based = text.lstrip("+-")[:2].lower() in {"0x", "0o", "0b"}
    return int(text, 0 if based else 10)


class _Reader:
    """Turns one composed node tree into values; remembers lines and problems."""

    def __init__(self, path: str, last_line: int) -> None:
        self.path, self.last_line = path, last_line
        self.lines: dict[KeyPath, int] = {}
        self.problems: list[Problem] = []
        self._open: set[int] = set()  # nodes being read: an alias to one of them has no end
        self._left = MAX_NODES

    def read(self, node: Node, at: KeyPath) -> Value:
        self._left -= 1
        if self._left < 0:
            remedy = f"keep it below {MAX_NODES:,} values; use fewer aliases"
            raise ConfigError((_at_top(self.path, "is too large", remedy),))
        self.lines.setdefault(at, self._line(node))
        if id(node) in self._open:
            self._say(node, at, "refers to itself", "write the value instead of the alias")
            return None
        self._open.add(id(node))
        try:
            if isinstance(node, MappingNode) and node.tag == _TAG + "map":
                return self._read_map(node, at)
            if isinstance(node, SequenceNode) and node.tag == _TAG + "seq":
                return tuple(self.read(item, (*at, i)) for i, item in enumerate(node.value))
            if isinstance(node, ScalarNode):
                return self._read_scalar(node, at)
        finally:
            self._open.discard(id(node))
        self._say(node, at, f"has the tag {node.tag}, which means nothing here", "remove the tag")
        return None

    def _read_map(self, node: MappingNode, at: KeyPath) -> dict[str, Value]:
        out: dict[str, Value] = {}
        merged: list[Node] = []
        for key, value in node.value:
            if not isinstance(key, ScalarNode):
                self._say(key, at, "has a key that is not text", "write a plain name as the key")
            elif key.tag == _TAG + "merge":
                merged += value.value if isinstance(value, SequenceNode) else [value]
            else:
                name = self._text(key, at)
                self._read_key(name, key, value, at, out)
        for other in merged:
            extra = self.read(other, at)
            if isinstance(extra, dict):
                out |= {k: v for k, v in extra.items() if k not in out}
            else:
                self._say(other, at, "merges something that has no keys", "merge a mapping")
        return out

    def _read_key(
        self, name: str, key: Node, value: Node, at: KeyPath, out: dict[str, Value]
    ) -> None:
        if name in out:
            first = self.lines[(*at, name)]
            remedy = f"keep one of the two (the other is on line {first})"
            self._say(key, (*at, name), "is written twice", remedy)
        else:
            self.lines[(*at, name)] = self._line(key)
            out[name] = self.read(value, (*at, name))

    def _text(self, node: Node, at: KeyPath) -> str:
        """Join the halves in which JSON escapes a character that is beyond 16 bits."""
        text = str(node.value)
        if text.isascii():
            return text
        joined = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        if "\ufffd" in joined and "\ufffd" not in text:
            self._say(node, at, "has half of a character", "write both halves of the escape")
        return joined

    def _read_scalar(self, node: ScalarNode, at: KeyPath) -> Value:
        text = self._text(node, at)
        kind = str(node.tag).removeprefix(_TAG)
        try:
            match kind:
                case "null":
                    return None
                case "bool":
                    return text.lower() in {"true", "yes", "on", "y"}
                case "int":
                    return _whole_number(text)
                case "float":
                    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
                case "str" | "timestamp" | "merge" | "value":  # a date is text here
                    return text
        except ValueError:
            self._say(node, at, f"{text[:40]!r} is not a number", "write a decimal number")
            return None
        self._say(node, at, f"has the tag {node.tag}, which means nothing here", "remove the tag")
        return None

    def _line(self, node: Node) -> int:
        return min(int(node.start_mark.line) + 1, self.last_line)

    def _say(self, node: Node, at: KeyPath, message: str, remedy: str) -> None:
        self.problems.append(_problem(self.path, self._line(node), at, message, remedy))
