"""Memory that XLA gives back stays with the process."""

import fnmatch
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from affjax import host

ROOT = Path(__file__).parent.parent
# Prints what `keep_memory` said, and faults of pages in a call with 64 MB of temporaries, once the
# process has all the memory that its calls need: they are freed by another thread, at times after
# the next has begun.
PROGRAM = """
import resource, sys
if int(sys.argv[1]):
  from affjax import host
  print(host.keep_memory())
import jax, jax.numpy as jnp
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
@jax.jit
def call(x):
  return (x @ x.T) @ x
x = jnp.zeros((4096, 64))
for _ in range(3):
  call(x).block_until_ready()
each = []
for _ in range(60):
  before = faults()
  call(x).block_until_ready()
  each.append(faults() - before)
print(sorted(each[30:])[15])
"""

only_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="not glibc's malloc")


def start(keep, platforms="cpu"):
  environment = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": platforms}
  done = subprocess.run(
    [sys.executable, "-c", PROGRAM, str(int(keep))],
    cwd=ROOT, env=environment, capture_output=True, text=True, check=True,
  )  # fmt: skip
  return done.stdout.split()


@only_glibc
def test_a_program_that_is_called_again_finds_its_pages():
  (lost,) = start(False)
  said, kept = start(True)
  assert said == "True"
  assert float(lost) > 10_000  # 4 KB each
  assert float(kept) < 0.05 * float(lost)


@pytest.mark.parametrize(
  ("platforms", "found", "expected"),
  [
    ("cpu", ["/dev/nvidia0"], False),
    ("cuda,cpu", [], True),
    ("", ["/dev/nvidia0"], True),
    ("", ["/dev/nvidiactl"], False),
    ("", ["/dev/accel3"], True),
    ("", ["/dev/vfio/0", "/dev/vfio/vfio"], True),
    ("", ["/dev/vfio/vfio"], False),
    ("", [], False),
  ],
)
def test_with_accelerators_the_memory_of_the_host_is_left_alone(
  platforms, found, expected, monkeypatch
):
  monkeypatch.setenv("JAX_PLATFORMS", platforms)
  monkeypatch.setattr(host.glob, "glob", lambda pattern: fnmatch.filter(found, pattern))
  assert host._accelerators() == expected
