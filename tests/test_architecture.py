"""What README.md promises about the tree and the settings, and who may import whom."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.settings import GatewaySettings
from services.common.settings import ServiceSettings
from services.inference.settings import InferenceSettings
from services.preprocess.settings import PreprocessSettings
from services.trainer.settings import TrainerSettings

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
SERVICES = (GatewaySettings, PreprocessSettings, InferenceSettings, TrainerSettings)


def setting_names(settings):
    """Return the variables of a service's own settings."""
    prefix = settings.model_config["env_prefix"]
    return {f"{prefix}{name}".upper() for name in settings.model_fields if name not in ServiceSettings.model_fields}


def settings_table():
    """Return the variables that README's tables name in their first column."""
    return set(re.findall(r"^\| `([^`]+)` \|", README.split("## Settings")[1], re.MULTILINE))


def test_readme_lists_every_setting_and_no_other():
    common = {f"<SERVICE>_{name.upper()}" for name in ServiceSettings.model_fields}

    assert settings_table() == common.union(*(setting_names(settings) for settings in SERVICES))


@pytest.mark.parametrize("settings", SERVICES, ids=lambda settings: settings.__name__)
def test_every_setting_is_described_where_it_is_defined(settings):
    assert [name for name, field in settings.model_fields.items() if not field.description] == []


def tracked_files():
    listed = subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True)
    return [Path(line) for line in listed.splitlines() if (ROOT / line).exists()]


def tree():
    """Return README's drawing of the tree."""
    return README.split("## The tree")[1].split("\n## ")[0]


def test_readme_names_every_folder_at_the_top():
    folders = {path.parts[0] for path in tracked_files() if len(path.parts) > 1 and not path.parts[0].startswith(".")}

    assert {folder for folder in folders if not re.search(rf"^ +{folder}/", tree(), re.MULTILINE)} == set()


def test_readme_names_every_module_of_the_services_and_of_the_gateway():
    ends = {"__init__.py", "__main__.py", "service.py", "settings.py"}  # one line in README for all services
    modules = {
        path.name
        for path in tracked_files()
        if path.parts[0] in ("services", "gateway") and path.suffix == ".py" and path.name not in ends
    }

    assert {name for name in modules if not re.search(rf"(?<![\w-]){re.escape(name)}", tree())} == set()


def test_readme_names_no_module_that_is_gone():
    names = {path.name for path in tracked_files()}

    assert {name for name in re.findall(r"\b\w+\.py\b", tree()) if name not in names} == set()


def test_no_service_sees_another():
    checked = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"], cwd=ROOT, capture_output=True, text=True
    )

    assert checked.returncode == 0, checked.stdout
