"""How long to wait between tries: exponential, with jitter so that many callers do not come back together."""

from collections.abc import Callable, Iterator


def delays(
    tries: int,
    first_s: float,
    factor: float,
    jitter: float,
    random: Callable[[], float],
    most_s: float = 60.0,
) -> Iterator[float]:
    """Yield ``tries`` waits in seconds: ``first_s * factor**n``, at most ``most_s``, each varied by +-``jitter``.

    ``random`` gives numbers in [0, 1); ``jitter`` 0.2 means between 80 % and 120 %.
    """
    wait = first_s
    for _ in range(tries):
        yield min(wait, most_s) * (1.0 + jitter * (2.0 * random() - 1.0))
        wait = min(wait * factor, most_s)
