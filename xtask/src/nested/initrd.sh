#!/bin/busybox sh
# First program of the house's machine: loads what its root needs, and goes there.
b=/bin/busybox
$b mount -t devtmpfs dev /dev
while read -r module; do $b insmod "/modules/$module"; done < /modules/order
tries=100
until [ -b /dev/vda ] && [ -b /dev/vdb ]; do
    tries=$((tries - 1))
    [ $tries -gt 0 ] || { echo "there are no disks"; $b poweroff -f; }
    $b sleep 0.1
done
$b mount -t ext4 /dev/vda /root
$b mount -t ext4 -o ro /dev/vdb /root/mnt
$b mount -o move /dev /root/dev
exec $b switch_root /root /bin/bash /mnt/init
