# shellcheck shell=bash
# Shared by the scripts of this directory; to be sourced. Expects `set -euo pipefail`.

say() { printf '\n==> %s\n' "$*"; }
die() {
    printf 'error: %s\n' "$1" >&2
    [ -z "${2:-}" ] || printf '\nhint: %s\n' "$2" >&2
    exit 1
}

# The comment at the head of the script, without the line of the interpreter.
usage() { sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p;}' "$0"; }

# Installs the Debian packages of a list (one a line, comments after `#`) that are missing.
install_packages() {
    local list=$1 name missing=()
    while read -r name; do
        dpkg-query -W -f='${Status}' "$name" 2>/dev/null | grep -q 'ok installed' || missing+=("$name")
    done < <(sed 's/#.*//; /^[[:space:]]*$/d; s/[[:space:]]//g' "$list")
    [ "${#missing[@]}" -gt 0 ] || return 0
    command -v apt-get >/dev/null ||
        die "these packages are missing: ${missing[*]}" "this is no Debian or Ubuntu; install them by hand"
    say "installing ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -q >/dev/null
    apt-get install -qy --no-install-recommends "${missing[@]}" >/dev/null
}

# Installs npm where it is missing: some archives bring it with Node.js, and theirs conflicts with Debian's package.
install_npm() {
    command -v npm >/dev/null || {
        say "installing npm"
        apt-get install -qy --no-install-recommends npm >/dev/null
    }
}

# Installs a cargo tool that is missing.
install_cargo_tool() {
    # A debug build below the target directory: compiling it takes longer than all that it does here.
    local tools=${CARGO_TARGET_DIR:-$PWD/target}/test-cargo
    PATH=$PATH:$tools/bin
    command -v "$1" >/dev/null || {
        say "installing $1"
        cargo install --locked --quiet --debug --root "$tools" "$1"
    }
}

require_root() {
    [ "$(id -u)" -eq 0 ] ||
        die "this needs root: it makes network namespaces, cgroups and nftables rules of its own" "run it with sudo -E"
}

require_cargo() {
    # shellcheck source=/dev/null
    command -v cargo >/dev/null || [ ! -f "$HOME/.cargo/env" ] || . "$HOME/.cargo/env"
    command -v cargo >/dev/null || die "cargo was not found" "install Rust: https://rustup.rs"
}

# Whether users without rights can start programs below this directory, as tests do.
require_open_directory() {
    setpriv --reuid=65534 --regid=65534 --clear-groups test -x "$PWD" ||
        die "other users can't enter $PWD, and tests start programs in it as users without rights" \
            "let them into it and the directories above it (chmod o+x), or clone to another place"
}

require_cgroup_v2() {
    grep -q ' - cgroup2 ' /proc/self/mountinfo ||
        die "no cgroup v2 is mounted, so a job can't be told apart from the rest of the machine" \
            "mount -t cgroup2 none /sys/fs/cgroup, or boot with systemd.unified_cgroup_hierarchy=1"
}

# Tests read the memory of processes of their own that are no children of the reader. Where Yama forbids that (Ubuntu), it is
# allowed until the script ends.
allow_tracing() {
    local scope=/proc/sys/kernel/yama/ptrace_scope before
    before=$(cat "$scope" 2>/dev/null || echo 0)
    [ "$before" != 0 ] || return 0
    say "kernel.yama.ptrace_scope is 0 while this runs, and $before again afterwards"
    echo 0 >"$scope" || die "kernel.yama.ptrace_scope can't be changed from $before to 0" \
        "it is 3 until the machine is restarted; run the tests on another one"
    # shellcheck disable=SC2064  # As it is now.
    trap "echo '$before' >'$scope'" EXIT
}

# Whether the kernel takes an nftables table; tried in a network namespace of its own.
require_nftables() {
    unshare -n nft add table inet portcullis_probe 2>/dev/null ||
        die "the kernel takes no nftables table" "load the module nf_tables (modprobe nf_tables), or use another kernel"
}

# Installs the Python programs that the tests need into a place of their own below `target`.
install_python_packages() {
    local list=$1 place=${CARGO_TARGET_DIR:-target}/test-python
    # The list that was installed lies beside what it installed, so that a change of it is noticed.
    cmp -s "$list" "$place/installed.txt" && return 0
    say "installing the Python packages of $list"
    python3 -m venv --clear "$place"
    "$place/bin/pip" install --quiet --disable-pip-version-check --requirement "$list"
    cp "$list" "$place/installed.txt"
}
