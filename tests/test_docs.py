"""The documentation says what is so: examples run, commands exist, the settings files change nothing."""

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main
from dotenv import dotenv_values

from bot.commands import COMMANDS
from bot.config import TABLES, BackendTable, environment_names, load
from bot.program import app

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PARTS = ("frontend", "input-processor", "model", "memory", "output-processor", "knowledge", "engine")
EXAMPLES = [
    pytest.param(code, id=f"{page.stem}-{number}")
    for page in PAGES
    for number, code in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL), start=1)
]
CODE = re.compile(r"```.*?```|`[^`\n]+`", re.DOTALL)
CALL = re.compile(r"(?:^|[\s`/$])chinwag((?: +[^\s`]+)*)", re.MULTILINE)


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to start in, and no setting in the environment."""
    for name in environment_names():
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def calls(text: str) -> list[str]:
    """What follows `chinwag` wherever code in a page calls it."""
    return [found.strip() for code in CODE.findall(text) for found in CALL.findall(code)]


def commands() -> set[str]:
    """Every command of the program, those of groups with the group before them."""
    root = typer.main.get_command(app)

    def walk(command: object, prefix: str) -> Iterator[str]:
        for name, sub in getattr(command, "commands", {}).items():
            yield f"{prefix}{name}"
            yield from walk(sub, f"{prefix}{name} ")

    return set(walk(root, ""))


def called(words: str, known: set[str]) -> list[str]:
    """The commands that a call names; `knowledge list|show` names two, options alone name none."""
    first, second, *_ = [*words.split(), "", ""]
    if not first or first.startswith("-"):
        return []
    group = any(name.startswith(f"{first} ") for name in known)
    return [f"{first} {sub}" for sub in second.split("|")] if group and second else [first]


@pytest.mark.parametrize("code", EXAMPLES)
def test_an_example_runs(code: str, tmp_path: Path) -> None:
    """Each runs on its own, in a fresh process."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)

    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("part", PARTS)
def test_every_part_has_a_page_with_an_example(part: str) -> None:
    """No part of the stack goes without one."""
    text = (ROOT / "docs" / f"{part}.md").read_text()

    assert "```python\n" in text or "```console\n" in text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_command_that_is_named_exists(page: Path) -> None:
    """Whoever types what a page says gets that command."""
    known = commands()
    named = [name for words in calls(page.read_text()) for name in called(words, known)]

    assert [name for name in named if name not in known] == []


def test_commands_are_found_where_pages_name_them() -> None:
    """The search sees prompts, paths and alternatives, and a wrong name in any of them."""
    text = "`chinwag ask x`\n```text\n$ chinwag lern a\n.venv/bin/chinwag chat\n```\n`chinwag knowledge list|shwo`"
    named = [name for words in calls(text) for name in called(words, commands())]

    assert named == ["ask", "lern", "chat", "knowledge list", "knowledge shwo"]
    assert {"ask", "chat", "knowledge list"} <= commands()
    assert not {"lern", "knowledge shwo"} & commands()


def test_the_readme_names_what_can_be_done() -> None:
    """Every command of the program, and every one of the chat."""
    text = (ROOT / "README.md").read_text()
    known = commands()
    named = {name for words in calls(text) for name in called(words, known)}
    groups = {name for name in known if any(other.startswith(f"{name} ") for other in known)}

    assert known - groups - named == set()
    assert [spec.name for spec in COMMANDS if f"/{spec.name}" not in text] == []


def test_the_environment_example_names_what_is_read() -> None:
    """Every variable, no other, each under its own description."""
    text = (ROOT / ".env.example").read_text()
    described = {
        name: " ".join(line.removeprefix("# ") for line in comment.splitlines())
        for comment, name in re.findall(r"\n\n((?:# .*\n)+)# ([A-Z_]+)=(?=\n)", text)
    }

    assert described == environment_names()


def test_copying_the_environment_example_changes_nothing(alone: Path) -> None:
    """As it stands it sets nothing."""
    before = load()
    (alone / ".env").write_text((ROOT / ".env.example").read_text())

    assert dotenv_values(".env") == {}
    assert load() == before


def test_copying_the_toml_example_changes_nothing(alone: Path) -> None:
    """As it stands it holds the defaults."""
    before = load()
    (alone / "chinwag.toml").write_text((ROOT / "chinwag.example.toml").read_text())

    assert load() == before


def test_the_toml_example_describes_every_field() -> None:
    """Each field stands in its own table, under its own description, and a commented one has no default."""
    text = (ROOT / "chinwag.example.toml").read_text()
    sections = dict(re.findall(r"^\[(\w+)\]\n(.*?)(?=^\[|^# A model server|\Z)", text, re.MULTILINE | re.DOTALL))

    assert set(sections) == set(TABLES)
    for name, table in TABLES.items():
        flat = " ".join(line.removeprefix("# ") for line in sections[name].splitlines())
        for field, about in table.model_fields.items():
            assert f"{about.description} {field} =" in flat, field
            assert (field in tomllib.loads(sections[name])) == (about.default is not None), field


def test_the_commented_backend_of_the_toml_example_is_valid() -> None:
    """Without its comment signs it is a backend, and it names every field with its description."""
    _, _, commented = (ROOT / "chinwag.example.toml").read_text().partition("CHINWAG_BACKEND=NAME:\n")
    written = "\n".join(line.removeprefix("# ") for line in commented.splitlines())
    (entry,) = tomllib.loads(written)["backends"].values()

    assert set(BackendTable(**entry).model_fields_set) == set(BackendTable.model_fields)
    for field, about in BackendTable.model_fields.items():
        assert f"# {about.description}\n{field} =" in written, field
