"""The TPU generations: how libtpu names a chip, and what it can do at best."""

from typing import NamedTuple


class Chip(NamedTuple):
    """One chip: how libtpu and JAX name it, and what it can do at best.

    Attributes:
      topology: libtpu's name of one chip.
      kind: the `device_kind` of JAX.
      clock: cycles a second.
      peak: bfloat16 operations a second, two a multiply-add; at JAX's default precision
        float32 products run as bfloat16 too.
      bandwidth: bytes a second out of its main memory.
      memory: bytes of main memory that a program may use, as libtpu 0.0.42 says.
      links: bytes a second to all its neighbours together.
      config: libtpu's name for the way its cores work together.
    """

    topology: str
    kind: str
    clock: float
    peak: float
    bandwidth: float
    memory: float
    links: float
    config: str = "default"


_GIB = 2**30
# peak, bandwidth, links: cloud.google.com/tpu/docs, the page of each version; of v4i,
# which is not rented out, Jouppi et al., "Ten lessons from three generations shaped
# Google's TPUv4i" (ISCA 2021), table 1. clock: there for v4i, and for v4 in arXiv
# 2304.01433; of the others nobody prints it: peak / (2 x 128 x 128 x the matrix units),
# four of v5e and eight of v5p; v6e's is assumed to be v5p's.
CHIPS = {
    "v4i": Chip(
        "v4 lite:1x1", "TPU v4 lite", 1.05e9, 138e12, 614e9, 7.75 * _GIB, 100e9
    ),
    # Two cores that work as one device.
    "v4": Chip(
        "v4:1x1x1", "TPU v4", 1.05e9, 275e12, 1228e9, 30.75 * _GIB, 300e9, "megacore"
    ),
    "v5e": Chip("v5e:1x1", "TPU v5 lite", 1.5e9, 197e12, 819e9, 15.75 * _GIB, 200e9),
    "v5p": Chip("v5p:1x1x1", "TPU v5", 1.75e9, 459e12, 2765e9, 95.74 * _GIB, 600e9),
    "v6e": Chip("v6e:1x1", "TPU v6 lite", 1.75e9, 918e12, 1640e9, 31.25 * _GIB, 448e9),
}
