#!/usr/bin/env python3
"""Two mounts of one volume: what one does, the other sees at once, whatever its kernel had cached.

    two.py see A B [SEED]      every operation on one, looked at through the other, both ways
    two.py race A B SECONDS    one changes without pause, processes on the other never see anything older than announced
    two.py noise DIR           walks, reads and changes files of its own until it is killed
"""

import ctypes
import errno
import fcntl
import mmap
import multiprocessing
import os
import random
import shutil
import stat
import subprocess
import sys
import time


def read(path):
    with open(path, "rb") as f:
        return f.read()


def write(path, data, flags=os.O_CREAT | os.O_TRUNC):
    fd = os.open(path, os.O_WRONLY | flags, 0o644)
    try:
        assert os.write(fd, data) == len(data)
    finally:
        os.close(fd)


def absent(path):
    try:
        os.lstat(path)
    except FileNotFoundError:
        return True
    return False


def refused(number, call):
    try:
        call()
    except OSError as e:
        assert e.errno == number, e
        return
    raise AssertionError(f"not refused with {errno.errorcode[number]}")


def look(path):
    """All of a tree: kinds, modes, owners, link counts, sizes, times, contents, attributes."""
    found = {}
    todo = [""]
    while todo:
        name = todo.pop()
        full = os.path.join(path, name)
        s = os.lstat(full)
        what = [stat.S_IFMT(s.st_mode), s.st_mode, s.st_uid, s.st_gid, s.st_nlink, s.st_ino, s.st_mtime_ns, s.st_ctime_ns]
        if stat.S_ISDIR(s.st_mode):
            names = os.listdir(full)
            assert len(names) == len(set(names)), names
            what.append(sorted(names))
            todo += [os.path.join(name, n) for n in names]
        elif stat.S_ISLNK(s.st_mode):
            what.append(os.readlink(full))
        else:
            what += [s.st_size, read(full)]
        if not stat.S_ISLNK(s.st_mode):
            what.append(sorted((x, os.getxattr(full, x)) for x in os.listxattr(full)))
        found[name] = what
    return found


