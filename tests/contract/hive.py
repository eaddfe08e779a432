"""A hive of its own with a model and a worker, and what is fuzzed of it."""

from tests.contract.fuzzer import Fuzzer, defects
from tests.unit.hive.process import Hive

TOKEN = "a-token-of-the-fuzzer"
ENDLESS = "/logs$"
"""Streams that may have no end."""


async def fuzz_hive(fuzzer: Fuzzer) -> bool:
    """Whether nothing is found."""
    token = fuzzer.folder / "token"
    token.write_text(TOKEN)
    token.chmod(0o600)
    hive = Hive(fuzzer.folder, tokens={"hive_api_token": str(token)}, limits={"invalid_per_second": 100_000})
    await hive.start()
    try:
        await hive.spawn("w")
        await hive.until("w", "idle")
        # a worker or model may bear the name of a fixed path beside it: Allow lists what both of them take
        code = await fuzzer.run(
            hive.url, TOKEN, "--exclude-path-regex", ENDLESS, left_out=("allow_header_conformance",)
        )
        return code == 0 and not await defects(hive.url, "rbee_hive")
    finally:
        await hive.stop()
