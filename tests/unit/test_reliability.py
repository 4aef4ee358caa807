"""The table of docs/reliability.md is what the committed results say."""

from __future__ import annotations

import re

from tests.faults import table
from tests.faults.results import FOLDER, read_all


def test_the_table_is_made_of_the_results() -> None:
    page = table.PAGE.read_text()
    assert page == table.filled(page, list(read_all()))


def test_each_result_lies_under_its_own_name() -> None:
    found = {path.stem for path in FOLDER.glob("*.json")}
    assert found == {f"{result['name']}-{result['broker']}" for result in read_all()}


def test_a_broken_promise_shows_as_failed() -> None:
    for result in read_all():
        kept = all(result[name] == 0 for name in ("lost", "wrong", "doubled", "unexpected", "faulty_answers"))
        assert kept or not result["passed"] or re.search("must lose", result["fault"])
