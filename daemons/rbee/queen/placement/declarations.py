"""Declarations of models: those of the configuration win, beside them those that the API stored.

What was declared once is remembered by its name, so that workers of it end though the queen was not there, or knew
nothing of them yet, when its declaration went.
"""

import itertools
import logging
from collections.abc import Mapping

import msgspec

from rbee.queen.store import Store
from rbee.wire.declarations import Declaration, DeclaredBy, DeclaredModel
from rbee.wire.errors import Conflict, StorageUnavailable, TooManyRequests
from rbee.wire.log import ALERT, log

LOGGER = logging.getLogger(__name__)
MOST = 1000
MOST_ENDED = 1000
"""Models that are declared no longer and remembered; of more, those that were first declared go first."""


class Declarations:
    """Two layers of name -> declaration. Changes raise StorageUnavailable, and then change nothing."""

    def __init__(self, store: Store, configured: Mapping[str, DeclaredModel]) -> None:
        self._store = store
        self._configured = dict(configured)
        self._stored: dict[str, DeclaredModel] = {}
        self._unread: set[str] = set()
        self._once: dict[str, float | None] = {}
        self.loaded = False
        self._note()

    async def load(self) -> None:
        """Read what was stored; while the database cannot be used there is none, and ``loaded`` stays false."""
        try:
            once = await self._store.once_declared()
            documents = await self._store.declarations()  # last: what is put or removed from here on comes after it
        except StorageUnavailable:
            return
        self.loaded = True
        self._once = once | self._once
        for name, document in documents.items():
            try:
                self._stored[name] = msgspec.json.decode(document, type=DeclaredModel)
            except msgspec.MsgspecError as error:
                self._unread.add(name)
                log(LOGGER, ALERT, "a declaration in the database does not decode: store it anew", model=name,
                    why=str(error))  # fmt: skip
        self._note()

    @property
    def in_force(self) -> Mapping[str, DeclaredModel]:
        """The declaration of each model that has one."""
        return self._stored | self._configured

    @property
    def ended(self) -> Mapping[str, float | None]:
        """The models that were declared once and are no longer, with the idle limits of their last declarations.

        None while it is not known what is stored: there may be a declaration among it that goes on.
        """
        if not self.loaded:
            return {}
        declared = self.in_force.keys() | self._unread
        return {name: limit for name, limit in self._once.items() if name not in declared}

    def all(self) -> list[Declaration]:
        """Every declaration in force, by name."""
        return [self._view(name) for name in sorted(self.in_force)]

    def configure(self, configured: Mapping[str, DeclaredModel]) -> None:
        """Put the declarations of a reloaded configuration in force."""
        self._configured = dict(configured)
        self._note()

    async def put(self, name: str, declared: DeclaredModel) -> Declaration:
        """Store a declaration for good; raises Conflict where the configuration has one, TooManyRequests."""
        self._refuse_configured(name)
        if name not in self._stored and len(self._stored) >= MOST:
            raise TooManyRequests(f"{MOST} models are declared: remove one that is not used", retry_after_s=60)
        await self._store.put_declaration(name, msgspec.json.encode(declared), declared.idle_limit_s)
        self._stored[name] = declared
        self._once[name] = declared.idle_limit_s
        self._unread.discard(name)
        log(LOGGER, logging.INFO, "model declared", model=name)
        return self._view(name)

    async def remove(self, name: str) -> None:
        """Forget a stored declaration, if there is one; raises Conflict where the configuration alone has it."""
        if name not in self._stored:
            self._refuse_configured(name)
        await self._store.remove_declaration(name)
        self._unread.discard(name)
        if self._stored.pop(name, None) is not None:
            log(LOGGER, logging.INFO, "declaration removed", model=name)
        self._note()

    def _note(self) -> None:
        """Remember what is in force, and of what is not no more than the bound."""
        limits = {name: declared.idle_limit_s for name, declared in self.in_force.items()}
        news = {name: limit for name, limit in limits.items() if (name, limit) not in self._once.items()}
        if news:
            self._once |= news
            self._store.note_declared(news)
        ended = self.ended
        surplus = list(itertools.islice(ended, max(0, len(ended) - MOST_ENDED)))
        if surplus:
            for name in surplus:
                del self._once[name]
            self._store.forget_declared(surplus)

    def _view(self, name: str) -> Declaration:
        by = DeclaredBy.FILE if name in self._configured else DeclaredBy.API
        return Declaration(name, self.in_force[name], by)

    def _refuse_configured(self, name: str) -> None:
        if name in self._configured:
            raise Conflict(
                f"queen.yaml declares {name}, and wins: change it there and reload the queen, or take it out there",
                details={"model": name, "declared_by": DeclaredBy.FILE.value},
            )
