"""Reads YAML 1.2 and remembers where every key and value stands.

PyYAML composes the nodes, each with its place; the scalars are given their types here, by the core schema of YAML 1.2
(`1e-6` is a number, `no` is a string). Duplicate keys are refused; anchors, aliases and `<<` merges are allowed.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from cdpo.config.problems import ConfigError, Problem, YamlPath

#: more values than any hand-written file holds; nested aliases would otherwise grow without bound
MAX_VALUES = 200_000
#: deeper than any hand-written file, and far from the depth at which Python gives up
MAX_DEPTH = 100
#: digits of the longest whole number; Python refuses to print much longer ones
MAX_DIGITS = 39

_NULL = re.compile(r"(?:~|null|Null|NULL|)\Z")
_BOOL = re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z")
_INT = re.compile(r"[-+]?[0-9]+\Z")
_OCTAL = re.compile(r"0o[0-7]+\Z")
_HEX = re.compile(r"0x[0-9a-fA-F]+\Z")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?\Z")
_INF = re.compile(r"[-+]?\.(?:inf|Inf|INF)\Z")
_NAN = re.compile(r"\.(?:nan|NaN|NAN)\Z")
_PLAIN = "plain"
#: what PyYAML counts lines by
_LINE_END = re.compile("\r\n|[\r\n\x85\u2028\u2029]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_STRING_TAGS = ("tag:yaml.org,2002:str", "!")
_COLLECTION_TAGS = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")

Place = tuple[int, int]


class _Loader(yaml.SafeLoader):
    """PyYAML gives unquoted scalars their YAML 1.1 types; here they are only marked, and typed by `plain_scalar`."""

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        if kind is yaml.ScalarNode and implicit[0]:
            return _PLAIN
        return super().resolve(kind, value, implicit)  # type: ignore[no-untyped-call]


@dataclass
class Document:
    """A YAML file as plain values, with the place of every key and value."""

    file: str
    value: Any
    #: (line, column), 1-based, of the value at a path
    values: dict[YamlPath, Place] = field(default_factory=dict)
    #: (line, column), 1-based, of the key at a path
    keys: dict[YamlPath, Place] = field(default_factory=dict)

    def problem(self, path: YamlPath, message: str, *, at_key: bool = False, shown: YamlPath | None = None) -> Problem:
        """A problem at the value of `path`, or at its key; where there is no such path, at its nearest part."""
        here = path
        while here not in self.values and here:
            here = here[:-1]
        line, col = (self.keys if at_key and here in self.keys else self.values).get(here, (1, 1))
        return Problem(self.file, line, col, path if shown is None else shown, message)


def read_yaml(path: Path, may_be_empty: bool = False) -> Document:
    """Read one document. Raises ConfigError with every duplicate key, or with where the syntax breaks.

    A file that `may_be_empty` and holds nothing but comments is an empty mapping.
    """
    file = str(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError([Problem(file, 1, 1, (), "there is no such file")]) from None
    except IsADirectoryError:
        raise ConfigError([Problem(file, 1, 1, (), "this is a folder, not a file")]) from None
    except UnicodeDecodeError as error:
        raise ConfigError([Problem(file, 1, 1, (), f"not UTF-8 text ({error.reason} at byte {error.start})")]) from None
    except OSError as error:
        raise ConfigError([Problem(file, 1, 1, (), f"cannot be read: {error.strerror}")]) from None
    return parse_yaml(text, file, may_be_empty)


def parse_yaml(text: str, file: str, may_be_empty: bool = False) -> Document:
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigError([_syntax_problem(error, text, file)]) from None
    except RecursionError:
        raise ConfigError([Problem(file, 1, 1, (), "nested too deeply")]) from None
    if node is None and may_be_empty:
        return Document(file, {}, {(): (1, 1)})
    if node is None:
        raise ConfigError([Problem(file, 1, 1, (), "the file is empty")])
    reader = _Reader(Document(file, None))
    try:
        reader.document.value = reader.read(node, (), ())
    except RecursionError:
        raise ConfigError([Problem(file, 1, 1, (), "nested too deeply")]) from None
    if reader.problems:
        raise ConfigError(reader.problems)
    return reader.document


def _syntax_problem(error: yaml.YAMLError, text: str, file: str) -> Problem:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    what = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
    line, col = (mark.line + 1, mark.column + 1) if mark else (1, 1)
    if isinstance(error, yaml.reader.ReaderError):  # it knows only how many characters went before
        before = _LINE_END.split(text[: error.position])
        line, col = len(before), len(before[-1]) + 1
    return Problem(file, line, col, (), f"not YAML: {what}")


class _Reader:
    def __init__(self, document: Document) -> None:
        self.document = document
        self.problems: list[Problem] = []
        self.count = 0

    def read(self, node: yaml.Node, path: YamlPath, above: tuple[int, ...]) -> Any:
        """The plain value of `node`; `above` holds the nodes it lies in, to find an alias that contains itself."""
        self.document.values[path] = _place(node)
        self._count(node, path)
        if id(node) in above:
            raise ConfigError([self._at(node, path, "an alias that contains itself")])
        if len(above) > MAX_DEPTH:
            raise ConfigError([self._at(node, path, f"nested too deeply (more than {MAX_DEPTH} levels)")])
        above = (*above, id(node))
        if not isinstance(node, yaml.ScalarNode) and node.tag not in _COLLECTION_TAGS:
            self.problems.append(self._at(node, path, f"the tag {node.tag} is not allowed here"))
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path, above)
        if isinstance(node, yaml.SequenceNode):
            return [self.read(child, (*path, index), above) for index, child in enumerate(node.value)]
        assert isinstance(node, yaml.ScalarNode)
        return self._scalar(node, path)

    def _count(self, node: yaml.Node, path: YamlPath) -> None:
        self.count += 1
        if self.count > MAX_VALUES:
            raise ConfigError([self._at(node, path, f"more than {MAX_VALUES} values; aliases that multiply?")])

    def _mapping(self, node: yaml.MappingNode, path: YamlPath, above: tuple[int, ...]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        merged: list[yaml.Node] = []
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self.problems.append(self._at(key_node, path, "a key must be a plain word"))
                continue
            key = key_node.value
            if key == "<<" and key_node.style is None:
                if merged:
                    self.problems.append(self._at(key_node, (*path, key), "`<<` stands twice; write `<<: [*a, *b]`"))
                merged.extend(value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node])
                continue
            here = (*path, key)
            self._refuse_surrogates(key_node, path)
            if key in result:
                first = self.document.keys[here][0]
                self.problems.append(self._at(key_node, here, f"this key stands twice (first on line {first})"))
                continue
            self.document.keys[here] = _place(key_node)
            result[key] = self.read(value_node, here, above)
        for source in merged:
            self._merge(source, path, above, result)
        return result

    def _merge(self, source: yaml.Node, path: YamlPath, above: tuple[int, ...], result: dict[str, Any]) -> None:
        """`<<: *anchor`: keys of `source` that are not there yet, each with the place where it was written."""
        if not isinstance(source, yaml.MappingNode):
            self.problems.append(self._at(source, (*path, "<<"), "`<<` merges mappings only"))
            return
        if id(source) in above:
            raise ConfigError([self._at(source, path, "an alias that contains itself")])
        self._count(source, path)
        scratch = _Reader(Document(self.document.file, None))
        scratch.count = self.count
        merged = scratch._mapping(source, path, (*above, id(source)))
        self.count = scratch.count
        self.problems.extend(scratch.problems)
        new = {key: value for key, value in merged.items() if key not in result}
        result.update(new)
        for places, found in (
            (self.document.values, scratch.document.values),
            (self.document.keys, scratch.document.keys),
        ):
            places.update({known: place for known, place in found.items() if known[len(path)] in new})

    def _scalar(self, node: yaml.ScalarNode, path: YamlPath) -> Any:
        text: str = node.value
        self._refuse_surrogates(node, path)
        if node.tag == _PLAIN:
            return plain_scalar(text)
        if node.tag not in _STRING_TAGS:
            self.problems.append(self._at(node, path, f"the tag {node.tag} is not allowed here"))
        return text

    def _refuse_surrogates(self, node: yaml.ScalarNode, path: YamlPath) -> None:
        """`"\\ud800"` is half of a character: no file could be named or written with it."""
        if _SURROGATE.search(node.value):
            self.problems.append(self._at(node, path, "an escape that stands for no character"))

    def _at(self, node: yaml.Node, path: YamlPath, message: str) -> Problem:
        line, col = _place(node)
        return Problem(self.document.file, line, col, path, message)


def plain_scalar(text: str) -> Any:
    """The value of an unquoted YAML 1.2 scalar (core schema).

    >>> [plain_scalar(t) for t in ("1e-6", "no", "0x10", "~", "1.0", "0123")]
    [1e-06, 'no', 16, None, 1.0, 123]
    """
    if _NULL.match(text):
        return None
    if _BOOL.match(text):
        return text[0] in "tT"
    if len(text) <= MAX_DIGITS:
        if _INT.match(text):
            return int(text)
        if _OCTAL.match(text):
            return int(text[2:], 8)
        if _HEX.match(text):
            return int(text[2:], 16)
    if _FLOAT.match(text):
        return float(text)
    if _INF.match(text):
        return float("-inf") if text.startswith("-") else float("inf")
    if _NAN.match(text):
        return float("nan")
    return text


def _place(node: yaml.Node) -> Place:
    return node.start_mark.line + 1, node.start_mark.column + 1
