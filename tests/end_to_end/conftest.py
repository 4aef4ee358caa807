"""The systems that the end-to-end suite runs on: the same tests on each."""

from __future__ import annotations

from collections.abc import Generator, Iterator

import pytest

from tests.system import KINDS, System, attach_logs


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    attach_logs(item, report)
    return report


@pytest.fixture(scope="session", params=KINDS)
def shared_system(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    folder = tmp_path_factory.mktemp(request.param)
    with System(request.param, folder, workers=2, PENSTOCK_BODY_BYTES_MAX=str(3 * 1024 * 1024)) as system:
        yield system


@pytest.fixture
def system(shared_system: System) -> System:
    """A whole system; a test may break it."""
    return shared_system.mend()
