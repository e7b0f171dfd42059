"""Software bills of materials (CycloneDX 1.6) of what is shipped: ``python requirements/sbom.py FOLDER`` (make sbom).

One for each lock that an image or `make serve` installs, with the bundled networks and the Triton inside
nvidia-pytriton, which no lock names. Run by an environment with requirements/sbom.txt.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = {"serve": "make serve, the CPU image", "gpu": "the GPU image", "plan": "the GPU image, to build plans"}
WEIGHTS = ROOT / "export" / "weights" / "nano"
LICENCES = dict.fromkeys(("birefnet_trt.int8.onnx", "birefnet_trt.onnx", "u2netp.onnx"), "Apache-2.0")
LICENCE = "AGPL-3.0-only"
"""Of the other networks (export/weights/nano/MODEL_CARD.md)."""
BUNDLED_TRITON = {"0.7.0": "24.10"}
"""nvidia-pytriton's version → the release of the server in it, by which advisories name it."""


def components_of(lock: Path) -> dict[str, Any]:
    """The lock as CycloneDX, by cyclonedx-bom."""
    command = [sys.executable, "-m", "cyclonedx_py", "requirements", str(lock), "--pyproject", "pyproject.toml"]
    options = ["--output-reproducible", "--no-validate", "--spec-version", "1.6", "-o", "-"]
    told = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    found: dict[str, Any] = json.loads(told)
    for component in found["components"]:
        component.pop("description", None)  # the lock's line, with its hundreds of hashes once more
    return found


def networks(version: str) -> list[dict[str, Any]]:
    """The bundled networks, by their checksums."""
    pairs = [line.split() for line in (WEIGHTS / "SHA256SUMS").read_text().splitlines()]
    return [
        {
            "type": "machine-learning-model",
            "bom-ref": f"nano/{name}",
            "name": name,
            "group": "nano",
            "version": version,
            "hashes": [{"alg": "SHA-256", "content": digest}],
            "licenses": [{"license": {"id": LICENCES.get(name, LICENCE)}}],
        }
        for digest, name in pairs
    ]


def triton(components: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The server inside nvidia-pytriton. KeyError for a version of it that is not known here."""
    held = [each["version"] for each in components if each["name"] == "nvidia-pytriton"]
    return [
        {
            "type": "application",
            "bom-ref": "tritonserver",
            "name": "triton_inference_server",
            "group": "nvidia",
            "version": BUNDLED_TRITON[version],
            "cpe": f"cpe:2.3:a:nvidia:triton_inference_server:{BUNDLED_TRITON[version]}:*:*:*:*:*:*:*",
            "licenses": [{"license": {"id": "BSD-3-Clause"}}],
        }
        for version in held
    ]


def main(folder: Path) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for name, use in SHIPPED.items():
        bom = components_of(ROOT / "requirements" / f"{name}.txt")
        bom["components"] += triton(bom["components"]) + (networks(version) if name == "serve" else [])
        text = json.dumps(bom, indent=1)
        if problem := JsonStrictValidator(SchemaVersion.V1_6).validate_str(text):
            print(f"error: the SBOM of {name} is not valid CycloneDX: {problem}", file=sys.stderr)
            return 1
        path = folder / f"{name}.cdx.json"
        path.write_text(text + "\n")
        print(f"{path}: {len(bom['components'])} components ({use})")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
