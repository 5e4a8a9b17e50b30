"""What goes together is found in labels, and what is made of it is linear outputs."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import stats

from affjax import losses
from affjax.models import decoders, graphs

OUTPUTS = {"va": 2, "expression": 3, "au": 4}


def some_labels(rows=300, seed=0):
  """Labels that know each other, with ties; each task is labelled in some of the rows."""
  rng = np.random.default_rng(seed)
  mood = rng.normal(size=(rows, 1))
  drawn = (mood * [2, -1, 0] + rng.gumbel(size=(rows, 3))).argmax(1)
  labels = {
    "va": np.clip(0.5 * mood + 0.3 * rng.normal(size=(rows, 2)), -1, 1).round(1),
    "expression": np.eye(3)[drawn],
    "au": (mood + rng.normal(size=(rows, 4)) > 0.5).astype(np.float64),
  }
  mask = {
    "va": (rng.random((rows, 2)) < 0.7).astype(np.float64),
    "expression": (rng.random(rows) < 0.6).astype(np.float64),
    "au": np.repeat(rng.random((rows, 1)) < 0.5, 4, axis=1).astype(np.float64),
  }
  return labels, mask


def columns(labels, mask):
  """[rows, nodes] both, in the order of the nodes."""
  tasks = ("au", "expression", "va")
  masks = [np.broadcast_to(mask[t].reshape(len(mask[t]), -1), labels[t].shape) for t in tasks]
  return np.concatenate([labels[t] for t in tasks], 1), np.concatenate(masks, 1)


# Correlations.


def test_the_rank_correlation_is_one_of_ranks():
  values = np.array([[1.0, 10, 1], [2, 1000, 0], [3, 100, 0], [4, 10_000, 0]])
  found = graphs.correlations(values, np.ones((4, 3)))
  assert found[0, 1] == pytest.approx(0.8)  # 1 - 6 * 2 / (4 * 15)
  assert found[0, 2] == pytest.approx(-np.sqrt(0.6))  # of ranks 1 2 3 4 and 4 2 2 2


def test_each_pair_counts_the_rows_where_both_are_labelled_as_scipy_does():
  values, mask = columns(*some_labels())
  found = graphs.correlations(np.where(mask > 0, values, 99), mask)
  for i, j in itertools.combinations(range(9), 2):
    both = (mask[:, i] > 0) & (mask[:, j] > 0)
    expected = stats.spearmanr(values[both, i], values[both, j]).statistic
    assert found[i, j] == found[j, i] == pytest.approx(expected, abs=1e-12)
  np.testing.assert_array_equal(np.diag(found), 1)


def test_what_is_never_labelled_together_or_never_differs_is_not_correlated():
  values = np.array([[0, 0, 1], [1, 1, 1], [2, 0, 1], [3, 1, 1.0]])
  mask = np.array([[1, 0, 1], [1, 0, 1], [0, 1, 1], [0, 1, 1.0]])
  np.testing.assert_array_equal(graphs.correlations(values, mask), np.eye(3))
  np.testing.assert_array_equal(graphs.correlations(values, np.zeros((4, 3))), np.eye(3))


# Adjacency.

CORRELATION = np.array(
  [
    [1, 0, 0, 0.5, 0],
    [0, 1, 0, -0.3, 0.1],
    [0, 0, 1, 0.05, 0.09],
    [0.5, -0.3, 0.05, 1, 0.2],
    [0, 0.1, 0.09, 0.2, 1],
  ]
)


def test_the_adjacency_of_a_small_table_is_the_one_made_by_hand():
  # Rows before they are turned over: the first has one neighbour, the second two, the third none.
  rows = [
    [1 / 2, 0, 0, 1 / 2, 0],
    [0, 1 / 2, 0, 1 / 4, 1 / 4],
    [0, 0, 1, 0, 0],
    [1 / 6, 1 / 6, 0, 1 / 2, 1 / 6],
    [0, 1 / 4, 0, 1 / 4, 1 / 2],
  ]
  np.testing.assert_allclose(graphs.adjacency(CORRELATION, 0.1), np.transpose(rows), atol=1e-15)


def test_where_all_have_neighbours_it_is_what_the_steps_of_the_paper_give():
  rng = np.random.default_rng(0)
  for _ in range(20):
    c = rng.uniform(-0.3, 0.3, (7, 7))
    c = np.triu(c, 1) + np.triu(c, 1).T + np.eye(7)
    c[0, 1:] = c[1:, 0] = 0.2
    a = np.where(np.abs(c) < 0.1, 0.0, 1.0)
    a = a * 0.5 / (a.sum(1, keepdims=True) - 1)
    for i in range(7):
      a[i, i] = 0.5
    d = np.diag(np.power(a.sum(1), -0.5))
    np.testing.assert_allclose(graphs.adjacency(c, 0.1), np.matmul(np.matmul(a, d).T, d))


@pytest.mark.parametrize("threshold", [0.01, 0.1, 0.25, 1.0])
def test_every_column_sums_to_one_and_a_label_alone_stays_alone(threshold):
  found = graphs.adjacency(CORRELATION, threshold)
  np.testing.assert_allclose(found.sum(0), 1)
  alone = ~((np.abs(CORRELATION) >= threshold) & ~np.eye(5, dtype=bool)).any(1)
  np.testing.assert_array_equal(found[:, alone], np.eye(5)[:, alone])
  np.testing.assert_array_equal(found[alone], np.eye(5)[alone])


def test_two_labels_that_have_each_other_alone_are_one_and_three_are_three():
  pair = graphs.adjacency(np.ones((2, 2)), 0.1)
  np.testing.assert_array_equal(pair, np.full((2, 2), 0.5))
  assert np.linalg.matrix_rank(graphs.adjacency(np.ones((3, 3)), 0.1)) == 3


def test_the_graph_of_labels_has_no_edge_between_expressions():
  labels, mask = some_labels()
  found = graphs.of_labels(labels, mask, OUTPUTS, threshold=1e-6)
  near = (found > 0) & ~np.eye(9, dtype=bool)
  au, expression, va = (graphs.spans(OUTPUTS)[task] for task in ("au", "expression", "va"))
  assert (au, expression, va) == (slice(0, 4), slice(4, 7), slice(7, 9))
  assert not near[expression, expression].any()
  assert near[au, :4].sum() == 12
  assert near[expression, va].all()
  assert near[va, va].sum() == 2


def test_a_node_keeps_its_neighbours_whatever_the_order_of_labels_and_tasks():
  labels, mask = some_labels()
  found = graphs.of_labels(labels, mask, OUTPUTS)
  order = [2, 0, 1]
  turned = {task: labels[task] for task in ("expression", "au", "va")}
  turned["expression"] = labels["expression"][:, order]
  outputs = {task: OUTPUTS[task] for task in reversed(OUTPUTS)}
  nodes = [*range(4), *(4 + np.array(order)), 7, 8]
  np.testing.assert_allclose(
    graphs.of_labels(turned, mask, outputs), found[np.ix_(nodes, nodes)], atol=1e-15
  )
  assert not np.allclose(found[np.ix_(nodes, nodes)], found)


def test_tasks_that_the_data_lack_have_no_neighbours():
  labels, mask = some_labels()
  del labels["au"], mask["au"]
  found = graphs.of_labels(labels, mask, OUTPUTS)
  np.testing.assert_array_equal(found[:4], np.eye(9)[:4])
  smaller = graphs.of_labels(labels, mask, {"va": 2, "expression": 3})
  np.testing.assert_allclose(found[4:, 4:], smaller)
  assert (smaller > 0).sum() > 5


def test_without_a_graph_or_without_labels_nobody_has_neighbours():
  np.testing.assert_array_equal(graphs.of_labels(*some_labels(), OUTPUTS, graph="none"), np.eye(9))
  np.testing.assert_array_equal(graphs.of_labels({}, {}, OUTPUTS), np.eye(9))


# The decoder.


ALONE = np.eye(9).tolist()


def head(adjacency=ALONE, channels=6, **options):
  sizes = dict(outputs=OUTPUTS, input_width=channels, input_length=4)
  return graphs.LabelGraph(adjacency=adjacency, **sizes | options, rngs=nnx.Rngs(0))


def tokens(width=6):
  return np.random.default_rng(0).normal(size=(5, 4, width)).astype(np.float32)


def test_a_graph_convolution_sums_over_neighbours_what_a_dense_layer_gives():
  layer = graphs.GraphConvolution(6, 3, spread=0.5, rngs=nnx.Rngs(0))
  rng = np.random.default_rng(0)
  x, near = rng.normal(size=(9, 6)), rng.random((9, 9))
  kernel = np.asarray(layer.kernel[...], np.float64)
  expected = [sum(near[i, j] * (x[j] @ kernel) for j in range(9)) for i in range(9)]
  found = layer(jnp.asarray(x, jnp.float32), jnp.asarray(near, jnp.float32))
  np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("pool", ["max", "mean"])
def test_with_one_vector_for_each_and_no_neighbours_it_is_a_linear_head(pool):
  model = head(embedding_width=9, width=9, pool=pool)
  kernel = np.random.default_rng(1).normal(size=(6, 9)).astype(np.float32)
  model.vectors[...] = model.inner.kernel[...] = jnp.eye(9)
  model.outer.kernel[...] = jnp.asarray(kernel.T)
  y = getattr(tokens(), pool)(axis=1) @ kernel
  found = model(jnp.asarray(tokens()))
  assert set(found) == set(OUTPUTS)
  for task, expected in zip(("au", "expression", "va"), np.split(y, [4, 7], 1), strict=True):
    np.testing.assert_allclose(found[task], expected, rtol=1e-5, atol=1e-5)


def test_the_weights_are_two_convolutions_with_a_leaky_relu_between():
  near = graphs.of_labels(*some_labels(), OUTPUTS)
  model = head(near.tolist(), channels=8)
  vectors, inner, outer = (
    np.asarray(p[...], np.float64) for p in (model.vectors, model.inner.kernel, model.outer.kernel)
  )
  assert (vectors.shape, inner.shape, outer.shape) == ((9, 300), (300, 512), (512, 8))
  hidden = near @ vectors @ inner
  expected = near @ np.where(hidden > 0, hidden, 0.2 * hidden) @ outer
  np.testing.assert_allclose(model.weights(), expected, atol=1e-6)
  assert 0.003 < expected.std() < 0.03  # training starts from near-uniform answers


def test_nodes_in_another_order_have_the_same_weights():
  near = graphs.of_labels(*some_labels(), OUTPUTS)
  model, turned = head(near.tolist()), head()
  order = np.random.default_rng(0).permutation(9)
  turned.vectors[...] = model.vectors[...][order]
  turned.adjacency[...] = model.adjacency[...][order][:, order]
  np.testing.assert_allclose(turned.weights(), model.weights()[order], atol=1e-6)
  assert not np.allclose(model.weights()[order], model.weights(), atol=1e-3)


def moved(model, task):
  """How far an update that knows of valence and arousal alone moves a task's outputs' weights."""
  graphdef, params, rest = nnx.split(model, nnx.Param, ...)
  outputs = lambda params, x: nnx.merge(graphdef, params, rest)(x)
  target = jnp.linspace(-1, 1, 10).reshape(5, 2)
  loss = lambda params: losses.ccc_loss(
    outputs(params, jnp.asarray(tokens()))["va"], target, jnp.ones((5, 2))
  )
  weights = lambda params: outputs(params, jnp.eye(6)[:, None])[task]  # and their bias

  @jax.jit
  def change(params):
    after = jax.tree.map(jnp.subtract, params, jax.grad(loss)(params))
    return jnp.abs(weights(after) - weights(params)).max()

  return float(change(params))


def test_labels_of_valence_and_arousal_move_the_weights_of_the_expressions():
  sizes = dict(outputs=OUTPUTS, input_width=6, input_length=4)
  linear = decoders.Linear(**sizes, rngs=nnx.Rngs(0))
  assert moved(linear, "va") > 1e-3
  assert moved(linear, "expression") == 0
  near = graphs.of_labels(*some_labels(), OUTPUTS).tolist()
  assert moved(head(near), "expression") > 1e-3


@pytest.mark.parametrize(("embeddings", "learns"), [("random", False), ("learned", True)])
def test_vectors_learn_or_stay_and_the_graph_always_stays(embeddings, learns):
  model = head(embeddings=embeddings)
  learned = nnx.to_pure_dict(nnx.state(model, nnx.Param))
  assert ("vectors" in learned) == learns
  assert "adjacency" not in learned
  rest = nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))
  assert set(rest) == {"adjacency"} | {"vectors"} - set(learned)


def test_a_model_that_was_not_told_its_graph_says_nothing_until_the_state_brings_it():
  near = graphs.of_labels(*some_labels(), OUTPUTS)
  unknown = head(None)
  x = jnp.asarray(tokens())
  assert all(np.isnan(y).all() for y in unknown(x).values())
  known = head(near.tolist())
  nnx.update(unknown, nnx.state(known))
  jax.tree.map(np.testing.assert_array_equal, unknown(x), known(x))


@pytest.mark.parametrize("tasks", [("va", "expression", "au"), ("expression",), ("va", "au")])
def test_every_set_of_tasks_has_its_outputs_in_float32(tasks):
  outputs = {task: OUTPUTS[task] for task in tasks}
  count = sum(outputs.values())
  model = head(np.eye(count).tolist(), outputs=outputs, dtype="bfloat16")
  found, maps = model(jnp.asarray(tokens(), jnp.bfloat16), train=True, attention=True)
  assert {t: (y.shape, y.dtype) for t, y in found.items()} == {
    t: ((5, n), jnp.float32) for t, n in outputs.items()
  }
  assert maps == {}


@pytest.mark.parametrize(
  ("options", "said"),
  [
    (
      dict(graph="pearson"),
      "config.model.decoder.graph='pearson': use one of ['spearman', 'none']",
    ),
    (dict(threshold=1.5), "config.model.decoder.threshold=1.5: use a number above 0, at most 1"),
    (dict(threshold=0.0), "config.model.decoder.threshold=0.0: use a number above 0, at most 1"),
    (
      dict(embeddings="glove"),
      "config.model.decoder.embeddings='glove': use one of ['random', 'learned']",
    ),
    (dict(pool="sum"), "config.model.decoder.pool='sum': use one of ['max', 'mean']"),
    (dict(width=0), "config.model.decoder.width=0: use 1 or more"),
    (dict(embedding_width=0), "config.model.decoder.embedding_width=0: use 1 or more"),
    (dict(adjacency=np.eye(8).tolist()), "adjacency of 9 labels: use 9 rows of 9 numbers, or None"),
    (dict(adjacency=[[1], [2, 3]]), "adjacency of 9 labels"),
    (dict(adjacency=[["a"] * 9] * 9), "adjacency of 9 labels"),
    (dict(adjacency={"a": 1}), "adjacency of 9 labels"),
    (dict(adjacency=np.full((9, 9), np.nan).tolist()), "adjacency of 9 labels"),
  ],
)
def test_options_that_cannot_be_are_refused_in_one_line(options, said):
  with pytest.raises(ValueError, match="use ") as error:
    head(**options)
  assert str(error.value).startswith(said)
  assert "\n" not in str(error.value)
