"""Real nodes: kubelet, containerd and kube-proxy of v1.20, each in namespaces of its own, and
the agent as the chart installs it.

usage: nodes.py BIN PROGRAM IMAGE SOURCE FOLDER [SCENARIO...]"""

import io
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import time

import traffic
from control import GROUP, Control, Refused, inside, run, wait_for
from lab import ME, NODES, check, logs, network
from traffic import Flow, Load, Stream

HERE = pathlib.Path(__file__).parent
# What kubelet would set for the whole host.
KERNEL = ["vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops", "kernel/keys/root_maxkeys",
          "kernel/keys/root_maxbytes"]


def archive(path, name, program):
    """An image with one program, as `docker save` writes it."""
    def add(tar, name, data, mode=0o644):
        info = tarfile.TarInfo(name)
        info.size, info.mode = len(data), mode
        tar.addfile(info, io.BytesIO(data))

    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        add(tar, "serve", pathlib.Path(program).read_bytes(), 0o755)
    import hashlib
    config = {"architecture": "amd64", "os": "linux", "config": {"Entrypoint": ["/serve"]},
              "rootfs": {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(layer.getvalue()).hexdigest()]}}
    with tarfile.open(path, "w") as tar:
        add(tar, "layer.tar", layer.getvalue())
        add(tar, "config.json", json.dumps(config).encode())
        manifest = [{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]
        add(tar, "manifest.json", json.dumps(manifest).encode())


class Node:
    def __init__(self, cluster, name):
        self.cluster, self.name, self.addr = cluster, name, NODES[name]
        self.number = name[-1]
        self.folder = cluster.folder / name
        self.init = None

    def start(self):
        self.folder.mkdir(exist_ok=True)
        with open(self.folder / "node.log", "ab") as log:
            self.init = subprocess.Popen(
                inside(self.name, "unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "bash",
                       HERE / "node.sh", self.name, self.addr, self.number, self.cluster.control.bin.parent,
                       self.folder, self.cluster.control.folder / "kubeconfig"), stdout=log, stderr=log)

    def power_off(self):
        """All processes of the node end at once, and with them bpffs."""
        self.init.kill()
        self.init.wait()
        leader = lambda: [pid for pid in self.pids("") if pid]
        wait_for("no process is left", lambda: not leader(), 20, 0.05)

    def pids(self, words):
        """The processes of the node whose command has these words."""
        netns = os.stat(f"/run/netns/{self.name}").st_ino
        found = []
        for path in pathlib.Path("/proc").iterdir():
            if path.name.isdigit():
                try:
                    if os.stat(path / "ns/net").st_ino == netns:
                        command = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                        if words in command:
                            found.append(int(path.name))
                except OSError:
                    pass
        return found

    def agent(self):
        return next(iter(self.pids("portredir agent")), None)

    def who(self, port):
        return traffic.who(self.addr, port)

    def wait_who(self, port, start, seconds=60):
        return wait_for(f"port {port} of {self.name} gives {start}", lambda: self.who(port).startswith(start), seconds)

    def here(self, port, host="127.0.0.1"):
        """What a client on the node itself is answered."""
        return traffic.in_netns(self.name, lambda: traffic.who(host, port))

    def state(self):
        found = self.cluster.core.find(f"{GROUP}/portredirectnodes/{self.name}")
        return (found or {}).get("status", {})


class Cluster:
    def __init__(self, folder, bin, image, source):
        self.folder, self.source = pathlib.Path(folder), pathlib.Path(source)
        network()
        for name in NODES:
            run("ip", "-n", name, "route", "add", f"10.244.{3 - int(name[-1])}.0/24", "via",
                next(addr for other, addr in NODES.items() if other != name))
        self.control = Control(bin, self.folder)
        self.core = self.control.core
        (self.folder / "images").mkdir()
        archive(self.folder / "images/serve.tar", "registry.local/serve:1", self.control.bin / "serve")
        shutil.copy(image, self.folder / "images")
        self.nodes = {name: Node(self, name) for name in NODES}

    def helm(self, *words):
        return run(str(self.control.bin / "helm"), f"--kubeconfig={self.control.folder / 'kubeconfig'}", *words)

    def install(self, *more, verb="install"):
        begin = time.monotonic()
        self.helm(verb, "portredir", str(self.source / "deploy/helm/portredir"), "-n", "portredir-system",
                  "--create-namespace", "--wait", "--timeout=4m", *more)
        return time.monotonic() - begin

    def uninstall(self):
        self.helm("uninstall", "portredir", "-n", "portredir-system", "--wait")
        for node in self.nodes.values():
            # The collector of garbage first learns of the new definitions.
            wait_for("no agent", lambda: node.agent() is None, 180, 0.1)

    def workload(self, name, port, kind="DaemonSet", **pod):
        """Pods that answer on a port, and are ready when they do."""
        spec = {"terminationGracePeriodSeconds": 1, "containers": [{
            "name": "serve", "image": "registry.local/serve:1", "args": [str(port)],
            "ports": [{"name": "tcp", "containerPort": port}, {"name": "udp", "containerPort": port, "protocol": "UDP"}],
            "readinessProbe": {"tcpSocket": {"port": port}, "periodSeconds": 1}}], **pod}
        app = name.split("-")[0]
        labels = {"app": app, "name": name}
        self.core.create(f"/apis/apps/v1/namespaces/default/{kind.lower()}s", {
            "apiVersion": "apps/v1", "kind": kind, "metadata": {"name": name},
            "spec": {"selector": {"matchLabels": {"name": name}},
                     "template": {"metadata": {"labels": labels}, "spec": spec}}})

    def rollout(self, name):
        self.control.kubectl("rollout", "status", name, "--timeout=180s")


def boot(cluster):
    with check("two nodes with kubelet, containerd, kube-proxy, bridge and portmap") as seen:
        control = cluster.control
        control.start_etcd()
        control.start_core()
        config = control.folder / "kubeconfig"
        control.start("manager", "kube-controller-manager", f"--kubeconfig={config}", "--leader-elect=false",
                      f"--service-account-private-key-file={control.path('sa.key')}",
                      f"--root-ca-file={control.path('ca.crt')}", "--use-service-account-credentials=true",
                      "--bind-address=127.0.0.1", "--port=0", f"--cert-dir={control.folder / 'manager'}")
        control.start("scheduler", "kube-scheduler", f"--kubeconfig={config}", "--leader-elect=false",
                      "--bind-address=127.0.0.1", "--port=0", f"--cert-dir={control.folder / 'scheduler'}")
        begin = time.monotonic()
        for node in cluster.nodes.values():
            node.start()
        for name in cluster.nodes:
            wait_for(f"{name} is ready", lambda: is_ready(cluster, name), 180, 0.2)
        seen.append(f"ready after {time.monotonic() - begin:.0f} s")
        cluster.workload("web", 8080)
        cluster.core.create("/api/v1/namespaces/default/services", {
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
            "spec": {"type": "NodePort", "externalTrafficPolicy": "Local", "selector": {"app": "web"}, "ports": [
                {"name": "tcp", "port": 80, "targetPort": 8080, "nodePort": 30080},
                {"name": "udp", "port": 80, "targetPort": 8080, "nodePort": 30080, "protocol": "UDP"}]}})
        cluster.rollout("daemonset/web")
        for node in cluster.nodes.values():
            node.wait_who(30080, f"8080 {ME}")


def is_ready(cluster, name):
    found = cluster.core.find(f"/api/v1/nodes/{name}")
    conditions = (found or {}).get("status", {}).get("conditions", [])
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


def install(cluster):
    with check("helm install: node port 80 to the NodePort, seen from outside and from the node") as seen:
        seen.append(f"helm install --wait {cluster.install():.1f} s")
        to = lambda port: {"service": {"namespace": "default", "name": "web", "port": port}}
        rules = [{"name": "tcp", "port": 80, "to": to("tcp")},
                 {"name": "udp", "port": 80, "protocol": "UDP", "to": to("udp")},
                 {"name": "own", "port": 83, "to": {"pods": {
                     "namespace": "default", "selector": {"matchLabels": {"app": "web"}}, "port": "tcp"}}}]
        cluster.core.create(f"{GROUP}/portredirects", {
            "apiVersion": "portredir.io/v1alpha1", "kind": "PortRedirect", "metadata": {"name": "web"},
            "spec": {"rules": rules}})
        for node in cluster.nodes.values():
            # The oracle: what kube-proxy answers on its own port.
            node.wait_who(80, node.who(30080))
            node.wait_who(83, f"8080 {ME}")
            for host in ["127.0.0.1", node.addr]:
                ours, oracle = node.here(80, host), node.here(30080, host)
                assert ours.split()[0] == oracle.split()[0] == "8080", f"{host}: {ours}, kube-proxy {oracle}"
        seen.append(f"the client's address stays ({node.who(80)}); a pod's own address on 83")
        caps = pathlib.Path(f"/proc/{node.agent()}/status").read_text()
        assert "CapEff:\t000000c000001000" in caps and "Seccomp:\t2" in caps, caps
        peaks = [peak(one.agent()) for one in cluster.nodes.values()]
        seen.append(f"three capabilities, seccomp; at most {max(peaks):.0f} MB with kernel memory, 256 are allowed")
        pods = cluster.core.get("/api/v1/namespaces/portredir-system/pods")["items"]
        restarts = [one["restartCount"] for pod in pods for one in pod["status"]["containerStatuses"]]
        assert restarts == [0, 0], restarts


def peak(pid):
    """The most memory in MB that the container of a process has had at once."""
    lines = pathlib.Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    groups = {names: path for _, names, path in (line.split(":", 2) for line in lines)}
    root = pathlib.Path("/sys/fs/cgroup")
    file = (root / f"memory{groups['memory']}/memory.max_usage_in_bytes" if "memory" in groups
            else root / f"{groups[''].lstrip('/')}/memory.peak")
    return int(file.read_text()) / 1e6


def update(cluster):
    with check("rolling update by helm under load on both nodes") as seen:
        cluster.core.create(f"{GROUP}/portredirects", {
            "apiVersion": "portredir.io/v1alpha1", "kind": "PortRedirect", "metadata": {"name": "stream"},
            "spec": {"rules": [{"name": "stream", "port": 5200, "to": {"port": 5201}}]}})
        for node in cluster.nodes.values():
            is_listed = lambda: any(one["name"] == "stream" for one in node.state().get("redirects", []))
            wait_for("the port of iperf3", is_listed, 30, 0.1)
        streams = [Stream(node) for node in cluster.nodes.values()]
        loads = [Load(node.addr, 80, 20) for node in cluster.nodes.values()]
        time.sleep(1)
        took = cluster.install("--set", "image.tag=next", verb="upgrade")
        seen.append(f"helm upgrade --wait {took:.1f} s")
        time.sleep(1)
        seen += [one.end() for one in loads + streams]


def killed(cluster):
    with check("agent killed (-9), then helm uninstall and install, under load") as seen:
        node = cluster.nodes["node1"]
        load = Load(node.addr, 80)
        first = node.agent()
        os.kill(first, signal.SIGKILL)
        wait_for("the next agent", lambda: node.agent() not in (None, first), 60, 0.05)
        cluster.uninstall()
        assert node.who(80).startswith("8080")
        cluster.install()
        seen.append(load.end())


def rollover(cluster):
    with check("rollover of a pod with the network of the node under load") as seen:
        node = cluster.nodes["node1"]
        cluster.workload("front-1", 9081, "Deployment", hostNetwork=True, nodeName="node1")
        cluster.rollout("deployment/front-1")
        cluster.core.create(f"{GROUP}/portredirects", {
            "apiVersion": "portredir.io/v1alpha1", "kind": "PortRedirect", "metadata": {"name": "front"},
            "spec": {"rules": [{"name": "front", "port": 81, "protocol": "Both", "to": {"pods": {
                "namespace": "default", "selector": {"matchLabels": {"app": "front"}}, "port": "tcp"}}}]}})
        # The name of a port is one of TCP; as a number it is of both.
        cluster.core.merge(f"{GROUP}/portredirects/front", {"spec": {"rules": [
            {"name": "front", "port": 81, "to": {"pods": {
                "namespace": "default", "selector": {"matchLabels": {"app": "front"}}, "port": "tcp"}}},
            {"name": "front-udp", "port": 81, "protocol": "UDP", "to": {"pods": {
                "namespace": "default", "selector": {"matchLabels": {"app": "front"}}, "port": "udp"}}}]}})
        node.wait_who(81, "9081")
        load = Load(node.addr, 81)
        time.sleep(1)
        cluster.workload("front-2", 9082, "Deployment", hostNetwork=True, nodeName="node1")
        cluster.rollout("deployment/front-2")
        node.wait_who(81, "9082", 30)
        # Lasting connections and the flow of datagrams are still with the old pod.
        time.sleep(1)
        seen.append(load.end())
        load = Load(node.addr, 81)
        cluster.core.delete("/apis/apps/v1/namespaces/default/deployments/front-1")
        wait_for("the old pod is gone", lambda: node.here(9081) == "ConnectionRefusedError", 60, 0.1)
        seen.append(f"then without the old pod {load.end()}")


def flood(cluster):
    with check("600 000 SYN packets beside a flow to a NodePort") as seen:
        node = cluster.nodes["node1"]
        with socket.create_connection((node.addr, 80), timeout=20) as idle:
            idle.sendall(b"ping\n")
            assert idle.recv(64) == b"ping\n"
            begin = time.monotonic()
            run(str(cluster.control.bin / "flood"), node.addr, "80", "600000")
            seen.append(f"sent in {time.monotonic() - begin:.0f} s")
            idle.sendall(b"pong\n")
            assert idle.recv(64) == b"pong\n"
        seen.append("the idle connection lives")
        node.wait_who(80, "8080", 30)


OURS, POD, ORACLE = "by our port to the node port", "by our port to the pod", "by kube-proxy's node port"


def again(cluster):
    node = cluster.nodes["node1"]
    with check("UDP pod made again: the flows of its clients are answered by the new pod") as seen:
        media(cluster)
        flows = {ORACLE: Flow(node.addr, 30090), "by portmap's hostPort": Flow(node.addr, 5082),
                 OURS: Flow(node.addr, 5080), POD: Flow(node.addr, 5081)}
        for name, flow in flows.items():
            wait_for(f"an answer {name}", lambda: flow.after(0), 30, 0.05)
        old = pod_on(cluster, "media", "node1")
        begin = time.monotonic()
        cluster.core.delete(f"/api/v1/namespaces/default/pods/{old['metadata']['name']}")
        fresh = lambda: is_other(pod_on(cluster, "media", "node1"), old)
        wait_for("a new pod that is ready", fresh, 120, 0.05)
        ready = time.monotonic()
        seen.append(f"ready {ready - begin:.1f} s after the deletion of the old one")
        for name, flow in flows.items():
            wait_for(f"the new pod's answer {name}", lambda: flow.after(ready), 20, 0.05)
            flow.end()
        times = {name: flow.after(ready) for name, flow in flows.items()}
        seen.append("answers " + ", ".join(f"{name} {took:.0f} ms" for name, took in times.items()) + " after that")
        # The oracle is what kube-proxy does for a flow to its own port.
        latest = max(2000, times[ORACLE] + 500)
        assert max(times[name] for name in [OURS, POD]) <= latest, f"later than {latest:.0f} ms"


def media(cluster):
    """A server of datagrams on each node, and all ways to it."""
    port = {"name": "udp", "containerPort": 9090, "hostPort": 5082, "protocol": "UDP"}
    cluster.workload("media", 9090, containers=[{
        "name": "serve", "image": "registry.local/serve:1", "args": ["9090"], "ports": [port],
        "readinessProbe": {"tcpSocket": {"port": 9090}, "periodSeconds": 1}}])
    cluster.core.create("/api/v1/namespaces/default/services", {
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "media"},
        "spec": {"type": "NodePort", "externalTrafficPolicy": "Local", "selector": {"app": "media"}, "ports": [
            {"name": "udp", "port": 80, "targetPort": 9090, "nodePort": 30090, "protocol": "UDP"}]}})
    cluster.core.create(f"{GROUP}/portredirects", {
        "apiVersion": "portredir.io/v1alpha1", "kind": "PortRedirect", "metadata": {"name": "media"},
        "spec": {"rules": [
            {"name": "service", "port": 5080, "protocol": "UDP", "to": {"service": {
                "namespace": "default", "name": "media", "port": "udp"}}},
            {"name": "pods", "port": 5081, "protocol": "UDP", "to": {"pods": {
                "namespace": "default", "selector": {"matchLabels": {"app": "media"}}, "port": "udp"}}}]}})
    cluster.rollout("daemonset/media")


