"""Pods without Kubernetes: a rendered Deployment's container with its command, variables, user and volumes.

Each has a network namespace of its own on one bridge, a process namespace in which its command is process 1, a
read-only root, and nothing writable but its volumes: bubblewrap and iproute2 instead of a kubelet. The image's files
are those that its Dockerfile copies; its packages are this environment's.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.conftest import ROOT
from tests.docker.parts import final_stage, lay_out
from tests.operations.manifests import Object, mib, missing, one

PROGRAMS = ("bwrap", "ip", "nsenter", "redis-server", "redis-cli")
CPU_IMAGE = ROOT / "docker" / "Dockerfile.cpu"
NAMESPACE = "cutaway"
NODE_IP = "10.77.0.1"
LIMIT_S = 120.0
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib64", "/sys")
SYSTEM += tuple(f"/etc/{name}" for name in ("alternatives", "group", "ld.so.cache", "nsswitch.conf", "passwd", "ssl"))
"""What an image has of Debian."""


def wanting() -> str:
    """What pods want and this machine has not, "" for nothing."""
    if programs := missing(*PROGRAMS):
        return programs
    allowed = os.geteuid() == 0 and subprocess.run(["unshare", "--net", "true"], check=False).returncode == 0
    return "" if allowed else "root, and network namespaces"


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@dataclass
class Pod:
    """One that runs: its address, and the process id of its command as this machine counts."""

    name: str
    address: str
    namespace: str
    process: subprocess.Popen[bytes]
    pid: int
    variables: dict[str, str]
    log: Path

    def exec(self, *command: str, timeout_s: float = LIMIT_S) -> subprocess.CompletedProcess[str]:
        """Run a command inside, as a kubelet runs a probe's."""
        inside = ["nsenter", f"--target={self.pid}", "--user", "--preserve-credentials", "--mount", "--net", "--pid"]
        variables = [f"{name}={value}" for name, value in self.variables.items()]
        return subprocess.run(
            [*inside, "env", "-i", *variables, *command], capture_output=True, text=True, timeout=timeout_s, check=False
        )

    def passes(self, probe: Object) -> bool:
        """Whether a probe's command passes."""
        return self.exec(*probe["exec"]["command"], timeout_s=probe["timeoutSeconds"]).returncode == 0

    def terminate(self) -> None:
        """As a kubelet does, after preStop."""
        os.kill(self.pid, signal.SIGTERM)


