"""A queen with two real hives on this machine, each with folders and workers of its own."""

from pathlib import Path

from tests.behaviour.support.http import until
from tests.behaviour.support.stack import Stack


class TwoHives(Stack):
    """A stack (hive ``bee``) beside which a second hive ``far`` reports to the same queen; ``far`` has its folders."""

    def __init__(self, models: Path) -> None:
        super().__init__(models)
        self.far = Stack(models)
        self.far.tokens = self.tokens
        for name, value in self.tokens.items():
            self.far.write_token(name, value)
        self.far.hive_config = {"hive_id": "far", "labels": ["fast-disk"], "queen": {"callback_url": self.queen_url}}

    @property
    def huge(self) -> Path:
        """A folder under a model root of ``far`` alone."""
        return self.far.state_dir / "models" / "huge"

    @property
    def hives(self) -> dict[str, Stack]:
        """Both, by the hive's id."""
        return {"bee": self, "far": self.far}

    def start(self) -> None:
        """Queen, then both hives; the queen has heard of both."""
        super().start()
        self.far.hive_config["models"] = self.hive_config.get("models", {})
        self.far.start_hive()
        until(lambda: self.admin.get("/health").json["hives"] == 2)

    def close(self) -> None:
        """The second hive, then the rest."""
        try:
            self.far.close()
        finally:
            super().close()
