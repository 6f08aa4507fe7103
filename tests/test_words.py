"""Words of the trade: defined where a page, help text or document first uses them; messages do without."""

from __future__ import annotations

import ast
import html
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from tests.study.test_report import traced

import convexlift
from convexlift.cli.main import app, main
from convexlift.study.report.page import page

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# Each word, and what a definition of it says; defined means: said within so many characters of the first use.
NEAR = 250
WORDS = {
    r"(?<![-\w])arms?\b": "ways? of (training|keeping)",
    r"\bweight sources?\b": "at or above zero|non-negative",
    r"\bshoulder\b": "flat",
    r"\bemi(ts?|tted|tting|ssion)\b": "computes?|from batch to batch",
    r"\bprincipled\b": "Hoedt and Klambauer",
    r"\b(un)?frozen\b|\bfreezing\b": "one (fixed )?convex function",
    r"\beffective (start|network|initial)": "initial weights themselves",
    r"\brising\b": "validation rises",
    r"\bgap\b": "distance",
    r"\bpaired\b": "seed|same",
    r"\bcore-seconds\b": "processor",
}
OF_MESSAGES = r"(?<![-\w])arms?\b|\bemi(ts?|tted|ssion)\b|\bprincipled\b|\bcore-seconds\b"


def undefined(text: str) -> list[str]:
    """The words that the text uses without saying at the first use what they mean."""
    text, found = " ".join(text.split()), []
    for word, meaning in WORDS.items():
        use = re.search(word, text, re.IGNORECASE)
        around = text[max(0, use.start() - NEAR) : use.end() + NEAR] if use else ""
        if use and not re.search(meaning, around, re.IGNORECASE):
            found.append(f"{use[0]}: ...{around}...")
    return found


def seen(text: str) -> str:
    """What a page shows, with every link to a term followed by what the term's entry says."""
    entries = dict(re.findall(r'<dt id="(term-[^"]+)">.*?</dt><dd>(.*?)</dd>', text, re.DOTALL))
    text = re.sub(
        r'<a class="term" href="#([^"]+)">(.*?)</a>', lambda link: f"{link[2]} ({entries[link[1]]})", text
    )
    text = re.sub(r"<style>.*?</style>|<pre>.*?</pre>", "", text, flags=re.DOTALL)
    return html.unescape(re.sub(r"<[^>]*>", " ", text))


def test_a_word_without_its_meaning_is_found() -> None:
    assert undefined("Every arm trains.") and not undefined("Every arm (way of training) trains.")
    assert undefined(f"A frozen model. {'And so on. ' * 30}It is one convex function.")
    assert not undefined("--arms NAME")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_documents_define_their_words(document: Path) -> None:
    code = r"```.*?```|``.*?``|`[^`\n]*`|<!--.*?-->|\]\([^)]*\)"
    assert undefined(re.sub(code, "", document.read_text(encoding="utf-8"), flags=re.DOTALL)) == []


def commands(command: Any, name: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words that call a command, and those that call what is below it."""
    yield name
    for below, each in getattr(command, "commands", {}).items():
        yield from commands(each, (*name, below))


def test_help_texts_define_their_words(capsys: pytest.CaptureFixture[str]) -> None:
    called = list(commands(typer.main.get_command(app)))
    assert ("train", "flow") in called and ("ablate",) in called
    for words in called:
        assert main([*words, "--help"]) == 0
        assert undefined(capsys.readouterr().out) == [], words


def test_a_result_page_defines_its_words_by_links_from_their_first_uses() -> None:
    text = page([traced()])
    assert undefined(seen(text)) == []
    assert undefined(seen(re.sub(r'<a class="term".*?>(.*?)</a>', r"\1", text)))  # the links do it
    above, _, terms = text.partition('<section id="terms">')
    links = re.findall(r'<a class="term" href="#([^"]+)">', above)
    assert len(links) == len(set(links)) >= 12 and "term-flat" in links and "term-noise" in links
    assert all(f'<dt id="{link}">' in terms for link in links) and 'class="term"' not in terms


def test_messages_do_without_them() -> None:
    found = []
    for file in sorted(Path(convexlift.__file__).parent.rglob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        documented = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            told = node.value if isinstance(node, ast.Constant) and id(node) not in documented else None
            if isinstance(told, str) and " " in told and re.search(OF_MESSAGES, told):
                found.append(f"{file.name}:{node.lineno}: {told}")
    assert [text for text in found if not text.startswith("glossary.py")] == []
