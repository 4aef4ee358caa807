"""A user's own step: where its function may come from, and what its operator is told where it cannot be used."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from jobs import options, steps
from jobs.errors import InternalError, InvalidInputError, ModelError, OutOfMemoryError, SetupError
from jobs.settings import read_settings
from jobs.steps import StepOptions, load

SAYS = "def preprocess(inputs, parameters):\n    return {!r}\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A version's folder: ``<models>/toy/1``."""
    made = tmp_path / "models" / "toy" / "1"
    made.mkdir(parents=True)
    return made


def loaded(folder: Path, **given: Any) -> Any:
    return load("preprocess", options.read(given, StepOptions), folder)


def said(folder: Path, **given: Any) -> Any:
    """What the function answers."""
    return loaded(folder, **given)([], {})


def refusal(folder: Path, **given: Any) -> str:
    with pytest.raises(SetupError) as caught:
        loaded(folder, **given)
    text = str(caught.value)
    assert "\n" not in text
    assert str(folder.parents[2]) not in text
    return text


# --- Files ---


def test_the_versions_own_file_wins_over_the_models(folder: Path) -> None:
    (folder.parent / "steps.py").write_text(SAYS.format("model"))
    assert said(folder) == "model"
    (folder / "steps.py").write_text(SAYS.format("version"))
    assert said(folder) == "version"


def test_file_and_function_may_be_named(folder: Path) -> None:
    (folder / "mine.py").write_text("def clean(inputs, parameters):\n    return [inputs, parameters]\n")
    assert loaded(folder, file="mine.py", function="clean")([1], {"a": 2}) == [[1], {"a": 2}]


def test_a_file_runs_once_for_each_content(folder: Path) -> None:
    (folder / "steps.py").write_text(
        "import itertools\ncount = itertools.count()\n" + SAYS.format(1) + SAYS.format(2)
    )
    first = loaded(folder)
    assert loaded(folder) is first
    assert load("postprocess", StepOptions(function="preprocess"), folder) is first
    (folder / "steps.py").write_text(SAYS.format("new"))
    assert said(folder) == "new"


def test_equal_files_of_two_versions_share_nothing(folder: Path) -> None:
    """Each may read other files that lie beside it."""
    source = "from pathlib import Path\nHERE = Path(__file__).parent.name\n"
    source += "def preprocess(inputs, parameters):\n    return HERE\n"
    other = folder.parent / "2"
    other.mkdir()
    for each in (folder, other):
        (each / "steps.py").write_text(source)
    assert [said(folder), said(other)] == ["1", "2"]


def test_dataclasses_and_postponed_annotations_work_and_nothing_is_written(folder: Path) -> None:
    source = "from __future__ import annotations\nfrom dataclasses import dataclass\nfrom typing import ClassVar\n"
    source += "@dataclass\nclass Box:\n    n: ClassVar[int] = 1\n    width: int = 3\n"
    (folder / "steps.py").write_text(source + "def preprocess(inputs, parameters):\n    return Box().width\n")
    assert said(folder) == 3
    assert [each.name for each in folder.iterdir()] == ["steps.py"]


@pytest.mark.parametrize(
    "file", ["../steps.py", "/etc/steps.py", "sub/steps.py", "steps.txt", "..", ".steps.py", "_steps.py", "a\0.py/b"]
)
def test_a_file_is_a_plain_name(folder: Path, file: str) -> None:
    assert "is not the plain name of a Python file, such as steps.py" in refusal(folder, file=file)


def test_a_missing_file_is_named_with_where_it_should_be(folder: Path) -> None:
    (folder / "steps.py").mkdir()
    assert refusal(folder) == (
        "preprocess.options.file: steps.py is neither in the version's folder nor in the model's; "
        "put it beside model.toml"
    )


@pytest.mark.parametrize("outside", ["../../steps.py", "../../../steps.py", "../../other/steps.py"])
def test_a_link_that_leaves_the_models_folder_is_refused(folder: Path, outside: str) -> None:
    (folder / outside).resolve().parent.mkdir(exist_ok=True)
    (folder / outside).resolve().write_text(SAYS.format("outside"))
    (folder / "steps.py").symlink_to(outside)
    assert "steps.py is a link that leaves the model's folder; copy the file into it" in refusal(folder)


def test_a_link_within_the_models_folder_is_followed(folder: Path) -> None:
    (folder.parent / "shared.py").write_text(SAYS.format("shared"))
    (folder / "steps.py").symlink_to("../shared.py")
    assert said(folder) == "shared"


def test_a_file_of_megabytes_is_refused_unread(folder: Path) -> None:
    (folder / "steps.py").write_bytes(b"")
    os.truncate(folder / "steps.py", 2**40)
    assert "larger than 1048576 bytes" in refusal(folder)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (b"x = 1\nundefined\n", "steps.py, line 2: NameError;"),
        (b"x = 1\n\ndef broken(:\n", "steps.py, line 3: SyntaxError (invalid syntax);"),
        (b"import nothing_of_this_name\n", "steps.py, line 1: ModuleNotFoundError;"),
        (b"import json\n\njson.loads('secret')\n", "steps.py, line 3: JSONDecodeError;"),
        (b"import sys\nsys.exit(3)\n", "steps.py, line 2: SystemExit;"),
        (b"def f():\n    raise RuntimeError('secret')\n\nf()\n", "steps.py, line 2: RuntimeError;"),
        (b"x = '\xff'\n", "steps.py, line 1: SyntaxError"),
        (b"x = 1\n\0\n", "steps.py"),
        (b"(" * 100_000, "steps.py"),
    ],
)
def test_a_file_that_cannot_be_loaded_is_named_with_its_line(folder: Path, source: bytes, words: str) -> None:
    (folder / "steps.py").write_bytes(source)
    text = refusal(folder)
    assert text.startswith(f"preprocess.options.file: {words}")
    assert "secret" not in text
    assert text.endswith("; the worker's log says more")
    assert not [each for each in sys.modules.values() if getattr(each, "__file__", "") == str(folder / "steps.py")]


