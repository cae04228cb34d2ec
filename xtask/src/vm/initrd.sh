#!/bin/busybox sh
# First program of the guest: loads modules, waits for the disks, makes vda the root. A failure ends the machine.
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
$b mount -t devtmpfs dev /dev
while read -r module; do
    $b insmod "/modules/$module" || { echo "agentd-vm: can't load $module"; $b poweroff -f; }
done < /modules/order
tries=0
until [ -b /dev/vda ] && [ -b /dev/vdb ]; do
    tries=$((tries + 1))
    [ $tries -lt 100 ] || { echo "agentd-vm: no disks"; $b poweroff -f; }
    $b sleep 0.1
done
$b mount -t ext4 -o rw,noatime,prjquota /dev/vda /root || { echo "agentd-vm: no root"; $b poweroff -f; }
for at in proc sys dev; do $b mount --move /$at /root/$at; done
exec $b switch_root /root /sbin/init "$@"
