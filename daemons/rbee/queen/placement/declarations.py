"""Declarations of models: those of the configuration win, beside them those that the API stored."""

import logging
from collections.abc import Mapping

import msgspec

from rbee.queen.store import Store
from rbee.wire.declarations import Declaration, DeclaredBy, DeclaredModel
from rbee.wire.errors import Conflict, StorageUnavailable, TooManyRequests
from rbee.wire.log import ALERT, log

LOGGER = logging.getLogger(__name__)
MOST = 1000


class Declarations:
    """Two layers of name -> declaration. Changes raise StorageUnavailable, and then change nothing."""

    def __init__(self, store: Store, configured: Mapping[str, DeclaredModel]) -> None:
        self._store = store
        self._configured = dict(configured)
        self._stored: dict[str, DeclaredModel] = {}
        self.loaded = False

    async def load(self) -> None:
        """Read what was stored; while the database cannot be used there is none, and ``loaded`` stays false."""
        try:
            documents = await self._store.declarations()
        except StorageUnavailable:
            return
        self.loaded = True
        for name, document in documents.items():
            try:
                self._stored[name] = msgspec.json.decode(document, type=DeclaredModel)
            except msgspec.MsgspecError as error:
                log(LOGGER, ALERT, "a declaration in the database does not decode: store it anew", model=name,
                    why=str(error))  # fmt: skip

    @property
    def in_force(self) -> Mapping[str, DeclaredModel]:
        """The declaration of each model that has one."""
        return self._stored | self._configured

    def all(self) -> list[Declaration]:
        """Every declaration in force, by name."""
        return [self._view(name) for name in sorted(self.in_force)]

    def configure(self, configured: Mapping[str, DeclaredModel]) -> None:
        """Put the declarations of a reloaded configuration in force."""
        self._configured = dict(configured)

    async def put(self, name: str, declared: DeclaredModel) -> Declaration:
        """Store a declaration for good; raises Conflict where the configuration has one, TooManyRequests."""
        self._refuse_configured(name)
        if name not in self._stored and len(self._stored) >= MOST:
            raise TooManyRequests(f"{MOST} models are declared: remove one that is not used", retry_after_s=60)
        await self._store.put_declaration(name, msgspec.json.encode(declared))
        self._stored[name] = declared
        log(LOGGER, logging.INFO, "model declared", model=name)
        return self._view(name)

    async def remove(self, name: str) -> None:
        """Forget a stored declaration, if there is one; raises Conflict where the configuration alone has it."""
        if name not in self._stored:
            self._refuse_configured(name)
        await self._store.remove_declaration(name)
        if self._stored.pop(name, None) is not None:
            log(LOGGER, logging.INFO, "declaration removed", model=name)

    def _view(self, name: str) -> Declaration:
        by = DeclaredBy.FILE if name in self._configured else DeclaredBy.API
        return Declaration(name, self.in_force[name], by)

    def _refuse_configured(self, name: str) -> None:
        if name in self._configured:
            raise Conflict(
                f"queen.yaml declares {name}, and wins: change it there and reload the queen, or take it out there",
                details={"model": name, "declared_by": DeclaredBy.FILE.value},
            )