def pod_on(cluster, app, node):
    pods = cluster.core.get(f"/api/v1/namespaces/default/pods?labelSelector=app%3D{app}")["items"]
    return next((pod for pod in pods if pod["spec"].get("nodeName") == node), None)


def is_other(pod, old):
    """Whether a pod took the place of an old one, and is ready."""
    conditions = (pod or {}).get("status", {}).get("conditions", [])
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions) and (
        pod["metadata"]["uid"] != old["metadata"]["uid"])


def reboot(cluster):
    node = cluster.nodes["node2"]
    with check("a node is switched off, and on again") as seen:
        node.power_off()
        assert " " not in node.who(80), node.who(80)
        node.start()
        took = node.wait_who(80, "8080", 180) / 1000
        seen.append(f"node port 80 answers {took:.0f} s after the start of its kubelet")


def cleanup(cluster):
    with check("helm uninstall, then the cleanup DaemonSet: nothing is left") as seen:
        cluster.uninstall()
        for node in cluster.nodes.values():
            assert node.who(80).startswith("8080"), "uninstall ends the redirect"
        text = cluster.control.kubectl("kustomize", str(cluster.source / "deploy/kustomize/cleanup"))
        cluster.control.kubectl("apply", "-f", "-", text=text)
        cluster.control.kubectl("-n", "portredir-cleanup", "rollout", "status", "daemonset/portredir-cleanup",
                                "--timeout=120s")
        for node in cluster.nodes.values():
            assert node.who(80) == "ConnectionRefusedError", node.who(80)
            net = run(*inside(node.name, "bpftool", "net"))
            assert "portredir" not in net, net
            pid = node.pids("kubelet")[0]
            pins = list(pathlib.Path(f"/proc/{pid}/root/sys/fs/bpf").glob("portredir*"))
            assert not pins and not list((node.folder / "portredir").iterdir()), pins
        seen.append("port 80 refused, no pin, program or file on two nodes")
        cluster.control.kubectl("delete", "-f", "-", text=text)


