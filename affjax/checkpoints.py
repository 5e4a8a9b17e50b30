"""Everything that touches Orbax: save, seal, verify, restore.

A saved step counts only with its manifest (file -> SHA-256), which is written after Orbax's
commit: Orbax restores a flipped bit without noticing it. A step without a manifest is an
interrupted save and is removed on the next start; one whose files differ from its manifest is set
aside and named. The score that a step is chosen by comes later, as one more file in the manifest.
"""

import concurrent.futures
import contextlib
import errno
import hashlib
import json
import logging
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import flags
from jax.experimental import multihost_utils

from affjax import paths

MANIFEST = "manifest.json"
SCORE = "score.json"
DAMAGED = "damaged"  # folder of steps that failed verification
# Of runs from before steps were scored after they were saved.
_SCORES = (SCORE, "metrics/metrics")
# What a checkpoint may say that its arrays take, of what its files take: Orbax compresses, and
# zeros to nothing. Beyond it the sizes are believed to be wrong, and no memory is asked for.
_RATIO, _SMALL = 50, 2**28
# What is wrong with a disk, in the system's words, which TensorStore repeats.
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO)


class SaveError(ValueError):
  """A checkpoint could not be saved."""


def _hashes(folder: Path) -> dict[str, str]:
  return {
    str(path.relative_to(folder)): _hash(path)
    for path in sorted(folder.rglob("*"))
    if path.is_file() and path.name not in (MANIFEST, f".{MANIFEST}")
  }


def _hash(path: Path) -> str:
  with path.open("rb") as f:
    return hashlib.file_digest(f, "sha256").hexdigest()


def _write(path: Path, content: Any) -> None:
  """Writes JSON so that the file is there whole or not at all, whatever happens."""
  partial = path.with_name(f".{path.name}")
  with partial.open("w") as f:
    json.dump(content, f, indent=1)
    f.flush()
    os.fsync(f.fileno())
  partial.rename(path)


def seal(folder: Path) -> None:
  """Writes the manifest of a committed step; from here on the step counts."""
  _write(folder / MANIFEST, _hashes(folder))


def _manifest(folder: Path) -> dict[str, str] | None:
  """File -> hash; None: it is no manifest."""
  try:
    found = json.loads((folder / MANIFEST).read_bytes())
  except ValueError:  # no JSON, or no text
    return None
  whole = isinstance(found, dict) and found and all(isinstance(v, str) for v in found.values())
  return found if whole else None


def damage(folder: Path) -> str | None:
  """Says what is wrong with a sealed step, or None."""
  expected = _manifest(folder)
  if expected is None:
    return f"{MANIFEST} is not as it was written"
  found = _hashes(folder)
  if missing := sorted(set(expected) - set(found)):
    return f"{missing[0]} is missing"
  if changed := sorted(name for name in expected if found[name] != expected[name]):
    return f"{changed[0]} is not as it was written"
  return None


def score_of(folder: Path) -> float | None:
  """The score of a sealed step; None: it was not evaluated."""
  sealed_files = _manifest(folder) or {}
  for name in (name for name in _SCORES if name in sealed_files):
    with contextlib.suppress(ValueError, KeyError, TypeError, OSError):  # it is damaged
      return float(json.loads((folder / name).read_bytes())["score"])
  return None


def _sealed_steps(root: Path) -> list[int]:
  """Steps with a manifest, latest first."""
  steps = [int(p.name) for p in root.glob("*") if p.name.isdigit() and (p / MANIFEST).is_file()]
  return sorted(steps, reverse=True)


def latest_intact(root: Path, repair: bool, say: Callable[[str], None]) -> int | None:
  """Finds the latest step that is as it was written.

  Args:
    root: the checkpoint folder.
    repair: remove interrupted saves and set damaged steps aside (a run about to continue), or
      leave everything as it is (a reader).
    say: called with a line for each step that is refused.
  """
  if repair:
    for path in root.glob("*"):
      interrupted = path.name.isdigit() and not (path / MANIFEST).is_file()
      if path.is_dir() and (interrupted or ".orbax-checkpoint-tmp" in path.name):
        say(f"checkpoint {path} was not finished (an interrupted save): removed")
        shutil.rmtree(path)
  for step in _sealed_steps(root):
    problem = damage(root / str(step))
    if problem is None:
      return step
    say(f"checkpoint {root / str(step)} refused: {problem}; using the one before, if there is one")
    if repair:
      (root / DAMAGED).mkdir(exist_ok=True)
      aside = root / DAMAGED / f"{step}"
      while aside.exists():
        aside = aside.with_name(aside.name + "+")
      (root / str(step)).rename(aside)
  return None


def best_intact(root: Path, say: Callable[[str], None]) -> int | None:
  """Finds the intact step with the best score; the latest intact one if none has a score."""
  scored = []
  for step in _sealed_steps(root):
    if (problem := damage(root / str(step))) is not None:
      say(f"checkpoint {root / str(step)} refused: {problem}; using the next best")
    elif (score := score_of(root / str(step))) is not None:
      scored.append((score, step))
  return max(scored)[1] if scored else latest_intact(root, repair=False, say=say)


