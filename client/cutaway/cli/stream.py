"""``cutaway stream``: a video's file, or a camera, through a server. Needs OpenCV, which the SDK does not."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import click

import cutaway
from cutaway.cli import options
from cutaway.cli.codes import FAILED, INTERRUPTED, OK, UNAVAILABLE
from cutaway.cli.console import reason, say, say_json
from cutaway.cli.options import option
from cutaway.contract.limits import PROCESSING_TIMEOUT_S, STREAM_OPTIONS, STREAM_TIMEOUT_S

FLAGS = ("min_confidence", "smoothing")
CODECS = {".mp4": "mp4v", ".avi": "MJPG", ".mkv": "MJPG"}


@options.command(
    *(click.Argument(["video"]), options.OVERWRITE, options.JSON),
    option("-o", "--output", type=options.FILE, default="stream.mp4", help="What is written."),
    option("--background", default=STREAM_OPTIONS["background"].default, help="#RRGGBB, a picture, or blur:<px>."),
    *(*options.table(FLAGS, STREAM_OPTIONS), *options.CONNECTION),
)
def stream(context: click.Context, video: str, output: Path, background: str, **given: Any) -> int:
    """Put a video's people before another background.

    VIDEO is a file, of which every frame is sent, or a camera's number, of which the latest one is, until Ctrl-C.
    Frames that cannot be worked on are written as they are. Needs OpenCV (pip install opencv-python-headless).
    """
    try:
        cv2: Any = import_module("cv2")
    except ImportError:
        raise click.UsageError("videos need OpenCV: pip install opencv-python-headless") from None
    if output.suffix.lower() not in CODECS:
        raise click.UsageError(f"-o names a video: {', '.join(CODECS)}")
    if output.exists() and not given["overwrite"]:
        raise click.UsageError(f"{output} is there already; --overwrite replaces it")
    live = video.isdecimal()
    source, writer, code = cv2.VideoCapture(int(video) if live else video), cv2.VideoWriter(), OK
    wait_s = STREAM_TIMEOUT_S if live else PROCESSING_TIMEOUT_S
    try:
        arguments = {"timeout_s": wait_s} | options.given_arguments(context, "timeout_s", "tls", *FLAGS)
        arguments["background"] = background if background.startswith(("#", "blur:")) else Path(background)
        frames = cutaway.Stream(given["urls"][0], channels="bgr", **arguments)
    except (ValueError, OSError) as error:
        raise click.UsageError(getattr(error, "message", reason(error))) from None
    try:
        with frames:
            while (read := source.read())[0]:
                frames.submit(read[1])
                done: Any = frames.latest(0.0 if live else PROCESSING_TIMEOUT_S)
                if done is None:
                    continue
                if not writer.isOpened():
                    fps = source.get(cv2.CAP_PROP_FPS) or 25.0  # of cameras and files that do not say
                    codec = cv2.VideoWriter_fourcc(*CODECS[output.suffix.lower()])
                    writer.open(str(output), codec, fps, done.image.shape[1::-1])
                writer.write(done.image)
                if done.untouched and frames.statistics.untouched == 1:
                    say(f"frame {done.id} and others come back untouched: {done.error or 'no detection'}", err=True)
    except KeyboardInterrupt:
        code = INTERRUPTED
    finally:
        source.release()
        writer.release()
    totals = frames.statistics
    if code == OK and not totals.done:
        say(f"{video}: no frames can be read", err=True)
        return FAILED
    if given["json"]:
        say_json({"output": str(output), **vars(totals)})
    else:
        say(f"{output}: {totals.done} frames, {totals.fps:.1f} per second, {totals.untouched} untouched")
    return code or (OK if not totals.untouched else UNAVAILABLE if totals.untouched == totals.done else FAILED)
