"""`rbee bench`: how fast a text model answers so many clients at once."""

import itertools
import os
from typing import Any

import click

from rbee.keeper import session
from rbee.keeper.bench import Level, Plan, ask, measure
from rbee.keeper.failure import CommandFailed
from rbee.keeper.render import say, show_json, show_table
from rbee.keeper.session import json_option
from rbee.wire import names

MOST_CLIENTS, MOST_REQUESTS = 256, 10_000
_LEAST_REQUESTS, _ROUNDS = 8, 4
HEADS = (
    "clients", "requests", "failed", "tokens/s", "tokens/s a client", "first token ms (p50)", "(p99)",
    "between tokens ms (p50)", "(p99)",
)  # fmt: skip


def _levels(ctx: click.Context, option: click.Parameter, value: str) -> tuple[int, ...]:
    parts = value.split(",")
    if not all(part.isascii() and part.isdigit() and 1 <= int(part) <= MOST_CLIENTS for part in parts):
        raise click.BadParameter(f"numbers from 1 to {MOST_CLIENTS}, with commas between", ctx, option)
    return tuple(int(part) for part in parts)


@click.command("bench")
@click.argument("model")
@click.option(
    "--clients",
    default="1,4,8",
    show_default=True,
    metavar="N,...",
    callback=_levels,
    help="How many clients ask at once, one measurement each.",
)
@click.option(
    "--requests",
    type=click.IntRange(1, MOST_REQUESTS),
    help="Requests of each measurement; default: 4 a client, at least 8.",
)
@click.option("--max-tokens", type=click.IntRange(2, 65_536), default=64, show_default=True, help="Tokens an answer.")
@click.option("--prompt-words", type=click.IntRange(1, 100_000), default=50, show_default=True, help="Words a prompt.")
@click.option(
    "--time-limit",
    type=click.FloatRange(1, 3600),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="The most that one measurement takes, and the first answer before them.",
)
@json_option
def command(
    model: str,
    clients: tuple[int, ...],
    requests: int | None,
    max_tokens: int,
    prompt_words: int,
    time_limit: float,
    as_json: bool,
) -> None:
    """Measure MODEL through the queen: tokens a second, time to first token, time between tokens.

    It is real work for the model's workers: everybody who asks them meanwhile waits longer. Each prompt begins like no
    other one, every answer has all its tokens, and a first answer beforehand is not counted.
    """
    plan = Plan(names.model_name(model), max_tokens, prompt_words, time_limit)
    levels = session.run(_run(plan, clients, requests))
    if as_json:
        show_json({"model": model, "max_tokens": max_tokens, "levels": [_facts(level) for level in levels]})
    else:
        show_table(HEADS, [_row(level) for level in levels], "nothing was measured")
    for level in levels:
        _say_what_failed(level)
    if not any(level.samples for level in levels):
        raise next((level.failure for level in levels if level.failure is not None), _nothing(plan))


async def _run(plan: Plan, clients: tuple[int, ...], requests: int | None) -> list[Level]:
    chosen = session.settings()
    # prompts are unlike those of an earlier run as well
    numbers = itertools.count(int.from_bytes(os.urandom(6)))
    levels = []
    async with session.connect(chosen.queen, chosen, connections=max(clients)) as queen:
        first = await ask(queen, plan.body(next(numbers)), plan.time_limit_s)
        say(f"prompts of {first.usage.prompt_tokens} tokens, answers of {first.usage.completion_tokens}")
        for each in clients:
            wanted = requests or max(_LEAST_REQUESTS, _ROUNDS * each)
            levels.append(await measure(queen, plan, each, numbers, wanted))
    return levels


def _nothing(plan: Plan) -> CommandFailed:
    return CommandFailed(
        f"no answer was whole within {plan.time_limit_s:g} s: allow more with --time-limit, or ask for less with "
        "--max-tokens"
    )


def _say_what_failed(level: Level) -> None:
    for code, count in level.failures.most_common():
        say(f"{level.clients} clients: {count} requests failed with {code}")
    if level.unfinished:
        say(f"{level.clients} clients: {level.unfinished} of {level.requests} requests were not done in time")


def _facts(level: Level) -> dict[str, Any]:
    done = level.samples
    return {
        "clients": level.clients,
        "requests": level.requests,
        "done": len(done),
        "failed": dict(level.failures),
        "unfinished": level.unfinished,
        "seconds": round(level.seconds, 3),
        "prompt_tokens": sum(sample.usage.prompt_tokens for sample in done),
        "completion_tokens": sum(sample.usage.completion_tokens for sample in done),
        "tokens_per_s": round(level.tokens_per_s, 2),
        "ttft_ms": {"p50": _ms(level.first_s(0.5)), "p99": _ms(level.first_s(0.99))},
        "inter_token_ms": {"p50": _ms(level.gap_s(0.5)), "p99": _ms(level.gap_s(0.99))},
    }


def _row(level: Level) -> list[str]:
    measured = (level.first_s(0.5), level.first_s(0.99), level.gap_s(0.5), level.gap_s(0.99))
    return [
        str(level.clients),
        f"{len(level.samples)}/{level.requests}",
        str(level.failed),
        f"{level.tokens_per_s:.1f}",
        f"{level.tokens_per_s / level.clients:.1f}",
        *("-" if value is None else f"{value * 1000:.1f}" for value in measured),
    ]


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)
