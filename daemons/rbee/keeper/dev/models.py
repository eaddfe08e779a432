"""Builds the models of the demonstration in a process of its own, so that Ctrl+C ends it at once."""

import asyncio
import collections
import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path

from rbee.keeper.dev.children import module_argv
from rbee.keeper.failure import CommandFailed

EMBEDDING_MODEL = "all-minilm-l6-v2"
TALKING_MODEL = "bee-talk"
_LIMIT_S = 900.0
_KEPT_LINES = 20


async def build(folder: Path, environment: Mapping[str, str], say: Callable[[str], None]) -> None:
    """Build what is missing under ``folder``, each line of progress given to ``say``; raises CommandFailed."""
    process = await asyncio.create_subprocess_exec(
        *module_argv("rbee.keeper.demo.build", str(folder), EMBEDDING_MODEL, TALKING_MODEL),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=dict(environment),
        start_new_session=True,
    )
    lines: collections.deque[str] = collections.deque(maxlen=_KEPT_LINES)
    try:
        async with asyncio.timeout(_LIMIT_S):
            if process.stdout is not None:
                async for line in process.stdout:
                    lines.append(line.decode(errors="replace").rstrip())
                    say(f"  {lines[-1]}")
            code = await process.wait()
    except TimeoutError:
        raise CommandFailed(f"building the models took more than {_LIMIT_S:g} s: try again") from None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if code != 0:
        said = lines[-1] if lines else "it said nothing"
        raise CommandFailed(f"the models could not be built (exit code {code}): {said}")
    missing = [name for name in (EMBEDDING_MODEL, TALKING_MODEL) if not (folder / name).is_dir()]
    if missing:
        raise CommandFailed(f"the models were built, and {missing[0]} is not under {folder}: try again")
