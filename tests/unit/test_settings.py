"""Settings come from the environment, are checked at once, and cannot change."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from jobs.errors import SetupError
from jobs.settings import read_settings


def test_the_store_is_embedded_unless_one_is_named() -> None:
    settings = read_settings(data=Path("/var/penstock"))

    assert settings.store == "redis+socket:///var/penstock/redis.sock"


def test_the_broker_is_the_store_unless_one_is_named() -> None:
    assert read_settings(store_url="redis://a/1").broker == "redis://a/1"
    assert read_settings(store_url="redis://a/1", broker_url="amqp://b//").broker == "amqp://b//"


def test_values_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_PORT", "9000")

    assert read_settings().port == 9000


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PENSTOCK_PORT", "70000"),
        ("PENSTOCK_PORT", "http"),
        ("PENSTOCK_STORE_URL", "amqp://rabbit//"),
        ("PENSTOCK_BROKER_URL", "sqs://queue"),
        ("PENSTOCK_NAMESPACE", "a b"),
        ("PENSTOCK_LOG_LEVEL", "loud"),
        ("PENSTOCK_RETENTION_S", "0"),
    ],
)
def test_a_value_that_is_not_valid_is_one_line_that_names_the_variable(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)

    with pytest.raises(SetupError, match=rf"^{name}: ") as refused:
        read_settings()

    assert "\n" not in str(refused.value)


def test_a_password_in_a_url_is_not_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_STORE_URL", "redis://:hunter2@host/0")

    assert "hunter2" not in repr(read_settings())


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        read_settings().port = 1
