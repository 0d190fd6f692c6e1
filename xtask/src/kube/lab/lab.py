"""Nodes without kubelet: network namespaces with the real agent, which talk to the real API.

The whole runs in namespaces of its own (unshare), so that nothing outlives it."""

import contextlib
import http.client
import json
import os
import pathlib
import resource
import subprocess
import sys
import time

import control
import traffic
from control import CP, GROUP, inside, run, wait_for

ME = "10.77.0.254"
SECRETS = "/run/secrets/kubernetes.io/serviceaccount"
CAPS = "+net_admin,+bpf,+perfmon"
NODES = {"node1": "10.77.0.11", "node2": "10.77.0.12"}
PINS = pathlib.Path("/sys/fs/bpf")


@contextlib.contextmanager
def check(name):
    """One scenario. What it appends to the list is printed; an exception is its failure."""
    seen, start = [], time.monotonic()
    try:
        yield seen
        outcome = "ok"
    except Exception as error:
        outcome = "FAILED"
        seen.append(f"{type(error).__name__}: {error}")
    text = " ".join("; ".join(seen).split())
    print(outcome, name, f"{text} ({time.monotonic() - start:.1f} s)", sep="\t", flush=True)


def network():
    """A switch with the control plane and the nodes behind it; this process is the client."""
    run("mount", "-t", "tmpfs", "tmpfs", "/run")
    # That of the host, if there is one, is not that of a node.
    while run("umount", str(PINS), ok=(0, 32)) == "":
        pass
    run("mount", "-t", "bpf", "bpf", str(PINS))
    ip = lambda *words: run("ip", *words)
    ip("link", "set", "lo", "up")
    ip("link", "add", "switch", "type", "bridge")
    ip("addr", "add", f"{ME}/24", "dev", "switch")
    ip("link", "set", "switch", "up")
    for name, addr in [("cp", CP), *NODES.items()]:
        ip("netns", "add", name)
        ip("link", "add", f"v-{name}", "type", "veth", "peer", "name", "eth0", "netns", name)
        ip("link", "set", f"v-{name}", "master", "switch", "up")
        ip("-n", name, "link", "set", "lo", "up")
        ip("-n", name, "addr", "add", f"{addr}/24", "dev", "eth0")
        ip("-n", name, "link", "set", "eth0", "up")
        ip("-n", name, "route", "add", "default", "via", ME)


