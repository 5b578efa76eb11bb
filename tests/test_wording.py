"""Checks the wording of the package: docstrings open with a verb, and names are nouns."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import ckpt_probe

FILES = sorted(Path(ckpt_probe.__file__).parent.rglob("*.py"))
OPENINGS = re.compile(r"(What|The same|As|That of|Those of|Of|Whether so|Such|Whoever)\b")
NAMES = {"told", "said", "found", "given", "held", "there", "place", "brought", "shown", "kept", "whole", "one", "own"}
WORDS = re.compile(
    r"\b(told|said|says so|whoever|anybody|somebody|so many|that many|(is|are) none|"
    r"(what|that which) (is|was|are|were))\b"
)


def docstrings(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module) and (text := ast.get_docstring(node)):
            yield text.partition("\n")[0]


def assigned_names(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name.strip("_")


def texts(source: str) -> Iterator[str]:
    kinds = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in kinds:
            yield token.string


def test_wording_is_plain() -> None:
    strays = []
    for file in FILES:
        source = file.read_text(encoding="utf-8")
        tree = ast.parse(source)
        matches = [text for text in docstrings(tree) if OPENINGS.match(text)]
        matches += [name for name in assigned_names(tree) if name in NAMES]
        if WORDS.search(source):  # tokens take longer than all other checks
            matches += [match[0] for text in texts(source) for match in WORDS.finditer(text)]
        strays += [f"{file}: {text}" for text in matches]
    assert strays == []
