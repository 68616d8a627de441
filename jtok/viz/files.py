"""Files that users ask for: whole or not at all, and one sentence where they cannot be written."""

import os
from pathlib import Path

from jtok.errors import UserError
from jtok.files import whole


def write_whole(path: str | os.PathLike, data: bytes) -> Path:
    """Writes a temporary file next to `path`, then renames it. Raises UserError when nothing can be written there."""
    path = Path(path)
    try:
        with whole(path) as temporary:
            temporary.write_bytes(data)
    except OSError as error:
        raise UserError(f"cannot write {path}: choose another place ({error.strerror}).") from error
    return path