def test_a_file_that_was_mended_is_loaded(folder: Path) -> None:
    (folder / "steps.py").write_text("undefined\n")
    refusal(folder)
    (folder / "steps.py").write_text(SAYS.format("mended"))
    assert said(folder) == "mended"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("", "preprocess.options.function: steps.py has no preprocess; define it there or name another"),
        ("preprocess = 3\n", "not a plain function"),
        ("async def preprocess(inputs, parameters): ...\n", "not a plain function"),
        ("def preprocess(inputs): ...\n", "it must take two arguments"),
        ("def preprocess(a, b, c): ...\n", "it must take two arguments"),
        ("def preprocess(a, *, parameters): ...\n", "it must take two arguments"),
    ],
)
def test_what_is_no_function_of_two_arguments_is_refused(folder: Path, source: str, words: str) -> None:
    (folder / "steps.py").write_text(source)
    assert words in refusal(folder)


def test_an_operator_may_forbid_all_steps(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "steps.py").write_text("raise AssertionError('it was run')\n")
    monkeypatch.setattr(steps, "settings", lambda: read_settings(python_steps=False))
    assert "PENSTOCK_PYTHON_STEPS=true allows them" in refusal(folder)


# --- Entry points ---


@pytest.fixture
def _package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package with entry points, as pip leaves it."""
    site = tmp_path / "site"
    facts = site / "shiny-1.0.dist-info"
    facts.mkdir(parents=True)
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: shiny\nVersion: 1.0\n")
    lines = (
        "polish = shiny_step:polish",
        "torn = shiny_torn:polish",
        "gone = shiny_step:gone",
        "odd = shiny_step:odd",
    )
    (facts / "entry_points.txt").write_text("\n".join(("[penstock.steps]", *lines, "[other]", "x = shiny_step:odd")))
    (site / "shiny_step.py").write_text("odd = 3\ndef polish(inputs, parameters):\n    return 'polished'\n")
    (site / "shiny_torn.py").write_text("\n\nraise RuntimeError('secret')\n")
    monkeypatch.syspath_prepend(site)


@pytest.mark.usefixtures("_package")
@pytest.mark.parametrize("entry_point", ["polish", "shiny_step:polish"])
def test_an_entry_point_is_found_by_name_or_by_what_it_names(folder: Path, entry_point: str) -> None:
    assert said(folder, entry_point=entry_point) == "polished"


@pytest.mark.usefixtures("_package")
@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"entry_point": "os:system"}, "'os:system' is registered by no installed package; entry points of penstock"),
        ({"entry_point": "x"}, "is registered by no installed package"),
        (
            {"entry_point": "torn"},
            "shiny_torn:polish: shiny_torn.py, line 3: RuntimeError; the worker's log says more",
        ),
        ({"entry_point": "gone"}, "shiny_step:gone: "),
        ({"entry_point": "odd"}, "preprocess.options.entry_point: not a plain function"),
        ({"entry_point": "polish", "file": "steps.py"}, "leave file and function out"),
        ({"entry_point": "polish", "function": "f"}, "leave file and function out"),
    ],
)
def test_an_entry_point_that_cannot_be_used_is_refused(folder: Path, given: dict[str, str], words: str) -> None:
    text = refusal(folder, **given)
    assert words in text
    assert "secret" not in text


# --- Errors of items ---


class SpitefulError(ValueError):
    def __str__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    ("error", "kind", "detail"),
    [
        (ValueError("the year is in the future"), InvalidInputError, "the year is in the future"),
        (ValueError("two\nlines\t of   it"), InvalidInputError, "two lines of it"),
        (ValueError("x" * 5_000_000), InvalidInputError, "x" * 200),
        (ValueError("\ud800!"), InvalidInputError, "?!"),
        (ValueError(), InvalidInputError, "The step preprocess refused the input."),
        (SpitefulError("x"), InvalidInputError, "The step preprocess refused the input."),
        (KeyError("secret"), InternalError, "The step preprocess failed."),
        (ModelError("secret"), InternalError, "The step preprocess failed."),
        (MemoryError("secret"), OutOfMemoryError, "The step preprocess ran out of memory."),
    ],
)
def test_only_the_text_of_a_value_error_is_for_clients(error: Exception, kind: type, detail: str) -> None:
    outcome = steps.outcome_of(error, "preprocess", InvalidInputError)
    assert (type(outcome), outcome.detail) == (kind, detail)


def test_a_step_may_change_its_parameters_and_the_record_stays() -> None:
    given = StepOptions(parameters={"deep": [1]})
    steps.parameters_of(given)["deep"].append(2)
    assert given.parameters == {"deep": [1]}
