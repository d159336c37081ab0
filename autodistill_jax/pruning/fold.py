"""The least-squares fold: what a cut drops leaves its share in the products that stay."""

import numpy as np

from autodistill_jax.archs.arch import AnyArch
from autodistill_jax.models import build
from autodistill_jax.pruning.moments import Moments
from autodistill_jax.pruning.streams import stream_axis, stream_readers

# Of the mean variance of the kept channels: what is all but dependent must not blow up.
_RIDGE = 1e-3


def fold(
    module: build.Module, params: build.Params, arch: AnyArch, moments: Moments
) -> dict[str, np.ndarray]:
    """Parameters whose first channels do without the others, as well as may be.

    Of what each product reads the dropped channels are regressed on the kept ones,
    x_drop ~ A x_keep + c (ridge, in closed form), and the product takes their share
    over: W_keep += A^T W_drop, b += c W_drop. What `extract` then slices off is
    the network of `arch`.

    Args:
      module: of `params`; no SuperLM.
      params: {name: array}.
      arch: what will be cut out; its layers are not looked at.
      moments: of `moments.input_moments`, of this very network.

    Returns:
      {name: array}, of the shapes of `params`.
    """
    folded = {name: np.array(value, order="C") for name, value in params.items()}
    for reader in stream_readers(module):
        num_kept = arch.num_channels(stream_axis(arch, reader.stream))
        moment = moments[reader.kernel]
        if num_kept < moment.shape[-1] - 1:
            shares, constants = regress_dropped(moment, num_kept)
            kernel, bias = folded[reader.kernel], folded[reader.bias]
            leading_axes = kernel.shape[: reader.axis]
            # As one matrix, [..., in, out]: a view, which is changed in place.
            matrix = kernel.reshape(*leading_axes, kernel.shape[reader.axis], -1)
            # The moments' leading axes are the first of the kernel's.
            lead = shares.shape[:-2]
            lead += (1,) * (len(leading_axes) - len(lead))
            shares = np.swapaxes(shares, -1, -2).reshape(*lead, num_kept, -1)
            dropped = matrix[..., num_kept:, :]
            matrix[..., :num_kept, :] += shares @ dropped
            bias += (constants.reshape(*lead, 1, -1) @ dropped).reshape(bias.shape)
    return folded


def regress_dropped(moment: np.ndarray, num_kept: int) -> tuple[np.ndarray, np.ndarray]:
    """The channels behind the first `num_kept` as an affine function of these.

    Args:
      moment: of what a product reads, [..., n + 1, n + 1], see `moments.Moments`.
      num_kept: how many channels stay.

    Returns:
      (A [..., n - num_kept, num_kept], c [..., n - num_kept]) of x_drop ~ A x_keep + c:
      the least mean square over the tokens, up to a ridge of a thousandth of the mean
      variance.
    """
    mean = moment[..., :-1, -1]
    covariance = moment[..., :-1, :-1] - mean[..., :, None] * mean[..., None, :]
    of_kept = covariance[..., :num_kept, :num_kept]
    cross = covariance[..., :num_kept, num_kept:]
    variances = np.diagonal(of_kept, axis1=-2, axis2=-1)
    ridge = _RIDGE * variances.mean(-1)[..., None, None] * np.eye(num_kept)
    shares = np.swapaxes(np.linalg.solve(of_kept + ridge, cross), -1, -2)
    predicted_mean = (shares @ mean[..., :num_kept, None])[..., 0]
    return shares, mean[..., num_kept:] - predicted_mean
