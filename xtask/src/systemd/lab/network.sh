#!/bin/sh
# A client in a network namespace, wired to this host.
set -e
ip netns add client
ip link add h0 type veth peer name c0 netns client
ip address add 10.77.0.1/24 dev h0
ip -6 address add fd77::1/64 dev h0 nodad
ip link set h0 up
ip netns exec client sh -c '
    ip link set lo up
    ip address add 10.77.0.2/24 dev c0
    ip -6 address add fd77::2/64 dev c0 nodad
    ip link set c0 up'
