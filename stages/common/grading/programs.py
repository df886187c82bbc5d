"""How far two versions of a short program differ, where layout, comments and docstrings count for nothing."""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Sequence

from stages.common.execution.records import Language


def changed_statements(language: Language, before: str, after: str) -> int:
    """How many statements were changed, added or removed; one that was moved counts where it left and where it came."""
    matcher = difflib.SequenceMatcher(None, statements(language, before), statements(language, after), autojunk=False)
    return sum(max(b - a, d - c) for kind, a, b, c, d in matcher.get_opcodes() if kind != "equal")


def lost_names(language: Language, before: str, after: str, *, besides: Sequence[str]) -> list[str]:
    """The names in `before` that `after` does not hold; names that stood in the lines `besides` alone may go."""
    free = {squeezed(line) for line in besides}
    kept = "\n".join(line for line in before.split("\n") if squeezed(line) not in free)
    wanted = _names(language, before) & _names(language, kept)
    return sorted(wanted - _names(language, after))


def statements(language: Language, program: str) -> list[str]:
    """A program's statements in one layout, a line each; a program that cannot be read is one statement."""
    return _python(program) if language == "python" else _javascript(program)


def squeezed(line: str) -> str:
    """A line of code without any white space and without the semicolon at its end."""
    return "".join(line.split()).rstrip(";")


def _python(program: str) -> list[str]:
    try:
        tree = ast.parse(program)
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                node.body = node.body[_has_docstring(node) :] or [ast.Pass()]
        return ast.unparse(tree).split("\n")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return [program]


def _has_docstring(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    first = node.body[0] if node.body else None
    return isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)


def _javascript(program: str) -> list[str]:
    """Cut behind each ; { and }, by tokens; a comma before a closing bracket is layout, and so is the kind of quote."""
    lines, line = [], ""
    for token in _TOKEN.finditer(program):
        text = token.group()
        if token.lastgroup == "blank":
            continue
        if token.lastgroup == "text" and text[0] == "'" and '"' not in text:
            text = f'"{text[1:-1]}"'
        if text in ")]}":
            line = line.removesuffix(", ")
        if text in ";{}":
            lines.append((line + text).rstrip("; "))
            line = ""
        else:
            line += f"{text} "
    return [each for each in (*lines, line.strip()) if each]


_TOKEN = re.compile(
    r"""(?P<blank>\s+|//[^\n]*|/\*.*?\*/)"""
    r"""|(?P<text>'(?:\\.|[^'\\\n])*'|"(?:\\.|[^"\\\n])*"|`(?:\\.|[^`\\])*`)"""
    r"""|(?P<word>[\w$]+)|(?P<mark>.)""",
    re.DOTALL,
)
_NO_CODE = {
    language: re.compile(
        r'"""(?:\\.|[^\\])*?"""|\'(?:\\.|[^\'\\\n])*\'|"(?:\\.|[^"\\\n])*"|`(?:\\.|[^`\\])*`|' + rf"{comment}[^\n]*",
        re.DOTALL,
    )
    for language, comment in (("python", "#"), ("javascript", "//"))
}
"""Texts and comments."""


def _names(language: Language, code: str) -> set[str]:
    return set(re.findall(r"[A-Za-z_$][\w$]*", _NO_CODE[language].sub(" ", code)))
