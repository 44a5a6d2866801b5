# shellcheck shell=bash
# What the deployment scripts share: words for the terminal, and the checks they begin with. Sourced, never run.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
program=$(basename "$0")

say() { printf '%s: %s\n' "$program" "$*" >&2; }

# One line that says what to do: exit 2 for the caller's mistake, 1 for our failure.
mistake() { say "$@"; exit 2; }
failure() { say "$@"; exit 1; }

need_root() { [ "$(id -u)" -eq 0 ] || mistake "only root can $1: use sudo"; }

# The comment block that opens a script is its help: everything from its second line to the first that is no comment.
show_help() { sed -n '2,/^[^#]/{s/^# \{0,1\}//p}' "$0"; }

# Where deploy/install puts things. The scripts that source us use these.
# shellcheck disable=SC2034
{
    installed=/opt/sharedfs
    links=/usr/local/bin
    helper=/sbin/mount.fuse.sharedfs # where mount(8) looks for the type fuse.sharedfs
    configuration=/etc/sharedfs
    units=/etc/systemd/system
}

systemd_runs() { [ -d /run/systemd/system ]; }
