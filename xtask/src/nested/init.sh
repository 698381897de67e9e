#!/bin/bash
# The house's machine, once it has its root: readies what Atoll needs, and starts it. What it says goes to the console; that it
# is ready, or why it is not, to the second port.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
tell() { echo "$*" > /dev/ttyS1; }
fail() { tell "failed: $*"; sync; sleep 1; echo o > /proc/sysrq-trigger; sleep 60; }

mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs tmp /tmp
mount -t tmpfs run /run
mkdir -p /dev/pts /dev/shm
mount -t devpts pts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t cgroup2 cgroup /sys/fs/cgroup || fail "no cgroups"
# To the instant, and not to the second.
hwclock --utc --hctosys || fail "no clock"
for module in kvm_amd tun veth xfs virtio_net; do
    modprobe "$module" || fail "no module $module"
done
[ -c /dev/kvm ] || fail "the emulated processor has no virtualisation"
mkdir -p /dev/net /d
[ -c /dev/net/tun ] || mknod /dev/net/tun c 10 200
mkfs.xfs -q -f -m reflink=1 /dev/vdc && mount /dev/vdc /d || fail "no data directory"

ip link set lo up
ip addr add 10.0.2.15/24 dev eth0 && ip link set eth0 up && ip route add default via 10.0.2.2 || fail "no network"
hostname house

. /mnt/settings
export ATOLL_DATA_DIR=/d ATOLL_RUNTIME=firecracker ATOLL_FIRECRACKER=/mnt/firecracker ATOLL_GUEST_KERNEL=/
export ATOLL_API_LISTEN=10.0.2.15:3000 ATOLL_EDGE_LISTEN=10.0.2.15:3002 ATOLL_INSECURE_LISTEN=true
cd /
/mnt/atoll up > /run/told &
atoll=$!
until grep -q E2B_API_KEY= /run/told; do
    kill -0 $atoll 2>/dev/null || { wait $atoll; fail "atoll up ended with $?"; }
    sleep 0.2
done
tell "$(grep -o 'E2B_API_KEY=[^ ]*' /run/told | tr -d "\"'")"
tell ready
wait $atoll
fail "atoll up ended with $?"
