"""YAML of run files: reading it with bounds, and writing it.

A file of a few lines can stand for any number of values by its aliases, and PyYAML recurses into nested values. So the
size, the depth and the number of values are bounded before a value is built.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import yaml

MAX_BYTES = 4 * 2**20
"""Bytes of a run file."""
MAX_DEPTH = 32
"""Depth of nested values."""
MAX_VALUES = 200_000
"""Values of a run file, each counted as often as aliases repeat it."""
MERGE = "tag:yaml.org,2002:merge"
"""Tag of the key `<<`."""
MAX_DIGITS = 100
"""Characters of a number."""


class YamlError(ValueError):
    """Text that is not valid YAML, or beyond the bounds."""


def parse(content: str | bytes) -> Any:
    """Return the value of YAML text. Raises `YamlError`."""
    if len(content) > MAX_BYTES:
        raise YamlError(f"more than {MAX_BYTES:,} bytes")
    try:
        return yaml.load(content if isinstance(content, str) else content.decode(), Loader=Loader)
    except Exception as error:  # PyYAML raises any kind for a malformed tag, such as IndexError for `!!int ""`
        problem = str(error) if isinstance(error, yaml.YAMLError | ValueError) else "a value does not fit its tag"
        raise YamlError(problem) from None


def written(settings: dict[str, Any]) -> str:
    """Return settings as YAML."""
    return yaml.dump(settings, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120)


class Loader(yaml.SafeLoader):
    """SafeLoader with bounds that reads `1e-3` as a number (YAML 1.2), keys as text, and refuses duplicate keys.

    A key may be a label, and YAML reads the label `no` as false, `010` as 8 and `12:30` as 750.
    """

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.depth = 0
        self.values = 0
        """Values so far, each counted as often as aliases repeat it."""
        self.sizes: dict[int, int] = {}
        """Values of each complete node, by its identity."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        before, mark = self.values, self.peek_event().start_mark  # type: ignore[no-untyped-call]
        is_alias = self.check_event(yaml.AliasEvent)
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise yaml.MarkedYAMLError(problem=f"more than {MAX_DEPTH} levels of values", problem_mark=mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        if is_alias and id(node) not in self.sizes:
            raise yaml.MarkedYAMLError(problem="a value contains itself", problem_mark=mark)
        self.values += self.sizes[id(node)] if is_alias else 1
        self.sizes.setdefault(id(node), self.values - before)
        if self.values > MAX_VALUES:
            raise yaml.MarkedYAMLError(problem=f"more than {MAX_VALUES:,} values", problem_mark=mark)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for number, (key_node, value_node) in enumerate(node.value):
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="found unhashable key", problem_mark=key_node.start_mark)
            key = str(key_node.value)
            if key in seen:
                raise yaml.MarkedYAMLError(problem=f"key `{key}` is given twice", problem_mark=key_node.start_mark)
            seen.add(key)
            if key_node.tag != MERGE:
                text = yaml.ScalarNode("tag:yaml.org,2002:str", key, key_node.start_mark, key_node.end_mark)
                node.value[number] = (text, value_node)
        return super().construct_mapping(node, deep)

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        value = super().construct_scalar(node)
        if isinstance(value, str):
            if len(value) > MAX_DIGITS and node.tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float"):
                raise yaml.MarkedYAMLError(
                    problem=f"a number of more than {MAX_DIGITS} characters", problem_mark=node.start_mark
                )
            if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
                raise yaml.MarkedYAMLError(problem="a character is not valid in text", problem_mark=node.start_mark)
        return value


class Dumper(yaml.SafeDumper):
    """SafeDumper that quotes strings which `Loader` would read as numbers: a run may be called `12e4`."""


for _yaml in (Loader, Dumper):
    _yaml.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(?:[0-9][0-9_]*(?:\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$"),
        list("-+.0123456789"),
    )
