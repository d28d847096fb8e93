"""Native-resolution patches: video <-> rows of pixels, in Morton order.

A chunk of video (`chunk_frames` pixel frames) becomes one row of `chunk_frames * patch * patch * 3`
values for each place of the patch grid. Nothing is cropped or resized: a size that is not a multiple of the
patch is extended by its edge, and the extension is known (`patch_extent`) so that it can carry no loss.
"""

import functools

import numpy as np


def grid_shape(height: int, width: int, patch: int) -> tuple[int, int]:
    """Rows and columns of the patch grid that covers `height x width` pixels."""
    return -(-height // patch), -(-width // patch)


@functools.cache
def morton_order(rows: int, columns: int) -> np.ndarray:
    """Raster indices of a `rows x columns` grid in Morton (Z-curve) order, int32 [rows * columns].

    Neighbours on the curve are neighbours in the picture, so any run of consecutive patches, and
    with it a block of attention, is a compact tile at every resolution.
    """
    y, x = np.divmod(np.arange(rows * columns, dtype=np.int64), columns)
    code = np.zeros_like(y)
    for bit in range(16):
        code |= ((x >> bit) & 1) << (2 * bit) | ((y >> bit) & 1) << (2 * bit + 1)
    return np.argsort(code, kind="stable").astype(np.int32)


def patch_coordinates(rows: int, columns: int) -> np.ndarray:
    """Grid coordinates (y, x) of the patches in Morton order, float32 [rows * columns, 2]."""
    y, x = np.divmod(morton_order(rows, columns), columns)
    return np.stack([y, x], axis=-1).astype(np.float32)


def neighbourhood(rows: int, columns: int) -> np.ndarray:
    """The 3 x 3 patches around each patch, int32 [rows * columns, 9], -1 outside the picture; both in Morton order."""
    order = morton_order(rows, columns)
    rank = np.argsort(order)
    y, x = np.divmod(order, columns)
    down, right = np.divmod(np.arange(9), 3)
    near_y, near_x = y[:, None] + down - 1, x[:, None] + right - 1
    inside = (near_y >= 0) & (near_y < rows) & (near_x >= 0) & (near_x < columns)
    return np.where(inside, rank[np.where(inside, near_y * columns + near_x, 0)], -1).astype(np.int32)


def patch_extent(height: int, width: int, patch: int) -> np.ndarray:
    """How many pixel rows and columns of each patch lie inside the picture, uint8 [patches, 2]."""
    yx = patch_coordinates(*grid_shape(height, width, patch)).astype(np.int64)
    return np.minimum(np.array([height, width]) - yx * patch, patch).astype(np.uint8)


def patchify(video, chunk_frames: int, patch: int):
    """Cuts video into patch rows; numpy in, numpy out, and jax arrays likewise.

    Args:
      video: [frames, height, width, channels], frames a multiple of `chunk_frames`.
      chunk_frames: Pixel frames in a chunk.
      patch: Patch side in pixels.

    Returns:
      [chunks, patches, chunk_frames * patch * patch * channels], patches in Morton order.
    """
    frames, height, width, channels = video.shape
    if frames % chunk_frames:
        raise ValueError(f"patchify: {frames} frames are not a multiple of chunk_frames={chunk_frames}")
    rows, columns = grid_shape(height, width, patch)
    padding = ((0, 0), (0, rows * patch - height), (0, columns * patch - width), (0, 0))
    pad = np.pad if isinstance(video, np.ndarray) else video.__array_namespace__().pad
    video = pad(video, padding, mode="edge")
    cells = video.reshape(-1, chunk_frames, rows, patch, columns, patch, channels)
    cells = cells.transpose(0, 2, 4, 1, 3, 5, 6).reshape(cells.shape[0], rows * columns, -1)
    return cells[:, morton_order(rows, columns)]


def unpatchify(patches, height: int, width: int, chunk_frames: int, patch: int, channels: int = 3):
    """Inverse of `patchify`: [chunks, patches, values] to [frames, height, width, channels], numpy or jax."""
    rows, columns = grid_shape(height, width, patch)
    raster = np.argsort(morton_order(rows, columns))
    cells = patches[:, raster].reshape(-1, rows, columns, chunk_frames, patch, patch, channels)
    video = cells.transpose(0, 3, 1, 4, 2, 5, 6).reshape(-1, rows * patch, columns * patch, channels)
    return video[:, :height, :width]
