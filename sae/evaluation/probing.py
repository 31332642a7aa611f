"""Sparse and dense probes: logistic regression of a label on a few neurons, or on all.

A k-sparse probe reads the k neurons whose means differ most between the classes; how good it is with few neurons says
how much of a concept single neurons hold. Sources: Gurnee et al. (arXiv 2305.01610), Kantamneni et al. (arXiv
2502.16681). All probes minimise the sum of the log losses plus half the squared weights of standardised activations,
as scikit-learn's `LogisticRegression` does by default.
"""

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import optax

_NEWTON_STEPS = 15
_PADDED = (4, 16)  # numbers of neurons that programs are compiled for
_STEP_SIZES = np.array([1.0, 0.5, 0.25, 0.0625, 0.0], np.float32)  # of a Newton step, of which the best is taken
# Of the dense probes, whose Hessians would not fit: gradient steps, and studies in each.
_DENSE_STEPS = 500
_DENSE_BATCH = 2048
_OPTIMISER = optax.adam(optax.cosine_decay_schedule(0.05, _DENSE_STEPS))


def fit_sparse(x: np.ndarray, y: np.ndarray, counted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """P probes on k neurons each, by Newton's method.

    Args:
      x: the activations of each probe's neurons. [P, n, k]
      y: its label. bool [P, n]
      counted: the studies that it is fitted on, among which there are both labels. bool [P, n]

    Returns:
      Weights float32 [P, k] and biases [P], for activations as they are.
    """
    k = x.shape[2]
    width = next((size for size in _PADDED if size >= k), k)
    padded = np.pad(x, ((0, 0), (0, 0), (0, width - k)))  # neurons that are always 0 have no weight
    weights, bias = _fit_sparse(padded, y, counted.astype(np.float32))
    return np.asarray(weights)[:, :k], np.asarray(bias)


@jax.jit
@jax.vmap
def _fit_sparse(x: jax.Array, y: jax.Array, counted: jax.Array) -> tuple[jax.Array, jax.Array]:
    product = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    n = counted.sum()
    mean = product(counted, x) / n
    scale = jnp.sqrt(product(counted, jnp.square(x - mean)) / n)
    scale = jnp.where(scale > 1e-6 * jnp.abs(mean), scale, 1.0)
    z = jnp.column_stack([(x - mean) / scale, jnp.ones(len(x))])  # [n, k + 1]
    penalty = jnp.append(jnp.ones(x.shape[1]), 0.0)

    def improved(_: int, w: jax.Array) -> jax.Array:
        score = product(z, w)  # [n]
        p = jax.nn.sigmoid(score)
        slope = counted * p * (1 - p)
        hessian = product((z * slope[:, None]).T, z) + jnp.diag(penalty + 1e-6)
        gradient = product(z.T, counted * (p - y)) + penalty * w
        step = jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(hessian), gradient)
        along = product(z, step)

        def objective(size: jax.Array) -> jax.Array:
            margin = jnp.where(y, 1.0, -1.0) * (score - size * along)
            return (counted * jax.nn.softplus(-margin)).sum() + (penalty * jnp.square(w - size * step)).sum() / 2

        # A whole step may overshoot where the classes are nearly separable.
        sizes = jnp.asarray(_STEP_SIZES)
        return w - sizes[jnp.argmin(jax.lax.map(objective, sizes))] * step

    w = jax.lax.fori_loop(0, _NEWTON_STEPS, improved, jnp.zeros(z.shape[1]))
    weights = w[:-1] / scale
    return weights, w[-1] - product(mean, weights)


