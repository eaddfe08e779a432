"""What a request is likely to cost, in tokens, from its bytes alone: by it workers are weighed and clients share."""

import re

BYTES_PER_TOKEN = 4
PREFILL_SHARE = 0.1
"""Reading a token of the prompt costs about a tenth of writing one."""
DEFAULT_OUTPUT = 256
_MOST_OUTPUT = 32_768
_WITHIN = 4096
_LIMIT = re.compile(rb'"max_(?:completion_)?tokens"\s*:\s*([0-9]{1,6})')
_PROMPT = re.compile(rb'"(?:messages|prompt)"\s*:')


def prompt_at(body: bytes) -> int | None:
    """Where the prompt of a body begins, in bytes, without parsing it; None where its first 4 KiB have none."""
    found = _PROMPT.search(body, 0, _WITHIN)
    return None if found is None else found.start()


def estimate(body: bytes) -> float:
    """Tokens of work in a request, at least 1: where it has a prompt those it writes and a tenth of those it reads.

    The limit of what it writes is looked for in the last and the first 4 KiB of the body, where clients put it.
    """
    size = len(body)
    reads = size / BYTES_PER_TOKEN
    if prompt_at(body) is None:
        return max(1.0, reads)
    found = _LIMIT.search(body, size - _WITHIN if size > _WITHIN else 0)
    if found is None and size > _WITHIN:
        found = _LIMIT.search(body, 0, _WITHIN)
    writes = DEFAULT_OUTPUT if found is None else min(int(found[1]), _MOST_OUTPUT)
    return max(1.0, writes + PREFILL_SHARE * reads)
