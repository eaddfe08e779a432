"""Names that clients may use for a model: those of the configuration, over them those set by the API."""

from collections.abc import Mapping


class Aliases:
    """Two layers of alias -> model; one step only, an alias of an alias is a model's name."""

    def __init__(self, configured: Mapping[str, str], stored: Mapping[str, str]) -> None:
        self._configured = dict(configured)
        self._stored = dict(stored)

    def resolve(self, name: str) -> str:
        """The model that ``name`` stands for; the name itself where it is no alias."""
        return self._stored.get(name) or self._configured.get(name) or name

    def all(self) -> dict[str, str]:
        """Every alias and its model."""
        return self._configured | self._stored

    def configure(self, configured: Mapping[str, str]) -> None:
        """Put the aliases of a reloaded configuration in force."""
        self._configured = dict(configured)

    def put(self, alias: str, model: str) -> None:
        """Set an alias."""
        self._stored[alias] = model

    def remove(self, alias: str) -> None:
        """Unset an alias that the API set."""
        self._stored.pop(alias, None)
