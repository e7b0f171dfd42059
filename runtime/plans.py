"""TensorRT plans: the record beside each, and whether this machine may serve them.

A plan runs on the version of TensorRT that wrote it and on GPUs of the compute capability that it was built for, and
that it computes what its network does is known by measurement alone. `python -m export plan` writes all of that into a
record beside the plan; here it is held against the machine, so that what does not fit is said in one line before a
server starts. Nothing here needs TensorRT, CUDA's packages or numpy.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runtime.checks import RuntimeProblem
from runtime.digest import sha256_of
from runtime.gpus import Host
from runtime.weights import CHECKSUMS, NETWORKS, read_checksums

PLAN, RECORD, LOG, REFUSED = ".plan", ".plan.json", ".plan.log", ".plan.refused"
"""What follows a model's name in a profile's folder."""

MEAN_ALPHA_ERROR = 0.001
"""Bound of the mean difference of alpha (0 to 1) between a plan and its network, over all pictures: a quarter of a grey
level. The bundled network in half precision throughout is at 0.0003, and with GridSample taking the nearest value at
0.0022; the tests of the comparison show both."""

HEADER_BYTES = 28
TAGS = {b"ftrt": "TensorRT", b"vtrt": "TensorRT for RTX"}
"""How a serialized engine begins; its serialization's version, 0, follows, and the library's at byte 24."""

HALF_REFUSED = "half_precision_refused"
"""The option of a record that says why a plan is one of float32, by the figures of the one in half precision."""

BUILD = "python -m export plan {profile} --trt-major {major}"


@dataclass(frozen=True)
class PlanRecord:
    """What is known of one plan; `<model>.plan.json` holds the same names.

    Attributes:
        model: "birefnet_trt" or "yolov8_seg".
        profile: the profile that it belongs to.
        made: when, ISO 8601 in UTC.
        library: "tensorrt", or "tensorrt-rtx" for engines built ahead of time, which Triton does not load.
        tensorrt: the library's whole version, such as "10.13.3.9".
        cuda: version of the CUDA runtime, None where none was used.
        driver_cuda: newest CUDA that the driver takes, None without a driver.
        gpu: the GPU's name, None where the plan was built without one.
        compute_capabilities: those that the plan runs on, such as ("8.9",).
        onnx: name and SHA-256 of the file that it was built from.
        reference: name and SHA-256 of the float32 file that it was compared with.
        plan_sha256: of the plan itself.
        side_px: side of the network's square input.
        options: how it was built: batches, precision, workspace, opset, seconds.
        parity: the gate's figures with its bounds and `passed`; None where it was not run.
        parity_missing: why it was not run.
    """

    model: str
    profile: str
    made: str
    library: str
    tensorrt: str
    cuda: str | None
    driver_cuda: str | None
    gpu: str | None
    compute_capabilities: tuple[str, ...]
    onnx: dict[str, str]
    reference: dict[str, str]
    plan_sha256: str
    side_px: int
    options: dict[str, Any] = field(default_factory=dict)
    parity: dict[str, Any] | None = None
    parity_missing: str | None = None

    @classmethod
    def read(cls, path: Path) -> PlanRecord:
        """The record at `path`.

        Raises:
            RuntimeProblem: there is none, or it is not one.
        """
        try:
            values = json.loads(path.read_text())
            known = {each.name: values[each.name] for each in dataclasses.fields(cls)}
            record = cls(**{**known, "compute_capabilities": tuple(known["compute_capabilities"])})
            for file in (record.onnx, record.reference):
                file["name"], file["sha256"]
            record.tensorrt.split(".")
        except OSError as error:
            raise RuntimeProblem(
                f"the plan {path.with_suffix('')} has no record ({path.name}: {error.strerror or error}), so nobody "
                "knows what it was built for; build it again"
            ) from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise RuntimeProblem(f"the record {path} is not one of a plan, or damaged; build the plan again") from None
        return record

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False) + "\n")


@dataclass(frozen=True)
class CheckedPlan:
    """A plan that may be served here.

    Attributes:
        path: the plan.
        record: what is known of it.
        warnings: lines about what is unusual and no reason to refuse it.
    """

    path: Path
    record: PlanRecord
    warnings: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.record.model


def check_plans(folder: Path, host: Host) -> dict[str, CheckedPlan]:
    """The plans of a profile's folder by model name, all of which may be served on this machine.

    Args:
        folder: a profile's folder.
        host: what this machine has, see `runtime.gpus.look_at_host`.

    Raises:
        RuntimeProblem: one of them is missing, damaged, without a record, not proven, or made for another machine. The
            line says which and what helps.
    """
    return {name: check_plan(folder, name, host) for name in NETWORKS}


def check_plan(folder: Path, name: str, host: Host) -> CheckedPlan:
    """The plan of one model; see `check_plans`."""
    path = folder / f"{name}{PLAN}"
    again = BUILD.format(profile=folder.name, major=host.tensorrt_major or 10)
    try:
        there = path.is_file()
    except OSError as error:
        raise RuntimeProblem(
            f"the plan {path} cannot be read ({error.strerror or error}); the folder is another user's: in containers, "
            "set CUTAWAY_UID to that user's number"
        ) from None
    if not there:
        raise RuntimeProblem(_missing(folder, name, again))
    record = PlanRecord.read(folder / f"{name}{RECORD}")
    if record.model != name:
        raise RuntimeProblem(f"the record of {path} is one of {record.model}; build the plan again: {again}")
    if record.profile != folder.absolute().name:
        raise RuntimeProblem(
            f"the plan {path} is one of the profile {record.profile}, and its folder is not; build it again: {again}"
        )
    _check_bytes(path, record, again)
    _check_source(folder, record, again)
    _check_parity(path, record, again)
    warnings = _check_host(path, record, host, again)
    return CheckedPlan(path.resolve(), record, (*_wide_bound(record), *_single(record), *warnings))


def plan_version(path: Path) -> tuple[str, str] | None:
    """The library that wrote a plan and its version, by the plan's own header; None where it has none.

    ("TensorRT", "10.13.3.9")
    """
    with path.open("rb") as file:
        header = file.read(HEADER_BYTES)
    library = TAGS.get(header[:4])
    if library is None or len(header) < HEADER_BYTES or any(header[4:8]):
        return None
    return library, ".".join(str(part) for part in header[24:28])


def _missing(folder: Path, name: str, again: str) -> str:
    try:
        reason = (folder / f"{name}{REFUSED}.txt").read_text().strip().splitlines()[0]
    except (OSError, IndexError):
        return (
            f"{folder} has no TensorRT plan of {name} ({name}{PLAN}); build it on the machine that serves it: {again}"
        )
    return f"{folder} has no TensorRT plan of {name}: the one that was built was refused ({reason})"


def _check_bytes(path: Path, record: PlanRecord, again: str) -> None:
    try:
        found = sha256_of(path)
    except OSError as error:
        raise RuntimeProblem(f"the plan {path} cannot be read: {error.strerror or error}") from None
    if found != record.plan_sha256:
        raise RuntimeProblem(
            f"the plan {path} is damaged or another one: its SHA-256 is {found[:12]}…, its record says "
            f"{record.plan_sha256[:12]}…; build it again: {again}"
        )
    version = plan_version(path)
    if version is not None and version[1] != record.tensorrt:
        raise RuntimeProblem(
            f"the plan {path} was written by {version[0]} {version[1]}, its record says {record.tensorrt}; build it "
            f"again: {again}"
        )


def _check_source(folder: Path, record: PlanRecord, again: str) -> None:
    """A plan does not outlive the ONNX files that it was built from and compared with."""
    if not (folder / CHECKSUMS).is_file():
        return
    sums = read_checksums(folder)
    for file, what in ((record.onnx, "built from"), (record.reference, "compared with")):
        now = sums.get(file["name"])
        if now is None:
            raise RuntimeProblem(
                f"the plan {folder / record.model}{PLAN} was {what} {file['name']}, which {CHECKSUMS} no longer has; "
                f"build it again: {again}"
            )
        if now != file["sha256"].lower():
            raise RuntimeProblem(
                f"the plan {folder / record.model}{PLAN} was {what} another {file['name']} than the one beside it now; "
                f"build it again: {again}"
            )


def _check_parity(path: Path, record: PlanRecord, again: str) -> None:
    if record.parity is None:
        reason = record.parity_missing or "nobody knows why"
        raise RuntimeProblem(f"the plan {path} was never compared with its network ({reason}); build it here: {again}")
    if record.parity.get("passed") is not True:
        raise RuntimeProblem(f"the plan {path} does not compute what its network does; build it again: {again}")


def _wide_bound(record: PlanRecord) -> tuple[str, ...]:
    """A line where the plan was held to less than is usual."""
    bound = (record.parity or {}).get("bound_mean_alpha_error")
    if not isinstance(bound, (int, float)) or bound <= MEAN_ALPHA_ERROR:
        return ()
    return (
        f"the plan of {record.model} was let through with a mean alpha error of up to {bound:g}; {MEAN_ALPHA_ERROR:g} "
        "is usual",
    )


def _single(record: PlanRecord) -> tuple[str, ...]:
    """A line where the plan computes in float32 because half precision was refused."""
    refused = record.options.get(HALF_REFUSED)
    if not isinstance(refused, dict):
        return ()
    reasons = "; ".join(str(reason) for reason in refused.get("reasons", ()))
    return (f"the plan of {record.model} computes in float32, which takes longer: in half precision {reasons}",)


def _check_host(path: Path, record: PlanRecord, host: Host, again: str) -> tuple[str, ...]:
    if record.library != "tensorrt":
        raise RuntimeProblem(f"the plan {path} is an engine of {record.library}, which Triton does not load: {again}")
    if host.problem is not None:
        raise RuntimeProblem(f"plans cannot be served here: {host.problem}")
    if not _same_version(record.tensorrt, host.tensorrt):
        raise RuntimeProblem(
            f"the plan {path} was made by TensorRT {record.tensorrt}, and this machine has {host.tensorrt}, which does "
            f"not read it; build it again here: {again}"
        )
    warnings = []
    for gpu in host.gpus:
        if gpu.compute_capability not in record.compute_capabilities:
            raise RuntimeProblem(
                f"the plan {path} was made for GPUs of compute capability {' or '.join(record.compute_capabilities)} "
                f"({record.gpu}), and the {gpu.name} here has {gpu.compute_capability}; build it again here: {again}"
            )
        if record.gpu is not None and gpu.name != record.gpu:
            warnings.append(
                f"the plan of {record.model} was tuned on an {record.gpu}, and runs on an {gpu.name} of the same "
                "architecture: built here it may be faster"
            )
    if record.driver_cuda and host.driver_cuda and _numbers(host.driver_cuda) < _numbers(record.driver_cuda):
        warnings.append(
            f"the plan of {record.model} was built with a driver for CUDA {record.driver_cuda}, and the one here is "
            f"for {host.driver_cuda}: older drivers may not run it"
        )
    return tuple(warnings)


def _same_version(made: str, here: str | None) -> bool:
    """Whether all parts that both sides know are the same; three of them at least."""
    first, second = made.split("."), (here or "").split(".")
    known = min(len(first), len(second))
    return known >= 3 and first[:known] == second[:known]


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdecimal())
