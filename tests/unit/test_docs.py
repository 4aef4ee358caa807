"""The words of the documentation are tested: what it names exists, and what exists is named."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import msgspec
import pytest

from api.problems import known
from jobs.models import ModelConfig
from jobs.settings import Settings
from jobs.states import State
from postprocess.detection import DetectionOptions
from postprocess.embedding import EmbeddingOptions
from preprocess.image import ImageOptions
from preprocess.inputs import Part
from preprocess.python import PythonOptions
from preprocess.text import TextOptions

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "benchmarks" / "README.md"]
SCRIPTS = "\n".join(path.read_text() for path in (ROOT / "jobs" / "scripts").glob("*.lua"))
SOURCES = "\n".join(path.read_text() for folder in ("api", "tasks", "jobs") for path in (ROOT / folder).glob("*.py"))


def _page(name: str) -> str:
    return (ROOT / "docs" / name).read_text()


def _cells(page: str, column: int = 0) -> list[str]:
    """The words in backticks of one column of every table of a page."""
    rows = [line.split("|")[1:-1] for line in page.splitlines() if line.startswith("|")]
    return [word for row in rows if len(row) > column for word in re.findall(r"`([^`]+)`", row[column])]


def test_every_setting_is_documented_with_its_default() -> None:
    rows = dict(re.findall(r"^\| `PENSTOCK_(\w+)` \| ([^|]+) \|", _page("settings.md"), flags=re.MULTILINE))
    assert set(rows) == {name.upper() for name in Settings.model_fields}
    for name, field in Settings.model_fields.items():
        if isinstance(field.default, bool | int | float):
            default = field.default if isinstance(field.default, int) else f"{field.default:g}"
            assert rows[name.upper()] == str(default).lower(), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_names_only_settings_files_and_links_that_exist(page: Path) -> None:
    text = page.read_text()
    settings = {name.upper() for name in Settings.model_fields}
    assert set(re.findall(r"PENSTOCK_([A-Z_]+)", text)) <= settings | {""}
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (page.parent / target).exists(), target
    for path in re.findall(
        r"`((?:api|tasks|jobs|preprocess|inference|postprocess|penstock|models|benchmarks|tests|docs)/[\w./-]+)`",
        text,
    ):
        assert (ROOT / path).exists(), path


def test_every_key_of_model_toml_is_documented_with_its_default() -> None:
    documented = set(_cells(_page("models.md")))
    for section in msgspec.structs.fields(ModelConfig):
        default = section.default
        names = (
            [field.name for field in msgspec.structs.fields(default)] if isinstance(default, msgspec.Struct) else []
        )
        keys = {f"{section.name}.{name}" for name in names} or {section.name}
        assert keys <= documented, section.name


@pytest.mark.parametrize("form", [ImageOptions, TextOptions, Part, PythonOptions, DetectionOptions, EmbeddingOptions])
def test_every_option_of_a_kind_is_documented(form: type[msgspec.Struct]) -> None:
    assert {field.name for field in msgspec.structs.fields(form)} <= set(_cells(_page("models.md")))


def test_the_table_of_errors_lists_every_class() -> None:
    assert set(known()) <= set(_cells(_page("http.md"), 1)) | set(_cells(_page("http.md"), 0))


def test_the_table_of_job_errors_tells_the_policy_of_each_class() -> None:
    rows = re.findall(r"^\| `([\w-]+)` \| (yes|no) \|", _page("http.md"), flags=re.MULTILINE)
    assert rows
    for code, again in rows:
        assert known()[code].retryable == (again == "yes"), code


def test_the_states_of_a_poll_are_the_states_of_the_table() -> None:
    words = set(re.findall(r"`(\w+)`", _page("http.md").split("## Poll")[1].split("`Prefer")[0]))
    assert {state.value for state in State} <= words


def test_every_key_that_a_script_touches_is_listed() -> None:
    listed = {re.split(r"[:{]", cell)[0] for cell in _cells(_page("store.md"))}
    used = set(re.findall(r"P \.\. '([a-z-]+):?'", SCRIPTS))
    used |= set(re.findall(r'f"\{[\w.]+\}:?([a-z-]+):?(?:\{[^}]*\})*"', SOURCES)) & {
        *("models", "active", "key-ring", "api-keys", "schema", "intermediate", "workers")
    }
    assert used - {"ended", "nothing"} <= listed  # a channel, and a key that never is


def test_the_example_model_files_are_what_the_documentation_says() -> None:
    for file in (ROOT / "models").glob("*/model.toml"):
        msgspec.convert(tomllib.loads(file.read_text()), ModelConfig)
