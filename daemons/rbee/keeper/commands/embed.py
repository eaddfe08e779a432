"""`rbee embed`: texts into vectors."""

import click

from rbee.keeper import openai, session
from rbee.keeper.render import show_json
from rbee.keeper.session import json_option
from rbee.keeper.text import printable
from rbee.wire import names

_LIMIT_S = 300.0
_SHOWN = 6


@click.command("embed")
@click.argument("texts", nargs=-1, required=True)
@click.option("--model", required=True, help="The embedding model.")
@click.option("--time-limit", type=click.FloatRange(min=0.1), default=_LIMIT_S, show_default=True, metavar="SECONDS")
@json_option
def command(texts: tuple[str, ...], model: str, time_limit: float, as_json: bool) -> None:
    """Turn TEXTS into vectors; with several, also show how alike each is to the first."""
    names.model_name(model)

    async def ask() -> list[list[float]]:
        async with session.queen() as queen:
            return await openai.embed(queen, model, texts, time_limit)

    vectors = session.run(ask())
    if as_json:
        rows = [{"text": text, "embedding": vector} for text, vector in zip(texts, vectors, strict=True)]
        show_json({"model": model, "data": rows})
        return
    for text, vector in zip(texts, vectors, strict=True):
        start = " ".join(f"{value:+.4f}" for value in vector[:_SHOWN])
        alike = f"  like the first: {openai.cosine(vectors[0], vector):.2f}" if len(texts) > 1 else ""
        click.echo(f"{start} ... ({len(vector)} numbers){alike}  {printable(text)}")
