"""Environment variables become settings, or one text with every problem."""

from pathlib import Path

import pytest
from pydantic_settings import SettingsConfigDict

from services.common.errors import SettingsError
from services.common.settings import Port, ServiceSettings, home_folder, load_settings


class Probe(ServiceSettings):
    """Settings of a service that does not exist."""

    model_config = SettingsConfigDict(env_prefix="PROBE_")

    port: Port = 1
    capture: bool = False
    folder: Path = Path("here")


def test_variables_become_typed_values(monkeypatch):
    for name, value in {"PORT": "8", "FOLDER": "/there", "STOP_GRACE_SECONDS": "1.5", "LOG_LEVEL": "DEBUG"}.items():
        monkeypatch.setenv(f"PROBE_{name}", value)
    settings = load_settings(Probe)

    assert (settings.port, settings.folder, settings.stop_grace_seconds) == (8, Path("/there"), 1.5)
    assert (settings.log_level, settings.host) == ("DEBUG", "127.0.0.1")


@pytest.mark.parametrize(
    ("word", "value"), [("true", True), ("1", True), ("on", True), ("false", False), ("0", False), ("off", False)]
)
def test_booleans_are_words(monkeypatch, word, value):
    monkeypatch.setenv("PROBE_CAPTURE", word)

    assert load_settings(Probe).capture is value


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("PROBE_PROT", "8", "PROBE_PROT is not a setting; did you mean PROBE_PORT?"),
        ("PROBE_XYZ", "8", "PROBE_XYZ is not a setting"),
        ("PROBE_PORT", "65536", "PROBE_PORT='65536': Input should be less than or equal to 65535"),
        ("PROBE_CAPTURE", "perhaps", "PROBE_CAPTURE='perhaps': Input should be a valid boolean"),
        ("PROBE_LOG_LEVEL", "LOUD", "PROBE_LOG_LEVEL='LOUD': Input should be 'DEBUG', 'INFO', 'WARNING' or 'ERROR'"),
        ("PROBE_MAX_MESSAGE_BYTES", "0", "PROBE_MAX_MESSAGE_BYTES='0': Input should be greater than or equal to 1"),
        ("PROBE_DRAIN_SECONDS", "nan", "PROBE_DRAIN_SECONDS='nan': Input should be"),
        ("PROBE_STOP_GRACE_SECONDS", "inf", "PROBE_STOP_GRACE_SECONDS='inf': Input should be a finite number"),
    ],
)
def test_wrong_setting_is_refused_by_its_full_name(monkeypatch, name, value, words):
    monkeypatch.setenv(name, value)

    with pytest.raises(SettingsError) as caught:
        load_settings(Probe)

    assert str(caught.value).startswith(words)


def test_all_problems_are_reported_at_once(monkeypatch):
    for name in ("PROBE_PORT", "PROBE_CAPTURE", "PROBE_TYPO"):
        monkeypatch.setenv(name, "x")

    with pytest.raises(SettingsError) as caught:
        load_settings(Probe)

    assert {line.partition("=")[0].split()[0] for line in str(caught.value).splitlines()} == {
        "PROBE_PORT",
        "PROBE_CAPTURE",
        "PROBE_TYPO",
    }


def test_variables_of_other_services_are_left_alone(monkeypatch):
    monkeypatch.setenv("PROBATION_PORT", "x")

    assert load_settings(Probe).port == 1


@pytest.mark.parametrize(
    ("environ", "folder"),
    [
        ({}, Path.home() / ".aimass"),
        ({"AIMASS_HOME": "/srv/models"}, Path("/srv/models")),
        ({"AIMASS_HOME": "~/suite"}, Path.home() / "suite"),
        ({"AIMASS_HOME": "here"}, Path.cwd() / "here"),
    ],
)
def test_home_folder_is_absolute(environ, folder):
    assert home_folder(environ) == folder
