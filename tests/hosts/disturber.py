"""Delays and loses the packets that are routed to a TUN device; a process of its own on the router.

`python -m tests.hosts.disturber DEVICE DELAY LOSS` makes the device and writes each packet that it reads back to it
after DELAY seconds, or never in the share LOSS of cases. Packets keep their order. Runs until it is killed.
"""

from __future__ import annotations

import fcntl
import os
import random
import select
import struct
import sys
import time
from collections import deque

_TUNSETIFF = 0x400454CA
_TUN_WITHOUT_HEADER = 0x1001
_BYTES = 65_536


def main(device: str, delay: float, loss: float) -> None:
    """Serve until killed."""
    tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tun, _TUNSETIFF, struct.pack("16sH22x", device.encode(), _TUN_WITHOUT_HEADER))
    # The same packets at the same load are lost again as far as the load is the same.
    rng = random.Random("loss")
    waiting: deque[tuple[float, bytes]] = deque()
    while True:
        left = None if not waiting else max(0.0, waiting[0][0] - time.monotonic())
        readable, _, _ = select.select([tun], [], [], left)
        if readable:
            packet = os.read(tun, _BYTES)
            if rng.random() >= loss:
                waiting.append((time.monotonic() + delay, packet))
        while waiting and waiting[0][0] <= time.monotonic():
            os.write(tun, waiting.popleft()[1])


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), float(sys.argv[3]))