def _say(line: str) -> None:
  print(line, file=sys.stderr, flush=True)


def pick(root: Path, which: str) -> int:
  """Finds a checkpoint: "best", "latest", or a step as text.

  Raises:
    ValueError: there is none like that.
  """
  if which == "best":
    step = best_intact(root, _say)
  elif which == "latest":
    step = latest_intact(root, repair=False, say=_say)
  elif which.isdigit() and (root / which / MANIFEST).is_file():
    if problem := damage(root / which):
      raise ValueError(f"checkpoint {root / which} refused: {problem}")
    step = int(which)
  else:
    step = None
  if step is None:
    raise ValueError(f"no checkpoint {which!r} in {root}: use best, latest or a step that is there")
  return step


def sealed(root: Path) -> bool:
  """Whether there is any step to continue from; its files are not looked at."""
  return bool(_sealed_steps(root))


def read(folder: Path, items: Sequence[str]) -> dict[str, Any]:
  """Reads parts of a saved state as host arrays, whatever model and devices it was saved from.

  Args:
    folder: of a step, such as checkpoints/100.
    items: attributes of the state; the others are not read.

  Returns:
    Attribute -> nested dicts of numpy arrays, all keys strings; None where nothing was kept.

  Raises:
    ValueError: it is no saved state.
  """
  path = folder.absolute() / "state"
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader, _readable(folder):
    tree = _declared(path)
    wanted = {item: tree[item] for item in items}
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
    args = ocp.args.PyTreeRestore(item=wanted, restore_args=as_numpy, partial_restore=True)
    return reader.restore(path, args=args)


@contextlib.contextmanager
def _readable(folder: Path) -> Iterator[None]:
  """Names a checkpoint whose files are not such as Orbax writes; its errors are of every type."""
  try:
    yield
  except (_Refused, MemoryError, jax.errors.JaxRuntimeError):
    raise
  except Exception as e:
    raise _Refused(f"checkpoint {folder} cannot be read: {_first_line(e)}") from e


class _Refused(ValueError):
  """A checkpoint that is not read; the message says why."""


def _first_line(error: BaseException) -> str:
  text = str(error) or type(error).__name__
  return text.splitlines()[0][:300]


def _declared(state: Path) -> Any:
  """The arrays that a saved state says it has; refuses what its files cannot hold."""
  tree = ocp.PyTreeCheckpointHandler().metadata(state).tree
  sizes = [math.prod(x.shape) * np.dtype(x.dtype).itemsize for x in jax.tree.leaves(tree)]
  there = sum(path.stat().st_size for path in state.rglob("*") if path.is_file())
  if sum(sizes) > max(_SMALL, _RATIO * there):
    raise _Refused(
      f"checkpoint {state.parent} refused: it says that its arrays take {sum(sizes):.3g} bytes,"
      f" and its files have {there:.3g}"
    )
  return tree


def _check_shapes(found: Any, abstract: Any, folder: Path) -> None:
  """Raises unless a saved state has the arrays of a config, in their shapes and types."""
  kind = lambda x: (tuple(x.shape), np.dtype(x.dtype).name)
  there = {name: kind(x) for name, x in paths.named(found).items()}
  own = {name: kind(x) for name, x in paths.named(abstract).items()}
  wrong = [n for n in own if there.get(n) != own[n]] + [n for n in there if n not in own]
  if wrong:
    say = lambda known: "absent" if known is None else f"{known[1]} {known[0]}"
    first = wrong[0]
    raise _Refused(
      f"checkpoint {folder} is of another model: {first} is {say(there.get(first))} there,"
      f" {say(own.get(first))} by the config; {len(wrong)} arrays differ"
    )


def quiet() -> None:
  """Has a save that fails say one thing.

  Else asyncio and TensorStore's callbacks tell of every array that was not written.
  """
  logging.getLogger("asyncio").setLevel(logging.CRITICAL)
  show = sys.unraisablehook

  def heard(unraisable: Any) -> None:
    if "Event loop is closed" not in str(unraisable.exc_value):
      show(unraisable)

  sys.unraisablehook = heard


def _let_barriers_be_no_collectives() -> None:
  """Makes Orbax's background thread wait through the coordination service.

  Its default is a collective, which nothing keeps in order with those of the step and of evaluation
  on the other processes.
  """
  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()
  flags.FLAGS.experimental_orbax_use_distributed_barrier = True


