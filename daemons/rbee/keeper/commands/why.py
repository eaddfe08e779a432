"""`rbee why`: what became of a request, or why a worker gets requests or none."""

from typing import Any
from urllib.parse import quote

import click

from rbee.keeper import session
from rbee.keeper.render import show_json
from rbee.keeper.session import json_option
from rbee.keeper.text import printable

_LIMIT_S = 10.0
_BASES = {"measured": ", as measured at the last start", "files": ", estimated from its files"}


@click.command("why")
@click.argument("name", metavar="REQUEST|WORKER")
@json_option
def command(name: str, as_json: bool) -> None:
    """Tell where a recent REQUEST went and where its time was spent, or why a WORKER gets requests or none.

    REQUEST is the X-Correlation-Id of an answer, or the id of a request or task; WORKER is HIVE/WORKER or a worker's
    id. The queen remembers the latest requests since her start.
    """
    found = session.run(_ask(name))
    if as_json:
        show_json(found)
        return
    lines = _worker(found) if found["kind"] == "worker" else _request(found)
    for line in lines:
        click.echo(printable(line))


async def _ask(name: str) -> dict[str, Any]:
    async with session.queen() as queen:
        return await queen.call("GET", f"/v2/explain/{quote(name, safe='/')}", dict[str, Any], timeout_s=_LIMIT_S)


def _request(found: dict[str, Any]) -> list[str]:
    ended = f"{found['outcome']}{' ' + found['code'] if found['code'] else ''}"
    asked = found["asked"] or "no model that could be read"
    stands_for = f" (stands for {found['model']})" if found["model"] != found["asked"] else ""
    lines = [
        f"request {found['correlation_id']} of {found['caller']}: {ended}",
        f"  asked for {asked}{stands_for} by {found['route']}",
        f"  waited {found['queue_ms']:g} ms for a worker; the worker took {found['worker_ms']:g} ms to its first byte; "
        f"the queen's own part was {_ms(found['overhead_ms'])}; {_ms(found['total_ms'])} in all",
    ]
    return lines + [f"  {step['at_ms']:>10.3f} ms  {_step(step)}" for step in found["steps"]]


def _ms(value: float | None) -> str:
    return "not known yet" if value is None else f"{value:g} ms"


def _step(step: dict[str, Any]) -> str:
    parts = [step["what"].replace("_", " "), step.get("worker") or ""]
    if "status" in step:
        parts.append(f"with status {step['status']}")
    if step.get("why"):
        parts.append(f"({step['why']})")
    candidates = step.get("candidates", [])
    if candidates:
        seen = (f"{one['worker']} {one['state']} {one['in_flight']}/{one['slots']}" for one in candidates)
        parts.append(f"among {', '.join(seen)}")
    return " ".join(part for part in parts if part)


def _worker(found: dict[str, Any]) -> list[str]:
    report = found["worker"]
    lines = [
        f"worker {report['hive_id']}/{report['worker_id']}: {report['state']}, "
        f"{'takes requests' if found['routable'] else 'takes none'}",
        f"  {found['in_flight']} of {found['slots']} slots taken, {found['served']} requests given so far",
    ]
    reasons = [
        ("an operator holds it back", found["held"]),
        (f"the queen doubts it: {found['doubt']}", found["doubt"]),
        ("its hive is silent", found["hive_silent"]),
        (f"its hive says: {report['reason']}", report["reason"] and report["reason"] != found["doubt"]),
    ]
    lines += [f"  {words}" for words, holds in reasons if holds]
    if found.get("warm"):
        lines.append(f"  warm times of its model: {found['warm']}")
    if found.get("placement"):
        lines += _placement(found["placement"])
    return lines + [
        f"  {one['correlation_id']}  {one['outcome']}  {one['route']}  {_ms(one['total_ms'])}"
        for one in found["requests"]
    ]


def _placement(decision: dict[str, Any]) -> list[str]:
    """Why it runs on its node: each place that was looked at, with its numbers."""
    needs = "memory of an unknown amount"
    if decision["required_bytes"] is not None:
        needs = f"{_mb(decision['required_bytes'])}{_BASES.get(decision.get('basis', ''), '')}"
    lines = [f"  placed to {decision['strategy']}, for {decision['backend']}; its model needs {needs}"]
    return lines + [f"    {_place(option, option == decision['chosen'])}" for option in decision["options"]]


def _place(option: dict[str, Any], chosen: bool) -> str:
    device = "" if option.get("device") is None else f" device {option['device']}"
    facts = [f"{_mb(option.get('available_bytes', 0))} free", f"{option.get('workers', 0)} workers"]
    if option.get("has_model"):
        facts.append("has the model")
    if option.get("temperature_c") is not None:
        facts.append(f"{option['temperature_c']} degrees")
    if option.get("obstacle"):
        facts.append(f"refused: {option['obstacle'].replace('_', ' ')}")
    return f"{'chosen' if chosen else 'not'} {option['node']}{device}: {', '.join(facts)}"


def _mb(amount: int) -> str:
    return f"{amount / (1 << 20):.0f} MB"
