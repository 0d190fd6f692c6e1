"""Real nodes: kubelet, containerd and kube-proxy of v1.20, each in namespaces of its own, and
the agent as the chart installs it.

usage: nodes.py BIN PROGRAM IMAGE SOURCE FOLDER [SCENARIO...]"""

import io
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time

import traffic
from control import GROUP, Control, Refused, inside, run, wait_for
from lab import ME, NODES, check, logs, network
from traffic import Load

HERE = pathlib.Path(__file__).parent
KERNEL = ["vm/overcommit_memory", "kernel/panic", "kernel/panic_on_oops"]


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


def named(path, to):
    """The image of the agent under two names, so that there is something to update to."""
    with tarfile.open(path) as source, tarfile.open(to, "w") as tar:
        for info in source:
            data = source.extractfile(info).read() if info.isfile() else b""
            if info.name.endswith("index.json"):
                index = json.loads(data)
                first = json.dumps(index["manifests"][0])
                index["manifests"] = [json.loads(first) for _ in range(2)]
                for tag, one in enumerate(index["manifests"], 1):
                    one["annotations"] = {"io.containerd.image.name": f"registry.local/portredir:{tag}",
                                          "org.opencontainers.image.ref.name": str(tag)}
                data = json.dumps(index).encode()
                info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


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
        named(image, self.folder / "images/portredir.tar")
        self.nodes = {name: Node(self, name) for name in NODES}

    def helm(self, *words):
        return run(str(self.control.bin / "helm"), f"--kubeconfig={self.control.folder / 'kubeconfig'}", *words)

    def install(self, tag, verb="install"):
        begin = time.monotonic()
        self.helm(verb, "portredir", str(self.source / "deploy/helm/portredir"), "-n", "portredir-system",
                  "--create-namespace", "--wait", "--timeout=4m", "--set", "image.repository=registry.local/portredir",
                  "--set", f"image.tag={tag}")
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
        seen.append(f"helm install --wait {cluster.install(1):.1f} s")
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
        lines = [line for line in caps.splitlines() if line.startswith("VmHWM")]
        seen.append(f"three capabilities, seccomp, {lines[0].split()[1]} kB")


def update(cluster):
    with check("rolling update by helm under load on both nodes") as seen:
        loads = [Load(node.addr, 80, 20) for node in cluster.nodes.values()]
        seen.append(f"helm upgrade --wait {cluster.install(2, 'upgrade'):.1f} s")
        time.sleep(1)
        seen += [load.end() for load in loads]


def killed(cluster):
    with check("agent killed (-9), then helm uninstall and install, under load") as seen:
        node = cluster.nodes["node1"]
        load = Load(node.addr, 80)
        first = node.agent()
        os.kill(first, signal.SIGKILL)
        wait_for("the next agent", lambda: node.agent() not in (None, first), 60, 0.05)
        cluster.uninstall()
        assert node.who(80).startswith("8080")
        cluster.install(1)
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
        text = text.replace("image: portredir:0.1.0", "image: registry.local/portredir:1")
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
    before = {name: pathlib.Path("/proc/sys", name).read_text() for name in KERNEL}
    groups = lambda: set(pathlib.Path("/sys/fs/cgroup").glob("*/**/"))
    known = groups()
    cluster = Cluster(folder, bin, image, source)
    print("system", "Kubernetes v1.20 with two nodes, containerd 1.6, kube-proxy with iptables", os.uname().release, sep="\t")
    try:
        scenarios = [boot, install, update, killed, rollover, flood, reboot, cleanup]
        chosen = sys.argv[6:]
        for scenario in scenarios:
            if not chosen or scenario.__name__ in ["boot", "install", *chosen]:
                scenario(cluster)
    finally:
        for node in cluster.nodes.values():
            if node.init:
                node.power_off()
        for name, text in before.items():
            pathlib.Path("/proc/sys", name).write_text(text)
        for path in sorted(groups() - known, key=lambda path: -len(path.parts)):
            path.rmdir()
    logs(cluster)
    print("end", "", "", sep="\t", flush=True)


main()
