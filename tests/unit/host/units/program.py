"""A program that speaks sd_notify as it is told on its command line; started by the tests as a worker."""

import os
import signal
import socket
import subprocess
import sys
import time


def notify(text: str) -> None:
    address = os.environ["NOTIFY_SOCKET"]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto(text.encode(), "\0" + address[1:])


def main(steps: list[str]) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    for step in steps:
        verb, _, argument = step.partition(":")
        if verb == "say":
            notify(argument)
        elif verb == "sleep":
            time.sleep(float(argument))
        elif verb == "print":
            print(argument, flush=True)
        elif verb == "deaf":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        elif verb == "exit":
            sys.exit(int(argument))
        elif verb == "kill":
            os.kill(os.getpid(), int(argument))
        elif verb == "stranger":
            address = "\0" + os.environ["NOTIFY_SOCKET"][1:]
            code = f"import socket; socket.socket(1, 2).sendto({argument.encode()!r}, {address!r})"
            subprocess.run([sys.executable, "-c", code], check=True)
        elif verb == "environment":
            print(" ".join(sorted(os.environ)), flush=True)
        elif verb == "feed":
            while True:
                notify("WATCHDOG=1")
                time.sleep(float(argument))


main(sys.argv[1:])
