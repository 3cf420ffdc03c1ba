"""The crops of a batch of units: at each node the window that each unit needs.

Knows where the windows lie on the maps and on one another; not what is computed in them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from zfscale.convnet.capture import operations as ops
from zfscale.convnet.capture.geometry import Window, spatial_size
from zfscale.convnet.capture.graph import Node


@dataclass(frozen=True)
class Crops:
    """Windows of n units at (y, x), both int64 (n,), in every node below them."""

    windows: Mapping[str, Window]
    y: NDArray[np.int64]
    x: NDArray[np.int64]

    def clear_outside(self, node: Node, signal: torch.Tensor) -> torch.Tensor:
        """`signal` (n, C, h, w) at `node`, zero where windows hang over the border of its map."""
        rows, columns = (self._on_map(node.name, axis, spatial_size(node)[axis]) for axis in (0, 1))
        if rows.all() and columns.all():
            return signal
        outside = ~(rows[:, None, :, None] & columns[:, None, None, :])
        return signal.masked_fill(torch.as_tensor(outside, device=signal.device), 0)

    def lay(
        self, part: torch.Tensor, node: Node, source: str, sliding: ops.Sliding | None
    ) -> torch.Tensor:
        """Lay what `node` sends to its input `source` into the window there, zero elsewhere.

        `part` begins where the first sliding window of the crop at `node` begins, or where the
        crop itself does; the window of `source` is larger if others need more of it.
        """
        size = self.windows[source].size
        shift = np.empty((len(part), 2), np.int64)
        for axis in (0, 1):
            first = self._first(node.name, axis)
            if sliding is not None:
                first = first * sliding.stride[axis] - sliding.padding[axis]
            shift[:, axis] = first - self._first(source, axis)
        if tuple(part.shape[2:]) == size and not shift.any():
            return part
        n, channels = part.shape[:2]
        laid = part.new_zeros(n, *size, channels).permute(0, 3, 1, 2)
        # All units have one shift, unless the window of `source` is its whole map.
        for down, right in np.unique(shift, axis=0).tolist():
            units = torch.as_tensor((shift == (down, right)).all(1), device=part.device)
            top, bottom = max(-down, 0), max(size[0] - down, 0)
            left, end = max(-right, 0), max(size[1] - right, 0)
            seen = part[units, :, top:bottom, left:end]
            (y, x), (height, width) = (max(down, 0), max(right, 0)), seen.shape[2:]
            laid[units, :, y : y + height, x : x + width] = seen
        return laid

    def cut(self, matrix: torch.Tensor, node: str, source: str, axis: int) -> torch.Tensor:
        """Of the matrix of an average along an axis, for each unit what joins its windows.

        `matrix` is (map of node, map of source), the result (n, window of node, of source).
        """
        index = []
        for name, size in zip((node, source), matrix.shape, strict=True):
            places = self._first(name, axis)[:, None] + np.arange(self.windows[name].size[axis])
            index.append(torch.as_tensor(places.clip(0, size - 1), device=matrix.device))
        found = matrix[index[0][:, :, None], index[1][:, None, :]]
        # Beyond the border of the map of `node` there is no signal, so it matters here alone.
        outside = torch.as_tensor(~self._on_map(source, axis, matrix.shape[1]))
        return found.masked_fill(outside[:, None, :].to(matrix.device), 0)

    def _first(self, name: str, axis: int) -> NDArray[np.int64]:
        """Row (axis 0) or column (axis 1) in which each unit's window at a node begins."""
        return self.windows[name].origin(self.y, self.x)[axis]

    def _on_map(self, name: str, axis: int, size: int) -> NDArray[np.bool_]:
        """Which positions of each window lie on a map of that size: (n, window)."""
        places = self._first(name, axis)[:, None] + np.arange(self.windows[name].size[axis])
        return (places >= 0) & (places < size)
