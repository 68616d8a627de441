"""Files that appear whole or not at all."""

import os
from pathlib import Path

from jtok.errors import UserError


def write_whole(path: str | os.PathLike, data: bytes) -> Path:
    """Writes beside `path`, then renames. Raises UserError when nothing can be written there."""
    path = Path(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            beside.write_bytes(data)
            os.replace(beside, path)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {path}: choose another place ({error.strerror}).") from error
    return path
