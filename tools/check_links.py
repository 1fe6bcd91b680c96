"""Check that every reference in the project's Markdown files leads somewhere.

Three kinds are checked, all of them inside the repository; addresses on the web are not fetched:

- links and images, `[text](path#anchor)` and `[label]: path#anchor`: the file exists, and so does the heading;
- symbols, `` `src/afa_lora/core/branch.py:adapter_branch` ``: the file defines that (dotted) name;
- bare paths, `` `src/afa_lora/core/branch.py` ``, that begin with one of the repository's own folders: the path exists.

Run from anywhere: `python tools/check_links.py [ROOT]`. Prints one line for each that leads nowhere, and exits with 1.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})")
CODE_SPAN = re.compile(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)")
INLINE_LINK = re.compile(r"!?\[[^\]]*\]\(\s*<?([^)\s>]+)>?(?:\s+[\"'][^)]*)?\)")
LINK_DEFINITION = re.compile(r"^ {0,3}\[[^\]]+\]:\s*<?([^\s>]+)>?")
HTML_TARGET = re.compile(r"<(?:img|a|source)\b[^>]*?\b(?:src|href|srcset)=[\"']([^\"'\s]+)[\"']")
HTML_ANCHOR = re.compile(r"<[a-z][^>]*?\b(?:id|name)=[\"']([^\"']+)[\"']")
HEADING = re.compile(r"^ {0,3}#{1,6}\s+(.*?)\s*#*\s*$")
SYMBOL = re.compile(r"([\w./-]+\.py):([A-Za-z_][\w.]*)")
PATH = re.compile(r"[\w.-]+(?:/[\w.-]+)+/?")
SCHEME = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)


class Problem(NamedTuple):
    """A reference that leads nowhere."""

    file: Path
    line: int
    reference: str
    reason: str


def prose_lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield the numbered lines of `text` that stand outside fenced code blocks."""
    fence: str | None = None
    for number, line in enumerate(text.splitlines(), start=1):
        match = FENCE.match(line)
        if fence is None and match:
            fence = match[1]
        elif fence is not None:
            if match and match[1].startswith(fence) and not line.strip().strip(fence[0]):
                fence = None
        else:
            yield number, line


def slug(heading: str) -> str:
    """Return the anchor that GitHub gives a heading: lower case, punctuation dropped, spaces to hyphens."""
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading)  # a link counts by its text
    text = re.sub(r"<[^>]*>", "", text).strip().lower()
    kept = (c for c in text if c in " -_" or unicodedata.category(c)[0] in "LNM")
    return "".join(kept).replace(" ", "-")


@cache
def anchors(file: Path) -> frozenset[str]:
    """Return every anchor of a Markdown file: its headings' (repeats numbered from 1) and explicit HTML ids."""
    found: set[str] = set()
    seen: Counter[str] = Counter()
    for _, line in prose_lines(file.read_text(encoding="utf-8")):
        found.update(HTML_ANCHOR.findall(line))
        if match := HEADING.match(line):
            base = slug(match[1])
            found.add(f"{base}-{seen[base]}" if seen[base] else base)
            seen[base] += 1
    return frozenset(found)


def _names(body: list[ast.stmt], prefix: str = "") -> Iterator[str]:
    """Yield the dotted names that a module's or a class's body defines, at any depth of classes and conditionals."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield prefix + node.name
            if isinstance(node, ast.ClassDef):
                yield from _names(node.body, f"{prefix}{node.name}.")
        elif isinstance(node, ast.Assign):
            yield from (prefix + n.id for target in node.targets for n in ast.walk(target) if isinstance(n, ast.Name))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield prefix + node.target.id
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from (prefix + (alias.asname or alias.name) for alias in node.names)
        elif isinstance(node, ast.If | ast.Try):
            yield from _names(node.body + node.orelse, prefix)


@cache
def symbols(file: Path) -> frozenset[str]:
    """Return the dotted names that a Python file defines, read from its source without importing it."""
    return frozenset(_names(ast.parse(file.read_text(encoding="utf-8")).body))


def check_target(root: Path, file: Path, target: str) -> str | None:
    """Return why a link's target leads nowhere, or None if it leads somewhere (or out of the repository)."""
    if SCHEME.match(target) or target.startswith("//"):
        return None
    path, _, anchor = unquote(target).partition("#")
    base = root if path.startswith("/") else file.parent
    resolved = (base / path.lstrip("/")).resolve() if path else file
    if not resolved.is_relative_to(root):
        return "leads out of the repository"
    if not resolved.exists():
        return "no such file"
    if anchor and resolved.suffix == ".md" and anchor not in anchors(resolved):
        return f"no heading #{anchor} in {resolved.relative_to(root)}"
    return None


def check_code(root: Path, code: str, folders: frozenset[str]) -> str | None:
    """Return why a code span that names a symbol or a path of ours leads nowhere, or None."""
    if match := SYMBOL.fullmatch(code):
        path, symbol = match.groups()
        if not (root / path).is_file():
            return "no such file"
        return None if symbol in symbols(root / path) else f"{path} defines no {symbol}"
    if PATH.fullmatch(code) and code.split("/")[0] in folders and not (root / code).exists():
        return "no such path"
    return None


def check_file(root: Path, file: Path, folders: frozenset[str]) -> Iterator[Problem]:
    """Yield what leads nowhere in one Markdown file; `folders` are the top-level folders whose paths to check."""
    for number, line in prose_lines(file.read_text(encoding="utf-8")):
        for match in CODE_SPAN.finditer(line):
            code = match[2].strip()
            if reason := check_code(root, code, folders):
                yield Problem(file, number, code, reason)
        prose = CODE_SPAN.sub("code", line)
        targets = INLINE_LINK.findall(prose) + LINK_DEFINITION.findall(prose) + HTML_TARGET.findall(prose)
        for target in targets:
            if reason := check_target(root, file, target):
                yield Problem(file, number, target, reason)


def project_files(root: Path) -> list[Path]:
    """Return the files that git tracks, or would: everything under `root` that it does not ignore."""
    command = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\0")
    return sorted(root / name for name in set(listed) if name and (root / name).is_file())


def check_project(root: Path) -> tuple[list[Problem], int]:
    """Return every problem in the Markdown files under `root`, and how many files there were."""
    root = root.resolve()
    files = project_files(root)
    folders = frozenset(f.relative_to(root).parts[0] for f in files if f.parent != root)
    documents = [f for f in files if f.suffix == ".md"]
    return [p for f in documents for p in check_file(root, f, folders)], len(documents)


def main() -> int:
    """Check the repository that holds this script, or the folder given as the argument."""
    root = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[1]).resolve()
    problems, count = check_project(root)
    for problem in problems:
        print(f"{problem.file.relative_to(root)}:{problem.line}: {problem.reference}: {problem.reason}")
    print(f"{count} Markdown files, {len(problems)} references that lead nowhere")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
