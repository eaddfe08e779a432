"""A worker of each task, and what is fuzzed of it."""

from rbee.keeper.demo.build import build_all
from tests.contract.fuzzer import Fuzzer, defects
from tests.unit.worker.process import TOKEN, serving

OWN_ROUTES = {
    "bee-talk": "",
    "all-minilm-l6-v2": "/v1/embeddings",
    "tiny-rank": "/v1/rerank",
    "tiny-tensor": "/v2/models",
}
"""Which routes are fuzzed of a worker with that model: all of the first, of the others what its task alone serves."""


async def fuzz_worker(fuzzer: Fuzzer) -> bool:
    """Whether nothing is found."""
    models = build_all(fuzzer.folder / "models", OWN_ROUTES)
    most = fuzzer.seconds // (len(OWN_ROUTES) + 1)
    found = []
    for name, routes in OWN_ROUTES.items():
        home = fuzzer.folder / name
        home.mkdir()
        async with serving(home, model=str(models[name])) as worker:
            chosen = ("--include-path-regex", f"^{routes}") if routes else ()
            code = await fuzzer.run(worker.url, TOKEN, *chosen, seconds=most if routes else 2 * most)
            found.append(code == 0 and not await defects(worker.url, "rbee_worker"))
    return all(found)
