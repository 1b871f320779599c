# Common parts of the FUSE suites: building the tools, making, mounting, killing and checking a volume.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
examples=$target/release/examples
tools=$target/tools
scratch=$(mktemp -d "${TMPDIR:-/tmp}/scoutfs-fuse.XXXXXX")
mnt=$scratch/mnt
mount_pid=
mkdir -p "$mnt"

say() { printf -- '-- %s\n' "$*"; }
die() { printf 'FAILED: %s\n' "$*" >&2; exit 1; }

build() {
    (cd "$root" && cargo build --release --quiet --example mkfs --example mount --example check)
}

# tool NAME VERSION: a test program from crates.io, built once.
tool() {
    [ -x "$tools/bin/$1" ] && return
    cargo install --quiet --locked --root "$tools" --target-dir "$tools/build" --version "$2" "$1"
}

# new_volume [META_SIZE DATA_SIZE]
new_volume() {
    rm -f "$scratch/meta" "$scratch/data"
    "$examples/mkfs" -f -A --create-meta "${1:-1G}" --create-data "${2:-4G}" -Q 0,127.0.0.1,12345 \
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

cleanup() {
    if [ -n "$mount_pid" ]; then
        fusermount3 -u -z "$mnt" 2>/dev/null || true
        kill -9 "$mount_pid" 2>/dev/null || true
    fi
    rm -rf "$scratch"
}
[ -n "${KEEP:-}" ] || trap cleanup EXIT
