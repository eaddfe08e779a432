"""Runs `rbee` as a person does: a process of its own, with a home and folders of its own."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

RBEE = (sys.executable, "-m", "rbee.keeper.main")


@dataclass(frozen=True)
class Person:
    """Someone with a home folder; ``env`` is the environment of what they run."""

    home: Path

    @property
    def env(self) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "LANG") if name in os.environ}
        return kept | {
            "HOME": str(self.home),
            "TZ": "UTC",
            "XDG_STATE_HOME": str(self.home / "state"),
            "XDG_CONFIG_HOME": str(self.home / "config"),
        }

    @property
    def partials(self) -> Path:
        """Where the texts of broken answers are kept."""
        return self.home / "state" / "rbee" / "partial"

    def rbee(self, *arguments: object, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """Run to the end, 60 s at most."""
        return subprocess.run(
            [*RBEE, *map(str, arguments)],
            env=self.env | (env or {}),
            capture_output=True,
            text=True,
            timeout=60,
            stdin=subprocess.DEVNULL,
            check=False,
        )

    def start(self, *arguments: object) -> subprocess.Popen[str]:
        """Start and return at once."""
        return subprocess.Popen(
            [*RBEE, *map(str, arguments)],
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
        )
