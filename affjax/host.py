"""What a process asks of its machine before JAX starts."""

import ctypes
import glob
import os
import platform

# Of glibc's mallopt; see its manual page.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
_DEVICES = ("/dev/nvidia[0-9]*", "/dev/accel[0-9]*", "/dev/vfio/[0-9]*", "/dev/kfd")


def keep_memory() -> bool:
  """Has the C library keep memory that is given back to it, where JAX is to compute on the CPU.

  XLA asks for the memory of a program's temporaries at every call. glibc maps what is that large
  and unmaps it, so that each of its pages is made anew in every step: a tenth of a ViT-S's time
  (`scripts/benchmark_train.py`, "not kept").

  To be called first of all: what threads that were there before have asked for stays as it is.
  From then on threads share one arena, and what the process has used at most stays its own.

  Returns:
    Whether it does: not where there are accelerators, nor without glibc.
  """
  if _accelerators() or platform.libc_ver()[0] != "glibc":
    return False
  options = {_ARENA_MAX: 1, _MMAP_MAX: 0, _TRIM_THRESHOLD: -1}  # -1: never
  mallopt = ctypes.CDLL(None).mallopt
  return all([mallopt(option, value) for option, value in options.items()])


def _accelerators() -> bool:
  """Whether JAX will find some, as far as can be told without it."""
  if chosen := os.environ.get("JAX_PLATFORMS"):
    return chosen.split(",")[0] != "cpu"
  return any(glob.glob(pattern) for pattern in _DEVICES)
