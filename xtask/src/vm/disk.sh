#!/bin/busybox sh
# PID 1 of a guest with disks: copies the files of the second disk to the first one, unless
# that was done before, and starts the service manager there.
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t devtmpfs dev /dev
$b modprobe -a virtio_pci virtio_blk crc32c_generic 2>/dev/null
$b modprobe ext4 2>/dev/null
$b mount -t ext4 /dev/vda /whole
if ! [ -e /whole/lab ]; then
    $b mount -t ext4 -o ro /dev/vdb /host
    $b cp -dR /host/* /whole/
    $b umount /host
fi
$b umount /dev /proc
exec $b switch_root /whole /sbin/init
