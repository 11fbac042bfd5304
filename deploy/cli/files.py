"""Files that options name: read, or about to be written; what is wrong with them names the option."""

from __future__ import annotations

from pathlib import Path

from shared.errors import ConfigurationError

PICTURES = (".png", ".svg", ".pdf")


def read_file(option: str, path: Path) -> bytes:
    """The content of a file.

    Raises:
        ConfigurationError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(
            f"{option} {path} cannot be read: {error.strerror or error}",
            expected="a file",
            got=str(path),
        ) from error


def check_output(option: str, path: Path | None, *, picture: bool = False) -> None:
    """Refuse a file that could not be written, before the work that it is for; None is no file.

    Raises:
        ConfigurationError: no folder for it, or no format of ours for a picture.
    """
    if path is None:
        return
    if picture and path.suffix.lower() not in PICTURES:
        raise ConfigurationError(
            f"{option} {path} has no known format",
            expected=f"a name that ends in {', '.join(PICTURES)}",
            got=path.suffix or "no ending",
        )
    if not path.parent.is_dir():
        raise ConfigurationError(
            f"{option} {path}: there is no such folder", expected="a folder", got=str(path.parent)
        )
    if path.is_dir():
        raise ConfigurationError(f"{option} {path} is a folder", expected="a file", got=str(path))
