"""`python -m tests.supply`: licences, known vulnerabilities and bill of materials of .venv, into build/supply.

Exits with 0 if all is well; 1 if a licence is not allowed or a distribution has a known vulnerability; 3 if
vulnerabilities are unknown, since the service did not answer, or did not know the distributions that it was asked for.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.supply.licences import installed, needless, refused, rules
from tests.supply.lock import ROOT

FAILED, UNKNOWN = 1, 3
_FOLDER = ROOT / "build" / "supply"
_BIN = Path(sys.executable).parent
_AUDIT_SECONDS = 600


def main() -> int:
    """Check everything, also after something has failed, and return the exit code."""
    _FOLDER.mkdir(parents=True, exist_ok=True)
    codes = [_licences(), _bill(), _vulnerabilities()]
    return FAILED if FAILED in codes else max(codes)


def _licences() -> int:
    listed = rules()
    found = installed(listed)
    wrong = [reason for each in found if (reason := refused(each, listed))]
    wrong += [f"{name}: its reason in licences.toml is not needed" for name in needless(found, listed)]
    (_FOLDER / "licences.json").write_text(json.dumps([asdict(each) for each in found], indent=2) + "\n")
    runtime = sum(each.runtime for each in found)
    print(*wrong, sep="\n", end="\n" if wrong else "")
    print(f"licences: {len(found)} distributions, {runtime} of them at run time, {len(wrong)} refused")
    return FAILED if wrong else 0


def _bill() -> int:
    file = _FOLDER / "sbom.json"
    command: list[str | Path] = [_BIN / "cyclonedx-py", "environment", "--output-reproducible"]
    command += ["--pyproject", ROOT / "pyproject.toml"]
    status = subprocess.run([*command, "--output-file", file, sys.prefix], check=False).returncode
    if status:
        print("bill of materials: cyclonedx-py failed")
        return FAILED
    print(f"bill of materials: {len(json.loads(file.read_text())['components'])} components")
    return 0


def _vulnerabilities() -> int:
    file = _FOLDER / "vulnerabilities.json"
    file.unlink(missing_ok=True)
    command: list[str | Path] = [_BIN / "pip-audit", "--local", "--skip-editable", "--progress-spinner", "off"]
    command += ["--format", "json"]
    try:
        done = subprocess.run(
            [*command, "--output", file], check=False, capture_output=True, text=True, timeout=_AUDIT_SECONDS
        )
        said = next(reversed(done.stderr.strip().splitlines()), "")[:200]
    except subprocess.TimeoutExpired:
        said = f"no answer within {_AUDIT_SECONDS} s"
    code, lines = judged(json.loads(file.read_text()) if file.exists() else None, said)
    print(*lines, sep="\n")
    return code


def judged(report: dict[str, Any] | None, said: str) -> tuple[int, list[str]]:
    """Return the exit code for a report of pip-audit, and what to print; None if there is no report."""
    if report is None:
        return UNKNOWN, [f"VULNERABILITIES UNKNOWN (exit code {UNKNOWN}): the service could not be asked: {said}"]
    asked = [each for each in report["dependencies"] if each["name"] != "orcheo-dispatch"]
    unknown = [each for each in asked if "skip_reason" in each]
    lines = [
        f"{each['name']} {each['version']}: {fault['id']}, fixed in {', '.join(fault['fix_versions']) or 'no release'}"
        for each in asked
        for fault in each.get("vulns", [])
    ]
    if lines:
        return FAILED, [*lines, f"vulnerabilities: {len(lines)} in {len(asked)} distributions"]
    if unknown or not asked:
        # pip-audit calls this "No known vulnerabilities found".
        lines = [
            f"VULNERABILITIES UNKNOWN (exit code {UNKNOWN}): the service does not know {len(unknown)} of {len(asked)}"
        ]
        return UNKNOWN, [f"{lines[0]} distributions, such as {unknown[0]['name'] if unknown else 'any'}"]
    return 0, [f"vulnerabilities: none known in {len(asked)} distributions"]


if __name__ == "__main__":
    sys.exit(main())
