"""docker-compose.yml and deploy/Dockerfile say what they should; Docker itself is not needed to see it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.settings import Settings

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text()
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
ONE_SHOT = {"keys"}
LONG_RUNNING = sorted(set(SERVICES) - ONE_SHOT)
STAGES = set(re.findall(r"^FROM \S+ AS (\S+)$", DOCKERFILE, re.MULTILINE))


def setting_names() -> set[str]:
    return {f"PENSTOCK_{name.upper()}" for name in Settings.model_fields}


def test_every_part_of_the_pipeline_is_a_service() -> None:
    assert set(SERVICES) == {"rabbitmq", "redis", "keys", "api", "worker", "worker-gpu", "flower"}


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_a_service_has_an_image_or_is_built(name: str) -> None:
    service = SERVICES[name]

    assert "image" in service
    if "build" in service:
        assert (ROOT / service["build"]["dockerfile"]).is_file()
        assert service["build"]["target"] in STAGES


@pytest.mark.parametrize("name", LONG_RUNNING)
def test_a_long_running_service_restarts_and_tells_its_health(name: str) -> None:
    assert SERVICES[name]["restart"] == "unless-stopped"
    assert SERVICES[name]["healthcheck"]["test"][0] == "CMD"


def test_a_one_shot_service_ends() -> None:
    assert SERVICES["keys"]["restart"] == "no"
    assert SERVICES["keys"]["command"][-1] == "--if-missing"


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_a_named_volume_is_declared(name: str) -> None:
    named = [volume.split(":")[0] for volume in SERVICES[name].get("volumes", [])]

    assert {volume for volume in named if not volume.startswith(".")} <= set(COMPOSE["volumes"])


def test_the_servers_keep_their_data_in_volumes() -> None:
    assert SERVICES["redis"]["volumes"] == ["redis:/data"]
    assert SERVICES["rabbitmq"]["volumes"] == ["rabbitmq:/var/lib/rabbitmq"]


def test_redis_keeps_a_file_and_evicts_nothing() -> None:
    command = " ".join(SERVICES["redis"]["command"])

    assert "--appendonly yes" in command
    assert "--maxmemory-policy noeviction" in command


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_a_setting_in_the_environment_exists(name: str) -> None:
    given = {word for word in SERVICES[name].get("environment", {}) if word.startswith("PENSTOCK_")}

    assert given <= setting_names()


def test_a_setting_in_the_dockerfile_exists() -> None:
    assert set(re.findall(r"PENSTOCK_[A-Z_]+", DOCKERFILE)) <= setting_names()


@pytest.mark.parametrize("name", ["api", "worker", "worker-gpu", "flower"])
def test_a_role_waits_for_healthy_servers(name: str) -> None:
    waits = SERVICES[name]["depends_on"]

    assert waits["redis"] == waits["rabbitmq"] == {"condition": "service_healthy"}


def test_the_gateway_waits_for_its_key() -> None:
    assert SERVICES["api"]["environment"]["PENSTOCK_HOST"] == "0.0.0.0"  # noqa: S104 -- what is checked
    assert SERVICES["api"]["depends_on"]["keys"] == {"condition": "service_completed_successfully"}


def test_ports_are_open_to_this_machine_only() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]

    assert len(ports) == 2
    assert all(port.startswith(("127.0.0.1:", "${GATEWAY_BIND:-127.0.0.1}:")) for port in ports)


def test_the_gpu_worker_asks_for_a_device_and_is_opt_in() -> None:
    worker = SERVICES["worker-gpu"]

    assert worker["profiles"] == ["gpu"]
    assert worker["deploy"]["resources"]["reservations"]["devices"][0]["capabilities"] == ["gpu"]


@pytest.mark.parametrize("target", ["api", "worker-cpu", "worker-gpu"])
def test_an_image_has_a_health_check_and_no_root(target: str) -> None:
    assert "HEALTHCHECK" in stage(target)
    assert "USER penstock" in stage(target) + stage("base")


def test_dependencies_are_installed_by_hash_only() -> None:
    installs = re.findall(r"pip install (?!--no-deps)(.*)", DOCKERFILE)

    assert installs
    assert all(line.startswith("--require-hashes -r requirements/") for line in installs)


def test_what_the_dockerfile_copies_exists() -> None:
    sources = [
        word for line in re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.MULTILINE) for word in line.split()
    ]

    assert [source for source in sources if not (ROOT / source).exists()] == []


def stage(name: str) -> str:
    """Everything in the Dockerfile from the stage's FROM to the next."""
    found = re.search(rf"^FROM \S+ AS {name}$(.*?)(?=^FROM |\Z)", DOCKERFILE, re.MULTILINE | re.DOTALL)
    assert found, name
    return found[1]
