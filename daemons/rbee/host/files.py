"""Files put in place whole or not at all."""

import os
import tempfile
from pathlib import Path


def put_file(path: Path, content: str, mode: int) -> None:
    """Write a text file of that mode beside ``path``, have it on disk, and put it in its place; raises OSError."""
    descriptor, draft = tempfile.mkstemp(prefix=".new-", dir=path.parent)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        os.fchmod(file.fileno(), mode)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    Path(draft).replace(path)
