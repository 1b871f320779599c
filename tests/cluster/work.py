#!/usr/bin/env python3
"""Load and checks of the cluster test, one process a node and part, all through the node's FUSE mount.

write STATE NR   makes files, renames them, appends to a common log and raises a register; tells what fsync has acknowledged
check STATE NR   compares what this node shows with what any node was acknowledged, all the time
final STATE DIR  everything that was ever acknowledged is there
"""

import errno
import hashlib
import mmap
import os
import random
import sys
import time

# What a mount says whose process is gone.
GONE = {errno.ENOTCONN, errno.ECONNABORTED, errno.ENODEV, errno.EINTR}


def content(node, k):
    rng = random.Random(f"{node}/{k}")
    return rng.randbytes(rng.choice([0, 17, 4096, 5000, 70000, 200000]))


class State:
    def __init__(self, root, nr):
        self.root, self.nr = root, nr
        self.mount = os.path.join(root, "mnt", str(nr))

    def incarnation(self):
        """Which mount of this node is up; None while there is none."""
        try:
            with open(os.path.join(self.root, "up", str(self.nr))) as f:
                return f.read()
        except FileNotFoundError:
            return None

    def nodes(self):
        return sorted(int(n) for n in os.listdir(os.path.join(self.root, "acked")))

    def fail(self, text):
        """What was seen is wrong, if it was seen on the mount that is up."""
        if self.nr and self.incarnation() != self.born:
            raise OSError(errno.ENOTCONN, "the mount has ended")
        self.report(text)

    def report(self, text):
        with open(os.path.join(self.root, "failed"), "a") as f:
            f.write(f"{time.strftime('%T')} node {self.nr}: {text}\n")
        sys.exit(1)

    def while_up(self, work):
        """Calls work() for ever; a mount that ends in the middle is waited for."""
        while not os.path.exists(os.path.join(self.root, "stop")):
            born = self.incarnation()
            if born is None:
                time.sleep(0.05)
                continue
            self.born = born
            try:
                work()
            except OSError as e:
                time.sleep(0.3)
                # Any error is one of a mount that was ended, or a failure.
                for _ in range(100):
                    if self.incarnation() != born:
                        break
                    if e.errno not in GONE:
                        self.report(f"{e} although the node is up")
                    time.sleep(0.1)


def synced(path):
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class Writer:
    def __init__(self, state):
        self.s, self.k, self.value = state, 0, 0
        self.acked = open(os.path.join(state.root, "acked", str(state.nr)), "a")

    def step(self):
        s = self.s
        self.k += 1
        base = os.path.join(s.mount, f"n{s.nr}")
        data = content(s.nr, self.k)
        path = os.path.join(base, f"f{self.k:05d}")
        with open(path + ".new", "wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        os.rename(path + ".new", path)
        synced(base)
        self.tell(f"file {self.k} {hashlib.sha256(data).hexdigest()}")
        if self.k % 3 == 0:
            with open(os.path.join(s.mount, "shared", "log"), "ab") as f:
                f.write(f"{s.nr} {self.k}\n".encode())
                f.flush()
                os.fsync(f.fileno())
            self.tell(f"line {self.k}")
        if self.k % 2 == 0:
            self.value += 1
            fd = os.open(os.path.join(s.mount, "shared", f"reg{s.nr}"), os.O_RDWR)
            try:
                os.pwrite(fd, b"%016d" % self.value, 0)
                os.fsync(fd)
            finally:
                os.close(fd)
            self.tell(f"register {self.value}")
        # An older file goes away, on every node.
        if self.k > 40:
            old = self.k - 40
            if old % 4 == 0:
                self.tell(f"gone {old}")
                try:
                    os.unlink(os.path.join(base, f"f{old:05d}"))
                except FileNotFoundError:
                    pass
        time.sleep(0.02)

    def tell(self, text):
        self.acked.write(text + "\n")
        self.acked.flush()


def acked(state, node):
    """What this node was told: files with their hashes, lines, register, files that may be gone."""
    files, lines, register, gone = {}, set(), 0, set()
    with open(os.path.join(state.root, "acked", str(node))) as f:
        for line in f:
            if not line.endswith("\n"):
                break
            what, k, *rest = line.split()
            if what == "file":
                files[int(k)] = rest[0]
            elif what == "line":
                lines.add(int(k))
            elif what == "register":
                register = int(k)
            else:
                gone.add(int(k))
    return files, lines, register, gone


def read(path):
    with open(path, "rb") as f:
        return f.read()


def read_register(path):
    fd = os.open(path, os.O_RDONLY)
    try:
        buf = mmap.mmap(-1, 4096)
        return buf[: os.preadv(fd, [buf], 0)]
    finally:
        os.close(fd)


def check_file(state, mount, node, k, want):
    path = os.path.join(mount, f"n{node}", f"f{k:05d}")
    try:
        data = read(path)
    except FileNotFoundError:
        # It may have been removed since we looked.
        if k in acked(state, node)[3]:
            return
        state.fail(f"{path} is not there, and was acknowledged")
    if hashlib.sha256(data).hexdigest() != want:
        state.fail(f"{path} has other contents than acknowledged ({len(data)} bytes)")


def check_shared(state, mount, known):
    """`known`: what each node had been acknowledged before we look."""
    log = os.path.join(mount, "shared", "log")
    lines = read(log).decode().split("\n")
    seen = {}
    for line in lines[:-1]:
        node, k = map(int, line.split())
        seen.setdefault(node, []).append(k)
    for node, (_, told, register, _) in known.items():
        got = seen.get(node, [])
        if got != sorted(set(got)):
            state.fail(f"lines of node {node} in {log} are doubled or out of order: {got[-20:]}")
        if told - set(got):
            state.fail(f"{log} has lost acknowledged lines of node {node}: {sorted(told - set(got))[:10]}")
        if register:
            value = int(read_register(os.path.join(mount, "shared", f"reg{node}")))
            if value < register:
                state.fail(f"register of node {node} shows {value}, acknowledged was {register}")


class Checker:
    def __init__(self, state):
        self.s, self.looked, self.rng = state, 0, random.Random(state.nr)

    def step(self):
        s = self.s
        known = {node: acked(s, node) for node in s.nodes()}
        check_shared(s, s.mount, known)
        for node, (files, _, _, gone) in known.items():
            there = sorted(set(files) - gone)
            # The newest, where a stale cache would show, and some of all.
            for k in there[-3:] + self.rng.sample(there, min(3, len(there))):
                check_file(s, s.mount, node, k, files[k])
                self.looked += 1
        with open(os.path.join(s.root, "looked", f"{s.nr}.new"), "w") as f:
            f.write(str(self.looked))
        os.rename(os.path.join(s.root, "looked", f"{s.nr}.new"), os.path.join(s.root, "looked", str(s.nr)))
        time.sleep(0.05)


def final(state, mount):
    count = 0
    known = {node: acked(state, node) for node in state.nodes()}
    check_shared(state, mount, known)
    for node, (files, _, _, gone) in known.items():
        for k in sorted(set(files) - gone):
            check_file(state, mount, node, k, files[k])
            count += 1
    print(f"{count} files, {sum(len(k[1]) for k in known.values())} lines, registers {[k[2] for k in known.values()]}")


if __name__ == "__main__":
    what, root, arg = sys.argv[1:4]
    if what == "final":
        final(State(root, 0), arg)
    else:
        state = State(root, int(arg))
        state.while_up((Writer if what == "write" else Checker)(state).step)
