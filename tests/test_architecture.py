"""Imports run one way: service -> recovery -> agent.protocol <- agent, and service -> agent.protocol."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {
    "agent.protocol": ("agent.protocol",),
    "agent": ("agent",),
    "recovery": ("recovery", "agent.protocol"),
    "service": ("service", "recovery", "agent.protocol"),
}
OURS = ("agent", "recovery", "service", "demo", "rescue", "bench", "tests")
NOT_IN_RECOVERY = ("sqlalchemy", "alembic", "aiohttp")
NOT_IN_AGENT = ("sqlalchemy", "alembic", "yaml")


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package.replace(".", "/")).rglob("*.py"))


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import hides where it goes"
            found.add(node.module or "")
    return found


def within(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_run_one_way(package: str) -> None:
    for path in modules(package):
        for name in imported(path):
            if within(name, OURS):
                assert within(name, MAY_IMPORT[package]), f"{path.relative_to(ROOT)} imports {name}"


def test_recovery_knows_no_sql_and_serves_no_http() -> None:
    for path in modules("recovery"):
        assert not [name for name in imported(path) if within(name, NOT_IN_RECOVERY)], path


def test_the_agent_needs_only_the_base_install() -> None:
    for path in modules("agent"):
        assert not [name for name in imported(path) if within(name, NOT_IN_AGENT)], path


def test_what_is_installed_is_three_packages() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert settings["tool"]["setuptools"]["packages"]["find"]["include"] == ["agent*", "service*", "recovery*"]
    assert len(settings["project"]["dependencies"]) <= 5, "the agent runs on other people's servers: it stays light"


def drawn() -> list[str]:
    """The paths in the tree of docs/architecture.md: the names before the words, folders end with a slash."""
    tree = (ROOT / "docs" / "architecture.md").read_text().split("```")[1]
    above: list[str] = []
    found = []
    for line in tree.strip("\n").splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        names = re.match(r"\s*((?:[\w.]+(?:/|\.py)\s?)+)", line)
        assert names, line
        found += ["".join([*above[:depth], name]) for name in names[1].split()]
        above[depth:] = names[1].split()[-1:]
    return found


def test_the_drawing_of_the_architecture_names_every_package_and_nothing_that_is_not_there() -> None:
    paths = drawn()
    assert [path for path in paths if not (ROOT / path).exists()] == []
    packages = {
        f"{path.parent.relative_to(ROOT)}/" for name in ("agent", "recovery", "service") for path in modules(name)
    }
    assert packages - set(paths) == {"service/store/migrations/versions/"}


def test_files_hold_one_idea_each() -> None:
    for package in ("agent", "recovery", "service"):
        for path in modules(package):
            lines = len(path.read_text().splitlines())
            assert lines <= 350, f"{path.relative_to(ROOT)} has {lines} lines: split it"
