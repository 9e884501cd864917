#!/bin/bash
# boot.sh FOLDER PYTHON VERSION SITE_PACKAGES SOURCE -- boot systemd as PID 1 of namespaces of its own, with storaged in
# /opt/storaged, in the foreground; SIGTERM ends it. FOLDER/pid gets its process id as this system sees it.
#   PYTHON         the folder of the Python installation (sys.base_prefix)
#   VERSION        the name of its program, such as python3.11
#   SITE_PACKAGES  folders with the packages that storaged needs, separated by colons
#   SOURCE         the folder that has twisted_storaged
# It has a network (loopback only), processes, cgroups, /etc (a copy), /var/lib, /run and /tmp of its own, only the units
# that it needs, and a read-only /sys and /proc/sys: nothing of this system is changed. Needs root, and the packages
# systemd and util-linux.
set -euo pipefail
umask 022

if [ "${1:-}" = --outer ]; then
  # In a mount namespace of its own, and a cgroup of its own, which the cgroup namespace then has as its root.
  shift; folder=$1
  mkdir -p "$folder/cgroup"
  mount -t cgroup2 cgroup2 "$folder/cgroup"
  group=$folder/cgroup/storaged-test-$$
  mkdir "$group"
  echo $$ > "$group/cgroup.procs"
  trap : TERM INT
  unshare --pid --fork --kill-child --cgroup --uts --ipc --net --mount --propagation private \
    "$0" --inner "$@" & child=$!
  wait "$child" || true
  # After a signal, and if systemd has ended by itself.
  kill -KILL "$child" 2> /dev/null || true
  wait "$child" 2> /dev/null || true
  echo $$ > "$folder/cgroup/cgroup.procs"
  for _ in $(seq 100); do
    find "$group" -depth -type d -exec rmdir {} + 2> /dev/null && break
    sleep 0.05
  done
  umount "$folder/cgroup"
  exit
fi

if [ "${1:-}" != --inner ]; then
  exec unshare --mount --propagation private "$0" --outer "$@"
fi

shift; folder=$1 python=$2 version=$3 packages=$4 source=$5
# /proc still is that of the system outside.
read -r pid _ < /proc/self/stat
echo "$pid" > "$folder/pid"

umount "$folder/cgroup"
mount -t proc proc /proc
mount --bind /proc/sys /proc/sys
mount -o remount,bind,ro /proc/sys
mount -t sysfs -o ro sysfs /sys
mount -t cgroup2 cgroup2 /sys/fs/cgroup
hostname storaged-test

mkdir -p "$folder"/{etc,var,units/sockets.target.wants,opt/{python,packages,storaged/bin}}
cp -a /etc/. "$folder/etc"
rm -rf "$folder"/etc/{fstab,systemd/system,lakehouse}
mkdir -p "$folder"/etc/{systemd/system,lakehouse}
tr -d - < /proc/sys/kernel/random/uuid > "$folder/etc/machine-id"
printf '[Journal]\nStorage=volatile\nReadKMsg=no\nRateLimitIntervalSec=0\n' > "$folder/etc/systemd/journald.conf"
for unit in basic exit final local-fs local-fs-pre multi-user network network-online paths shutdown slices sockets swap \
  sysinit timers umount; do
  cp "/lib/systemd/system/$unit.target" "$folder/units"
done
cp /lib/systemd/system/{systemd-exit.service,systemd-journald.service,systemd-journald.socket} "$folder/units"
ln -s ../systemd-journald.socket "$folder/units/sockets.target.wants"

# The Python and the packages may be in a home folder, which the units hide.
root=$folder/opt
site=storaged/lib/$version/site-packages
mkdir -p "$root/$site/twisted_storaged" "$root/$site/twisted/plugins"
printf 'home = /opt/python/bin\n' > "$root/storaged/pyvenv.cfg"
ln -s "/opt/python/bin/$version" "$root/storaged/bin/python"
printf '#!/opt/storaged/bin/python\nimport sys\nfrom twisted_storaged.__main__ import main\nsys.exit(main())\n' \
  > "$root/storaged/bin/storaged"
chmod -R a+rX "$root"
chmod a+x "$root/storaged/bin/storaged"
shared() { mount --bind "$1" "$2"; mount -o remount,bind,ro "$2"; }
shared "$python" "$root/python"
shared "$source/twisted_storaged" "$root/$site/twisted_storaged"
number=0
IFS=:
for path in $packages; do
  mkdir "$root/packages/$number"
  shared "$path" "$root/packages/$number"
  echo "/opt/packages/$number" >> "$root/$site/packages.pth"
  number=$((number + 1))
done
unset IFS

mount --bind "$folder/etc" /etc
mount --bind "$folder/var" /var/lib
mount --bind "$folder/units" /lib/systemd/system
mount --rbind "$root" /opt
for path in /lib/systemd/system-generators /run /var/tmp /var/log; do mount -t tmpfs tmpfs "$path"; done
# Where the shared library of this Python is, if it has one.
echo /opt/python/lib > /etc/ld.so.conf.d/python.conf
ldconfig -X
mount -t tmpfs -o mode=1777 tmpfs /tmp
# As systemd expects it in a container: mounts that it makes for a service, such as its credentials, reach the service.
mount --make-rshared /
exec env -i container=storaged-test PATH=/usr/sbin:/usr/bin:/sbin:/bin \
  /lib/systemd/systemd --system --unit=multi-user.target --log-target=journal --show-status=no