class Checkpoints:
  """The checkpoints of one run.

  Args:
    root: folder; made if it is not there.
    keep_last: how many of the latest steps stay; at least 2, for the latest may be damaged.
    keep_best: how many of the steps with the best score stay beside them.
    read_only: neither repairs nor saves.

  Attributes:
    latest: the step to continue from; None: there is none.
    scored: whether that step has its score.
  """

  def __init__(
    self,
    root: str | os.PathLike[str],
    *,
    keep_last: int = 2,
    keep_best: int = 1,
    read_only: bool = False,
  ) -> None:
    if keep_last < 2:
      raise ValueError(f"config.checkpoint.keep_last={keep_last}: at least 2 must stay")
    self.root = Path(root).absolute()
    self._keep = (keep_last, keep_best)
    self._pool = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="seal")
    self._sealing: concurrent.futures.Future | None = None
    # Decided by process 0 alone: the others must neither repair nor disagree.
    latest, score = None, None
    if jax.process_index() == 0:
      if not read_only:
        self.root.mkdir(parents=True, exist_ok=True)
      latest = latest_intact(self.root, repair=not read_only, say=_say)
      score = None if latest is None else score_of(self.root / str(latest))
    decided = np.array([-1 if latest is None else latest, score is not None], np.int32)
    if jax.process_count() > 1:
      _let_barriers_be_no_collectives()
      decided = multihost_utils.broadcast_one_to_all(decided)
    self.latest: int | None = None if decided[0] < 0 else int(decided[0])
    self.scored = bool(decided[1])
    self._writer = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler("state", "position"))

  def save(self, step: int, state: Any, position: Mapping[str, Any]) -> None:
    """Starts to save; returns when the state is copied, so that it may be donated.

    Args:
      step: updates that the state has seen.
      state: pytree of arrays.
      position: JSON: where the data stands (seed, step, fingerprint).

    Raises:
      SaveError: this save could not begin, or the one before could not be finished.
    """
    self.wait()
    with self._explained(step):
      if jax.process_index() == 0:
        _try(self.root)
      self._writer.save(
        self.root / str(step),
        args=ocp.args.Composite(
          state=ocp.args.StandardSave(state), position=ocp.args.JsonSave(dict(position))
        ),
      )
    self._sealing = self._pool.submit(self._seal, step)

  def _seal(self, step: int) -> None:
    with self._explained(step):
      self._writer.wait_until_finished()
      if jax.process_index() == 0:
        seal(self.root / str(step))
        self._prune()

  def score(self, step: int, value: float) -> None:
    """Gives a saved step the score that `best` goes by.

    Raises:
      SaveError: the step could not be saved.
    """
    self.wait()
    folder = self.root / str(step)
    if jax.process_index() == 0:
      with self._explained(step):
        _write(folder / SCORE, {"score": float(value)})
        _write(folder / MANIFEST, {**(_manifest(folder) or {}), SCORE: _hash(folder / SCORE)})
        self._prune()

  def _prune(self) -> None:
    """Removes the steps that are neither among the latest nor among the best."""
    last, best = self._keep
    steps = _sealed_steps(self.root)
    scores = {step: score_of(self.root / str(step)) for step in steps}
    by_score = sorted((s for s in steps if scores[s] is not None), key=lambda s: (scores[s], s))
    for step in set(steps) - set(steps[:last]) - set(by_score[-best:] if best else []):
      # Without its manifest it no longer counts, should this be interrupted.
      (self.root / str(step) / MANIFEST).unlink()
      shutil.rmtree(self.root / str(step))

  @contextlib.contextmanager
  def _explained(self, step: int) -> Iterator[None]:
    """Says what a failed save means; whatever it is that Orbax and TensorStore raise."""
    try:
      yield
    except Exception as e:
      there = _sealed_steps(self.root)
      kept = f"step {there[0]} is on disk" if there else "no step is on disk yet"
      raise SaveError(
        f"checkpoint of step {step} could not be saved in {self.root}: {_why(e)}; {kept}: make room"
        " or mend the disk, and the same command continues"
      ) from e

  def check(self) -> None:
    """Raises SaveError if a save in the background has failed; does not wait."""
    if self._sealing is not None and self._sealing.done():
      self.wait()

  def wait(self) -> None:
    """Returns once the last save is sealed; raises SaveError if it failed."""
    if self._sealing is not None:
      self._sealing.result()
      self._sealing = None

  def restore(self, step: int, abstract_state: Any) -> tuple[Any, dict[str, Any]]:
    """Loads a step onto the shardings of `abstract_state`, whatever devices it was saved from.

    Args:
      step: a step on disk.
      abstract_state: tree of `jax.ShapeDtypeStruct` with shardings.

    Returns:
      The state and the position it was saved with.

    Raises:
      ValueError: it is of another model, or no checkpoint; said before any array is made.
    """
    folder = self.root / str(step)
    with _readable(folder):
      _check_shapes(_declared(folder / "state"), abstract_state, folder)
      restored = self._writer.restore(
        folder,
        args=ocp.args.Composite(
          state=ocp.args.StandardRestore(abstract_state), position=ocp.args.JsonRestore()
        ),
      )
    return restored["state"], restored["position"]

  def close(self) -> None:
    """Waits for the last save and lets go."""
    try:
      self.wait()
    finally:
      self._pool.shutdown()
      with contextlib.suppress(Exception):  # what failed was raised by `wait`
        self._writer.close()


def _try(folder: Path) -> None:
  """Raises OSError where nothing can be written; of Orbax's threads some would wait for minutes."""
  path = folder / ".try"
  path.write_bytes(b".")
  path.unlink()


def _why(error: BaseException) -> str:
  """The reason in words: the system's, where it is one of those."""
  if isinstance(error, OSError) and error.strerror:
    return error.strerror
  return next((os.strerror(n) for n in _DISK if os.strerror(n) in str(error)), _first_line(error))
