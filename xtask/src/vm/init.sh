#!/bin/sh
# PID 1 of the guest: what agentd needs of a host, then the tests, then the end. Reaps whatever is left to it.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TMPDIR=/work
mount -t tmpfs -o mode=755 run /run
mount -t tmpfs -o mode=1777 tmp /tmp
mkdir -p /dev/pts /dev/shm
mount -t devpts -o mode=620,ptmxmode=666 devpts /dev/pts
mount -t tmpfs -o mode=1777 shm /dev/shm
mount -t cgroup2 -o nsdelegate cgroup2 /sys/fs/cgroup
mount -t securityfs security /sys/kernel/security
mount -t ext4 -o ro /dev/vdb /programs
hostname agentd-vm
busybox ip link set lo up
busybox stty -F /dev/ttyS1 raw -echo
/programs/xtask vm-guest "$@" > /dev/ttyS1
echo "agentd-vm: end $?"
sync
busybox poweroff -f
