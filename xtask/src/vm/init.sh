#!/bin/busybox sh
# PID 1 of the guest: mounts the host's files as its root, then runs /run.sh. The
# initramfs has the modules for that; all others come with the host's files.
b=/bin/busybox
$b mount -t proc proc /proc
$b modprobe -a virtio_pci virtio_console 9pnet_virtio 9p overlay 2>/dev/null
$b mount -t 9p -o trans=virtio,version=9p2000.L,ro,cache=loose,msize=524288 host /host
# Writes go to memory.
$b mount -t tmpfs tmpfs /written
$b mkdir /written/upper /written/work
$b mount -t overlay -o lowerdir=/host,upperdir=/written/upper,workdir=/written/work overlay /whole
for mount in proc:proc sysfs:sys devtmpfs:dev devpts:dev/pts tmpfs:dev/shm tmpfs:run \
    cgroup2:sys/fs/cgroup bpf:sys/fs/bpf; do
    $b mkdir -p "/whole/${mount#*:}" 2>/dev/null
    $b mount -t "${mount%:*}" "${mount%:*}" "/whole/${mount#*:}"
done
release=$($b uname -r)
$b mkdir -p "/whole/lib/modules/$release" /whole/run/lock /whole/run/tmp
$b mount --bind "/whole$($b cat /modules)" "/whole/lib/modules/$release"
$b cp /run.sh /whole/run/run.sh
$b ip link set lo up
$b umount /proc
exec $b switch_root /whole /bin/sh /run/run.sh
