"""Files that are never half written, and folders that are tried before hours are spent on what goes into them."""

import os
import tempfile
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
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        if path.is_dir():
            raise IsADirectoryError(f"{path} is a folder")
        # With the file's own name at the end, because a name can be too long
        with tempfile.NamedTemporaryFile(dir=folder, suffix=f"-{path.name}.{os.getpid()}.tmp") as trial:
            trial.write(bytes(size))
            trial.flush()
    except OSError as error:
        return error.strerror or str(error)
    return None


def shown(path: Path, root: Path) -> str:
    """Return a path as a line names it: from the root, if it is inside."""
    return str(path.relative_to(root) if path.is_relative_to(root) else path)
