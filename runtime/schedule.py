"""How many runs of the networks there are at a time: as many as there are instances, or the specification's few.

For the latter, Triton's rate limiter has each run take a resource of its device (a GPU, or all CPUs): two runs of
detectors and one of matting networks, whichever of them. It tries only the run that is first in its order, so that one
which waits for its resource holds up those behind it. Batches form as ever: a run may have several pictures.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

from runtime.weights import FREE_DETECTOR, WHOLE_MATTING

Schedule = Literal["free", "limited"]
SCHEDULES: tuple[Schedule, ...] = get_args(Schedule)

AT_A_TIME = {"detection": 2, "matting": 1}
"""Runs on one device by resource, in the schedule `limited`."""
_RESOURCES = {
    "yolov8_seg": "detection",
    FREE_DETECTOR: "detection",
    "birefnet_trt": "matting",
    WHOLE_MATTING: "matting",
}


def limit_runs(config: Any, schedule: Schedule) -> None:
    """Have a network's instances take their resource, in place; there are two detectors then."""
    resource = _RESOURCES.get(config.name)
    if schedule == "free" or resource is None:
        return
    for group in config.instance_group:
        if config.name == "yolov8_seg":
            group.count = max(group.count, AT_A_TIME["detection"])
        group.rate_limiter.resources.add(name=resource, count=1)


def schedule_arguments(schedule: Schedule) -> tuple[str, ...]:
    """Triton's arguments for a schedule."""
    if schedule == "free":
        return ()
    limits = (f"--rate-limit-resource={name}:{count}" for name, count in AT_A_TIME.items())
    return ("--rate-limit=execution_count", *limits)
