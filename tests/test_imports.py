"""An import changes nothing of the process that it is made in."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import atexit, gc, logging, multiprocessing, os, random, signal, socket, sys, threading, warnings
import numpy, torch, tensordict

method = sys.argv[1]
if method != "None":
    multiprocessing.set_start_method(method)

def process():
    return {
        "start method": multiprocessing.get_start_method(allow_none=True),
        "warnings": list(warnings.filters),
        "environment": dict(os.environ),
        "mode of tensordict": tensordict.lazy_legacy(),
        "random numbers": (random.getstate(), str(numpy.random.get_state()), torch.get_rng_state().tolist()),
        "logging": (logging.root.handlers[:], logging.root.level, logging.getLogger("tdreplay").handlers[:]),
        "signals": [signal.getsignal(number) for number in signal.valid_signals()],
        "threads": threading.enumerate(),
        "torch": (torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled(), torch.multiprocessing.get_sharing_strategy()),
        "hooks": (sys.excepthook, threading.excepthook, warnings.showwarning),
        "garbage": (gc.isenabled(), gc.get_threshold(), gc.get_freeze_count()),
        "sockets": socket.getdefaulttimeout(),
        "folder": os.getcwd(),
        "path": list(sys.path),
    }

before = process()
import tdreplay_client, tdreplay_server
for package in (tdreplay_client, tdreplay_server):
    for name in package.__all__:
        getattr(package, name)
after = process()
print([name for name in before if before[name] != after[name]])
"""


@pytest.mark.parametrize(("method", "legacy"), [("None", None), ("fork", "True"), ("forkserver", "False")])
def test_importing_client_and_server_changes_nothing_of_the_process(method, legacy):
    environment = {name: value for name, value in os.environ.items() if name != "LAZY_LEGACY_OP"} | ({"LAZY_LEGACY_OP": legacy} if legacy else {})
    done = subprocess.run([sys.executable, "-c", PROGRAM, method], env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
