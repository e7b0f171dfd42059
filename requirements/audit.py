"""Asks an index of advisories about every lock: ``python requirements/audit.py`` (make audit).

Exit status 0: none is known; 1: some are, listed; 75: not checked, because no index of advisories answers. pip-audit
alone calls it clean, too, where an index has no advisories, as mirrors have not: so it is asked first about a release
that has some. Run by an environment with requirements/sbom.txt.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

LOCKS = Path(__file__).resolve().parent
SERVICES = ("pypi", "osv")
KNOWN_BAD = "requests==2.19.1\n"
"""Has CVE-2018-18074 and later ones."""
NOT_CHECKED = 75  # EX_TEMPFAIL
PIP_AUDIT = (sys.executable, "-m", "pip_audit")


def asked(program: tuple[str, ...], service: str, lock: Path) -> list[dict[str, Any]] | None:
    """What the service says of each package; None where it does not answer."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        options = ["--disable-pip", "--no-deps", "--progress-spinner", "off", "--timeout", "15", "--format", "json"]
        command = [*program, "--vulnerability-service", service, "--requirement", str(lock), *options]
        done = subprocess.run([*command, "--output", str(answer)], capture_output=True, text=True, check=False)
        if done.returncode not in (0, 1) or not answer.exists():
            return None
        found: list[dict[str, Any]] = json.loads(answer.read_text())["dependencies"]
        return found


def service_that_knows(program: tuple[str, ...]) -> str | None:
    """The first service that has advisories at all."""
    with tempfile.TemporaryDirectory() as folder:
        bad = Path(folder) / "bad.txt"
        bad.write_text(KNOWN_BAD)
        for service in SERVICES:
            if any(each.get("vulns") for each in asked(program, service, bad) or ()):
                return service
    return None


def main(program: tuple[str, ...] = PIP_AUDIT, locks: Path = LOCKS) -> int:
    service = service_that_knows(program)
    if service is None:
        print(f"NOT CHECKED for advisories: no index of {' and '.join(SERVICES)} answers with some.", file=sys.stderr)
        return NOT_CHECKED
    found, skipped = dict[str, list[str]](), set[str]()
    for lock in sorted(locks.glob("*.txt")):
        answer = asked(program, service, lock)
        if answer is None:
            print(f"NOT CHECKED: {service} stopped answering at {lock.name}.", file=sys.stderr)
            return NOT_CHECKED
        for each in answer:
            if "skip_reason" in each:
                skipped.add(each["name"])
            for advisory in each.get("vulns", ()):
                fixed = ", ".join(advisory["fix_versions"]) or "nothing yet"
                said = f"{each['name']} {each['version']}: {advisory['id']}, fixed in {fixed}"
                found.setdefault(said, []).append(lock.name)
    for said, names in sorted(found.items()):
        print(f"{said} ({', '.join(names)})")
    if skipped:
        print(f"not known to the index: {', '.join(sorted(skipped))}")
    print(f"{len(found)} advisories by {service}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