class Node:
    """A host with an agent, which has the rights of the pod and no more."""

    def __init__(self, lab, name):
        self.lab, self.name, self.addr = lab, name, NODES[name]
        self.state = lab.folder / f"{name}.toml"
        self.log = lab.folder / f"{name}.log"
        self.agent = None

    def portredir(self, *words, ok=(0,)):
        return run(*inside(self.name, self.lab.program, *words), ok=ok)

    def start(self, *more, caps=CAPS, without=()):
        """The agent as its pod starts it: in the cluster, with three capabilities. Mounts that
        it is to be without are gone for it alone."""
        hide = "".join(f"umount --lazy --recursive {path} && " for path in without)
        env = {"NODE_NAME": self.name, "POD_NAMESPACE": "portredir-system", "KUBERNETES_SERVICE_HOST": CP,
               "KUBERNETES_SERVICE_PORT": "6443", "HOME": "/nonexistent", "PATH": os.environ["PATH"]}
        command = inside(self.name, "unshare", "--mount", "sh", "-c", hide + 'exec "$@"', "sh",
                         "setpriv", "--no-new-privs", "--inh-caps=-all", f"--bounding-set=-all,{caps}",
                         self.lab.program, "agent", f"--state={self.state}", *more)
        with open(self.log, "ab") as log:
            self.agent = subprocess.Popen(command, env=env, stdout=log, stderr=log)

    def wait_ready(self, seconds=60):
        return wait_for(f"{self.name} is ready", lambda: self.probe("/readyz")[0] == 200, seconds, 0.005)

    def kill(self):
        self.agent.kill()
        self.agent.wait()

    def end(self):
        """SIGTERM, as the kubelet ends a pod."""
        self.agent.terminate()
        assert self.agent.wait(20) == 0, f"the agent of {self.name} gave {self.agent.returncode}"

    def probe(self, path):
        def ask():
            conn = http.client.HTTPConnection("127.0.0.1", 9474, timeout=5)
            try:
                conn.request("GET", path)
                answer = conn.getresponse()
                return answer.status, answer.read().decode()
            except OSError as error:
                return 0, str(error)
        return traffic.in_netns(self.name, ask)

    def metric(self, name):
        lines = self.probe("/metrics")[1].splitlines()
        return next((float(line.split()[-1]) for line in lines if line.split()[0:1] == [name]), None)

    def memory(self):
        """The resident size in MB, and without pages of the program's file."""
        text = pathlib.Path(f"/proc/{self.agent.pid}/status").read_text()
        words = dict(line.split(":", 1) for line in text.splitlines())
        return tuple(int(words[name].split()[0]) / 1024 for name in ["VmRSS", "RssAnon"])

    def status(self):
        found = self.lab.core.find(f"{GROUP}/portredirectnodes/{self.name}")
        return (found or {}).get("status", {})

    def condition(self, kind):
        found = [one for one in self.status().get("conditions", []) if one["type"] == kind]
        return (found[0]["status"], found[0]["message"]) if found else ("", "")

    def rule(self, redirect, rule):
        """The reason and the message of a rule on this node."""
        for state in self.status().get("redirects", []):
            for one in state["rules"]:
                if (state["name"], one["name"]) == (redirect, rule):
                    return one["reason"], one.get("message", "")
        return "", ""

    def wait_reason(self, redirect, rule, reason, words=""):
        def is_there():
            found = self.rule(redirect, rule)
            return found[0] == reason and words in found[1]
        try:
            return wait_for(f"{redirect}/{rule} {reason} {words}", is_there, 15, 0.02)
        except AssertionError as error:
            raise AssertionError(f"{error}; it is {self.rule(redirect, rule)}") from None

    def who(self, port):
        """The port that answers on a port of the node, or the error."""
        return traffic.who(self.addr, port).split()[0]

    def wait_who(self, port, answer, seconds=20):
        return wait_for(f"port {port} of {self.name} gives {answer}",
                        lambda: self.who(port) == str(answer), seconds)

    def left(self):
        """What a redirect has in the kernel: pins, programs and filters."""
        found = [str(path) for path in PINS.glob("portredir*/**/*")]
        net = run(*inside(self.name, "bpftool", "net"))
        found += [line for line in net.splitlines() if "eth0" in line or "lo(" in line]
        return found