@dataclass
class Node:
    """A bridge that pods are on, and everything that was started.

    Attributes:
        folder: for logs, the image's files, and claims.
        objects: of an overlay.
        secrets: values by the secret's name and key.
    """

    folder: Path
    objects: list[Object]
    secrets: Mapping[str, Mapping[str, str]]
    pods: list[Pod] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.name = f"ct{os.getpid()}"
        _ip("netns", "add", self.name)
        _ip("-n", self.name, "link", "set", "lo", "up")
        _ip("-n", self.name, "link", "add", "br0", "type", "bridge")
        _ip("-n", self.name, "address", "add", f"{NODE_IP}/24", "dev", "br0")
        _ip("-n", self.name, "link", "set", "br0", "up")
        self.image = lay_out(CPU_IMAGE, self.folder / "image")
        self.hosts = self.folder / "hosts"
        self.hosts.write_text("127.0.0.1 localhost\n")

    def resolve(self, **addresses: Sequence[str]) -> None:
        """What Services' names are; `_` stands for "-"."""
        lines = [f"{ip} {name.replace('_', '-')}" for name, each in addresses.items() for ip in each]
        self.hosts.write_text("\n".join(["127.0.0.1 localhost", *lines, ""]))

    def start(self, deployment: str, name: str, number: int, **more: str) -> Pod:
        """A pod of a Deployment at the address 10.77.0.`number`, with further variables."""
        template = one(self.objects, "Deployment", deployment)["spec"]["template"]["spec"]
        container = template["containers"][0]
        variables = self._variables(container) | more
        namespace, address = f"{self.name}-{name}", f"10.77.0.{number}"
        _ip("netns", "add", namespace)
        _ip("-n", namespace, "link", "set", "lo", "up")
        _ip("-n", self.name, "link", "add", f"v{number}", "type", "veth", "peer", "name", "eth0", "netns", namespace)
        _ip("-n", self.name, "link", "set", f"v{number}", "master", "br0", "up")
        _ip("-n", namespace, "address", "add", f"{address}/24", "dev", "eth0")
        _ip("-n", namespace, "link", "set", "eth0", "up")
        command = ["ip", "netns", "exec", namespace, *self._sandbox(template, container), "--info-fd", "INFO"]
        log, (read, write) = self.folder / f"{name}.log", os.pipe()
        command[-1] = str(write)
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*command, "--", *self._command(container, variables)],
                env=variables,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=[write],
            )
        os.close(write)
        with os.fdopen(read) as told:
            pid = int(re.search(r'"child-pid": (\d+)', told.read())[1])  # type: ignore[index]
        pod = Pod(name, address, namespace, process, pid, variables, log)
        self.pods.append(pod)
        return pod

    def _variables(self, container: Object) -> dict[str, str]:
        """The container's, with those of the image; `$(NAME)` is expanded as Kubernetes does."""
        found = {"PATH": f"/opt/venv/bin:{os.environ['PATH']}", "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        found["PYTHONPATH"] = "/opt/cutaway:/opt/cutaway/client"  # the image has a .pth file
        for each in container.get("envFrom", []):
            if "configMapRef" in each:
                found |= one(self.objects, "ConfigMap", each["configMapRef"]["name"])["data"]
            else:
                found |= self.secrets.get(each["secretRef"]["name"], {})
        for each in container.get("env", []):
            source = each.get("valueFrom", {})
            if "secretKeyRef" in source:
                found[each["name"]] = self.secrets[source["secretKeyRef"]["name"]][source["secretKeyRef"]["key"]]
            elif source:
                assert source == {"fieldRef": {"fieldPath": "metadata.namespace"}}
                found[each["name"]] = NAMESPACE
            else:
                found[each["name"]] = expanded(each["value"], found)
        return found

    def _command(self, container: Object, variables: dict[str, str]) -> list[str]:
        command = container.get("command", [])
        if not command and container["image"].startswith("cutaway-cpu"):
            command = next(each for each in final_stage(CPU_IMAGE) if each.name == "ENTRYPOINT").words
        words = [expanded(word, variables) for word in (*command, *container.get("args", []))]
        return ["redis-server", *words[1:]] if words[0] == "valkey-server" else words  # its ancestor, in Debian

    def _sandbox(self, template: Object, container: Object) -> list[str]:
        context = template["securityContext"]
        assert container["securityContext"]["readOnlyRootFilesystem"]
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        words = ["bwrap", "--unshare-user", "--unshare-pid", "--as-pid-1", "--die-with-parent", "--cap-drop", "ALL"]
        words += ["--uid", str(context["runAsUser"]), "--gid", str(context["runAsGroup"]), "--chdir", "/opt/cutaway"]
        words += ["--proc", "/proc", "--dev", "/dev"]
        for path in (*SYSTEM, sys.base_prefix):
            if Path(path).is_symlink():
                words += ["--symlink", str(Path(path).readlink()), path]
            elif Path(path).exists():
                words += ["--ro-bind", path, path]
        words += ["--ro-bind", str(self.image), "/opt/cutaway", "--ro-bind", sys.prefix, "/opt/venv"]
        # Where this environment, an editable one, looks for the SDK.
        words += ["--ro-bind", str(ROOT / "client"), "/opt/client", "--ro-bind", str(self.hosts), "/etc/hosts"]
        volumes = {each["name"]: each for each in template["volumes"]}
        for mount in container["volumeMounts"]:
            volume, path = volumes[mount["name"]], mount["mountPath"]
            if "emptyDir" in volume:
                size = mib(volume["emptyDir"].get("sizeLimit", "64Mi")) * 2**20
                words += ["--perms", "1777", "--size", str(size), "--tmpfs", path]
            else:
                words += ["--ro-bind" if mount.get("readOnly") else "--bind", str(self._bound(volume)), path]
        return [*words, "--remount-ro", "/"]

    def _bound(self, volume: Object) -> Path:
        """The folder of a secret or a claim; all pods share a claim's."""
        folder = self.folder / volume["name"]
        folder.mkdir(exist_ok=True)
        if "secret" in volume:
            for name, value in self.secrets[volume["secret"]["secretName"]].items():
                (folder / name).write_text(value)
        return folder

    def run(self, script: str, *words: str, timeout_s: float = LIMIT_S) -> subprocess.Popen[str]:
        """Python code on the node, beside the pods, with the SDK."""
        return subprocess.Popen(
            ["ip", "netns", "exec", self.name, sys.executable, "-c", script, *words],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": f"{ROOT / 'client'}:{ROOT}"},
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, script: str, *words: str) -> Any:
        """What such code printed as JSON."""
        said, _ = self.run(script, *words).communicate(timeout=LIMIT_S)
        return json.loads(said)

    def wait(self, passes: Any, what: str, limit_s: float = LIMIT_S) -> None:
        """Wait until a condition holds, while all pods live."""
        deadline = time.monotonic() + limit_s
        while not passes():
            for pod in self.pods:
                assert pod.process.poll() is None, f"{pod.name} ended: {pod.log.read_text()[-2000:]}"
            assert time.monotonic() < deadline, f"{what}: {[pod.log.read_text()[-800:] for pod in self.pods]}"
            time.sleep(0.5)

    def close(self) -> None:
        for pod in self.pods:
            pod.process.kill()  # and all of it, with its process 1
            pod.process.wait(LIMIT_S)
            subprocess.run(["ip", "netns", "del", pod.namespace], check=False, capture_output=True)
        subprocess.run(["ip", "netns", "del", self.name], check=False, capture_output=True)


def expanded(text: str, variables: Mapping[str, str]) -> str:
    """`$(NAME)` replaced by the variable, as Kubernetes does."""
    return re.sub(r"\$\((\w+)\)", lambda match: variables.get(match[1], match[0]), text)
