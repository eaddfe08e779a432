"""Where things live on a machine; `rbee dev` and tests live elsewhere by other roots."""

from dataclasses import dataclass
from pathlib import Path

from rbee.wire.names import worker_id

CONFIG_DIR = Path("/etc/rbee")
STATE_DIR = Path("/var/lib/rbee")
RUN_DIR = Path("/run/rbee")


@dataclass(frozen=True, slots=True)
class Paths:
    """The three roots, and the files under them that more than one daemon knows."""

    config_dir: Path = CONFIG_DIR
    state_dir: Path = STATE_DIR
    run_dir: Path = RUN_DIR

    @property
    def definition_folders(self) -> tuple[Path, Path, Path]:
        """Folders of worker definitions, the first one that has the file wins: operator, hive (kept), ephemeral."""
        return (self.config_dir / "workers", self.state_dir / "workers", self.run_dir / "workers")

    def definition(self, worker: str) -> Path | None:
        """The definition file of a worker, or None where there is none; raises InvalidRequest for a bad id."""
        name = f"{worker_id(worker)}.yaml"
        return next((folder / name for folder in self.definition_folders if (folder / name).is_file()), None)

    def worker_folder(self, worker: str) -> Path:
        """The runtime folder of a worker: its socket and its facts."""
        return self.run_dir / "workers" / worker_id(worker)

    def worker_socket(self, worker: str) -> Path:
        """The Unix socket of a worker."""
        return self.worker_folder(worker) / "worker.sock"

    def worker_facts(self, worker: str) -> Path:
        """The file in which a ready worker states its facts (WorkerFacts as JSON)."""
        return self.worker_folder(worker) / "worker.json"

    @property
    def queen_socket(self) -> Path:
        """The Unix socket of the queen."""
        return self.run_dir / "queen.sock"

    @property
    def hive_socket(self) -> Path:
        """The Unix socket of the hive."""
        return self.run_dir / "hive.sock"

    @property
    def models(self) -> Path:
        """The folder of models, one folder each."""
        return self.state_dir / "models"