class Lab:
    def __init__(self, folder, bin, program, source):
        self.folder, self.program = pathlib.Path(folder), program
        self.source = pathlib.Path(source)
        network()
        self.control = control.Control(bin, self.folder)
        self.core, self.crds = self.control.core, self.control.crds
        self.nodes = {name: Node(self, name) for name in NODES}

    def token(self):
        """The files of the service account in the pod."""
        path = "/api/v1/namespaces/portredir-system/serviceaccounts/portredir-agent/token"
        answer = self.core.create(path, {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
                                         "spec": {"expirationSeconds": 7200}})
        folder = pathlib.Path(SECRETS)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "token").write_text(answer["status"]["token"])
        (folder / "ca.crt").write_text(pathlib.Path(self.control.path("ca.crt")).read_text())
        (folder / "namespace").write_text("portredir-system")

    def add_node(self, name):
        self.core.create("/api/v1/nodes", {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})
        self.core.merge(f"/api/v1/nodes/{name}/status",
                        {"status": {"addresses": [{"type": "InternalIP", "address": NODES[name]}]}})

    def label(self, node, **labels):
        self.core.merge(f"/api/v1/nodes/{node}", {"metadata": {"labels": labels}})

    def define(self):
        """The definitions, as they are in deploy/crds."""
        path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
        for name in ["portredirects", "portredirectnodes"]:
            # The server of definitions alone is not enough of an API for kubectl.
            text = self.control.kubectl("create", "--dry-run=client", "--validate=false", "-o", "json",
                                        "-f", str(self.source / f"deploy/crds/{name}.yaml"))
            if self.crds.find(f"{path}/{name}.portredir.io") is None:
                self.crds.create(path, json.loads(text))
            established = {"type": "Established", "status": "True"}.items()
            wait_for(f"{name} is established", lambda: any(
                established <= one.items() for one in
                self.crds.get(f"{path}/{name}.portredir.io").get("status", {}).get("conditions") or []), 30, 0.02)

    def join(self):
        """Leaves the group of portredir to the server of definitions alone: a v1.20 with
        definitions of its own would answer with them while it starts."""
        for name in ["portredirects", "portredirectnodes"]:
            self.core.delete(f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}.portredir.io")
        services = "/apis/apiregistration.k8s.io/v1/apiservices/v1alpha1.portredir.io"
        wait_for("the old service is gone", lambda: self.core.find(services) is None, 60, 0.05)
        self.control.join()
        self.control.wait_joined()

    def redirect(self, name, *rules, **spec):
        """A PortRedirect; of each rule the port, the target, and other fields."""
        full = [{"name": f"r{i}", "port": port, "to": {"port": to} if isinstance(to, int) else to, **more}
                for i, (port, to, more) in enumerate(rules)]
        return self.core.create(f"{GROUP}/portredirects", {
            "apiVersion": "portredir.io/v1alpha1", "kind": "PortRedirect", "metadata": {"name": name},
            "spec": {"rules": full, **spec}})

    def web(self):
        """The PortRedirect `web`, in force on all nodes that run an agent."""
        rules = [{"name": "r0", "port": 80, "protocol": "Both", "to": {"port": 8080}}]
        if self.core.find(f"{GROUP}/portredirects/web") is None:
            self.redirect("web", (80, 8080, {"protocol": "Both"}))
        else:
            self.change("web", {"rules": rules})
        for node in self.nodes.values():
            if node.agent.poll() is None:
                node.wait_who(80, 8080)

    def change(self, name, spec):
        self.core.merge(f"{GROUP}/portredirects/{name}", {"spec": spec})

    def remove(self, *names):
        for name in names:
            self.core.delete(f"{GROUP}/portredirects/{name}")

    def clear(self):
        """No PortRedirect is left, and no rule."""
        self.core.delete(f"{GROUP}/portredirects")
        for node in self.nodes.values():
            if node.agent and node.agent.poll() is None:
                wait_for(f"{node.name} has no rule", lambda: not node.status().get("redirects"), 30, 0.05)

    def pod(self, name, node, port, ready="True", **labels):
        """A pod with the network of the node; the scenario is its kubelet."""
        pods = "/api/v1/namespaces/default/pods"
        self.core.create(pods, {
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels},
            "spec": {"nodeName": node, "hostNetwork": True, "terminationGracePeriodSeconds": 0, "containers": [
                {"name": "web", "image": "web", "ports": [{"name": "http", "containerPort": port}]}]}})
        self.pod_ready(name, ready)

    def pod_ready(self, name, ready):
        self.core.merge(f"/api/v1/namespaces/default/pods/{name}/status",
                        {"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": ready}]}})


def logs(lab):
    """The last words of each program, for a run that failed."""
    for path in sorted(lab.folder.rglob("*.log")):
        # Those of pods also have other names, which lead nowhere here.
        if path.name != "audit.log" and path.is_file():
            for line in path.read_text(errors="replace").splitlines()[-15:]:
                print("log", path.name, line, sep="\t")