def fit_dense(
    rows: Callable[[np.ndarray], np.ndarray],
    mean: np.ndarray,
    scale: np.ndarray,
    value: np.ndarray,
    counted: np.ndarray,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Probes of many labels on all F neurons at once, by Adam with a rate that falls to 0.

    Args:
      rows: gives the activations of studies, float32 [rows, F]; a thread calls it for the next step.
      mean, scale: what activations are standardised by. [F] each
      value: the labels of P probes. bool [n, P]
      counted: the studies that each probe is fitted on. bool [n, P]
      seed: seed of the order of the studies.

    Returns:
      Weights of standardised activations float32 [F, P], and biases [P].
    """
    n, batch = len(value), min(len(value), _DENSE_BATCH)
    params = {"w": jnp.zeros((len(mean), value.shape[1])), "b": jnp.zeros(value.shape[1])}
    state = _OPTIMISER.init(params)
    share = (
        (n / batch / np.maximum(counted.sum(0), 1)).astype(np.float32),
        (1 / np.maximum(counted.sum(0), 1)).astype(np.float32),
    )
    standard = np.float32(mean), np.float32(scale)
    rng = np.random.default_rng((seed, n))
    order = np.concatenate([rng.permutation(n) for _ in range(-(-_DENSE_STEPS * batch // n))])
    steps = np.sort(order[: _DENSE_STEPS * batch].reshape(_DENSE_STEPS, batch), axis=1)  # [steps, b]
    with ThreadPoolExecutor(1) as reader:  # one step ahead: activations of more would fill the memory
        reading = reader.submit(rows, steps[0])
        for step, chosen in enumerate(steps):
            x = reading.result()
            if step + 1 < len(steps):
                reading = reader.submit(rows, steps[step + 1])
            params, state = _advance(params, state, x, value[chosen], counted[chosen], standard, share)
            jax.block_until_ready(params)  # or the activations of the steps before wait in memory too
    return np.asarray(params["w"]), np.asarray(params["b"])


@functools.partial(jax.jit, donate_argnums=(0, 1))
def _advance(
    params: dict[str, jax.Array],
    state: optax.OptState,
    x: jax.Array,
    y: jax.Array,
    counted: jax.Array,
    standard: tuple[jax.Array, jax.Array],
    share: tuple[jax.Array, jax.Array],
) -> tuple[dict[str, jax.Array], optax.OptState]:
    """One step on b studies, in which each probe's losses count `share[0] [P]` and its penalty `share[1] [P]`."""
    z = (x - standard[0]) / standard[1]  # [b, F]

    def loss(params: dict[str, jax.Array]) -> jax.Array:
        score = jnp.matmul(z, params["w"], precision=jax.lax.Precision.HIGHEST) + params["b"]  # [b, P]
        losses = jnp.where(counted, jax.nn.softplus(jnp.where(y, -score, score)), 0.0).sum(0)  # [P]
        return losses @ share[0] + jnp.square(params["w"]).sum(0) @ share[1] / 2

    updates, state = _OPTIMISER.update(jax.grad(loss)(params), state)
    return optax.apply_updates(params, updates), state


def factor_of(covariance: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """Few columns in place of many directions, for dense probes of what lies along these.

    The best probe of the F standardised products of rows x with `directions` has weights that are combinations of rows.
    So the same scores minimise the same sum of losses and squared weights among probes of r <= d products of x with the
    columns given here, which are as they are: they differ in scale, and are not correlated.

    Args:
      covariance: of the rows. float64 [d, d]
      directions: float64 [d, F]

    Returns:
      float64 [d, r]
    """
    variance = np.einsum("df,df->f", covariance @ directions, directions)
    varies = variance > 1e-12 * np.einsum("df,df->f", directions, directions) * np.trace(covariance)
    scaled = directions[:, varies] / np.sqrt(variance[varies])  # [d, F]
    size, axes = np.linalg.eigh(scaled @ scaled.T)
    root = axes * np.sqrt(np.maximum(size, 0))  # [d, d], and root root^T = scaled scaled^T
    variance, turned = np.linalg.eigh(root.T @ covariance @ root)
    return root @ turned[:, variance > 1e-10 * variance.max(initial=0)]


def pair_wins(score: np.ndarray, positive: np.ndarray, group: np.ndarray, n_groups: int) -> np.ndarray:
    """How many pairs of a positive and a negative study a score puts in the right order; ties count half.

    Any weighting of the groups has its area under the ROC curve from these: w U w / (w p) (w q), where p and q are the
    groups' numbers of positive and of negative studies.

    Args:
      score: [n].
      positive: the label. bool [n]
      group: the group of each study. int [n]
      n_groups: number of groups, G.

    Returns:
      U, by the group of the positive and of the negative study. float64 [G, G]
    """
    negatives = np.flatnonzero(~positive)
    negatives = negatives[np.argsort(score[negatives], kind="stable")]
    below = np.zeros((len(negatives) + 1, n_groups), np.float32)  # negatives of each group among the lowest ones
    below[np.arange(len(negatives)) + 1, group[negatives]] = 1
    np.cumsum(below, axis=0, out=below)
    positives = np.flatnonzero(positive)
    positives = positives[np.argsort(group[positives], kind="stable")]
    lower, upper = (np.searchsorted(score[negatives], score[positives], side=side) for side in ("left", "right"))
    wins = np.zeros((n_groups, n_groups))
    present, first = np.unique(group[positives], return_index=True)
    if len(present):
        wins[present] = np.add.reduceat(below[lower] + below[upper], first, axis=0, dtype=np.float64) / 2
    return wins


def resampled_scores(weights: np.ndarray, wins: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """AUROC and F1 of P probes under R weightings of G groups of studies, NaN where a class is missing.

    Args:
      weights: how often each weighting has each group. [R, G]
      wins: of each probe, what `pair_wins` gives. [P, G, G]
      counts: of each probe, by group: positive studies, negative ones, those above the threshold, and the positive ones
        among these. [P, 4, G]

    Returns:
      float32 [P, R] each.
    """
    auroc, f1 = _resampled_scores(*(np.float32(part) for part in (weights, wins, counts)))
    return np.asarray(auroc), np.asarray(f1)


@jax.jit
def _resampled_scores(weights: jax.Array, wins: jax.Array, counts: jax.Array) -> tuple[jax.Array, jax.Array]:
    product = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    won = jax.lax.map(lambda own: (product("rg,gh->rh", weights, own) * weights).sum(1), wins)  # [P, R]
    true, false, fired, hits = product("rg,pcg->cpr", weights, counts)  # [P, R] each
    auroc = jnp.where((true > 0) & (false > 0), won / jnp.maximum(true * false, 1), jnp.nan)
    return auroc, jnp.where(true > 0, 2 * hits / jnp.maximum(fired + true, 1), jnp.nan)


def best_f1_threshold(score: np.ndarray, positive: np.ndarray) -> float:
    """The threshold above which calling studies positive gives the highest F1. `score [n]`, `positive` bool [n]"""
    order = np.argsort(-score, kind="stable")
    score, hits = score[order], positive[order].cumsum()
    f1 = 2 * hits / (np.arange(1, len(score) + 1) + positive.sum())
    following = np.append(score[1:], -np.inf)
    best = int(np.where(score > following, f1, -1.0).argmax())  # no threshold lies between equal scores
    return float((score[best] + following[best]) / 2)
