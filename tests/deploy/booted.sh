#!/bin/sh
# Boot systemd in namespaces of its own, over a copy-on-write view of this machine: booted.sh TREE SETUP…
#
# /opt is that of TREE; each SETUP is run by sh in the new root before systemd begins, for example to place units. Nothing
# is written to this machine; its network is used. preread.target is booted. It takes root, and cgroups in version 2 somewhere.
set -eu
tree=$1
shift
cgroups=$(awk '$3 == "cgroup2" { print $2; exit }' /proc/mounts)
mine=$cgroups/preread-$$
mkdir "$mine"
echo $$ >"$mine/cgroup.procs"
exec unshare --mount --pid --uts --ipc --cgroup --fork --kill-child --propagation private sh -euc '
  tree=$1
  shift
  work=$(mktemp -d)
  mount -t tmpfs tmpfs "$work"
  mkdir "$work/upper" "$work/work" "$work/root"
  root=$work/root
  mount -t overlay overlay -o "lowerdir=/,upperdir=$work/upper,workdir=$work/work" "$root"
  mount --bind "$tree/opt" "$root/opt"
  mount -t proc proc "$root/proc"
  mount -t sysfs -o ro sysfs "$root/sys"
  mount -t tmpfs -o mode=755 tmpfs "$root/sys/fs/cgroup" 2>/dev/null || true
  mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
  mount --rbind /dev "$root/dev"
  mount -t tmpfs -o mode=755 tmpfs "$root/run"
  mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
  # Only what is asked for is started, and what every unit stands on.
  rm -rf "$root/etc/systemd/system" "$root/etc/fstab"
  tr -d - </proc/sys/kernel/random/uuid >"$root/etc/machine-id"
  mkdir -p "$root/etc/systemd/system"
  for unit in systemd-udevd systemd-udev-trigger systemd-modules-load systemd-sysctl systemd-sysusers systemd-binfmt \
    systemd-hwdb-update systemd-timesyncd systemd-networkd systemd-resolved ldconfig; do
    ln -s /dev/null "$root/etc/systemd/system/$unit.service"
  done
  for setup in "$@"; do chroot "$root" sh -euc "$setup"; done
  cd "$root"
  mkdir -p .before
  pivot_root . .before  # user namespaces are not for who is chrooted
  umount -l .before
  mount --make-rshared /
  exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin container=preread LANG=C.UTF-8 \
    /lib/systemd/systemd --system --unit=preread.target --log-target=console --log-level=warning
' sh "$tree" "$@"
