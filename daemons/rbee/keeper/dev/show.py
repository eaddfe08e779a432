"""The demonstration of `rbee dev`: a question, three sentences, and the lines to go on with."""

import shlex
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import rbee
from rbee.keeper import openai
from rbee.keeper.client import Daemon, Patience
from rbee.keeper.dev.folders import Folders, Ports
from rbee.keeper.dev.models import EMBEDDING_MODEL, TALKING_MODEL
from rbee.keeper.settings import Place
from rbee.keeper.text import printable

QUESTION = "What does a worker do?"
SENTENCES = ("The bee flies to the flower.", "An insect visits a blossom.", "The invoice is due on Monday.")
_COLD_LIMIT_S = 120.0


def queen_over_tcp(made: Folders, ports: Ports, say: Callable[[str], None]) -> Daemon:
    """The queen as any client reaches her: TCP and the token of its file."""
    place = Place("queen", "rbee-queen", f"http://127.0.0.1:{ports.queen}", None, made.token("api_token"))
    return Daemon(place, Patience(), say)


async def demonstrate(daemon: Daemon, say: Callable[[str], None]) -> None:
    """Ask a question with the answer streaming, and compare three sentences by their vectors."""
    say(f"\n> {QUESTION}")
    began = time.monotonic()
    first: list[float] = []

    def write(piece: str) -> None:
        if not first:
            first.append(time.monotonic() - began)
        sys.stdout.write(printable(piece))
        sys.stdout.flush()

    body = {
        "model": TALKING_MODEL,
        "messages": [{"role": "user", "content": QUESTION}],
        "max_tokens": 80,
        "temperature": 0,
    }
    _, pieces = await openai.chat(daemon, body, write, _COLD_LIMIT_S)
    took = time.monotonic() - began
    write("\n")
    say(f"  ({TALKING_MODEL}: {pieces} pieces in {took:.2f} s, the first after {first[0] if first else took:.2f} s)")
    vectors = await openai.embed(daemon, EMBEDDING_MODEL, SENTENCES, _COLD_LIMIT_S)
    near, far = openai.cosine(vectors[0], vectors[1]), openai.cosine(vectors[0], vectors[2])
    say(f"\n{EMBEDDING_MODEL}: '{SENTENCES[0]}' is like '{SENTENCES[1]}' {near:.2f}, like '{SENTENCES[2]}' {far:.2f}")


def lines_to_go_on(made: Folders, ports: Ports) -> str:
    """Commands that work as they stand, in another terminal."""
    queen = f"http://127.0.0.1:{ports.queen}"
    token = f'-H "Authorization: Bearer $(cat {made.token("api_token")})"'
    json = "-H 'Content-Type: application/json'"
    chat = f'{{"model":"{TALKING_MODEL}","stream":true,"messages":[{{"role":"user","content":"{QUESTION}"}}]}}'
    texts = f'{{"model":"{EMBEDDING_MODEL}","input":["{SENTENCES[0]}"]}}'
    return "\n".join(
        (
            "",
            "Go on from another terminal:",
            f"  curl --unix-socket {made.queen_socket} http://queen/v2/workers/list",
            f"  curl --unix-socket {made.queen_socket} http://queen/v1/models",
            f"  curl --unix-socket {made.hive_socket} http://hive/v1/workers/list",
            f"  curl -N {queen}/v1/chat/completions {token} {json} -d '{chat}'",
            f"  curl {queen}/v1/embeddings {token} {json} -d '{texts}'",
            f"  {_this_command()} --socket {made.queen_socket} --hive-socket {made.hive_socket} worker list",
            "",
        )
    )


def _this_command() -> str:
    """How another terminal calls this command: by name where it is installed, else from this checkout."""
    if shutil.which("rbee"):
        return "rbee"
    package = Path(rbee.__file__).parent.parent
    return f"PYTHONPATH={shlex.quote(str(package))} {shlex.quote(sys.executable)} -m rbee.keeper.main"
