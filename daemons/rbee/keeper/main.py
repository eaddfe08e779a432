"""The command `rbee`: its groups, loaded on first use, and what becomes an exit code."""

import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from rbee import __version__
from rbee.keeper import failure
from rbee.keeper.settings import Flags
from rbee.wire.errors import RbeeError

COMMANDS = {
    "status": "Show the queen, the machines and every worker.",
    "top": "Show the whole fleet live: nodes, GPUs, workers, queues, rates.",
    "worker": "List, start, stop, follow and remove workers.",
    "model": "List the models that can be asked; fetch, remove, verify and pin them.",
    "catalog": "See and back up the catalogue of a machine's models.",
    "infer": "Give a prompt to a model and stream the answer.",
    "chat": "Talk with a chat model, one message or a conversation.",
    "embed": "Turn texts into vectors.",
    "bench": "Measure how fast a text model answers.",
    "task": "Cancel a task.",
    "why": "Tell what became of a request, or why a worker gets none.",
    "hive": "Check a machine's hive.",
    "apply": "Bring about the fleet that a file describes, telling the difference first.",
    "node": "Add machines to the fleet over SSH, and look after them.",
    "logs": "Print the journal of a node's hive or worker.",
    "audit": "Read the audit log of this machine's daemons, and check that nobody changed it.",
    "doctor": "Check this machine: what it lacks, and what to do.",
    "credentials": "Make and rotate the tokens of this machine.",
    "config": "Show or write this command's own configuration.",
    "dev": "Run queen, hive and two workers in this terminal.",
    "completion": "Print a script that completes rbee's commands.",
    "version": "Print the version.",
}
ALIASES = {"workers": "worker", "models": "model", "nodes": "node"}
EXIT_FAILURE, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130


class LazyGroup(click.Group):
    """A group that imports a command's module only when that command is called, so that --help is quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        name = ALIASES.get(cmd_name, cmd_name)
        if name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"rbee.keeper.commands.{name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog='Completion for bash: eval "$(rbee completion bash)" (also: zsh, fish).',
)
@click.version_option(__version__, prog_name="rbee", message="%(prog)s %(version)s")
@click.option("--config", type=click.Path(path_type=Path), help="Configuration file of this command.")
@click.option("--queen-url", metavar="URL", help="Where the queen listens, instead of her Unix socket.")
@click.option("--token-file", type=click.Path(path_type=Path), help="File with the token to present.")
@click.option("--socket", type=click.Path(path_type=Path), help="The queen's Unix socket.")
@click.option("--hive-socket", type=click.Path(path_type=Path), help="The hive's Unix socket.")
@click.option("--hive-url", metavar="URL", help="Where the hive listens, instead of its Unix socket.")
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(0.05, 600),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="How long a daemon or an SSH server may take to answer; three tries.",
)
@click.pass_context
def cli(
    ctx: click.Context,
    config: Path | None,
    queen_url: str | None,
    token_file: Path | None,
    socket: Path | None,
    hive_socket: Path | None,
    hive_url: str | None,
    timeout_s: float,
) -> None:
    """Private inference on your own machines: ask models, and look after the daemons that serve them."""
    ctx.obj = Flags(config, queen_url, token_file, socket, hive_socket, hive_url, timeout_s)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0 success, 1 failure, 2 usage, 130 after Ctrl+C."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    try:
        result = cli.main(argv, prog_name="rbee", standalone_mode=False)
    except click.UsageError as error:
        error.show()
        return EXIT_USAGE
    except click.ClickException as error:
        error.show()
        return EXIT_FAILURE
    except (click.Abort, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    except RbeeError as error:
        failure.show(error, as_json="--json" in argv)
        return EXIT_FAILURE
    except BrokenPipeError:
        # whoever read our output is gone: what is still buffered has nowhere to go
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILURE
    return result if isinstance(result, int) else 0


if __name__ == "__main__":
    sys.exit(main())
