"""The order of a network's channels by what they carry: the first n are the best n."""

import numpy as np

from autodistill_jax.models import build
from autodistill_jax.pruning.moments import OUTPUT, Moments, channel_variances
from autodistill_jax.pruning.streams import stream_readers


def channel_orders(
    module: build.Module, params: build.Params, moments: Moments
) -> dict[str, np.ndarray]:
    """The channels of every stream, the most important first.

    Of a residual stream by variance; of heads and ffns, whose outputs are added up by
    the product that reads them, by the variance of what each adds: of a channel
    Var(x_i) |W_i|^2, of a head the sum over its channels. Heads stay whole, and a head's
    channels in their order.

    Args:
      module: of `params`; no SuperLM.
      params: {name: array}.
      moments: of `moments.input_moments`.

    Returns:
      {stream: the index of each new channel, [..., n]}, for `streams.reorder`.
    """
    # Of the pooler, which sees the first token alone, it does not depend.
    readers = [r for r in stream_readers(module) if r.kernel != "pooler_kernel"]
    orders = {}
    for stream in dict.fromkeys(reader.stream for reader in readers):
        kernels = [reader.kernel for reader in readers if reader.stream == stream]
        variances = [channel_variances(moments[kernel]) for kernel in kernels]
        if stream in ("context", "ffn"):
            (variance,), (kernel,) = variances, kernels
            weights = np.asarray(params[kernel], np.float64)
            scores = variance * np.square(weights).sum(axis=-1)
        elif stream == "hidden":
            variances.append(channel_variances(moments[OUTPUT])[None])
            scores = np.concatenate(
                [x.reshape(-1, x.shape[-1]) for x in variances]
            ).mean(axis=0)
        else:
            by_layer = [x.reshape(len(x), -1, x.shape[-1]) for x in variances]
            scores = np.concatenate(by_layer, axis=1).mean(axis=1)
        if stream == "context":
            head_size = module.arch.head_size
            scores = scores.reshape(*scores.shape[:-1], -1, head_size).sum(axis=-1)
        order = np.argsort(-scores, axis=-1, kind="stable")
        if stream == "context":
            order = order[..., None] * head_size + np.arange(head_size)
            order = order.reshape(*order.shape[:-2], -1)
        orders[stream] = order
    return orders
