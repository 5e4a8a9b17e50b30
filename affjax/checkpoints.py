"""Everything that touches Orbax: save, seal, verify, restore.

A saved step counts only with its manifest (file -> SHA-256), which is written after Orbax's
commit: Orbax restores a flipped bit without noticing it. A step without a manifest is an
interrupted save and is removed on the next start; one whose files differ from its manifest is set
aside and named.
"""

import concurrent.futures
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import flags
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import preservation_policy

MANIFEST = "manifest.json"
DAMAGED = "damaged"  # folder of steps that failed verification


def _hashes(folder: Path) -> dict[str, str]:
  return {
    str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
    for path in sorted(folder.rglob("*"))
    if path.is_file() and path.name != MANIFEST
  }


def seal(folder: Path) -> None:
  """Writes the manifest of a committed step; from here on the step counts."""
  partial = folder / f".{MANIFEST}"
  with partial.open("w") as f:
    # `partial` itself is not there yet when the hashes are taken of what Orbax wrote.
    json.dump({k: v for k, v in _hashes(folder).items() if k != partial.name}, f, indent=1)
    f.flush()
    os.fsync(f.fileno())
  partial.rename(folder / MANIFEST)


def damage(folder: Path) -> str | None:
  """Says what is wrong with a sealed step, or None."""
  expected = json.loads((folder / MANIFEST).read_text())
  found = _hashes(folder)
  if missing := sorted(set(expected) - set(found)):
    return f"{missing[0]} is missing"
  if changed := sorted(name for name in expected if found[name] != expected[name]):
    return f"{changed[0]} is not as it was written"
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
    say(f"checkpoint {root / str(step)} refused: {problem}; using the one before")
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
    path = root / str(step) / "metrics" / "metrics"
    if path.is_file():
      scored.append((json.loads(path.read_text())["score"], step))
  for _, step in sorted(scored, reverse=True):
    if (problem := damage(root / str(step))) is None:
      return step
    say(f"checkpoint {root / str(step)} refused: {problem}; using the next best")
  return latest_intact(root, repair=False, say=say)


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
  """
  path = folder.absolute() / "state"
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
    tree = reader.metadata(path).item_metadata.tree
    wanted = {item: tree[item] for item in items}
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
    args = ocp.args.PyTreeRestore(item=wanted, restore_args=as_numpy, partial_restore=True)
    return reader.restore(path, args=args)


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
    keep_last: how many of the latest steps stay; at least 2, since the latest counts only once
      its manifest is written.
    keep_best: how many of the steps with the best score stay beside them.
    read_only: neither repairs nor saves.
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
    self._read_only = read_only
    self._pool = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="seal")
    self._sealing: concurrent.futures.Future | None = None
    # Decided by process 0 alone: the others must neither repair nor disagree.
    latest = None
    if jax.process_index() == 0:
      if not read_only:
        self.root.mkdir(parents=True, exist_ok=True)
      latest = latest_intact(self.root, repair=not read_only, say=_say)
    if jax.process_count() > 1:
      _let_barriers_be_no_collectives()
      agreed = multihost_utils.broadcast_one_to_all(np.int32(-1 if latest is None else latest))
      latest = None if agreed < 0 else int(agreed)
    self.latest: int | None = latest
    score = lambda metrics: metrics["score"]
    policies = [preservation_policy.LatestN(keep_last)]
    if keep_best:
      policies.append(
        preservation_policy.BestN(
          get_metric_fn=score, n=keep_best, keep_checkpoints_without_metrics=False
        )
      )
    self._manager = ocp.CheckpointManager(
      self.root,
      item_names=("state", "position"),
      options=ocp.CheckpointManagerOptions(
        preservation_policy=preservation_policy.AnyPreservationPolicy(policies),
        best_fn=score,  # best_step() needs it beside a policy
        create=not read_only,
        read_only=read_only,
        enable_async_checkpointing=True,
      ),
    )

  def save(
    self, step: int, state: Any, position: Mapping[str, Any], score: float | None = None
  ) -> None:
    """Starts to save; returns when the state is copied, so that it may be donated.

    Args:
      step: updates that the state has seen.
      state: pytree of arrays.
      position: JSON: where the data stands (seed, step, fingerprint).
      score: what `best` goes by; None: not evaluated at this step.

    Raises:
      Exception: whatever stopped the save before this one.
    """
    self.wait()
    self._manager.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(state), position=ocp.args.JsonSave(dict(position))
      ),
      metrics=None if score is None else {"score": float(score)},
      force=True,
    )
    self._sealing = self._pool.submit(self._seal, step)

  def _seal(self, step: int) -> None:
    self._manager.wait_until_finished()
    if jax.process_index() == 0:
      seal(self.root / str(step))

  def wait(self) -> None:
    """Returns once the last save is sealed; raises what stopped it."""
    if self._sealing is not None:
      self._sealing.result()
      self._sealing = None
    self._manager.check_for_errors()

  def restore(self, step: int, abstract_state: Any) -> tuple[Any, dict[str, Any]]:
    """Loads a step onto the shardings of `abstract_state`, whatever devices it was saved from.

    Args:
      step: a step on disk.
      abstract_state: tree of `jax.ShapeDtypeStruct` with shardings.

    Returns:
      The state and the position it was saved with.
    """
    restored = self._manager.restore(
      step,
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
      self._manager.close()
