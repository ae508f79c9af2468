from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from cluster.settings import Settings, known_keys, load
from planner.errors import BadCard


def _file(folder: Path, text: str) -> Path:
    path = folder / "fenix.yaml"
    path.write_text(text)
    return path


def _message(file: Path | None = None, environment: dict[str, str] | None = None, **overrides: object) -> str:
    with pytest.raises(BadCard) as caught:
        load(file, environment or {}, overrides)
    return caught.value.text()


def test_defaults_are_one_machine_on_loopback() -> None:
    settings = load(environment={})
    assert settings.host == settings.ray.node_ip == settings.mlflow.host == "127.0.0.1"
    assert settings.ray.is_loopback
    assert settings.mlflow.is_ours
    assert settings.database_url == f"sqlite:///{settings.state_dir}/fenix.db"


def test_each_source_beats_the_one_before(tmp_path: Path) -> None:
    file = _file(tmp_path, "http_port: 81\ngrpc_port: 82\nray:\n  port: 83\n")
    environment = {"FENIX_GRPC_PORT": "92", "FENIX_RAY__PORT": "93"}
    settings = load(file, environment, {"ray.port": "103"})
    assert (settings.http_port, settings.grpc_port, settings.ray.port) == (81, 92, 103)


def test_the_environment_can_name_the_file(tmp_path: Path) -> None:
    assert load(environment={"FENIX_SETTINGS": str(_file(tmp_path, "http_port: 81"))}).http_port == 81


def test_other_variables_are_nobodys_business() -> None:
    assert load(environment={"RAY_ADDRESS": "auto", "HTTP_PORT": "1", "fenix_http_port": "2"}) == load(environment={})


def test_settings_survive_their_plain_form(tmp_path: Path) -> None:
    settings = load(_file(tmp_path, "mlflow: {port: 5050}\nimport_paths: [~/code]\n"), {})
    assert Settings.model_validate(settings.model_dump(mode="json")) == settings
    assert settings.mlflow.is_ours
    assert settings.import_paths == (Path("~/code").expanduser(),)


def test_another_tracking_server_is_not_started() -> None:
    settings = load(environment={}, overrides={"mlflow.tracking_uri": "https://mlflow.example.org"})
    assert not settings.mlflow.is_ours
    assert "mlflow.port" not in [key for key, _, _ in settings.ports()]


def test_a_wrong_key_names_the_file_the_line_and_the_nearest_key(tmp_path: Path) -> None:
    file = _file(tmp_path, "host: 127.0.0.1\nray:\n  dashbord: true\n")
    message = _message(file)
    assert f"{file}, line 3" in message
    assert "'ray.dashbord'" in message
    assert "Nearest: ray.dashboard" in message


def test_a_key_without_its_section_names_the_whole_key() -> None:
    assert "gateway.max_rows" in _message(environment={"FENIX_MAX_ROWS": "5"})


@pytest.mark.parametrize(
    ("text", "line", "word"),
    [
        ("http_port: many\n", 1, "integer"),
        ("\nhttp_port: 70000\n", 2, "65535"),
        ("http_port: 81\nhttp_port: 82\n", 2, "twice"),
        ("ray: 5\n", 1, "section"),
        ("- 8000\n", 1, "key: value"),
        ("log_level: loud\n", 1, "'warning'"),
        ("ray:\n  num_cpus: 1.5\n", 2, "integer"),
        ("ray:\n  node_ip: here\n", 2, "IPv4"),
        ("host: [\n", 2, "not YAML"),
    ],
)
def test_a_wrong_value_names_its_line(tmp_path: Path, text: str, line: int, word: str) -> None:
    message = _message(_file(tmp_path, text))
    assert f"fenix.yaml, line {line}:" in message
    assert word in message


def test_a_wrong_variable_or_option_is_named() -> None:
    assert "environment, FENIX_HTTP_PORT" in _message(environment={"FENIX_HTTP_PORT": "x"})
    with pytest.raises(BadCard, match=r"option ray\.port"):
        load(environment={}, overrides={"ray.port": 0})


def test_two_servers_cannot_share_a_port() -> None:
    message = _message(http_port=8001)
    assert "http_port" in message
    assert "grpc_port" in message


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    assert "cannot be read" in _message(tmp_path / "none.yaml")


def test_settings_cannot_change() -> None:
    with pytest.raises(ValidationError):
        load(environment={}).http_port = 1  # type: ignore[misc]


def test_every_setting_is_described() -> None:
    assert all(known_keys().values())


CONFIGS = Path(__file__).parents[2] / "configs"


def test_the_local_configuration_is_every_default() -> None:
    text = (CONFIGS / "local.yaml").read_text()
    assert load(CONFIGS / "local.yaml", {}) == load(environment={})
    assert [key for key in known_keys() if f"{key.rpartition('.')[2]}:" not in text] == []


def test_the_cluster_configuration_opens_the_gateway_alone_and_starts_no_mlflow() -> None:
    settings = load(CONFIGS / "cluster.yaml", {})
    assert not settings.mlflow.is_ours
    assert (settings.host, settings.ray.is_loopback) == ("0.0.0.0", True)
