"""The manifests of deploy/kubernetes, rendered, and ways through them."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from tests.conftest import ROOT

KUBERNETES = ROOT / "deploy" / "kubernetes"
TOOLS = ROOT / ".venv-kubernetes"
OVERLAYS = ("cpu", "gpu", "kserve")
MADE_BY = "make .venv-kubernetes/.installed"

Object = dict[str, Any]


def tool(name: str) -> str:
    """A program of the environment that has them."""
    return str(TOOLS / "bin" / name)


def parsed(text: str) -> list[Object]:
    return [each for each in YAML(typ="safe").load_all(text) if each]


def render(folder: Path) -> list[Object]:
    done = subprocess.run([tool("kubectl"), "kustomize", str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr
    return parsed(done.stdout)


@cache
def rendered(name: str) -> list[Object]:
    """The objects of an overlay, or of "plans"."""
    return render(KUBERNETES / (f"overlays/{name}" if name in OVERLAYS else name))


def with_component(overlay: str, component: str, folder: Path) -> list[Object]:
    """An overlay with a component, as a user writes it, in an empty folder."""
    base, part = (os.path.relpath(KUBERNETES / path, folder) for path in (f"overlays/{overlay}", component))
    (folder / "kustomization.yaml").write_text(f"resources: [{base}]\ncomponents: [{part}]\n")
    return render(folder)


def one(objects: list[Object], kind: str, name: str | None = None) -> Object:
    """The only object of a kind, and a name."""
    (found,) = of_kind(objects, kind, name)
    return found


def of_kind(objects: list[Object], kind: str, name: str | None = None) -> list[Object]:
    return [each for each in objects if each["kind"] == kind and name in (None, each["metadata"]["name"])]


def templates(objects: list[Object]) -> Iterator[tuple[str, Object]]:
    """Every pod that is made, by its maker's name, with its labels: of a KServe service as KServe puts it together."""
    for each in objects:
        if each["kind"] in ("Deployment", "Job"):
            yield each["metadata"]["name"], each["spec"]["template"]
        elif each["kind"] == "InferenceService":
            yield each["metadata"]["name"], served_by_kserve(objects, each)


def served_by_kserve(objects: list[Object], service: Object) -> Object:
    """The pod of an InferenceService: the runtime's containers and volumes, and the predictor's fields of a pod."""
    predictor = service["spec"]["predictor"]
    runtime = one(objects, "ServingRuntime", predictor["model"]["runtime"])["spec"]
    own = ("minReplicas", "maxReplicas", "model", "autoScaling")
    of_pod = {name: runtime[name] for name in ("containers", "volumes", "tolerations")}
    labels = {**runtime["labels"], "serving.kserve.io/inferenceservice": service["metadata"]["name"]}
    return {
        "metadata": {"labels": labels},
        "spec": of_pod | {name: value for name, value in predictor.items() if name not in own},
    }


def as_pods(objects: list[Object]) -> list[Object]:
    """A KServe service's pod as a Pod, where there is one, for tools that do not know KServe."""
    found = []
    for each in of_kind(objects, "InferenceService"):
        template = served_by_kserve(objects, each)
        metadata = {
            "name": each["metadata"]["name"],
            "namespace": each["metadata"]["namespace"],
            **template["metadata"],
        }
        found.append({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]})
    return found


def matches(selector: Object, labels: dict[str, str]) -> bool:
    """Whether a label selector takes these labels."""
    wanted = selector.get("matchLabels", {}).items() <= labels.items()
    return wanted and all(
        each["operator"] == "In" and labels.get(each["key"]) in each["values"]
        for each in selector.get("matchExpressions", [])
    )


def mib(quantity: str) -> int:
    """Kubernetes' "768Mi" in MiB."""
    return int(quantity[:-2]) * {"Mi": 1, "Gi": 1024}[quantity[-2:]]


def missing(*programs: str) -> str:
    """Which of these programs are missing, "" for none."""
    return ", ".join(each for each in programs if shutil.which(each) is None)
