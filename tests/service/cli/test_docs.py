"""What the pages tell people to type is what the programs take: nobody has time to guess when a site is gone."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from service.cli.parser import build_parser

ROOT = Path(__file__).parents[3]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def commands(page: Path) -> list[list[str]]:
    """The arguments of each `understudy` line in a block of code."""
    blocks = re.findall(r"^```\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    found = [re.match(r"(?:\S*/)?understudy (.*)", line) for line in lines]
    return [shlex.split(line[1].partition(" > ")[0], comments=True) for line in found if line]


def test_every_command_of_the_pages_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    known = [(page.name, arguments) for page in PAGES for arguments in commands(page)]
    assert len(known) > 40
    for page, arguments in known:
        try:
            build_parser().parse_args(arguments)
        except SystemExit as ended:
            assert ended.code == 0, f"{page}: understudy {shlex.join(arguments)}: {capsys.readouterr().err}"
