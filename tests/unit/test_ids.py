"""Task ids: unique, ordered by time, bound to a tenant, and refused without a look into the store."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.errors import NotFoundError
from jobs.ids import ID_CHARS, KeyRing, TaskIds, issued_at_ms, past_retention

NOW_MS = 1_795_000_000_123
OLD, NEW = KeyRing({1: b"a" * 32}), KeyRing({1: b"a" * 32, 2: b"b" * 32})
IDS = TaskIds(OLD, 3600)
GOOD = IDS.issue(NOW_MS, b"acme")
HOUR_MS = 3_600_000


def _refused(task_id: str, ids: TaskIds = IDS, tenant: bytes = b"acme") -> None:
    with pytest.raises(NotFoundError):
        ids.verify(task_id, tenant)


def test_ids_are_unique() -> None:
    assert len({IDS.issue(NOW_MS, b"acme") for _ in range(10_000)}) == 10_000


def test_two_processes_issue_different_ids_at_the_same_instant() -> None:
    assert TaskIds(OLD, 3600).issue(NOW_MS, b"acme") != TaskIds(OLD, 3600).issue(NOW_MS, b"acme")


def test_ids_are_ordered_by_time() -> None:
    ids = TaskIds(OLD, 3600)
    issued = [ids.issue(NOW_MS + ms, b"acme") for ms in (0, 1, 2, 255, 256, 65_536, 10**9)]

    assert issued == sorted(issued)


def test_ids_of_one_millisecond_keep_their_order() -> None:
    ids = TaskIds(OLD, 3600)

    assert all(first < second for first, second in pairwise(ids.issue(NOW_MS, b"acme") for _ in range(10_000)))


def test_an_id_tells_its_instant() -> None:
    assert issued_at_ms(GOOD) == NOW_MS


def test_an_id_is_lower_case_hexadecimal_of_one_length() -> None:
    assert len(GOOD) == ID_CHARS
    assert set(GOOD) <= set("0123456789abcdef")


def test_an_id_that_was_issued_is_verified() -> None:
    IDS.verify(GOOD, b"acme")


def test_another_process_with_the_ring_verifies_it_too() -> None:
    TaskIds(OLD, 60).verify(GOOD, b"acme")


@pytest.mark.parametrize("tenant", [b"other", b"", b"acme ", b"Acme"])
def test_another_tenant_s_id_is_refused(tenant: bytes) -> None:
    _refused(GOOD, tenant=tenant)


@pytest.mark.parametrize("at", range(ID_CHARS))
def test_an_id_with_one_other_digit_is_refused(at: int) -> None:
    _refused(GOOD[:at] + ("0" if GOOD[at] != "0" else "1") + GOOD[at + 1 :])


@pytest.mark.parametrize(
    "task_id",
    [
        "",
        " ",
        "0",
        "0" * ID_CHARS,
        "f" * ID_CHARS,
        GOOD.upper(),
        GOOD[:-1].upper() + GOOD[-1],
        GOOD[:-1],
        GOOD + "0",
        GOOD * 2,
        GOOD * 10_000,
        " " + GOOD[1:],
        GOOD[:-1] + " ",
        f" {GOOD} ",
        GOOD[:10] + " " + GOOD[10:-1],
        GOOD[:10] + "  " + GOOD[12:],
        GOOD + "%00",
        GOOD[:-3] + "%00",
        GOOD[:-1] + "\0",
        "*" * ID_CHARS,
        "?" * ID_CHARS,
        "[0-9a-f]" * 7,
        GOOD[:-1] + "*",
        GOOD[:-2] + "\r\n",
        GOOD + "\r\n",
        GOOD[:-1] + "\n",
        "../" + GOOD[3:],
        "0x" + GOOD[2:],
        "\N{FULLWIDTH DIGIT ONE}" * ID_CHARS,
        "\N{GRINNING FACE}" * ID_CHARS,
        "\ud800" * ID_CHARS,
        "g" * ID_CHARS,
    ],
    ids=lambda task_id: ascii(task_id[:24]),
)
def test_what_was_never_issued_is_refused(task_id: str) -> None:
    _refused(task_id)


@given(st.text(alphabet="0123456789abcdef", min_size=ID_CHARS, max_size=ID_CHARS))
def test_a_guessed_id_is_refused(task_id: str) -> None:
    _refused(task_id)


@given(st.text(max_size=80))
def test_any_text_is_refused_and_nothing_else_is_raised(task_id: str) -> None:
    _refused(task_id)


def test_an_id_signed_with_another_key_is_refused() -> None:
    _refused(TaskIds(KeyRing({1: b"x" * 32}), 3600).issue(NOW_MS, b"acme"))


def test_an_id_of_a_key_that_is_not_in_the_ring_is_refused() -> None:
    _refused(TaskIds(NEW, 3600).issue(NOW_MS, b"acme"), ids=IDS)


def test_an_old_key_of_the_ring_still_verifies() -> None:
    TaskIds(NEW, 3600).verify(GOOD, b"acme")


def test_the_newest_key_signs() -> None:
    issued = TaskIds(NEW, 3600).issue(NOW_MS, b"acme")

    TaskIds(KeyRing({2: b"b" * 32}), 3600).verify(issued, b"acme")


@pytest.mark.parametrize(
    ("retention_s", "kept_s"),
    [
        (1, 1),
        (90, 90),
        (3_601, 3_601),
        (32_767, 32_767),
        (32_768, 9 * 3_600),
        (86_400, 86_400),
        (32_767 * 3_600,) * 2,
    ],
)
def test_a_missing_record_is_our_fault_until_the_retention_has_passed(retention_s: int, kept_s: int) -> None:
    """In seconds up to nine hours, beyond in whole hours, rounded down."""
    issued = TaskIds(OLD, retention_s).issue(NOW_MS, b"acme")

    assert not past_retention(issued, NOW_MS)
    assert not past_retention(issued, NOW_MS + kept_s * 1000 - 1)
    assert past_retention(issued, NOW_MS + kept_s * 1000)


def test_an_id_from_the_future_is_young() -> None:
    assert not past_retention(GOOD, NOW_MS - 10 * HOUR_MS)
