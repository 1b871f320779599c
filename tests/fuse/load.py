#!/usr/bin/env python3
"""Load for the kill test: makes, writes, renames and removes files, and prints the name and content hash of each file that
was synced. With --verify, checks that everything printed is there."""

import hashlib
import os
import random
import sys


def content(name, worker):
    rng = random.Random(f"{name}/{worker}")
    return rng.randbytes(rng.choice([0, 10, 4096, 5000, 70000, 300000]))


def run(folder, worker):
    base = os.path.join(folder, f"w{worker}")
    os.mkdir(base)
    i = 0
    while True:
        i += 1
        name = f"f{i:06d}"
        path = os.path.join(base, name)
        data = content(name, worker)
        with open(path + ".tmp", "wb") as f:
            f.write(data)
            if i % 5 == 0:
                f.flush()
                os.fsync(f.fileno())
        if i % 3 == 0 and i % 5 != 0:
            os.unlink(path + ".tmp")
            continue
        os.rename(path + ".tmp", path)
        if i % 5 == 0:
            # The rename is made durable by syncing the directory.
            fd = os.open(base, os.O_RDONLY)
            os.fsync(fd)
            os.close(fd)
            print(name, hashlib.sha256(data).hexdigest(), flush=True)


def verify(folder, worker, log):
    base = os.path.join(folder, f"w{worker}")
    for line in open(log):
        if not line.endswith("\n"):
            continue
        name, want = line.split()
        with open(os.path.join(base, name), "rb") as f:
            got = hashlib.sha256(f.read()).hexdigest()
        if got != want:
            sys.exit(f"{base}/{name}: other content than was synced")
    # Whatever else is there must be readable.
    if os.path.isdir(base):
        for name in os.listdir(base):
            with open(os.path.join(base, name), "rb") as f:
                f.read()


if __name__ == "__main__":
    if sys.argv[1] == "--verify":
        verify(*sys.argv[2:5])
    else:
        run(*sys.argv[1:3])
