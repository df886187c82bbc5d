"""Small arithmetic over the numbers of a config.json, as the shapes of tensors are written.

num_attention_heads * head_dim, hidden_size        two whole numbers, of the text model
vision.spatial_merge_size ** 2 * vision.hidden_size     of the vision tower
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gates.errors import UsageError

LARGEST = 2**40
"""No size of a tensor is larger; a config.json that states such numbers is damaged or malicious."""

_OPERATIONS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Pow: operator.pow,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbers:
    """The numbers of one config.json.

    `defaults` are expressions for keys that writers leave out or set to null. `computed` are names that stand for
    numbers which config.json states under several keys, such as `experts`.
    """

    text: Mapping[str, Any]
    vision: Mapping[str, Any]
    defaults: Mapping[str, str]
    computed: Mapping[str, int]
    where: str | None

    def sizes(self, text: str) -> tuple[int, ...]:
        """The sizes that `text` computes: expressions with commas between.

        Raises:
            UsageError: a number is missing, not a whole positive one, or absurd.
        """
        tree = ast.parse(f"({text},)", mode="eval").body
        assert isinstance(tree, ast.Tuple)
        return tuple(self._size(node, text) for node in tree.elts)

    def number(self, name: str, *, least: int = 1) -> int:
        """The number that the text section states as `name`, at least `least`.

        Raises:
            UsageError: it states none, or another kind of value.
        """
        if name in self.computed:
            return self.computed[name]
        return self._stated(self.text, name, name, least)

    def _size(self, node: ast.expr, text: str) -> int:
        value = self._value(node)
        if not 0 < value <= LARGEST:
            raise UsageError(f"config.json gives a tensor the size {value} ({text})", where=self.where)
        return value

    def _value(self, node: ast.expr) -> int:
        match node:
            case ast.Constant(value=int(value)):
                return value
            case ast.Name(id=name):
                return self.number(name)
            case ast.Attribute(value=ast.Name(id="vision"), attr=name):
                return self._stated(self.vision, name, f"vision.{name}", 1)
            case ast.BinOp(left=left, op=operation, right=right) if type(operation) in _OPERATIONS:
                return _OPERATIONS[type(operation)](self._value(left), self._value(right))
        raise AssertionError(f"not arithmetic: {ast.unparse(node)}")

    def _stated(self, section: Mapping[str, Any], key: str, name: str, least: int) -> int:
        value = section.get(key)
        if value is None and name in self.defaults:
            value = self._value(ast.parse(self.defaults[name], mode="eval").body)
        if type(value) is not int or not least <= value <= LARGEST:
            found = "" if value is None else f", but {value!r:.40}"
            raise UsageError(
                f"config.json states no {name}" + found, where=self.where, remedy="is the checkpoint complete?"
            )
        return value
