"""`rbee infer`: a prompt in, text out as it is made; everything about it on stderr."""

import contextlib
import os
from pathlib import Path
from typing import Any

import click

from rbee.keeper import inference, placement, session
from rbee.keeper.placement import Bounds
from rbee.keeper.render import Screen, say, show_json
from rbee.keeper.session import json_option
from rbee.keeper.settings import Place, state_folder
from rbee.keeper.stream import Answer, View
from rbee.keeper.workers import all_workers, checked_backend
from rbee.wire import names

PATH = "/v1/inference"


@click.command("infer")
@click.option("--model", required=True, help="The model's name, or its reference (hf:org/repo, file:///folder).")
@click.option("--prompt", required=True)
@click.option("--max-tokens", type=click.IntRange(min=1), default=128, show_default=True)
@click.option("--temperature", type=click.FloatRange(0, 2))
@click.option("--top-p", type=click.FloatRange(0, 1))
@click.option("--seed", type=click.IntRange(min=0))
@click.option("--stop", multiple=True, help="Text that ends the answer; may be given several times.")
@click.option("--node", metavar="HIVE", help="Only workers of this hive.")
@click.option("--backend", help="Only workers of this backend: cpu or cuda.")
@click.option("--device", type=click.IntRange(min=0), help="Only workers on this device.")
@click.option("--worker-url", metavar="URL", help="Ask this worker directly, with --token-file's token.")
@click.option("--worker-socket", type=click.Path(path_type=Path), help="Ask the worker at this Unix socket directly.")
@click.option(
    "--stall-limit",
    type=click.FloatRange(min=0.1),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="Cancel when nothing comes for this long.",
)
@click.option("--ephemeral", is_flag=True, help="Start what does not run, and stop it again after the answer.")
@json_option
def command(
    model: str,
    prompt: str,
    max_tokens: int,
    node: str | None,
    backend: str | None,
    device: int | None,
    worker_url: str | None,
    worker_socket: Path | None,
    stall_limit: float,
    ephemeral: bool,
    as_json: bool,
    **sampling: float | tuple[str, ...] | None,
) -> None:
    """Give a prompt to a model and stream its answer to stdout."""
    body: dict[str, Any] = {"model": checked_model(model), "prompt": prompt, "max_tokens": max_tokens}
    body |= {name: value for name, value in sampling.items() if value not in (None, ())}
    bounds = Bounds(node, checked_backend(backend), device)
    place = _worker_place(worker_url, worker_socket)
    if ephemeral and place is not None:
        raise click.UsageError("--ephemeral starts what the queen needs: leave --worker-url and --worker-socket out")
    limits = inference.Limits(stall_s=stall_limit)
    with _started_for(body["model"], node) if ephemeral else contextlib.nullcontext():
        answer = session.run(_infer(place, body, bounds, limits, as_json))
    if as_json:
        show_json({"text": "".join(answer.text), "tokens": answer.tokens, "metrics": answer.metrics, "end": answer.end})
    else:
        say(summary(answer))


def _started_for(model: str, node: str | None) -> contextlib.AbstractContextManager[None]:
    from rbee.keeper.ephemeral import everything  # SSH takes its time to import

    return everything(model, node)


def checked_model(value: str) -> str:
    """A model's name, or a reference in one of the accepted forms; raises InvalidModelReference or InvalidRequest."""
    if ":" in value or not names.MODEL_NAME.fullmatch(value):
        return names.model_reference(value)
    return value


async def _infer(
    place: Place | None, body: dict[str, Any], bounds: Bounds, limits: inference.Limits, as_json: bool
) -> Answer:
    chosen = session.settings()
    partials = state_folder(os.environ) / "partial"
    with Screen() as screen:
        text = (lambda _: None) if as_json else screen.text
        view = View(text, screen.progress, screen.say)
        async with session.connect(place or chosen.queen, chosen, screen.say) as daemon:
            if place is None and bounds.given:
                workers = await all_workers(daemon)
                await placement.check_node(daemon, workers, bounds.node)
                placement.check(workers, body["model"], bounds)
            return await inference.infer(daemon, PATH, body, view=view, limits=limits, partials=partials)


def _worker_place(url: str | None, socket: Path | None) -> Place | None:
    if url is None and socket is None:
        return None
    flags = session.flags()
    return Place("worker", "rbee-worker@ID", (url or "http://worker").rstrip("/"), socket, flags.token_file)


def summary(answer: Answer) -> str:
    """One line about a finished answer: tokens, why it ended, and the figures that the worker gave."""
    end, metrics = answer.end or {}, answer.metrics
    told = [f"{answer.count} tokens"]
    if isinstance(end.get("finish_reason"), str):
        told.append(f"ended by {end['finish_reason']}")
    if isinstance(metrics.get("ttft_ms"), int | float):
        told.append(f"the first after {metrics['ttft_ms']:.0f} ms")
    if isinstance(metrics.get("tokens_per_s"), int | float):
        told.append(f"{metrics['tokens_per_s']:.1f} tokens/s")
    return ", ".join(told + ([f"worker {answer.worker}"] if answer.worker else []))
