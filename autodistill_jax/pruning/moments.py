"""What the products of a network read on some text: means and second moments."""

from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from autodistill_jax.models import build

# {kernel: the mean over tokens of [x, 1][x, 1]^T for what it reads, [..., n + 1, n + 1]}.
Moments = dict[str, np.ndarray]

OUTPUT = "output"  # In the place of a kernel: whoever reads the last hidden states.


def input_moments(
    module: build.Module,
    params: build.Params,
    batches: Iterable[Mapping[str, np.ndarray]],
) -> Moments:
    """The moments of what each product of a network reads, over a text's real tokens.

    Args:
      module: a network that is no SuperLM.
      params: {name: array}.
      batches: `input_ids`, `attention_mask` [B, L] each, and `token_type_ids` where the
        rows are pairs; all of one shape.

    Returns:
      {kernel: [..., n + 1, n + 1]}, f64, with the leading axes of the kernel: [N], of a
      MobileBERT's ffns [N, stacks], of the pooler's none. Also of the last hidden
      states, `OUTPUT`.
    """

    @jax.jit
    def add(total, params, batch):
        mask = batch["attention_mask"]
        out = build.apply_module(module, params, batch, kernel_inputs=True)
        weights = mask.reshape(-1).astype(jnp.float32)

        def moment(x, weights=weights):
            x = jnp.concatenate([x, jnp.ones((*x.shape[:-1], 1))], axis=-1)
            return jnp.einsum("...ti,t,...tj->...ij", x, weights, x)

        sums = {
            f"layers_{name}": moment(x) for name, x in (out.kernel_inputs or {}).items()
        }
        sums[OUTPUT] = moment(out.hidden.reshape(len(weights), -1))
        if "pooler_kernel" in params:
            first = out.hidden[:, 0]
            sums["pooler_kernel"] = moment(first, jnp.ones(len(first)))
        return sums if total is None else jax.tree.map(jnp.add, total, sums)

    total = None
    for batch in batches:
        total = add(total, params, batch)
    assert total is not None, "no batch"
    moments = {}
    for name, value in total.items():
        value = np.asarray(value, np.float64)
        moments[name] = value / value[..., -1:, -1:]
    return moments


def channel_variances(moment: np.ndarray) -> np.ndarray:
    """The variance of each channel [..., n], of `Moments` [..., n + 1, n + 1]."""
    squares = np.diagonal(moment, axis1=-2, axis2=-1)[..., :-1]
    return squares - np.square(moment[..., :-1, -1])