def main():
    bin, program, image, source, folder = sys.argv[1:6]
    settings = lambda: {name: pathlib.Path("/proc/sys", name).read_text().strip() for name in KERNEL}
    groups = lambda: set(pathlib.Path("/sys/fs/cgroup").glob("*/**/"))
    before, known, differ = settings(), groups(), False
    # The first process of a PID namespace has to ask for this signal.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    cluster = Cluster(folder, bin, image, source)
    print("system", "Kubernetes v1.20 with two nodes, containerd 1.6, kube-proxy with iptables", f"Linux {os.uname().release.split('-')[0]}", sep="\t")
    try:
        scenarios = [boot, install, update, killed, rollover, flood, again, reboot, cleanup]
        chosen = sys.argv[6:]
        for scenario in scenarios:
            if not chosen or scenario.__name__ in ["boot", "install", *chosen]:
                scenario(cluster)
            differ |= settings() != before
        with check("kubelet has not changed the kernel settings of the host") as seen:
            assert not differ, settings()
            seen.append(", ".join(f"{name} {value}" for name, value in before.items()))
    finally:
        for node in cluster.nodes.values():
            if node.init:
                node.power_off()
        for path in sorted(groups() - known, key=lambda path: -len(path.parts)):
            path.rmdir()
    logs(cluster)
    print("end", "", "", sep="\t", flush=True)


main()
