"""``cutaway stream``: a video's file, or a camera, through a server. Needs OpenCV, which the SDK does not."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cutaway.cli.codes import FAILED, OK, UNAVAILABLE
from cutaway.cli.connect import headers_of, refuse, tls_of, token_of, urls
from cutaway.cli.interrupts import Interrupts, interruptible
from cutaway.cli.parser import STREAM_FLAGS
from cutaway.cli.talking import readable, say, say_json
from cutaway.contract.errors import InputError
from cutaway.contract.limits import PROCESSING_TIMEOUT_S, STREAM_TIMEOUT_S

if TYPE_CHECKING:
    from cutaway.streaming.frames import StreamFrame
    from cutaway.streaming.stream import Stream

CODECS = {".mp4": "mp4v", ".avi": "MJPG", ".mkv": "MJPG"}
UNKNOWN_FPS = 25.0
"""Of cameras and files that do not say."""


def run(given: argparse.Namespace) -> int:
    """Send every frame of a file, or the latest ones of a camera, and write what comes back."""
    cv2 = _opencv(given)
    codec = CODECS.get(given.output.suffix.lower())
    if codec is None:
        refuse(given, f"-o names a video: {', '.join(CODECS)}")
    if given.output.exists() and not given.force:
        refuse(given, f"{given.output} is there already; --force replaces it")
    live = given.source.isdecimal()
    source = cv2.VideoCapture(int(given.source) if live else given.source)
    if not source.isOpened():
        say(f"{given.source}: {'there is no such camera' if live else 'no video that can be read'}", sys.stderr)
        return FAILED
    fps = source.get(cv2.CAP_PROP_FPS) or UNKNOWN_FPS
    writer: Any = None
    with _opened(given, live) as stream, interruptible() as interrupts:
        try:
            for done in _frames(source, stream, interrupts, live):
                if writer is None:
                    height, width = done.image.shape[:2]
                    writer = cv2.VideoWriter(str(given.output), cv2.VideoWriter_fourcc(*codec), fps, (width, height))
                writer.write(done.image)
                if done.untouched and stream.statistics.untouched == 1:
                    why = "the detector failed" if done.error is None else readable(done.error)
                    say(f"frame {done.id} and those that follow come back untouched: {why}", sys.stderr)
        finally:
            source.release()
            if writer is not None:
                writer.release()
    told = stream.statistics
    if given.json:
        say_json({"output": str(given.output), **vars(told)})
    elif not given.quiet:
        say(
            f"{given.output}: {told.done} frames, {told.fps:.1f} per second, {told.dropped + told.skipped} dropped, "
            f"{told.untouched} untouched",
            sys.stdout,
        )
    if interrupts.code:
        return interrupts.code
    if not told.done:
        say(f"{given.source}: no frames came", sys.stderr)
        return FAILED
    return OK if not told.untouched else UNAVAILABLE if told.untouched == told.done else FAILED


def _frames(source: Any, stream: Stream, interrupts: Interrupts, live: bool) -> Any:
    """Frames that are done: all of a file's, and a camera's as they come."""
    while not interrupts.cancel.cancelled:
        there, frame = source.read()
        if not there:
            return
        stream.submit(frame)
        done: StreamFrame | None = stream.latest(0.0 if live else PROCESSING_TIMEOUT_S)
        if done is not None:
            yield done


def _opened(given: argparse.Namespace, live: bool) -> Stream:
    from cutaway.streaming.stream import Stream

    options: dict[str, Any] = {name: value for name in STREAM_FLAGS if (value := getattr(given, name)) is not None}
    background = options.get("background", "#")
    if not background.startswith(("#", "blur:")):
        options["background"] = Path(background)
    try:
        return Stream(
            urls(given)[0],
            channels="bgr",
            timeout_s=given.timeout_s or (STREAM_TIMEOUT_S if live else PROCESSING_TIMEOUT_S),
            token=token_of(given),
            headers=headers_of(given),
            tls=tls_of(given),
            **options,
        )
    except InputError as error:
        refuse(given, error.message)
    except (ValueError, OSError) as error:
        refuse(given, readable(error))


def _opencv(given: argparse.Namespace) -> Any:
    try:
        import cv2
    except ImportError:
        refuse(given, "videos need OpenCV: pip install opencv-python-headless")
    return cv2
