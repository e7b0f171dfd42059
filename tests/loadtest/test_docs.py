"""docs/load.md lists the scenarios and thresholds that there are, and its commands parse."""

from __future__ import annotations

import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from loadtest.__main__ import parser
from loadtest.running import LOCUSTFILE, ROOT
from loadtest.scenarios import SCENARIOS
from loadtest.thresholds import THRESHOLDS
from tests.loadtest.logs import needs_locust

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "load.md").read_text()
COMMANDS = re.findall(r"^python -m loadtest ([^#\n]+)", PAGE, re.MULTILINE)
COMMANDS += re.findall(r"^docker compose --profile load run --rm load (.+)$", PAGE, re.MULTILINE)
COMMANDS += re.findall(r'^make load LOAD="(.+)"$', PAGE, re.MULTILINE)


def test_scenarios() -> None:
    section = PAGE.split("## Scenarios")[1].split("##")[0]
    assert dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", section, re.MULTILINE)) == {
        scenario.name: scenario.help.replace("(--people)", "(`--people`)")
        .replace("(--factor)", "(`--factor`)")
        .replace("(--think-s)", "(`--think-s`)")
        .replace("(--requests)", "(`--requests`)")
        .replace("(subject=all)", "(`subject=all`)")
        for scenario in SCENARIOS.values()
    }


def test_thresholds() -> None:
    section = PAGE.split("For continuous integration")[1].split("##")[0]
    assert set(re.findall(r"`--([\w-]+)`", section)) == {threshold.option for threshold in THRESHOLDS}


def test_there_are_commands() -> None:
    assert len(COMMANDS) >= 6


@needs_locust
@pytest.mark.parametrize("command", COMMANDS)
def test_commands_parse(command: str) -> None:
    """What is no option of the command itself is one of Locust's, or of the locustfile."""
    _, others = parser().parse_known_args(command.split())
    options = {word.partition("=")[0] for word in others if word.startswith("-")}
    assert options <= locust_options(), options - locust_options()


@cache
def locust_options() -> set[str]:
    command = [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--help"]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    # Its help does not have those that a locustfile adds.
    added = re.findall(r'add_argument\("(--[a-z-]+)"', LOCUSTFILE.read_text())
    return {*re.findall(r"--[a-z-]+", told), *added}
