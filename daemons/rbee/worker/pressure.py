"""Whether this machine's disks are so busy that a load will take longer: told, and never a reason not to load."""

import logging
import re
from pathlib import Path

from rbee.wire.log import log

LOGGER = logging.getLogger(__name__)
_SOME = re.compile(r"^some avg10=(\d+\.\d+) ", re.M)


def io_share(file: Path) -> float | None:
    """Percent of the last 10 s in which some task waited for a disk; None where the kernel does not tell.

    The file is the kernel's /proc/pressure/io (https://docs.kernel.org/accounting/psi.html).
    """
    try:
        found = _SOME.search(file.read_text())
    except OSError:
        return None
    return None if found is None else float(found[1])


def warn_of_busy_disks(file: Path, limit_percent: float) -> None:
    """Log a warning where disks are busier than ``limit_percent``; 0 turns it off."""
    share = io_share(file)
    if limit_percent and share is not None and share > limit_percent:
        log(
            LOGGER,
            logging.WARNING,
            "the disks of this machine are busy: loading goes on and may take longer",
            waiting_percent=share,
            limit_percent=limit_percent,
        )
