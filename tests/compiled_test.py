"""The cache of compiled programs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from affjax import compiled

ROOT = Path(__file__).parent.parent
PROGRAM = """
import sys, jax, jax.numpy as jnp
from pathlib import Path
from affjax import compiled
kept = compiled.keep(Path(sys.argv[1]))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
events = []
jax.monitoring.register_event_listener(lambda name, **_: events.append(name.rsplit("/", 1)[-1]))
@jax.jit
def twice(x):
  return jnp.sin(x) * 2
assert abs(float(twice(jnp.float32(.5))) - .9588511) < 1e-6
print(kept, events.count("cache_hits"), events.count("cache_misses"))
"""


def start(where, **environment):
  """Runs the program above: folder in use, programs found there, programs written; and stderr."""
  inherited = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
  done = subprocess.run(
    [sys.executable, "-c", PROGRAM, str(where)],
    cwd=ROOT,
    env={**inherited, **environment},
    capture_output=True,
    text=True,
    check=True,
  )
  kept, hits, misses = done.stdout.split()
  return kept, int(hits), int(misses), done.stderr


def entry(where):
  (found,) = where.glob("jit_twice-*-cache")
  return found


@pytest.mark.parametrize("damage", ["cut short", "a flipped bit"])
def test_what_was_compiled_is_found_again_and_damage_is_mended_once(damage, tmp_path):
  where = tmp_path / "kept"
  kept, hits, misses, _ = start(where)
  assert (kept, hits) == (str(where), 0)
  assert misses >= 1
  good = entry(where).read_bytes()
  assert start(where)[1:3] == (misses, 0)

  middle = len(good) // 2
  flipped = good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :]
  entry(where).write_bytes(good[:middle] if damage == "cut short" else flipped)
  _, hits, written, said = start(where)
  assert (hits, written) == (misses - 1, 1)
  assert "damaged entries of jit_twice deleted" in said
  assert "Error reading" not in said
  _, hits, written, said = start(where)
  assert (hits, written) == (misses, 0)
  assert "damaged" not in said


def test_what_the_user_says_holds(tmp_path):
  own, other = tmp_path / "own", tmp_path / "other"
  assert start(other, JAX_COMPILATION_CACHE_DIR=str(own))[0] == str(own)
  assert entry(own)
  assert start(other, JAX_ENABLE_COMPILATION_CACHE="false")[:3] == ("None", 0, 0)
  assert not other.exists()


def test_a_folder_that_cannot_be_made_is_gone_without(tmp_path):
  (tmp_path / "file").touch()
  assert start(tmp_path / "file" / "kept")[:3] == ("None", 0, 0)


def test_the_oldest_entries_go_first(tmp_path):
  for age, name in enumerate("abc"):
    path = tmp_path / f"jit_{name}-0-cache"
    path.write_bytes(bytes(1000))
    os.utime(path, (1e9 - age, 1e9 - age))
  compiled._shrink(tmp_path, 2500)
  assert sorted(p.name[4] for p in tmp_path.iterdir()) == ["a", "b"]
  compiled._shrink(tmp_path, 2500)
  assert len(list(tmp_path.iterdir())) == 2


def test_the_folder_is_the_users_cache_and_of_this_cpu(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  assert compiled.folder().parent == tmp_path / "affjax" / "compiled"
  assert compiled.folder() == compiled.folder()
  monkeypatch.delenv("XDG_CACHE_HOME")
  assert compiled.folder().parent == Path("~/.cache/affjax/compiled").expanduser()
