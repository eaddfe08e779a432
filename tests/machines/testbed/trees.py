"""Root trees of the Debian releases, made once by mmdebstrap and never written to afterwards."""

import enum
import subprocess
from pathlib import Path

from tests.machines.testbed import apt, cache
from tests.machines.testbed.errors import TestbedError

PACKAGES = (
    *("systemd", "systemd-sysv", "dbus", "polkitd", "python3", "python3-venv", "openssh-server", "openssh-client"),
    *("iproute2", "nftables", "curl", "jq", "ca-certificates", "procps", "strace"),
)
# Units with nothing to do in a machine that lives for one test; each costs time at boot.
MASKED = (
    *("console-getty.service", "getty.target", "systemd-firstboot.service", "systemd-hwdb-update.service"),
    *("ldconfig.service", "systemd-journal-catalog-update.service", "systemd-update-done.service"),
    *("apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer", "fstrim.timer"),
    *("e2scrub_reap.service", "systemd-networkd.service", "systemd-networkd.socket", "nftables.service"),
)
# Where packages lie as files that only some tests install: a machine has no way to Debian.
ON_DEMAND_FOLDER = "usr/share/testbed"
MOUNT_POINTS = ("usr/lib/rbee/venv", "usr/lib/rbee/test-packages", "run/wheels", "run/project")


class Release(enum.StrEnum):
    """The Debian releases that the project runs on."""

    BOOKWORM = "bookworm"
    TRIXIE = "trixie"

    @property
    def python(self) -> str:
        """The version of the release's own Python, as 3.N."""
        return {Release.BOOKWORM: "3.11", Release.TRIXIE: "3.13"}[self]


def tree(release: Release) -> Path:
    """The release's root tree, read-only by agreement; built at the first call (about a minute).

    Raises:
        TestbedError: mmdebstrap failed; its last lines are in the message.
    """
    key = cache.digest([release, *PACKAGES, *MASKED, *MOUNT_POINTS, _DOWNLOAD])

    def build(folder: Path) -> None:
        _bootstrap(release, folder / "root")
        _prepare(folder / "root")

    return cache.build_once("trees", f"{release}-{key}", build) / "root"


# A hook of mmdebstrap(1), which gives the root as $1. autopkgtest asks for dpkg-dev where it tests.
_DOWNLOAD = f"""set -e
root=$1
export APT_CONFIG=$MMDEBSTRAP_APT_CONFIG
fetch() {{
    apt-get clean
    apt-get -q -y --no-install-recommends --download-only install "$@"
    mkdir -p "$root/{ON_DEMAND_FOLDER}/$1"
    mv "$root"/var/cache/apt/archives/*.deb "$root/{ON_DEMAND_FOLDER}/$1/"
}}
fetch autopkgtest dpkg-dev
fetch needrestart"""


def _bootstrap(release: Release, root: Path) -> None:
    options = [f"--aptopt={line}" for line in apt.network_options()]
    options.append(f"--customize-hook={_DOWNLOAD}")
    command = ["mmdebstrap", "--quiet", "--variant=minbase", "--mode=root", f"--include={','.join(PACKAGES)}"]
    done = subprocess.run(
        [*command, *options, release, root, apt.mirror()], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise TestbedError(f"mmdebstrap of {release} failed ({done.returncode}):\n{done.stderr[-3000:]}")


def _prepare(root: Path) -> None:
    for unit in MASKED:
        (root / "etc/systemd/system" / unit).symlink_to("/dev/null")
    for point in MOUNT_POINTS:
        (root / point).mkdir(parents=True, exist_ok=True)
    for name in ("etc/hostname", "etc/resolv.conf"):
        (root / name).unlink(missing_ok=True)
    journal = root / "etc/systemd/journald.conf.d/testbed.conf"
    journal.parent.mkdir(parents=True, exist_ok=True)
    journal.write_text("[Journal]\nSystemMaxUse=64M\nRuntimeMaxUse=64M\n")
