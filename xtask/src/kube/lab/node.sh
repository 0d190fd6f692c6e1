#!/usr/bin/env bash
# A node: its file systems, then containerd, kubelet and kube-proxy. It is the first process of its PID namespace, in the
# network namespace and a mount namespace of the node. What is below FOLDER stays after its end, like a disk.
# usage: node.sh NAME ADDRESS NUMBER KUBE FOLDER KUBECONFIG
set -euo pipefail
NAME=$1 ADDRESS=$2 NUMBER=$3 KUBE=$4 FOLDER=$5 KUBECONFIG=$6
export PATH=$KUBE/bin:$PATH
mkdir -p "$FOLDER"/{portredir,containerd,images,log}
: > "$FOLDER/resolv.conf"
mount --make-rshared /
umount -q /sys/fs/bpf || true
mount -t bpf -o mode=700 bpf /sys/fs/bpf
for path in /run /var/lib; do mount -t tmpfs tmpfs "$path"; done
mount --bind "$FOLDER/log" /var/log
mount --make-rshared /
mkdir /var/lib/{portredir,kubelet}
mount --bind "$FOLDER/portredir" /var/lib/portredir
mount --bind "$FOLDER/resolv.conf" /etc/resolv.conf
sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.route_localnet=1
# kubelet sets these for the whole host, unless they have its values. So it reads files of the node that have them, and the
# host's own are never written: a run that is killed leaves them as they were.
while read -r name value; do
    mkdir -p "/run/sysctl/${name%/*}"
    echo "$value" > "/run/sysctl/$name"
    mount --bind "/run/sysctl/$name" "/proc/sys/$name"
done << SYSCTL
vm/overcommit_memory 1
vm/panic_on_oom 0
kernel/panic 10
kernel/panic_on_oops 1
kernel/keys/root_maxkeys 1000000
kernel/keys/root_maxbytes 25000000
SYSCTL

mkdir -p /run/cni
cat > /run/cni/10-pods.conflist <<CNI
{"cniVersion": "0.4.0", "name": "pods", "plugins": [
 {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
  "ipam": {"type": "host-local", "dataDir": "/run/cni/state", "routes": [{"dst": "0.0.0.0/0"}],
           "ranges": [[{"subnet": "10.244.$NUMBER.0/24"}]]}},
 {"type": "portmap", "capabilities": {"portMappings": true}}]}
CNI
cat > /run/containerd.toml <<TOML
version = 2
root = "$FOLDER/containerd"
state = "/run/containerd"
[grpc]
  address = "/run/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "registry.local/serve:1"
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      BinaryName = "$KUBE/bin/runc"
      SystemdCgroup = false
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "$KUBE/cni"
    conf_dir = "/run/cni"
TOML
containerd -c /run/containerd.toml > "$FOLDER/containerd.log" 2>&1 &
images() { ctr -a /run/containerd.sock -n k8s.io images "$@" > /dev/null; }
until images ls 2> /dev/null; do sleep 0.1; done
for image in "$FOLDER"/../images/*.tar; do images import "$image"; done
# Another name of the agent's image, so that there is something to update to.
for image in $(ctr -a /run/containerd.sock -n k8s.io images ls -q); do
    [[ $image != localhost/portredir:* ]] || images tag --force "$image" localhost/portredir:next
done

kubelet --kubeconfig="$KUBECONFIG" --container-runtime=remote --hostname-override="$NAME" \
    --container-runtime-endpoint=unix:///run/containerd.sock --cert-dir=/run/kubelet --node-ip="$ADDRESS" \
    --address="$ADDRESS" --read-only-port=0 --cgroup-driver=cgroupfs --cgroups-per-qos=false \
    --enforce-node-allocatable= --fail-swap-on=false --eviction-hard= \
    --volume-plugin-dir=/run/plugins --maximum-dead-containers-per-container=0 --resolv-conf= \
    --minimum-container-ttl-duration=0s --authorization-mode=AlwaysAllow --anonymous-auth=true \
    --node-status-update-frequency=5s > "$FOLDER/kubelet.log" 2>&1 &
kube-proxy --kubeconfig="$KUBECONFIG" --hostname-override="$NAME" --proxy-mode=iptables --conntrack-max-per-core=0 \
    --cluster-cidr=10.244.0.0/16 --metrics-bind-address=127.0.0.1:10249 --healthz-bind-address=127.0.0.1:10256 \
    > "$FOLDER/kube-proxy.log" 2>&1 &
wait
