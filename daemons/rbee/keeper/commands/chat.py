"""`rbee chat`: one message, or a conversation that goes on until Ctrl+D."""

import asyncio
import sys
from typing import Any

import click

from rbee.keeper import openai, session
from rbee.keeper.client import Daemon
from rbee.keeper.render import Screen
from rbee.wire import names

_STALL_LIMIT_S = 60.0


@click.command("chat")
@click.option("--model", required=True, help="The chat model.")
@click.option("--message", "-m", help="Say this, print the answer, and end.")
@click.option("--system", help="Instructions that stand before the conversation.")
@click.option("--max-tokens", type=click.IntRange(min=1), help="The most tokens of an answer.")
@click.option("--temperature", type=click.FloatRange(0, 2))
@click.option("--stall-limit", type=click.FloatRange(min=0.1), default=_STALL_LIMIT_S, show_default=True)
def command(
    model: str,
    message: str | None,
    system: str | None,
    max_tokens: int | None,
    temperature: float | None,
    stall_limit: float,
) -> None:
    """Talk with a model; the answer streams as it is made."""
    body: dict[str, Any] = {"model": names.model_name(model)}
    if max_tokens is not None:
        body["max_tokens"] = max_tokens
    if temperature is not None:
        body["temperature"] = temperature
    turns = [openai.Message("system", system)] if system else []
    session.run(_talk(body, turns, message, stall_limit))


async def _talk(body: dict[str, Any], turns: list[openai.Message], message: str | None, stall_limit_s: float) -> None:
    async with session.queen() as queen:
        if message is not None:
            await _turn(queen, body, turns, message, stall_limit_s)
            return
        while (said := await asyncio.to_thread(_read_line)) is not None:
            if said.strip():
                await _turn(queen, body, turns, said, stall_limit_s)


async def _turn(
    queen: Daemon, body: dict[str, Any], turns: list[openai.Message], said: str, stall_limit_s: float
) -> None:
    turns.append(openai.Message("user", said))
    with Screen() as screen:
        answer, _ = await openai.chat(queen, body | {"messages": turns}, screen.text, stall_limit_s)
    turns.append(openai.Message("assistant", answer))


def _read_line() -> str | None:
    """A line from the person, None at the end of the input."""
    if sys.stdin.isatty():
        sys.stderr.write("> ")
        sys.stderr.flush()
    line = sys.stdin.readline()
    return line.rstrip("\n") if line else None
