"""Compile the queen's straight way to machine code: native.py FOLDER does it within FOLDER/rbee, a copy of the source.

Each module stays as source beside its extension, which Python prefers. mypyc makes every extension of one shared
library, rbee__mypyc, in FOLDER. Where anything cannot be compiled the command fails, and the folder is of no use.
"""

import importlib.machinery
import shutil
import subprocess
import sys
from contextlib import chdir
from pathlib import Path

MODULES = (
    "rbee/queen/admission/admission.py",
    "rbee/queen/admission/clients.py",
    "rbee/queen/admission/rates.py",
    "rbee/queen/admission/work.py",
    "rbee/queen/aliases.py",
    "rbee/queen/express/exchange.py",
    "rbee/queen/express/framing.py",
    "rbee/queen/express/heads.py",
    "rbee/queen/express/lane.py",
    "rbee/queen/express/upstreams.py",
    "rbee/queen/registry/registry.py",
    "rbee/queen/registry/rows.py",
    "rbee/queen/requests/audited.py",
    "rbee/queen/requests/explain.py",
    "rbee/queen/routing/affinity.py",
    "rbee/queen/routing/breaker.py",
    "rbee/queen/routing/decision.py",
    "rbee/queen/routing/metrics.py",
    "rbee/queen/routing/placing.py",
    "rbee/queen/routing/pool.py",
)
"""What a request on the straight way runs. Modules with structs of msgspec, or with a class whose base is a library's,
stay as they are: mypyc's classes have no place there."""
LIBRARY = "rbee__mypyc"
_SUFFIX = importlib.machinery.EXTENSION_SUFFIXES[0]
_WORK = ".native"  # the same name at each build: it is in what the compiler writes


def extensions(folder: Path) -> list[Path]:
    """The files that a compiled folder has beside its source."""
    modules = [folder / Path(module).with_suffix(_SUFFIX) for module in MODULES]
    return [folder / f"{LIBRARY}{_SUFFIX}", *modules]


def compile_within(folder: Path) -> None:
    """Compile MODULES in ``folder``, by the types of the libraries that this Python has.

    Raises:
        SystemExit: mypy or the compiler refused something; they have printed what.
        FileNotFoundError: an extension is missing all the same.
        subprocess.CalledProcessError: strip failed.
    """
    from mypyc.build import mypycify
    from setuptools import setup

    with chdir(folder):
        options = ["--ignore-missing-imports", f"--cache-dir={_WORK}/mypy", *MODULES]
        made = mypycify(options, opt_level="3", debug_level="0", group_name="rbee", target_dir=f"{_WORK}/c")
        places = [f"--build-temp={_WORK}/temp", f"--build-lib={_WORK}/lib"]
        setup(name="rbee-native", ext_modules=made, script_args=["-q", "build_ext", "--inplace", *places])
        shutil.rmtree(_WORK)
    for path in extensions(folder):
        if not path.is_file():
            raise FileNotFoundError(f"{path} was not made: this build would be half compiled")
    subprocess.run(["strip", "--strip-unneeded", *extensions(folder)], check=True)


if __name__ == "__main__":
    compile_within(Path(sys.argv[1]))
