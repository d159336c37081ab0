"""Shapes so small that a compile is a second, and meshes of the fake devices."""

import dataclasses

import jax

from autodistill_jax import sharding
from autodistill_jax.archs.arch import Arch
from autodistill_jax.archs.cost import ModelDims
from autodistill_jax.archs.space import Space

DIMS = ModelDims(vocab=60, positions=16)
SPACE = Space(
    layers=(1, 2, 4),
    hidden=(12, 16, 24),
    heads=(2, 3),
    ffn_ratio=(1.5, 2.0),
    head_size=8,
)
BIG = Arch(4, 24, 3, 48, head_size=8)


def mesh_of(devices, **axes):
    """A mesh of the first few devices, along `data` where nothing else is said."""
    return sharding.make_mesh({"data": -1, **axes}, jax.devices()[:devices])


def corners(space):
    """The Archs at the ends of every axis of a Space."""
    ends = {
        field.name: tuple(sorted({min(values), max(values)}))
        for field in dataclasses.fields(space)
        if field.name != "head_size" and (values := getattr(space, field.name))
    }
    return list(dataclasses.replace(space, **ends))
