"""The one system that all hostile input is sent to: a gateway, a worker and a store, with short timeouts."""

from __future__ import annotations

from collections.abc import Generator, Iterator

import pytest

from tests.hostile.block import unharmed
from tests.hostile.graphs import place_echoes
from tests.system import System, attach_logs

HEAD_TIMEOUT_S = 2
BODY_TIMEOUT_S = 2
WAIT_S_MAX = 1
CONNECTIONS_MAX = 1_500


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    attach_logs(item, report)
    return report


@pytest.fixture(scope="session")
def whole_system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    folder = tmp_path_factory.mktemp("hostile")
    place_echoes(folder / "models")
    timeouts = {
        "PENSTOCK_HEAD_TIMEOUT_S": str(HEAD_TIMEOUT_S),
        "PENSTOCK_BODY_TIMEOUT_S": str(BODY_TIMEOUT_S),
        "PENSTOCK_WAIT_S_MAX": str(WAIT_S_MAX),
        "PENSTOCK_CONNECTIONS_MAX": str(CONNECTIONS_MAX),
    }
    with System("redis", folder, workers=1, **timeouts) as system:
        yield system


@pytest.fixture(scope="module")
def system(whole_system: System) -> Iterator[System]:
    """The system; that a file of tests did it no harm is checked after its last one."""
    with unharmed(whole_system):
        yield whole_system
