"""Faults: what is killed here is a real process, and each system is its test's own."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from tests.system import attach_logs


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    attach_logs(item, report)
    return report
