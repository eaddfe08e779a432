"""A hive on a node whose memory is a test's own: what is left of it depends on the workers that run there."""

import shutil
from pathlib import Path

from tests.behaviour.support.stack import Stack

MODEL_BYTES = 100 << 20
HIVE = """
import os
from pathlib import Path

from rbee.hive.main import main
from rbee.host import machine

CHILDREN = Path(f"/proc/self/task/{os.getpid()}/children")


def amounts(file):
    total, each = int(os.environ["NODE_BYTES"]), int(os.environ["WORKER_BYTES"])
    return {"MemTotal": total, "MemAvailable": max(0, total - each * len(CHILDREN.read_text().split()))}


assert machine._amounts
machine._amounts = amounts
main()
"""
"""The hive as it is, but for what the kernel tells of memory: each of its children holds WORKER_BYTES of NODE_BYTES."""


class SmallNode(Stack):
    """A stack whose node has memory for so many workers of its one model, and half of one more."""

    def __init__(self, models: Path, workers: int) -> None:
        super().__init__(models)
        self.folder_of_model = self.state_dir / "models" / "tiny"
        shutil.copytree(models / "tiny-tensor", self.folder_of_model)
        with (self.folder_of_model / "filler").open("wb") as filler:
            filler.truncate(MODEL_BYTES)  # a hole: what it weighs is told, and taken neither of disk nor of memory
        worker = MODEL_BYTES * 5 // 4  # the queen counts 1.2 times the files
        self.environment = {"NODE_BYTES": str(worker * (2 * workers + 1) // 2), "WORKER_BYTES": str(worker)}
        self.hive_program = ("-c", HIVE)
        self.hive_config["heartbeat_interval_s"] = 1.0
