"""What the command does on a node as root: files put in place whole, units asked and told, packages looked at."""

import contextlib
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from rbee.keeper.nodes import layout
from rbee.keeper.nodes.ssh import Ran, Ssh
from rbee.wire.auth import digest_of

_UNIT_FACTS = ("ActiveState", "SubState", "Result", "StatusText")


@dataclass(frozen=True, slots=True)
class UnitState:
    """A unit as systemd describes it."""

    active: str
    sub: str
    result: str
    status: str

    @property
    def line(self) -> str:
        """One line for a person."""
        told = f"{self.active} ({self.sub})" if self.sub else self.active
        trouble = f", {self.result}" if self.result not in ("", "success") else ""
        return told + trouble + (f": {self.status}" if self.status else "")


class Root:
    """Root on the node of ``ssh``: directly, or by sudo without a password where the user is another one."""

    def __init__(self, ssh: Ssh) -> None:
        self.ssh = ssh
        self._prefix = [] if ssh.target.user == "root" else ["sudo", "-n", "--"]

    def run(self, argv: Sequence[str], *, limit_s: float = 60.0, check: bool = True) -> Ran:
        """Run a command as root; raises StepFailed."""
        return self.ssh.run([*self._prefix, *argv], limit_s=limit_s, check=check)

    def read(self, path: str) -> str | None:
        """The text of a file, or None where there is none."""
        ran = self.run(["cat", "--", path], check=False)
        return None if ran.code else ran.out

    def digest(self, path: str) -> str | None:
        """The SHA-256 (hex) of the one line in a file of a token, or None where there is none."""
        text = self.read(path)
        return None if text is None else digest_of(text.strip())

    def write(self, path: str, text: str, mode: int, owner: str = "root:root") -> bool:
        """Put a file in place, whole or not at all; False where it has that text already."""
        if self.read(path) == text:
            return False
        with self.folder() as folder:
            draft = f"{folder}/draft"
            with self.ssh.files() as sftp, sftp.open(draft, "wx") as file:
                file.chmod(0o600)
                file.write(text.encode())
            target = PurePosixPath(path)
            user, _, group = owner.partition(":")
            beside = str(target.with_name(f".{target.name}.new"))
            self.run(["install", "-D", "-m", f"{mode:04o}", "-o", user, "-g", group, "--", draft, beside])
            self.run(["mv", "-f", "--", beside, path])
        return True

    @contextlib.contextmanager
    def folder(self) -> Iterator[str]:
        """A new folder of whoever logs in, for the length of the block; what root put into it goes too."""
        path = f"/tmp/.rbee-{secrets.token_hex(8)}"  # noqa: S108 - made by mkdir, which fails where the name is taken
        self.ssh.run(["mkdir", "--mode=0700", "--", path])
        try:
            yield path
        finally:
            self.run(["rm", "-rf", "--", path], check=False)

    def certificate(self) -> str | None:
        """The node's certificate (PEM), or None where there is none, or no key to it; the key is not read."""
        if self.run(["test", "-s", layout.KEY], check=False).code:
            return None
        return self.read(layout.CERTIFICATE)

    def stream(self, argv: Sequence[str]) -> Iterator[bytes]:
        """The output of a command of root's as it comes."""
        return self.ssh.stream([*self._prefix, *argv])

    def unit(self, name: str) -> UnitState:
        """A unit's state, asked of systemd."""
        properties = [f"--property={fact}" for fact in _UNIT_FACTS]
        lines = self.run(["systemctl", "show", *properties, "--", name]).out.splitlines()
        facts = dict(line.split("=", 1) for line in lines if "=" in line)
        return UnitState(*(facts.get(fact, "") for fact in _UNIT_FACTS))
