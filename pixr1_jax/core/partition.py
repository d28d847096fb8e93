"""Where arrays lie on a mesh of devices: one mesh, one set of rules, passed by value (decision D13).

Arrays name their axes by what they mean ("batch", "embed"); `Rules` says along which axes of the mesh each meaning is
divided. Parameters declare their names once, as `axes` of their `nnx.Param`, and every sharding derives from that.
"""

import dataclasses
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.custom_derivatives import linear_call
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from pixr1_jax.core import tree as tree_lib

AXES = ("slice", "data", "fsdp", "context", "tensor")
LARGEST_REPLICATED = 64 << 20  # bytes of an array that may lie whole on every device of a mesh that divides parameters


class PartitionError(ValueError):
    """A mesh or a sharding is impossible; the message names the field or the array, and what to change."""


@dataclasses.dataclass(frozen=True)
class MeshShape:
    """Sizes of the mesh axes; at most one is -1 and takes the devices that the others leave.

    Attributes:
      slice: Groups of devices joined by the slow network (DCN); each holds all parameters, and rows are divided.
      data: Divides rows, and copies parameters.
      fsdp: Divides rows, and parameters along their embedding axis.
      context: Divides the sequence, and parameters as `fsdp` does.
      tensor: Divides heads and the hidden units of feed-forward layers.
    """

    slice: int
    data: int
    fsdp: int
    context: int
    tensor: int

    def __post_init__(self):
        for name in AXES:
            size = getattr(self, name)
            if size < 1 and size != -1:
                raise PartitionError(f"{name}={size} must be 1 or more, or -1 for the devices that are left")
        if sum(getattr(self, name) == -1 for name in AXES) > 1:
            raise PartitionError("several axes are -1; only one can take the devices that are left")

    @property
    def sizes(self) -> tuple[int, ...]:
        """Sizes in the order of `AXES`."""
        return tuple(getattr(self, name) for name in AXES)

    def resolve(self, devices: int, slices: int = 1) -> "MeshShape":
        """The shape with -1 replaced.

        Args:
          devices: Devices of the whole mesh.
          slices: Slices that the hardware has; `slice` must be a multiple, or 1 on one slice.

        Raises:
          PartitionError: The sizes do not multiply to the devices.
        """
        known = math.prod(size for size in self.sizes if size != -1)
        shape = self
        if -1 in self.sizes and devices % known == 0:
            shape = dataclasses.replace(self, **{AXES[self.sizes.index(-1)]: devices // known})
        if -1 in shape.sizes or math.prod(shape.sizes) != devices:
            text = ", ".join(f"{name}={size}" for name, size in zip(AXES, self.sizes, strict=True))
            raise PartitionError(f"mesh ({text}) does not fit {devices} devices; change an axis, or make one -1")
        if shape.slice % slices:
            raise PartitionError(f"mesh.slice={shape.slice} must be a multiple of the {slices} slices")
        return shape


def make_mesh(shape: MeshShape, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh of a shape: neighbours on the inner axes are neighbours in the torus, slices apart.

    Args:
      shape: Axis sizes; see `MeshShape.resolve`.
      devices: Devices to use; all by default.

    Raises:
      PartitionError: The shape does not fit the devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    shape = shape.resolve(len(devices), slices)
    options = {"devices": devices, "allow_split_physical_axes": True}
    if slices > 1:
        inner, outer = [shape.slice // slices, *shape.sizes[1:]], [slices, 1, 1, 1, 1]
        grid = mesh_utils.create_hybrid_device_mesh(inner, outer, **options)
    else:
        grid = mesh_utils.create_device_mesh(shape.sizes, **options)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


@dataclasses.dataclass(frozen=True)
class Rules:
    """Along which mesh axes each logical axis is divided; nothing is implied for a name that is not here.

    Attributes:
      batch: Rows of a batch.
      length: Tokens of a row.
      embed: Model width, of parameters. Activations keep theirs whole.
      heads: Attention heads; `hidden` units of feed-forward layers.
      hidden: See `heads`.
      patch: Values of a patch; `near` those of a patch's surroundings.
      near: See `patch`.
      sound: Values of an audio token: few, and no power of two.
      rank: Bottleneck of an embedding.
      layers: Stacked layers, over which the forward pass is a scan.
    """

    batch: tuple[str, ...] = ("slice", "data", "fsdp")
    length: tuple[str, ...] = ("context",)
    embed: tuple[str, ...] = ("fsdp", "context")
    heads: tuple[str, ...] = ("tensor",)
    hidden: tuple[str, ...] = ("tensor",)
    patch: tuple[str, ...] = ("fsdp", "context")
    near: tuple[str, ...] = ("fsdp", "context")
    sound: tuple[str, ...] = ()
    rank: tuple[str, ...] = ()
    layers: tuple[str, ...] = ()

    def __post_init__(self):
        for name, axes in dataclasses.asdict(self).items():
            for axis in axes:
                if axis not in AXES:
                    raise PartitionError(f"rules.{name} names the mesh axis {axis!r}; the mesh has {', '.join(AXES)}")

    def spec(self, axes: Sequence[str | None], name: str = "array") -> PartitionSpec:
        """The partition of an array whose axes mean `axes`; None is an axis that is never divided.

        Raises:
          PartitionError: An axis has no rule, or two axes are divided along the same mesh axis.
        """
        known = [field.name for field in dataclasses.fields(self)]
        parts, taken = [], {}
        for axis in axes:
            if axis is not None and axis not in known:
                raise PartitionError(f"{name}: its axis {axis!r} has no rule; the rules know {', '.join(known)}")
            part = () if axis is None else getattr(self, axis)
            for mesh_axis in part:
                if mesh_axis in taken:
                    raise PartitionError(
                        f"{name}: its axes {taken[mesh_axis]!r} and {axis!r} both lie along {mesh_axis!r}; "
                        "change a rule, or declare one of them as None"
                    )
                taken[mesh_axis] = axis
            parts.append(part or None)
        return PartitionSpec(*parts)


@dataclasses.dataclass(frozen=True)
class Partition:
    """A mesh with its rules: everything that decides where an array lies.

    Attributes:
      mesh: The devices.
      rules: Which logical axis lies where.
      context_parallel: How attention reads along "context": "ulysses" exchanges tokens for heads (DeepSpeed-Ulysses,
        arXiv 2309.14509), "ring" sends keys round (Ring Attention, arXiv 2310.01889).
    """

    mesh: Mesh
    rules: Rules
    context_parallel: str

    def __post_init__(self):
        if self.context_parallel not in ("ulysses", "ring"):
            raise PartitionError(f"mesh.context_parallel={self.context_parallel!r}; use 'ulysses' or 'ring'")

    def size(self, logical: str) -> int:
        """Parts that a logical axis is divided into."""
        return math.prod(self.mesh.shape[axis] for axis in getattr(self.rules, logical))

    def sharding(self, *axes: str | None) -> NamedSharding:
        """Sharding of an array by the meaning of its leading axes."""
        return NamedSharding(self.mesh, self.rules.spec(axes))

    def constrain(self, x: jax.Array, *axes: str | None) -> jax.Array:
        """`x`, laid out by the meaning of its leading axes."""
        return jax.lax.with_sharding_constraint(x, self.sharding(*axes))

    def shardings(self, tree: Any, largest_replicated: int = LARGEST_REPLICATED) -> Any:
        """Shardings of parameters, and of what is structured like them: averages, moments, gradients.

        Args:
          tree: Abstract or concrete arrays; an `nnx.Variable` names its axes in its metadata `axes`, to which stacking
            adds "layers" at the front. Plain arrays lie whole everywhere.
          largest_replicated: Bytes of an array that may lie whole on every device.

        Raises:
          PartitionError: A name without a rule, a collision, a size that does not divide, or a large array that no
            rule divides although the mesh has an axis for parameters.
        """
        names = iter(tree_lib.named_leaves(tree))
        divides = any(self.size(logical) > 1 for logical in ("embed", "heads", "hidden", "patch", "near"))

        def place(node):
            axes = node.get_metadata().get("axes") if isinstance(node, nnx.Variable) else None
            return jax.tree.map(lambda leaf: leaf_sharding(next(names), leaf, axes), node)

        def leaf_sharding(name, leaf, axes):
            axes = (None,) * leaf.ndim if axes is None else tuple(axes)
            axes = ("layers",) * (leaf.ndim - len(axes)) + axes
            spec = self.rules.spec(axes, name)
            sharding = NamedSharding(self.mesh, spec)
            for axis, size in zip(axes, leaf.shape, strict=True):
                parts = () if axis is None else getattr(self.rules, axis)
                count = math.prod(self.mesh.shape[part] for part in parts)
                if size % count:
                    raise PartitionError(
                        f"{name} {list(leaf.shape)}: its axis {axis!r} of {size} does not divide into {count} "
                        f"({' x '.join(parts)}); change the size or the mesh"
                    )
            size = math.prod(leaf.shape) * leaf.dtype.itemsize
            if divides and sharding.is_fully_replicated and size > largest_replicated:
                raise PartitionError(
                    f"{name} {list(leaf.shape)}: {size / 2**20:.0f} MiB would lie whole on every device; name its axes "
                    f"{axes} so that a rule divides one"
                )
            return sharding

        return jax.tree.map(place, tree, is_leaf=lambda node: isinstance(node, nnx.Variable))

    def abstract(self, tree: Any) -> Any:
        """`tree` as shapes with their shardings: what is restored onto, and compiled for."""
        struct = lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
        return jax.tree.map(struct, tree, self.shardings(tree))

    def gathered(self, params: Any, dtype: Any) -> Any:
        """Parameters as a layer multiplies with them: matrices in `dtype`, whole along the axes that tokens lie along.

        Left to itself the compiler may send parts of a matrix round and add up parts of the product ("windowed
        einsum"), each sum through HBM: a step of omni_1b moved three times as many bytes (docs/benchmarks.md).
        Gradients are laid out as the parameters are.

        Args:
          params: A module, or any tree of `nnx.Variable`.
          dtype: Of arrays with more than one axis.
        """
        along = {*self.rules.batch, *self.rules.length}

        def gather(node):
            axes = node.get_metadata()["axes"]
            parts = [() if axis is None else getattr(self.rules, axis) for axis in axes]
            x = node[...].astype(dtype) if node.ndim > 1 else node[...]
            if any(self.mesh.shape[axis] > 1 for part in parts for axis in part if axis in along):
                whole = PartitionSpec(*(tuple(axis for axis in part if axis not in along) or None for part in parts))
                x = _relaid(x, self.sharding(*axes), NamedSharding(self.mesh, whole))
            return node.replace(x)

        return jax.tree.map(gather, params, is_leaf=lambda node: isinstance(node, nnx.Variable))

    ############################################################################ rows of a batch

    def own_rows(self, batch_rows: int) -> tuple[int, ...]:
        """The rows of a batch that this process's devices need, ascending.

        Raises:
          PartitionError: The rows do not divide over the mesh.
        """
        parts = self.size("batch")
        if batch_rows % parts:
            raise PartitionError(
                f"pack.batch_rows={batch_rows} must be a multiple of {parts}, the mesh's {' x '.join(self.rules.batch)}"
            )
        places = self.sharding("batch").addressable_devices_indices_map((batch_rows,))
        return tuple(sorted({row for where in places.values() if where for row in range(batch_rows)[where[0]]}))

    def global_batch(self, rows: dict[str, np.ndarray], batch_rows: int) -> dict[str, jax.Array]:
        """The global arrays of a batch, from the rows that `own_rows` names."""
        own = {row: place for place, row in enumerate(self.own_rows(batch_rows))}
        sharding = self.sharding("batch")

        def place(x: np.ndarray) -> jax.Array:
            def part(index: Any) -> np.ndarray:
                start, stop, _ = index[0].indices(batch_rows)
                return x[own[start] : own[start] + stop - start]  # whoever has the first row has all of them

            return jax.make_array_from_callback((batch_rows, *x.shape[1:]), sharding, part)

        return {name: place(x) for name, x in rows.items()}


@partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def _relaid(x: jax.Array, before: NamedSharding, after: NamedSharding) -> jax.Array:
    """`x` from one layout to another; its gradient goes the way back, step by step."""
    return jax.lax.with_sharding_constraint(x, after)


@_relaid.defjvp
def _relaid_tangent(before, after, primals, tangents):
    there = lambda _, x: jax.lax.with_sharding_constraint(x, after)
    # Whole at first, or the product that makes the gradient is done in windows; the two steps become a reduce-scatter.
    back = lambda _, x: jax.lax.with_sharding_constraint(there(_, x), before)
    return _relaid(primals[0], before, after), linear_call(there, back, (), tangents[0])
