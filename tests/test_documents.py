"""What the documents point to is there."""

import re
from pathlib import Path

import pytest
from conftest import ROOT

from utils.config.command_line import build_parser

PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
FLAGS = {
    flag
    for script in ("main_free", "evaluate")
    for action in build_parser(script, "")._actions
    for flag in action.option_strings
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        assert target.startswith("https://") or (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_and_modules_that_are_named_are_there(page: Path) -> None:
    text = page.read_text()
    for path in re.findall(r"\b(?:lib|models|utils|tools|tests|docs)/[\w/]+\.\w+", text):
        assert (ROOT / path).exists(), path
    for module in re.findall(r"python -m (tools\.\w+)", text):
        assert (ROOT / f"{module.replace('.', '/')}.py").exists(), module


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_flags_of_the_scripts_are_flags(page: Path) -> None:
    for line in re.findall(r"(?:main_free|evaluate)\.py [^`\n]*", page.read_text()):
        assert set(re.findall(r"(?<=\s)--?[A-Za-z]\w*", line)) <= FLAGS, line
