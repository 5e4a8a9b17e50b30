"""Graphs of labels: which of them go together, and classifiers that are made out of that.

A node is a number that the model gives: valence, arousal, an expression, a unit. Nodes are in the
order of their tasks' names (au, expression, va), within a task in that of its labels.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

GRAPHS = ("spearman", "none")
_EMBEDDINGS = ("random", "learned")
_POOLS = {"max": jnp.max, "mean": jnp.mean}
# Its labels exclude each other, so that their correlations say nothing of what goes together.
_DISTRIBUTION = "expression"
_SLOPE = 0.2  # of the leaky ReLU below 0: CODE
# Spread of the numbers of a node's vector, about that of GloVe's: RECALL.
_SPREAD = 0.4
# About that of the first weights of the outputs, as of other heads: training starts from
# near-uniform answers. INFERRED; what it is there is not known to us.
_HEAD_SPREAD = 0.02


def spans(outputs: Mapping[str, int]) -> dict[str, slice]:
  """Task -> which nodes are its, from task -> size of its output."""
  ends = itertools.accumulate(outputs[task] for task in sorted(outputs))
  return {
    task: slice(end - outputs[task], end) for task, end in zip(sorted(outputs), ends, strict=True)
  }


def correlations(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
  """Spearman's rank correlation of each two variables, over the rows where both are labelled.

  Args:
    values: [rows, variables].
    mask: [rows, variables] 1 = labelled.

  Returns:
    [variables, variables] float64 in [-1, 1], 1 on the diagonal; 0 where two are never labelled
    together, or one of them is constant where they are.
  """
  labelled, kind = np.unique(mask > 0, axis=1, return_inverse=True)
  found = np.zeros((values.shape[1],) * 2)
  # Most variables are labelled in the same rows as others, and ranks depend on the rows alone.
  for pair in itertools.combinations_with_replacement(range(labelled.shape[1]), 2):
    rows = labelled[:, pair].all(1)
    if rows.any():
      one, other = (np.flatnonzero(kind == k) for k in pair)
      block = _standardised(values[rows][:, one]).T @ _standardised(values[rows][:, other])
      found[np.ix_(one, other)], found[np.ix_(other, one)] = block, block.T
  np.fill_diagonal(found, 1)
  return found


def _standardised(values: np.ndarray) -> np.ndarray:
  """Ranks of each column, less their mean and of length 1; 0 of a constant column."""
  from scipy import stats  # a second to load, for the start of a run alone

  ranks = stats.rankdata(values, axis=0)
  ranks -= ranks.mean(0)
  length = np.linalg.norm(ranks, axis=0)
  return ranks / np.where(length > 0, length, 1)


def adjacency(correlation: np.ndarray, threshold: float) -> np.ndarray:
  """What a node takes from which: as Antoniadis et al. (2021, arXiv:2106.03487) do it, CODE.

  Neighbours are those whose correlation is not below the threshold, whatever its sign. A node's row
  A has .5 for itself and .5 for all of its neighbours together; what comes out is (A D)^T D with
  D = diag(row sum ** -.5). Of a node without a neighbour, whose row there is divided by 0, ours is
  .5 for itself, and 1 behind the normalisation: it stays alone. So every column sums to 1.

  Where labels that are connected fall into two sides with edges only between them, such as two that
  have no other neighbour, the matrix is singular: those two have the same weights for ever. Labels
  that are neighbours of both valence and arousal, and these of each other, are not so.

  Args:
    correlation: [nodes, nodes], symmetric, 1 on the diagonal.
    threshold: above 0, at most 1.

  Returns:
    [nodes, nodes] float64.
  """
  near = (np.abs(correlation) >= threshold).astype(np.float64)
  np.fill_diagonal(near, 0)
  a = 0.5 * near / np.maximum(near.sum(1, keepdims=True), 1) + 0.5 * np.eye(len(near))
  sums = a.sum(1)
  return a.T / np.sqrt(np.outer(sums, sums))


def of_labels(
  labels: Mapping[str, np.ndarray],
  mask: Mapping[str, np.ndarray],
  outputs: Mapping[str, int],
  *,
  graph: str = "spearman",
  threshold: float = 0.1,
) -> np.ndarray:
  """The adjacency of a model's labels.

  Args:
    labels: task -> [rows, size], of the tasks that there are.
    mask: task -> the same, or [rows] for expression; 1 = labelled.
    outputs: task -> size.
    graph: "spearman": `adjacency` of `correlations`, where expressions are no neighbours of each
      other; "none": nobody has neighbours.
    threshold: of the correlations.

  Returns:
    [nodes, nodes].

  Raises:
    ValueError: another graph, or a threshold out of range.
  """
  _check_graph(graph, threshold)
  count = sum(outputs.values())
  if graph == "none":
    return np.eye(count)
  rows = len(next(iter(labels.values()), ()))
  values, labelled = np.zeros((rows, count)), np.zeros((rows, count), bool)
  nodes = spans(outputs)
  for task in labels.keys() & nodes.keys():
    values[:, nodes[task]] = labels[task]
    labelled[:, nodes[task]] = mask[task].reshape(rows, -1) > 0
  found = correlations(values, labelled)
  if _DISTRIBUTION in nodes:
    own = nodes[_DISTRIBUTION]
    found[own, own] = np.eye(outputs[_DISTRIBUTION])
  return adjacency(found, threshold)


class GraphConvolution(nnx.Module):
  """A dense layer without bias, then sums over neighbours.

  Kipf & Welling (2017, arXiv:1609.02907).
  """

  def __init__(self, inner: int, outer: int, *, spread: float, rngs: nnx.Rngs) -> None:
    """Builds the layer.

    Args:
      inner: numbers of a node that come in.
      outer: numbers that come out.
      spread: standard deviation of the first weights.
      rngs: source of the parameters' keys.
    """
    self.kernel = nnx.Param(spread * jax.random.normal(rngs.params(), (inner, outer)))

  def __call__(self, x: jax.Array, adjacency: jax.Array) -> jax.Array:
    """Maps [nodes, inner], given [nodes, nodes], to [nodes, outer]."""
    return adjacency @ (x @ self.kernel[...])


class LabelGraph(nnx.Module):
  """Emotion-GCN's head: the weights of linear outputs come from a graph of the labels.

  Antoniadis, Filntisis & Maragos (2021, arXiv:2106.03487). Each node has a vector of 300 numbers;
  two graph convolutions (512, then as many as the image has) make of it the weights of its output.
  An output is the product of weights and image, without bias, and without an activation of valence
  and arousal: CODE. What is learned from one label moves the weights of its neighbours too.

  Differs from the paper in the vectors, which are GloVe's of the label's name there. A stand-in:
  drawn at random, and then fixed or learned.

  Vectors that are fixed and the adjacency are kept with the state, beside batch statistics, so that
  a checkpoint holds what it needs.

  Attributes:
    num_extra: 0, it has no tokens for the encoder to carry.
    spans: (task, first node, behind its last), see `spans`.
  """

  num_extra = 0

  def __init__(
    self,
    *,
    outputs: Mapping[str, int],
    input_width: int,
    input_length: int,
    graph: str = "spearman",
    threshold: float = 0.1,
    adjacency: Sequence[Sequence[float]] | None = None,
    embeddings: str = "random",
    embedding_width: int = 300,
    width: int = 512,
    pool: str = "max",
    dtype: str | jnp.dtype = "float32",
    rngs: nnx.Rngs,
  ) -> None:
    """Builds the decoder. It is float32 whatever `dtype` is.

    Args:
      outputs: task -> size of its output, such as {"va": 2, "expression": 7}.
      input_width: channels of the encoder's tokens.
      input_length: their number.
      graph: what `adjacency` is made by where a run is to find it in its training split: see
        `of_labels`, as for `threshold`.
      threshold: likewise.
      adjacency: [nodes, nodes]; None: not known yet. Outputs are NaN until a checkpoint gives it.
      embeddings: "random": vectors of the nodes stay as they are drawn; "learned".
      embedding_width: numbers in each.
      width: numbers of a node between the convolutions.
      pool: "max" or "mean" of the tokens.
      dtype: not used.
      rngs: source of the parameters' keys.

    Raises:
      ValueError: an option that does not exist, or an adjacency that does not fit the outputs.
    """
    del dtype, input_length
    _check_graph(graph, threshold)
    _one_of("embeddings", embeddings, _EMBEDDINGS)
    _one_of("pool", pool, tuple(_POOLS))
    for name, size in (("embedding_width", embedding_width), ("width", width)):
      if size < 1:
        raise ValueError(f"config.model.decoder.{name}={size}: use 1 or more")
    self.spans = tuple((task, s.start, s.stop) for task, s in spans(outputs).items())
    self.pool = pool
    count = sum(outputs.values())
    kept = nnx.Param if embeddings == "learned" else nnx.BatchStat
    vectors = nnx.initializers.normal(_SPREAD)(rngs.params(), (count, embedding_width))
    self.vectors = kept(vectors)
    self.adjacency = nnx.BatchStat(jnp.asarray(_read(adjacency, count), jnp.float32))
    self.inner = GraphConvolution(embedding_width, width, spread=embedding_width**-0.5, rngs=rngs)
    small = _HEAD_SPREAD / (_SPREAD * width**0.5)
    self.outer = GraphConvolution(width, input_width, spread=small, rngs=rngs)

  @classmethod
  def resolved(
    cls,
    section: Mapping[str, Any],
    labels: Mapping[str, np.ndarray],
    mask: Mapping[str, np.ndarray],
    outputs: Mapping[str, int],
  ) -> dict[str, Any]:
    """Its section of a config with the adjacency of a training split; one that is given stays.

    Args:
      section: of the config.
      labels: as in `of_labels`; {}: none are known, and no label has a neighbour.
      mask: likewise.
      outputs: likewise.

    Raises:
      ValueError: options of the graph that do not exist.
    """
    if section.get("adjacency") is not None:
      return dict(section)
    options = {name: section[name] for name in ("graph", "threshold") if name in section}
    adjacency = of_labels(labels, mask, outputs, **options)
    return {**section, "adjacency": adjacency.tolist()}

  def weights(self) -> jax.Array:
    """[nodes, input_width] that the graph gives for the outputs."""
    x = self.inner(self.vectors[...], self.adjacency[...])
    return self.outer(jax.nn.leaky_relu(x, _SLOPE), self.adjacency[...])

  def __call__(
    self,
    tokens: jax.Array,
    *,
    train: bool = False,
    rngs: nnx.Rngs | None = None,
    attention: bool = False,
  ) -> dict[str, jax.Array] | tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """Decodes every task: [batch, length, input_width] -> task -> [batch, size] float32.

    With `attention` also {}, there are no maps.
    """
    del train, rngs
    pooled = _POOLS[self.pool](tokens.astype(jnp.float32), axis=1)
    y = pooled @ self.weights().T
    outputs = {task: y[:, first:last] for task, first, last in self.spans}
    return (outputs, {}) if attention else outputs


def _read(adjacency: Sequence[Sequence[float]] | None, count: int) -> np.ndarray:
  """[count, count] numbers of a config; NaN where it has none."""
  if adjacency is None:
    return np.full((count, count), np.nan)
  try:
    read = np.array(adjacency, np.float64)
  except (TypeError, ValueError):
    read = np.zeros(0)
  if read.shape != (count, count) or not np.isfinite(read).all():
    raise ValueError(f"adjacency of {count} labels: use {count} rows of {count} numbers, or None")
  return read


def _check_graph(graph: str, threshold: float) -> None:
  _one_of("graph", graph, GRAPHS)
  if not 0 < threshold <= 1:
    raise ValueError(f"config.model.decoder.threshold={threshold}: use a number above 0, at most 1")


def _one_of(name: str, value: str, allowed: Sequence[str]) -> None:
  if value not in allowed:
    raise ValueError(f"config.model.decoder.{name}={value!r}: use one of {list(allowed)}")
