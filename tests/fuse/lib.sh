# Common parts of the FUSE suites: building the tools, making, mounting, killing and checking a volume.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
examples=$target/release/examples
tools=$target/tools
scratch=
mount_pid=
mount2_pid=
noise_pid=

# new_scratch: an empty folder for the volume, its mounts and whatever else a suite writes; nothing of an earlier suite is left.
new_scratch() {
    rm -rf "$scratch"
    scratch=$(mktemp -d "${TMPDIR:-/tmp}/scoutfs-fuse.XXXXXX")
    mnt=$scratch/mnt
    # The second node's, in the suites that have one.
    mnt2=$scratch/mnt2
    mkdir "$mnt" "$mnt2"
}

say() { printf -- '-- %s\n' "$*"; }
die() { printf 'FAILED: %s\n' "$*" >&2; exit 1; }

build() {
    (cd "$root" && cargo build --release --quiet --example mkfs --example mount --example check --example node)
}

# tool NAME VERSION: a test program from crates.io, built once.
tool() {
    [ -x "$tools/bin/$1" ] && return
    cargo install --quiet --locked --root "$tools" --target-dir "$tools/build" --version "$2" "$1"
}

# A port of the loopback address that is free now, for TCP and UDP.
free_port() {
    python3 -c '
import socket
while True:
    udp, tcp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM), socket.socket()
    udp.bind(("127.0.0.1", 0))
    try:
        tcp.bind(udp.getsockname())
    except OSError:
        continue
    print(udp.getsockname()[1])
    break'
}

# new_volume [META_SIZE DATA_SIZE [PORT]]
new_volume() {
    rm -f "$scratch/meta" "$scratch/data"
    "$examples/mkfs" -f -A --create-meta "${1:-1G}" --create-data "${2:-4G}" -Q "0,127.0.0.1,${3:-12345}" \
        "$scratch/meta" "$scratch/data" >/dev/null
}

# mount_volume [OPTIONS]
mount_volume() {
    # The line of an earlier mount must not be taken for this one's.
    rm -f "$scratch/mount.out"
    "$examples/mount" -o "allow_other${1:+,$1}" "$scratch/meta" "$scratch/data" "$mnt" \
        >"$scratch/mount.out" 2>>"$scratch/mount.log" &
    mount_pid=$!
    for _ in $(seq 1 300); do
        grep -q "^mounted " "$scratch/mount.out" 2>/dev/null && return
        kill -0 $mount_pid 2>/dev/null || { cat "$scratch/mount.log" >&2; die "mount ended"; }
        sleep 0.1
    done
    cat "$scratch/mount.log" >&2
    die "not mounted after 30 s"
}

# mount_cluster: two nodes, of which the first is the server.
mount_cluster() {
    mount_volume "cluster,quorum_slot_nr=0,fence_dir=$scratch/fence"
    local mnt=$mnt2 first=$mount_pid
    cp "$scratch/mount.out" "$scratch/mount1.out"
    mount_volume "cluster,fence_dir=$scratch/fence"
    mount2_pid=$mount_pid mount_pid=$first
}

unmount_cluster() {
    fusermount3 -u "$mnt2" || die "cannot unmount the second node"
    wait "$mount2_pid" || { tail -20 "$scratch/mount.log" >&2; die "the second node ended with an error"; }
    mount2_pid=
    unmount_volume
}

stop_noise() {
    [ -z "$noise_pid" ] && return
    kill "$noise_pid" 2>/dev/null || true
    wait "$noise_pid" 2>/dev/null || true
    noise_pid=
}

unmount_volume() {
    # The line of an earlier mount must not be taken for this one's.
    rm -f "$scratch/mount.out"
    fusermount3 -u "$mnt" || die "cannot unmount"
    wait_mount || { tail -20 "$scratch/mount.log" >&2; die "mount ended with an error"; }
}

wait_mount() {
    local status=0
    wait "$mount_pid" || status=$?
    mount_pid=
    return $status
}

kill_mount() {
    kill -9 "$mount_pid"
    wait_mount 2>/dev/null || true
    fusermount3 -u -z "$mnt" 2>/dev/null || umount -l "$mnt" 2>/dev/null || true
}

check_volume() {
    "$examples/check" "$scratch/meta" "$scratch/data" >"$scratch/check.out" 2>&1 \
        || { tail -40 "$scratch/check.out" >&2; die "the volume is not consistent"; }
}

# By force: a mount that hangs, perhaps in the kernel, must not keep those who use it.
drop_mount() {
    umount -f "$1" 2>/dev/null || true
    fusermount3 -u -z "$1" 2>/dev/null || true
}

cleanup() {
    stop_noise
    if [ -n "$mount2_pid" ]; then
        drop_mount "$mnt2"
        kill -9 "$mount2_pid" 2>/dev/null || true
    fi
    if [ -n "$mount_pid" ]; then
        drop_mount "$mnt"
        kill -9 "$mount_pid" 2>/dev/null || true
    fi
    rm -rf "$scratch"
}
[ -n "${KEEP:-}" ] || trap cleanup EXIT
