"""What FFmpeg says when a source cannot be opened or read, as something that its owner can act on."""

from __future__ import annotations

import errno
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import av.error

from shared.errors import Amp4ecError, ConfigurationError

_KINDS = "a video file, a device such as /dev/video0, or a stream such as rtsp://camera/stream"


def is_device(source: str) -> bool:
    """Whether it is a camera of this machine, plugged in or not."""
    return source.startswith("/dev/video") or Path(source).is_char_device()


def shown(source: str) -> str:
    """A source as it may be printed: without the password of an address."""
    parts = urlsplit(source)
    if parts.password is None:
        return source
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{parts.username}:***@{host}"))


def explain(source: str, error: Exception | None) -> Amp4ecError:
    """The error to raise for one of FFmpeg's; None is a codec that it does not know.

    What the command's user has to mend is a ConfigurationError; what may pass by itself is not.
    """
    name = shown(source)
    device = is_device(source)
    match error:
        case None | av.error.DecoderNotFoundError():
            return ConfigurationError(
                f"{name}: the codec of its pictures is not in this FFmpeg; convert it, as in "
                "`ffmpeg -i IN -c:v libx264 OUT.mp4`, or set the camera to H.264 or MJPEG",
                expected="H.264, H.265, VP9, AV1, MPEG-4, MJPEG or another common codec",
            )
        case av.error.FileNotFoundError() | FileNotFoundError() if device:
            there = ", ".join(sorted(str(path) for path in Path("/dev").glob("video*")))
            return ConfigurationError(
                f"there is no device {name}: is the camera plugged in?",
                expected=there or "a /dev/video* (there is none at all)",
            )
        case av.error.PermissionError() | PermissionError() if device:
            return ConfigurationError(
                f"no permission to read {name}: `sudo usermod -aG video $USER`, then log in again"
            )
        case av.error.HTTPUnauthorizedError() | av.error.HTTPForbiddenError():
            return ConfigurationError(
                f"{name} refuses the login",
                expected="user and password in the address: rtsp://USER:PASSWORD@HOST/STREAM",
            )
        case av.error.HTTPNotFoundError():
            return ConfigurationError(
                f"{name}: its server knows no such stream; the camera's manual has the path"
            )
        case av.error.ExitError() | av.error.TimeoutError():
            return Amp4ecError(
                f"{name} does not answer", expected="a stream within 10 s", got="silence"
            )
        case av.error.ConnectionRefusedError():
            return Amp4ecError(
                f"{name}: nobody listens at that address; is the camera on, and is this its port?"
            )
        case av.error.FileNotFoundError() | FileNotFoundError():
            return ConfigurationError(f"there is no file {name}", expected=_KINDS)
        case av.error.PermissionError() | PermissionError():
            return ConfigurationError(f"no permission to read {name}")
        case av.error.IsADirectoryError() | IsADirectoryError():
            return ConfigurationError(
                f"{name} is a folder", expected=f"{_KINDS}; for a folder's pictures use --watch"
            )
        case av.error.ProtocolNotFoundError():
            return ConfigurationError(f"{name}: an address that is not known", expected=_KINDS)
        case av.error.InvalidDataError() | av.error.EOFError() if source == "-":
            return ConfigurationError(
                "what comes by standard input is no video that can be read in one go",
                expected="a format that needs no going back, such as MPEG-TS or Matroska; "
                "MP4 with its index first (`ffmpeg -i IN -c copy -movflags +faststart OUT.mp4`)",
            )
        case av.error.InvalidDataError() | av.error.EOFError():
            return ConfigurationError(
                f"{name} is no video that can be read: damaged, cut off, or something else",
                expected=_KINDS,
            )
        case _:
            number = getattr(error, "errno", None)
            why = getattr(error, "strerror", None) or str(error)
            if device and number == errno.EBUSY:
                return Amp4ecError(
                    f"{name} is in use by another program: `fuser {name}` says which"
                )
            if device and number in (errno.ENOTTY, errno.ENODEV, errno.EINVAL):
                return ConfigurationError(
                    f"{name} gives no pictures: {why}; `v4l2-ctl --list-devices` says which one does"
                )
            return Amp4ecError(f"{name} cannot be read: {why}", expected=_KINDS)