def see(a, b):
    """`a` changes, `b` looks; the caches of `b` are warm with what was before."""
    top = "see"
    shutil.rmtree(os.path.join(a, top), ignore_errors=True)
    os.mkdir(os.path.join(a, top))
    A, B = (lambda n: os.path.join(a, top, n)), (lambda n: os.path.join(b, top, n))

    def same():
        ours, theirs = look(os.path.join(a, top)), look(os.path.join(b, top))
        assert ours == theirs, [(n, ours.get(n), theirs.get(n)) for n in ours.keys() | theirs.keys() if ours.get(n) != theirs.get(n)]

    assert absent(B("file"))
    write(A("file"), b"one")
    assert "file" in os.listdir(os.path.join(b, top)) and read(B("file")) == b"one"
    same()

    # Contents, through a descriptor that was open before and through a new one.
    fd = os.open(B("file"), os.O_RDWR)
    assert os.pread(fd, 100, 0) == b"one"
    write(A("file"), b"number two")
    assert os.pread(fd, 100, 0) == b"number two" and os.fstat(fd).st_size == 10 and read(B("file")) == b"number two"
    assert os.lseek(fd, 0, os.SEEK_END) == 10
    os.truncate(A("file"), 4)
    assert os.stat(B("file")).st_size == 4 and os.pread(fd, 100, 0) == b"numb"
    os.truncate(A("file"), 100000)
    assert os.pread(fd, 200000, 0) == b"numb" + bytes(99996)
    os.pwrite(fd, b"back", 50000)
    assert read(A("file"))[49990:50010] == bytes(10) + b"back" + bytes(6)
    same()

    # Attributes.
    for change in [lambda p: os.chmod(p, 0o4751), lambda p: os.chown(p, 12, 34), lambda p: os.utime(p, ns=(5, 7_000_000_001)),
                   lambda p: os.setxattr(p, "user.color", b"blue"), lambda p: os.setxattr(p, "user.color", b"red"),
                   lambda p: os.removexattr(p, "user.color"),
                   lambda p: subprocess.run(["setfacl", "-m", "u:7:rwx", p], check=True)]:
        os.stat(B("file")), os.listxattr(B("file"))
        change(A("file"))
        assert os.fstat(fd).st_mode == os.stat(A("file")).st_mode
        same()
    acls = [subprocess.run(["getfacl", "-cn", "--absolute-names", p("file")], check=True, capture_output=True).stdout for p in (A, B)]
    assert acls[0] == acls[1] and b"user:7:rwx" in acls[1], acls
    os.close(fd)

    # Names: new ones that were absent, moved ones, removed ones, whole subtrees.
    for name in ["link", "moved", "sym"]:
        assert absent(B(name))
    os.link(A("file"), A("link"))
    assert os.stat(B("file")).st_nlink == 2 and os.stat(B("link")).st_ino == os.stat(A("file")).st_ino
    os.rename(A("link"), A("moved"))
    assert absent(B("link")) and os.stat(B("moved")).st_nlink == 2
    os.unlink(A("moved"))
    assert absent(B("moved")) and os.stat(B("file")).st_nlink == 1
    os.symlink("file", A("sym"))
    assert os.readlink(B("sym")) == "file"
    os.unlink(A("sym"))
    os.symlink("elsewhere", A("sym"))
    assert os.readlink(B("sym")) == "elsewhere"
    os.makedirs(A("x/y/z"))
    write(A("x/y/z/f"), b"deep")
    assert read(B("x/y/z/f")) == b"deep"
    os.rename(A("x/y"), A("w"))
    assert absent(B("x/y/z/f")) and read(B("w/z/f")) == b"deep" and os.listdir(B("x")) == []
    os.rmdir(A("x"))
    assert absent(B("x"))
    refused(errno.ENOTEMPTY, lambda: os.rmdir(B("w/z")))
    same()

    # An unlinked file lives as long as the other mount has it open, also with its name replaced.
    write(A("open"), b"still here")
    with open(B("open"), "rb") as f:
        os.unlink(A("open"))
        assert f.read() == b"still here" and os.fstat(f.fileno()).st_nlink == 0
        write(A("open"), b"another")
        f.seek(0)
        assert f.read() == b"still here"
    assert read(B("open")) == b"another"

    # A directory that somebody is in.
    os.mkdir(A("cwd"))
    here = os.getcwd()
    os.chdir(B("cwd"))
    for i in range(5):
        write(A(f"cwd/{i}"), b"")
        os.stat(B("cwd"))
        assert os.getcwd() == B("cwd") and len(os.listdir(".")) == i + 1
    os.chdir(here)

    # Appends in turn, through descriptors that stay open.
    fds = [os.open(p("log"), os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644) for p in (A, B)]
    for i in range(40):
        os.write(fds[i % 2], b"%04d\n" % i)
    for fd in fds:
        os.close(fd)
    assert read(B("log")) == read(A("log")) == b"".join(b"%04d\n" % i for i in range(40))

    # Direct I/O.
    page = mmap.mmap(-1, 8192)
    for i in range(4):
        page[:] = bytes([65 + i]) * 8192
        fd = os.open((A, B)[i % 2]("direct"), os.O_CREAT | os.O_RDWR | os.O_DIRECT, 0o644)
        assert os.pwrite(fd, page, 0) == 8192
        os.close(fd)
        fd = os.open((B, A)[i % 2]("direct"), os.O_RDONLY | os.O_DIRECT)
        page[:] = bytes(8192)
        assert os.preadv(fd, [page], 0) == 8192 and page[:] == bytes([65 + i]) * 8192
        os.close(fd)

    # Mappings: a private one shows what is in the file when it is made, a shared one what is in the file.
    for size in [100, 5000, 100000]:
        for i in range(3):
            write(A("map"), bytes([97 + i]) * size)
            with open(B("map"), "r+b") as f:
                m = mmap.mmap(f.fileno(), 0, flags=mmap.MAP_PRIVATE)
                assert m[:] == bytes([97 + i]) * size
                m.close()
                m = mmap.mmap(f.fileno(), 0)
                assert m[:] == bytes([97 + i]) * size
                # What is written or stored there is seen here, and the other way round.
                with open(A("map"), "r+b", buffering=0) as g:
                    for at in [0, size // 2, size - 1]:
                        os.pwrite(g.fileno(), b"w", at)
                        assert m[at:at + 1] == b"w"
                        m[at:at + 1] = b"s"
                        assert os.pread(g.fileno(), 1, at) == b"s" == read(A("map"))[at:at + 1]
                    n = mmap.mmap(g.fileno(), 0)
                    m[:], n[size - 1:] = bytes([65 + i]) * size, b"z"
                    assert n[:] == m[:] == read(B("map")) == bytes([65 + i]) * (size - 1) + b"z"
                    m[:10] = b"0123456789"
                    n.close(), m.close()
                assert read(A("map"))[:10] == b"0123456789"
    # A mapping makes no file longer, and what was cut off does not come back.
    write(A("map"), b"x" * 9000)
    with open(B("map"), "r+b") as f:
        m = mmap.mmap(f.fileno(), 0)
        m[8999:] = b"y"
        os.truncate(A("map"), 5000)
        assert os.stat(B("map")).st_size == 5000 and m[4990:5000] == b"x" * 10
        m[5000:5010] = b"0" * 10
        m.flush()
        os.truncate(A("map"), 9000)
        assert read(A("map")) == b"x" * 5000 + bytes(4000) and os.fstat(f.fileno()).st_size == 9000
        assert m[4990:9000] == b"x" * 10 + bytes(4000)
        m.close()
    # So programs run, and the one that was replaced is not run again.
    for program, status in [("/bin/true", 0), ("/bin/false", 1), ("/bin/true", 0)]:
        write(A("program"), read(program))
        os.chmod(A("program"), 0o755)
        assert subprocess.run([B("program")]).returncode == status

    # File locks that the other node would not know of.
    with open(B("file"), "r+b") as f:
        refused(errno.EOPNOTSUPP, lambda: fcntl.flock(f, fcntl.LOCK_EX))
        refused(errno.EOPNOTSUPP, lambda: fcntl.lockf(f, fcntl.LOCK_EX))
    same()


def mixed(a, b, seed):
    """Random calls on either mount; both always show the same."""
    rng = random.Random(seed)
    top = "mixed"
    shutil.rmtree(os.path.join(a, top), ignore_errors=True)
    os.mkdir(os.path.join(a, top))
    names = ["a", "b", "c", "d/a", "d/b", "d/c", "d", "e", "e/a"]

    def call(mount):
        one, two = (os.path.join(mount, top, n) for n in rng.sample(names, 2))
        match rng.randrange(10):
            case 0: os.mkdir(one)
            case 1 | 2: write(one, rng.randbytes(rng.choice([1, 100, 5000, 70000])))
            case 3: write(one, b"more", os.O_APPEND)
            case 4: os.rename(one, two)
            case 5: os.link(one, two)
            case 6: os.unlink(one)
            case 7: os.rmdir(one)
            case 8: os.truncate(one, rng.randrange(10000))
            case 9: os.chmod(one, rng.randrange(0o1000) | 0o600 | (0o100 if os.path.isdir(one) else 0))

    done = 0
    for _ in range(600):
        try:
            call(rng.choice([a, b]))
            done += 1
        except OSError as e:
            assert e.errno in (errno.ENOENT, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY, errno.EINVAL, errno.EPERM), e
        ours, theirs = look(os.path.join(a, top)), look(os.path.join(b, top))
        assert ours == theirs, f"seed {seed}: {ours} and {theirs}"
    assert done > 100, "hardly any call did anything: the test proves nothing"


def race(a, b, seconds):
    """What was announced before somebody looks must be seen by the look."""
    top = "race"
    shutil.rmtree(os.path.join(a, top), ignore_errors=True)
    os.mkdir(os.path.join(a, top))
    A, B = (lambda n: os.path.join(a, top, n)), (lambda n: os.path.join(b, top, n))
    write(A("value"), bytes(8)), write(A("log"), b"")
    announced, looks = multiprocessing.Value(ctypes.c_uint64, 0), multiprocessing.Value(ctypes.c_uint64, 0)
    end = time.monotonic() + seconds

    def change():
        i = 0
        value, log = os.open(A("value"), os.O_WRONLY), os.open(A("log"), os.O_WRONLY | os.O_APPEND)
        while time.monotonic() < end:
            i += 1
            os.pwrite(value, i.to_bytes(8, "big"), 0)
            os.write(log, b"x")
            write(A(f"name{i}"), b"")
            if i > 3:
                os.rename(A(f"name{i - 3}"), A(f"old{i - 3}"))
            os.chmod(A("value"), 0o600 | i % 64)
            announced.value = i

    def watch(nr):
        value, log = os.open(B("value"), os.O_RDONLY), os.open(B("log"), os.O_RDONLY)
        while time.monotonic() < end:
            i = announced.value
            seen = {
                "read": lambda: int.from_bytes(os.pread(value, 8, 0), "big"),
                "open and read": lambda: int.from_bytes(read(B("value")), "big"),
                "fstat": lambda: os.fstat(log).st_size,
                "stat": lambda: os.stat(B("log")).st_size,
                "open and fstat": lambda: sized(B("log")),
                "name": lambda: i if not i or os.path.exists(B(f"name{i}")) or os.path.exists(B(f"old{i}")) else -1,
                "old name": lambda: i if i < 5 or absent(B(f"name{i - 4}")) else -1,
                "listing": lambda: i if not i or {f"name{i}", f"old{i}"} & set(os.listdir(B("."))) else -1,
            }
            for what, how in random.sample(sorted(seen.items()), 4):
                found = how()
                if found < i:
                    print(f"reader {nr}: {what} shows {found} after {i} was announced", flush=True)
                    os._exit(1)
            with looks.get_lock():
                looks.value += 1

    workers = [multiprocessing.Process(target=change)] + [multiprocessing.Process(target=watch, args=(n,)) for n in range(3)]
    for w in workers:
        w.start()
    for w in workers:
        w.join(seconds + 60)
        assert w.exitcode == 0, f"a worker ended with {w.exitcode} (None: it hangs)"
    print(f"race: {announced.value} rounds of changes, {looks.value} looks")
    assert announced.value > 20 and looks.value > 20, "hardly anything happened: the test proves nothing"


def sized(path):
    fd = os.open(path, os.O_RDONLY)
    try:
        return os.fstat(fd).st_size
    finally:
        os.close(fd)


def noise(top):
    rng = random.Random(1)
    own = os.path.join(top, "noise")
    os.makedirs(own, exist_ok=True)
    while True:
        for folder, _, files in os.walk(top):
            for name in files:
                try:
                    s = os.lstat(os.path.join(folder, name))
                    if stat.S_ISREG(s.st_mode) and rng.randrange(4) == 0:
                        read(os.path.join(folder, name))
                except OSError:
                    pass  # Others move and remove theirs.
        name = os.path.join(own, str(rng.randrange(20)))
        write(name, rng.randbytes(rng.choice([0, 100, 9000])))
        os.rename(name, name + ".moved")
        os.unlink(name + ".moved")


if __name__ == "__main__":
    what, args = sys.argv[1], sys.argv[2:]
    if what == "see":
        a, b, seed = args[0], args[1], int(args[2]) if len(args) > 2 else 1
        see(a, b)
        see(b, a)
        mixed(a, b, seed)
    elif what == "race":
        race(args[0], args[1], float(args[2]))
        race(args[1], args[0], float(args[2]))
    else:
        noise(args[0])
