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

    def inputs(params, batch):
        """{kernel: (what it reads [..., tokens, n], the tokens' weights [tokens])}."""
        mask = batch["attention_mask"]
        out = build.apply_module(module, params, batch, kernel_inputs=True)
        weights = mask.reshape(-1).astype(jnp.float32)
        read = {
            f"layers_{name}": (x, weights)
            for name, x in (out.kernel_inputs or {}).items()
        }
        read[OUTPUT] = out.hidden.reshape(len(weights), -1), weights
        if "pooler_kernel" in params:
            first = out.hidden[:, 0]
            read["pooler_kernel"] = first, jnp.ones(len(first))
        return read

    @jax.jit
    def means(params, batch):
        return {
            kernel: jnp.einsum("...ti,t->...i", x, weights) / weights.sum()
            for kernel, (x, weights) in inputs(params, batch).items()
        }

    @jax.jit
    def add(total, params, batch, centers):
        def moment(x, weights, center):
            x = x - center[..., None, :]
            x = jnp.concatenate([x, jnp.ones((*x.shape[:-1], 1))], axis=-1)
            # On a TPU a product's default is bf16, coarser than the ridges of fits.
            return jnp.einsum(
                "...ti,t,...tj->...ij", x, weights, x, precision="highest"
            )

        read = inputs(params, batch)
        sums = {kernel: moment(*read[kernel], centers[kernel]) for kernel in read}
        return sums if total is None else jax.tree.map(jnp.add, total, sums)

    # Sums about the first batch's means, in f32; about 0, in f64, after that: a mean
    # far larger than the deviations would leave of these nothing but rounding.
    total = centers = None
    for batch in batches:
        centers = means(params, batch) if centers is None else centers
        total = add(total, params, batch, centers)
    assert total is not None and centers is not None, "no batch"
    moments = {}
    for kernel, value in total.items():
        value = np.asarray(value, np.float64)
        center = np.asarray(centers[kernel], np.float64)
        shift = np.zeros_like(value) + np.eye(value.shape[-1])
        shift[..., :-1, -1] = center
        value = shift @ value @ np.swapaxes(shift, -1, -2)
        moments[kernel] = value / value[..., -1:, -1:]
    return moments


def channel_variances(moment: np.ndarray) -> np.ndarray:
    """The variance of each channel [..., n], of `Moments` [..., n + 1, n + 1]."""
    squares = np.diagonal(moment, axis1=-2, axis2=-1)[..., :-1]
    return squares - np.square(moment[..., :-1, -1])
