"""Patches: an exact inverse at any size, and Morton order that keeps tiles together."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines import patches

SIZES = st.integers(1, 23)


def morton_code(y: int, x: int) -> int:
    """Oracle: interleaves the binary digits as text, x in the low place."""
    digits = zip(f"{y:010b}", f"{x:010b}", strict=True)
    return int("".join(a + b for a, b in digits), 2)


@settings(deadline=None, max_examples=60)
@given(
    height=SIZES,
    width=SIZES,
    chunks=st.integers(1, 3),
    chunk_frames=st.integers(1, 3),
    patch=st.integers(1, 7),
)
def test_unpatchify_inverts_patchify(height, width, chunks, chunk_frames, patch):
    rng = np.random.default_rng(height * 100 + width)
    video = rng.integers(0, 256, (chunks * chunk_frames, height, width, 3), np.uint8)
    rows = patches.patchify(video, chunk_frames, patch)
    grid = (height + patch - 1) // patch, (width + patch - 1) // patch
    assert rows.shape == (chunks, grid[0] * grid[1], chunk_frames * patch * patch * 3)
    np.testing.assert_array_equal(patches.unpatchify(rows, height, width, chunk_frames, patch), video)


@settings(deadline=None, max_examples=40)
@given(height=SIZES, width=SIZES, patch=st.integers(1, 6), chunk_frames=st.integers(1, 2))
def test_each_patch_is_its_square_of_the_picture_and_extends_the_edge(height, width, patch, chunk_frames):
    video = np.random.default_rng(0).integers(0, 256, (chunk_frames, height, width, 3), np.uint8)
    rows = patches.patchify(video, chunk_frames, patch)[0]
    coordinates = patches.patch_coordinates(*patches.grid_shape(height, width, patch)).astype(int)
    extent = patches.patch_extent(height, width, patch)
    for row, (y, x), (inside_y, inside_x) in zip(rows, coordinates, extent, strict=True):
        cell = row.reshape(chunk_frames, patch, patch, 3)
        ys = [min(y * patch + i, height - 1) for i in range(patch)]
        xs = [min(x * patch + i, width - 1) for i in range(patch)]
        np.testing.assert_array_equal(cell, video[:, ys][:, :, xs])
        assert inside_y == sum(y * patch + i < height for i in range(patch))
        assert inside_x == sum(x * patch + i < width for i in range(patch))


@settings(deadline=None, max_examples=60)
@given(rows=st.integers(1, 40), columns=st.integers(1, 40))
def test_morton_order_is_the_permutation_sorted_by_interleaved_bits(rows, columns):
    order = patches.morton_order(rows, columns)
    expected = sorted(range(rows * columns), key=lambda raster: morton_code(*divmod(raster, columns)))
    assert order.dtype == np.int32
    np.testing.assert_array_equal(order, expected)


@settings(deadline=None, max_examples=40)
@given(rows=st.integers(1, 12), columns=st.integers(1, 12))
def test_runs_of_four_are_square_tiles_on_even_grids(rows, columns):
    places = patches.patch_coordinates(2 * rows, 2 * columns).reshape(-1, 4, 2)
    corner = places.min(1)
    assert (corner % 2 == 0).all()
    np.testing.assert_array_equal(
        places - corner[:, None], np.tile([[0, 0], [0, 1], [1, 0], [1, 1]], (len(places), 1, 1))
    )


def test_runs_of_sixteen_are_square_tiles_where_four_divides_the_grid():
    places = patches.patch_coordinates(8, 12).reshape(-1, 16, 2)
    assert (np.ptp(places, axis=1) == 3).all()


def test_partial_chunks_are_refused():
    with pytest.raises(ValueError, match="5 frames are not a multiple of chunk_frames=2"):
        patches.patchify(np.zeros((5, 4, 4, 3), np.uint8), 2, 2)


def test_jax_arrays_give_the_same_patches():
    video = np.random.default_rng(1).random((4, 7, 5, 3), np.float32)
    rows = patches.patchify(jnp.asarray(video), 2, 3)
    assert isinstance(rows, jax.Array)
    np.testing.assert_array_equal(rows, patches.patchify(video, 2, 3))
    np.testing.assert_array_equal(patches.unpatchify(rows, 7, 5, 2, 3), video)
