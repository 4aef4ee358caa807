"""Faults: what is killed here is a real process. Cases of one broker share a system, which is mended between them.

``FAULTS=resume`` writes a result file for each case and skips those that this very code has passed; ``FAULTS=again``
runs them all. Without it nothing is written.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests.faults import results
from tests.faults.case import Case
from tests.faults.fault_system import BROKERS, FaultSystem
from tests.faults.results import Claim
from tests.system import attach_logs

MODE = os.environ.get("FAULTS", "")
_PASSED = pytest.StashKey[bool]()


class Place:
    """Where the system of one broker lives: one that cannot be mended is replaced."""

    def __init__(self, kind: str, factory: pytest.TempPathFactory, *, proxied: bool = False) -> None:
        self._kind, self._factory, self._proxied = kind, factory, proxied
        self._system: FaultSystem | None = None

    def system(self) -> FaultSystem:
        """A whole system."""
        if self._system is not None:
            with suppress(AssertionError):
                return self._system.mend()
            self.close()
        self._system = FaultSystem(self._kind, self._folder())
        if self._proxied:
            self._system.proxied()
        try:
            return self._system.start()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the system, where there is one."""
        system, self._system = self._system, None
        if system is not None:
            system.close()

    def _folder(self) -> Path:
        return self._factory.mktemp(self._kind)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    attach_logs(item, report)
    if call.when == "call":
        item.stash[_PASSED] = report.passed
    return report


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if MODE != "resume":
        return
    for item in items:
        claim = _claim(item)
        broker = _broker(item)
        if claim is not None and broker and results.is_current(claim, broker):
            item.add_marker(pytest.mark.skip(reason="this very code has passed it"))


@pytest.fixture(scope="session", params=BROKERS)
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    found = Place(request.param, tmp_path_factory)
    yield found
    found.close()


@pytest.fixture
def system(place: Place) -> FaultSystem:
    """A whole system with two tenants; a case may break it."""
    return place.system()


@pytest.fixture
def open_case(request: pytest.FixtureRequest) -> Iterator[Callable[[FaultSystem], Case]]:
    """Opens the case that the test's `claim` names, on whatever system; its result is written at the end."""
    claim = _claim(request.node)
    assert claim is not None, "a case has a claim"
    opened: list[Case] = []
    with ExitStack() as stack:

        def open_on(system: FaultSystem) -> Case:
            opened.append(stack.enter_context(Case(claim, system)))
            return opened[-1]

        yield open_on
    for case in opened[-1:] if MODE else []:
        case.write(passed=request.node.stash.get(_PASSED, False))


@pytest.fixture
def case(open_case: Callable[[FaultSystem], Case], system: FaultSystem) -> Case:
    """The test's case on the shared system of its broker."""
    return open_case(system)


def _claim(item: pytest.Item) -> Claim | None:
    marker = item.get_closest_marker("claim")
    return marker.args[0] if marker else None


def _broker(item: pytest.Item) -> str:
    """The broker that a case runs on: its parameter ``place`` or ``broker``, or ``redis`` where it has none."""
    spec = getattr(item, "callspec", None)
    parameters = spec.params if spec else {}
    return str(parameters.get("place", parameters.get("broker", "redis")))
