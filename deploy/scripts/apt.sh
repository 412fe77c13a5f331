# Sourced by the scripts that need a Debian package. They define `stop REASON`, which ends them.

as_root() {
    if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo -n "$@"; fi
}

# Usage: install_package PACKAGE SERVICE...
# Installs it with apt where this user may; its services are neither started nor enabled.
install_package() {
    package=$1
    shift
    command -v apt-get >/dev/null || stop "there is no apt-get to install it with"
    as_root true 2>/dev/null || stop "this user is neither root nor may use sudo without a password"
    echo "Installing $package with apt-get"
    forbid_service_starts
    if ! output=$(apt_get_install "$package" 2>&1); then
        printf '%s\n' "$output" >&2
        stop "apt-get could not install it"
    fi
    if command -v systemctl >/dev/null; then
        as_root systemctl --quiet disable "$@"
    fi
}

apt_get_install() {
    as_root apt-get update -qq &&
        as_root env DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends \
            -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 "$1" </dev/null
}

forbid_service_starts() {
    policy=/usr/sbin/policy-rc.d
    [ ! -e "$policy" ] || return 0
    trap 'as_root rm -f "$policy"' EXIT
    trap 'exit 1' HUP INT TERM
    printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
    as_root chmod 755 "$policy"
}
