"""Files that are never half written, and folders that are tried before hours are spent on what goes into them."""

import contextlib
import os
import stat
from pathlib import Path


def write_whole(files: dict[Path, bytes]) -> None:
    """Write the files, none of which is ever seen half written: to temporary names first, which are then renamed."""
    parts = {path: path.with_name(f"{path.name}.{os.getpid()}.tmp") for path in files}
    try:
        for path, content in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            parts[path].write_bytes(content)
        for path, part in parts.items():
            os.replace(part, path)
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)


def why_not_writable(path: Path, size: int) -> str | None:
    """Return why ``write_whole`` could not write so many bytes to this path, or None if it could; nothing is left.

    Folders that are missing are not made: the trial is in the nearest one that exists.
    """
    folder = path.parent
    while not os.path.lexists(folder) and folder != folder.parent:
        folder = folder.parent
    trial = folder / f"{path.name}.{os.getpid()}.tmp"  # because a name can be too long
    try:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            if stat.S_ISDIR(os.stat(path).st_mode):  # the names of the folders can be too long, too
                return "it is a folder"
        trial.write_bytes(bytes(size))
    except OSError as error:
        return error.strerror or str(error)
    finally:
        with contextlib.suppress(OSError):
            trial.unlink()
    return None


def shown(path: Path, root: Path) -> str:
    """Return a path as a line names it: from the root, if it is inside."""
    return str(path.relative_to(root) if path.is_relative_to(root) else path)
