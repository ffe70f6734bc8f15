"""One stream and its memory: a chunk of files under way at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from pipeline.jpeg.device import Device, HostBytes
from pipeline.jpeg.launches import Addresses, Orders, calls
from pipeline.jpeg.plan import IMAGE, Longs, Plan, aligned, place

ORDERS_PER_IMAGE = 2  # of Orders.numbers: one for its scan, one for its resize
FIXED_BYTES = IMAGE.itemsize + 4 * ORDERS_PER_IMAGE + 4 + 4
"""Per image: its record, its places in the orders, the bits of its scan, its damage."""

AddressList: TypeAlias = npt.NDArray[np.uint64]


class Workspace:
    """Decodes chunks, one after the other; nothing but `finish` waits.

    Attributes:
        most_images: of a chunk.
        capacity: bytes of device memory for what Plan.bytes_each and the files take.
    """

    def __init__(self, device: Device, size: int, most_images: int, table: int) -> None:
        """`size`: bytes of device memory in all. `table`: address of int8 (3, 256), a sample's values.

        Raises EngineError when there is not so much.
        """
        self.most_images = most_images
        self.stream = device.stream()
        self._gpu = device
        self._table = table
        self._fixed = aligned(FIXED_BYTES * most_images)
        self.capacity = size - self._fixed
        self._base, self._memory = device.allocate(size)
        self._records = device.pinned(self._fixed)
        self._damage = device.pinned(4 * most_images)
        self._staged: HostBytes = device.pinned(1)
        self._count = 0

    def upload(self, files: Sequence[bytes | memoryview], sizes: Longs) -> AddressList:
        """Copy files to the device, `sizes` bytes apart; their addresses. They take sum(sizes) of `capacity`."""
        total = int(sizes.sum())
        if total > len(self._staged):
            self._staged = self._gpu.pinned(total + total // 4)
        begins = np.cumsum(sizes) - sizes
        for file, begin in zip(files, begins.tolist(), strict=True):
            self._staged[begin : begin + len(file)] = np.frombuffer(file, np.uint8)
        return (begins + self.send(self._staged[:total])).astype(np.uint64)

    def places(self, sizes: Longs) -> AddressList:
        """Where files are to lie that the caller copies itself, on `stream`: addresses `sizes` bytes apart."""
        return (self._base + self._fixed + np.cumsum(sizes) - sizes).astype(np.uint64)

    def send(self, block: HostBytes) -> int:
        """Copy files that lie side by side in pinned memory to the device; the block's address there."""
        at = self._base + self._fixed
        self._gpu.upload(at, block, self.stream)
        return at

    def enqueue(
        self,
        plan: Plan,
        files: AddressList,
        outs: AddressList,
        used: int = 0,
        *,
        launched: Callable[[str], None] = lambda kernel: None,
    ) -> None:
        """Decode files that are on the device, padded to whole words of 16 bytes, to `outs`: addresses both.

        `used`: of `capacity`, by `upload` or `send`. `launched` is called after each launch, with the kernel's name.
        The chunk before has to be over: see `finish`.
        """
        count = self._count = len(plan.images)
        images = plan.images
        images["scan"] = files + images["header"]["scan_begin"]
        images["out"] = outs
        place(images, plan.sizes, self._base + self._fixed + used)
        orders = Orders.of(images, plan.fused)

        records = self._records[: count * IMAGE.itemsize]
        records.view(IMAGE)[:] = images
        numbers = self._records[len(records) : len(records) + orders.numbers.nbytes]
        numbers.view(np.uint32)[:] = orders.numbers
        self._gpu.upload(self._base, self._records[: len(records) + len(numbers)], self.stream)
        bits = self._base + len(records) + len(numbers)
        damage = bits + 4 * count
        self._gpu.clear(damage, 4 * count, self.stream)
        at = Addresses(self._base, self._base + len(records), bits, damage, self._table)
        for call in calls(count, orders, at, plan.sampling):
            self._gpu.launch(call, self.stream)
            launched(call.source.function)
        self._gpu.download(self._damage[: 4 * count], damage, self.stream)

    def finish(self) -> npt.NDArray[np.uint32]:
        """Wait for the chunk under way; what its kernels found wrong, (n,). Empty when there is none."""
        self._gpu.wait(self.stream)
        damage = self._damage[: 4 * self._count].view(np.uint32).copy()
        self._count = 0
        return damage
