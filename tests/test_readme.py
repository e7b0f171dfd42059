"""What the documents tell people to type exists: make targets, files, links, commands and options; Python runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    page
    for page in ROOT.rglob("*.md")
    if not any(part.startswith(".") or part.endswith("-output") for part in page.relative_to(ROOT).parts)
)
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)#]+)(?:#[^)]*)?\)")


def blocks(page: Path, *languages: str) -> list[str]:
    return [text for language, text in BLOCK.findall(page.read_text()) if language in languages]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text()):
        if "://" not in target and not target.startswith("mailto:"):
            assert (page.parent / target).exists(), f"{page.name} points to {target}, which is not there"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_make_targets_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = re.findall(r"^make ([a-z-]+)", "\n".join(blocks(page, "sh", "bash", "console")), re.MULTILINE)
    assert set(named) <= targets


def test_cutaway_commands_parse() -> None:
    """Every `cutaway …` line of the README names a subcommand and options that its --help knows."""
    lines = re.findall(r"^cutaway (.+)$", "\n".join(blocks(ROOT / "README.md", "sh")), re.MULTILINE)
    assert lines, "the README shows no cutaway command"
    for line in lines:
        subcommand = line.split()[0]
        shown = subprocess.run(
            [sys.executable, "-m", "cutaway", subcommand, "--help"], capture_output=True, text=True, check=True
        ).stdout
        for option in re.findall(r"(--[a-z-]+)", line.split("#")[0]):
            assert option in shown, f"`cutaway {subcommand}` has no {option}"


@pytest.mark.triton
def test_python_of_the_readme_runs(server, tmp_path, monkeypatch) -> None:
    """The README's Python, as it stands but for the address, against a running server."""
    code = "\n".join(blocks(ROOT / "README.md", "python"))
    assert "grpc://localhost:8001" in code
    code = code.replace("grpc://localhost:8001", server.grpc_url)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photo.jpg").write_bytes((ROOT / "samples" / "astronaut.jpg").read_bytes())
    exec(compile(code, "README.md", "exec"), {})
    assert (tmp_path / "cutout.png").read_bytes().startswith(b"\x89PNG")
