"""Actors of a killed driver end, also where the dead raylet is never waited for, as in many containers."""

from __future__ import annotations

import subprocess
import sys

from tests.end_to_end.runs import ROOT

DRIVER = """
import os, sys
import ray
from cluster.actors.start import start_ray
from cluster.config import load_config
start_ray(load_config(None, ["name=x", "model.path=m", "data.train=t", "ray.object_store_mb=80", "ray.address=local"]))

@ray.remote(num_cpus=0)
class Actor:
    def ids(self):
        return os.getpid(), os.getppid()

actor = Actor.remote()
print(*ray.get(actor.ids.remote()), flush=True)
sys.stdin.read()
"""
FIRST_PROCESS = f"""
import ctypes, os, signal, subprocess, sys, time
PR_SET_CHILD_SUBREAPER = 36
assert ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0  # orphans become this process's children

def state(pid):
    try:
        return open(f"/proc/{{pid}}/stat").read().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "gone"

driver = subprocess.Popen([sys.executable, "-c", {DRIVER!r}], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
actor, raylet = map(int, driver.stdout.readline().split())
driver.kill()
os.kill(raylet, signal.SIGKILL)
deadline = time.monotonic() + 45  # without us they end after 60 s, and never where another head has the old address
while state(actor) not in ("Z", "gone") and time.monotonic() < deadline:
    time.sleep(0.2)
print(state(raylet), state(actor), flush=True)
for child in open(f"/proc/self/task/{{os.getpid()}}/children").read().split():
    os.kill(int(child), signal.SIGKILL)
"""


def test_actors_do_not_outlive_a_raylet_that_nobody_waits_for() -> None:
    found = subprocess.run(
        [sys.executable, "-c", FIRST_PROCESS], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert found.stdout.split() in (["Z", "Z"], ["Z", "gone"]), found.stdout + found.stderr
