"""The agent against a real API server, without pods. See lab.py.

usage: api.py BIN PROGRAM IMAGE SOURCE FOLDER [SCENARIO...]"""

import json
import os
import sys
import threading
import time

import ship
from failures import silent, stale, killed, rights, no_rights, undefined, boot_alone, leader, nameless, foreign, lacking
from control import AGENT, GROUP, Refused, wait_for
from lab import Lab, check, logs
from traffic import serve

# Each rule that the server of definitions refuses, with the words that it has for it.
BAD = [
    ({"port": 80, "endPort": 70, "to": {"port": 90}}, "endPort must not be less than port"),
    ({"port": 80, "to": {"port": 80}}, "to.port must differ from port"),
    ({"port": 80, "endPort": 90, "to": {"port": 100, "endPort": 105}},
     "port to endPort and to.port to to.endPort must have the same number of ports"),
    ({"port": 80, "to": {}}, "exactly one of port, service and pods is needed"),
    ({"port": 80, "to": {"port": 90, "service": {"namespace": "a", "name": "b", "port": "c"}}},
     "exactly one of port, service and pods is needed"),
    ({"port": 80, "to": {"endPort": 90}}, "endPort needs port, and must not be less than port"),
    ({"port": 0, "to": {"port": 90}}, "spec.rules[0].port"),
    ({"port": 65536, "to": {"port": 90}}, "spec.rules[0].port"),
    ({"port": 80, "protocol": "SCTP", "to": {"port": 90}}, "spec.rules[0].protocol"),
    ({"port": 80, "from": ["10.0.0.0"], "to": {"port": 90}}, "spec.rules[0].from[0]"),
    ({"port": 80, "name": "No", "to": {"port": 90}}, "spec.rules[0].name"),
    ({"to": {"port": 90}}, "spec.rules[0].port"),
]
# Objects with 128 rules each, more than the state of a node can list.
WIDE = 60
GOOD = [
    {"port": 80, "to": {"port": 8080}},
    {"port": 80, "endPort": 90, "to": {"port": 100, "endPort": 110}, "protocol": "Both"},
    {"port": 80, "endPort": 90, "to": {"port": 100}},
    {"port": 80, "to": {"service": {"namespace": "a", "name": "b", "port": "http"}}},
    {"port": 80, "to": {"pods": {"namespace": "a", "selector": {"matchLabels": {"a": "b"}}, "port": "web"}}},
    {"port": 80, "from": ["10.0.0.0/8"], "addresses": ["fd00::1"], "interfaces": ["wg*"], "to": {"port": 90}},
]


def boot(lab):
    with check("API server, definitions and the kustomize base are there") as seen:
        lab.control.start_etcd()
        # Pods are made without the controller that makes their secrets.
        seen.append(f"v1.20 after {lab.control.start_core('--disable-admission-plugins=ServiceAccount'):.0f} ms")
        seen.append(f"definitions after {lab.control.start_crds():.0f} ms")
        version = lab.crds.get("/version")["gitVersion"]
        base = lab.control.kubectl("apply", "-k", str(lab.source / "deploy/kustomize/base"))
        assert "daemonset.apps/portredir-agent created" in base, base
        lab.define()
        lab.join()
        lab.token()
        for name in lab.nodes:
            lab.add_node(name)
        seen.append(f"server of definitions {version}")


def validation(lab):
    with check("rules of validation: the server's messages") as seen:
        make = lambda rule: {"apiVersion": "portredir.io/v1alpha1", "kind": "PortRedirect",
                             "metadata": {"name": "try"}, "spec": {"rules": [{"name": "r", **rule}]}}
        path = f"{GROUP}/portredirects?dryRun=All"
        for rule in GOOD:
            lab.core.create(path, make(rule))
        for rule, words in BAD:
            try:
                lab.core.create(path, make(rule))
            except Refused as refused:
                assert refused.code == 422 and words in refused.message, f"{rule}: {refused}"
            else:
                raise AssertionError(f"{rule} is accepted")
        twice = make(GOOD[0])
        twice["spec"]["rules"] *= 2
        try:
            lab.core.create(path, twice)
            raise AssertionError("two rules of one name are accepted")
        except Refused as refused:
            assert "Duplicate value" in refused.message, refused
        many = make(GOOD[0])
        many["spec"]["rules"] = [{"name": f"r{i}", "port": 1000 + i, "to": {"port": 80}} for i in range(129)]
        try:
            lab.core.create(path, many)
            raise AssertionError("129 rules are accepted")
        except Refused as refused:
            assert "128" in refused.message, refused
        seen.append(f"{len(GOOD)} accepted, {len(BAD) + 2} refused with our words")


def permissions(lab):
    with check("kubectl auth can-i --list is the role") as seen:
        listed = lab.control.kubectl("auth", "can-i", "--list", f"--as={AGENT}", "-n", "portredir-system")
        own = set()
        for line in listed.splitlines()[1:]:
            name = line.split()[0]
            if not name.startswith(("[", "selfsubject")):
                verbs = line[line.rindex("[") + 1:line.rindex("]")].split()
                own |= {(name, verb) for verb in verbs}
        wanted = role(lab)
        assert own == wanted, f"more: {own - wanted}, less: {wanted - own}"
        seen.append(f"{len(wanted)} verbs")


def role(lab):
    """The verbs of the manifests, by resource."""
    wanted = set()
    rbac = "/apis/rbac.authorization.k8s.io/v1"
    for path in [f"{rbac}/clusterroles/portredir-agent",
                 f"{rbac}/namespaces/portredir-system/roles/portredir-agent"]:
        for rule in lab.core.get(path)["rules"]:
            for group in rule["apiGroups"]:
                for resource in rule["resources"]:
                    name, _, sub = resource.partition("/")
                    full = ".".join(filter(None, [name, group])) + (f"/{sub}" if sub else "")
                    wanted |= {(full, verb) for verb in rule["verbs"]}
    return wanted


def start(lab):
    with check("agents start and are ready, with three capabilities") as seen:
        for node in lab.nodes.values():
            node.start()
        for node in lab.nodes.values():
            seen.append(f"{node.name} after {node.wait_ready():.0f} ms")
            wait_for("its state", lambda: node.condition("Ready")[0] == "True", 20, 0.05)
            caps = open(f"/proc/{node.agent.pid}/status").read()
            assert "CapEff:\t000000c000001000" in caps, caps
            owner = lab.core.get(f"{GROUP}/portredirectnodes/{node.name}")["metadata"]["ownerReferences"][0]
            assert (owner["kind"], owner["name"]) == ("Node", node.name), owner


def label(lab):
    node = lab.nodes["node1"]
    with check("label a node: in force within 300 ms") as seen:
        lab.redirect("edge", (80, 8080, {}), nodeSelector={"matchLabels": {"edge": "yes"}})
        time.sleep(1)
        assert node.who(80) == "ConnectionRefusedError", node.who(80)
        times = []
        for _ in range(7):
            begin = time.monotonic()
            lab.label("node1", edge="yes")
            node.wait_who(80, 8080)
            times.append((time.monotonic() - begin) * 1000)
            assert lab.nodes["node2"].who(80) == "ConnectionRefusedError"
            lab.label("node1", edge=None)
            node.wait_who(80, "ConnectionRefusedError")
        times.sort()
        seen.append(f"median {times[3]:.0f} ms, worst {times[-1]:.0f} ms of {len(times)}")
        assert times[3] <= 300, times
        lab.clear()


def targets(lab):
    node = lab.nodes["node1"]
    with check("targets: port, range, NodePort, newest ready pod") as seen:
        services = "/api/v1/namespaces/default/services"
        ports = lambda kind: {"type": kind, "ports": [{"name": "http", "port": 80, "protocol": "TCP"}]}
        for name, kind in [("node", "NodePort"), ("inner", "ClusterIP")]:
            lab.core.create(services, {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
                                       "spec": ports(kind)})
        node_port = lab.core.get(f"{services}/node")["spec"]["ports"][0]["nodePort"]
        close = serve("node1", node_port)
        to = lambda name: {"service": {"namespace": "default", "name": name, "port": "http"}}
        pods = {"pods": {"namespace": "default", "selector": {"matchLabels": {"app": "web"}}, "port": "http"}}
        lab.redirect("all", (80, to("node"), {}), (81, to("inner"), {}), (82, to("none"), {}), (83, pods, {}),
                     (7000, {"port": 8080, "endPort": 8081}, {"endPort": 7001}))
        node.wait_who(80, node_port)
        node.wait_reason("all", "r1", "TargetUnsupported", "give the Service the type NodePort")
        node.wait_reason("all", "r2", "TargetNotFound", "there is no Service default/none")
        node.wait_reason("all", "r3", "TargetNotFound")
        assert node.who(7001) == "8081"
        lab.pod("one", "node1", 8080, ready="False", app="web")
        node.wait_reason("all", "r3", "TargetNotReady")
        lab.pod_ready("one", "True")
        node.wait_who(83, 8080)
        time.sleep(1.1)  # Creation times have whole seconds.
        lab.pod("two", "node1", 8081, app="web")
        seen.append(f"a newer pod takes over after {node.wait_who(83, 8081):.0f} ms")
        begin = time.monotonic()
        lab.pod_ready("two", "False")
        node.wait_who(83, 8080)
        seen.append(f"back {(time.monotonic() - begin) * 1000:.0f} ms after it is not ready")
        close()
        for name in ["one", "two"]:
            lab.core.delete(f"/api/v1/namespaces/default/pods/{name}")
        for name in ["node", "inner"]:
            lab.core.delete(f"{services}/{name}")
        lab.clear()


def conflicts(lab):
    node = lab.nodes["node1"]
    with check("two objects want one port: the older has it, the loser is told") as seen:
        lab.redirect("older", (80, 8080, {}), (22, 8080, {}))
        node.wait_who(80, 8080)
        time.sleep(1.1)
        lab.redirect("newer", (80, 8081, {}), (81, 8081, {}))
        node.wait_reason("newer", "r0", "Conflicted", "rule r0 of PortRedirect older")
        node.wait_reason("older", "r1", "Protected", "spec.force")
        node.wait_who(81, 8081)
        assert node.who(80) == "8080"
        summary = lambda: lab.core.get(f"{GROUP}/portredirects/newer").get("status", {})
        ready = lambda: next(iter(summary().get("conditions", [])), {})
        wait_for("the summary", lambda: ready().get("reason") == "Conflicted", 30, 0.1)
        seen.append(ready()["message"])
        told = lambda: [one for one in lab.core.get("/apis/events.k8s.io/v1/events")["items"]
                        if one["reason"] == "Conflicted" and one["regarding"]["name"] == "newer"]
        wait_for("an event", told, 10, 0.1)
        other = [{"name": "r0", "port": 82, "to": {"port": 8081}}, {"name": "r1", "port": 81, "to": {"port": 8081}}]
        lab.change("newer", {"rules": other})
        node.wait_reason("newer", "r0", "Programmed")
        lab.change("newer", {"rules": [{**other[0], "port": 80}, other[1]]})
        again = lambda: any((one.get("series") or {}).get("count", 0) > 1 for one in told())
        wait_for("an event that counts the second time", again, 15, 0.1)
        begin = time.monotonic()
        lab.remove("older")
        node.wait_who(80, 8081)
        seen.append(f"after the winner's deletion the next has it in {(time.monotonic() - begin) * 1000:.0f} ms")
        lab.change("newer", {"force": True, "rules": [{"name": "ssh", "port": 22, "to": {"port": 8080}}]})
        node.wait_reason("newer", "ssh", "Programmed")
        lab.clear()


def shadow(lab):
    node = lab.nodes["node1"]
    with check("a pod's hostPort that is taken over is told") as seen:
        lab.core.create("/api/v1/namespaces/default/pods", {
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "shadowed"},
            "spec": {"nodeName": "node1", "terminationGracePeriodSeconds": 0, "containers": [
                {"name": "web", "image": "web", "ports": [{"containerPort": 80, "hostPort": 8088}]}]}})
        lab.redirect("over", (8088, 8080, {}))
        node.wait_reason("over", "r0", "Shadows", "pod default/shadowed publishes port 8088")
        assert node.who(8088) == "8080"
        lab.core.delete("/api/v1/namespaces/default/pods/shadowed")
        node.wait_reason("over", "r0", "Programmed")
        seen.append("Shadows, and Programmed when the pod is gone")
        lab.clear()


def crowd(lab):
    node = lab.nodes["node1"]
    with check("1 000 objects: memory, writes, one changed") as seen:
        begin = time.time()
        try:
            crowded(lab, node, seen)
        finally:
            lab.clear()
        writes = [one["at"] for one in lab.control.requests(begin) if one["verb"] == "patch"
                  and one["resource"] == "portredirectnodes/status" and one["name"] == "node1"]
        least = min(later - earlier for earlier, later in zip(writes, writes[1:]))
        seen.append(f"{len(writes)} writes of the node's state, {least:.2f} s apart at least")
        # The server's log has the times at which it answered, which sway.
        assert least >= 1.8, writes


def crowded(lab, node, seen):
    def make(first):
        api = type(lab.core)(6443, lab.control.path("ca.crt"))
        for i in range(first, 1000, 4):
            api.create(f"{GROUP}/portredirects", {
                "apiVersion": "portredir.io/v1alpha1", "kind": "PortRedirect", "metadata": {"name": f"many-{i}"},
                "spec": {"rules": [{"name": "web", "port": 20000 + i, "to": {"port": 8080}}]}})

    makers = [threading.Thread(target=make, args=(i,)) for i in range(4)]
    begin = time.monotonic()
    for one in makers:
        one.start()
    for one in makers:
        one.join()
    seen.append(f"made in {time.monotonic() - begin:.0f} s")
    node.wait_who(20999, 8080, 60)
    for i in [0, 500, 999]:
        node.wait_reason(f"many-{i}", "web", "Programmed")
    times = []
    for i in range(9):
        port, to = 20000 + 200 * (i // 2), 8081 - i % 2
        begun = time.monotonic()
        lab.change(f"many-{port - 20000}", {"rules": [{"name": "web", "port": port, "to": {"port": to}}]})
        node.wait_who(port, to)
        times.append((time.monotonic() - begun) * 1000)
        time.sleep(0.5)
    times.sort()
    seen.append(f"one of them changed: median {times[4]:.0f} ms, worst {times[-1]:.0f} ms of {len(times)}")
    time.sleep(5)
    sizes = {name: one.memory() for name, one in lab.nodes.items()}
    seen += [f"{name} {size:.1f} MB, {own:.1f} of it its own" for name, (size, own) in sizes.items()]
    assert max(size for size, _ in sizes.values()) <= 32, sizes
    assert times[4] <= 100, times


def wide(lab):
    node = lab.nodes["node1"]
    with check("128 rules in one object, then more than the state of a node can list") as seen:
        try:
            fill(lab, "wide", range(1))
            node.wait_who(20127, 8080, 60)
            wait_for("the state", lambda: node.status().get("programmed") == 128, 30, 0.05)
            assert node.condition("Complete")[0] == "True", node.status()["conditions"]
            fill(lab, "wide", range(1, WIDE))
            count = 128 * WIDE
            took = wait_for(f"{count} rules", lambda: node.status().get("programmed") == count, 180, 0.2)
            assert node.who(20000 + count - 1) == "8080"
            path = f"{GROUP}/portredirectnodes/node1"
            state, size = node.status(), len(json.dumps(lab.core.get(path), separators=(",", ":")))
            listed = sum(len(one["rules"]) for one in state["redirects"])
            seen.append(f"{WIDE} objects with {count} rules in force after {took / 1000:.0f} s, {listed} of them listed, "
                        f"in an object of {size >> 10} KiB; Complete {node.condition('Complete')}")
            left = count - listed
            assert left > 0 and node.condition("Complete")[0] == "False", state["conditions"]
            assert f"{left} rules" in node.condition("Complete")[1], state["conditions"]
            assert size < 1536 << 10 and node.condition("Degraded")[0] == "False", state["conditions"]
            lab.change("wide-0", {"rules": [{"name": "r0", "port": 20000, "to": {"port": 8081}}]})
            seen.append(f"one of them changed: {node.wait_who(20000, 8081, 60):.0f} ms")
            sizes = {name: one.memory()[0] for name, one in lab.nodes.items()}
            seen += [f"{name} {size:.0f} MB" for name, size in sizes.items()]
            assert max(sizes.values()) <= 128, "the limit of the pod"
        finally:
            lab.clear()
        took = wait_for("Complete", lambda: node.condition("Complete")[0] == "True", 60, 0.1)


def fill(lab, name, numbers):
    """Objects with 128 rules each, which is the most."""
    for i in numbers:
        rules = [{"name": f"r{k}", "port": 20000 + 128 * i + k, "to": {"port": 8080}} for k in range(128)]
        lab.core.create(f"{GROUP}/portredirects", {
            "apiVersion": "portredir.io/v1alpha1", "kind": "PortRedirect", "metadata": {"name": f"{name}-{i}"},
            "spec": {"rules": rules}})


def verbs(lab):
    with check("every verb of the role is used, and no other") as seen:
        used, refused = set(), 0
        for one in lab.control.requests():
            name, _, sub = one["resource"].partition("/")
            full = ".".join(filter(None, [name, one["group"]])) + (f"/{sub}" if sub else "")
            refused += one["code"] == 403
            if name:
                used.add((full, one["verb"]))
        # v1.20 has no EndpointSlices of v1. A patch that makes an object needs `create` too.
        unseen = {"endpointslices.discovery.k8s.io"}
        made = {("portredirectnodes.portredir.io", "create")}
        idle = {one for one in role(lab) - used - made if one[0] not in unseen}
        assert not idle, f"never used: {idle}"
        more = used - role(lab)
        assert not more, f"asked for more: {more}"
        seen.append(f"{len(used)} verbs, EndpointSlices not among them; {refused} refused while rights were away")


def cleanup(lab):
    with check("agent --cleanup leaves nothing") as seen:
        lab.web()
        for node in lab.nodes.values():
            node.end()
            assert node.who(80) == "8080", "SIGTERM ends the redirect"
            node.portredir("agent", "--cleanup", f"--state={node.state}")
            assert node.who(80) == "ConnectionRefusedError"
        for node in lab.nodes.values():
            assert not node.left() and not node.state.exists(), node.left()
        seen.append("no pin, program, filter or file")


def main():
    bin, program, image, source, folder = sys.argv[1:6]
    lab = Lab(folder, bin, program, source)
    print("system", "Kubernetes v1.20 and its newer server of definitions, no kubelet", f"Linux {os.uname().release.split('-')[0]}", sep="\t")
    for node in lab.nodes:
        for port in [8080, 8081]:
            serve(node, port)
    scenarios = [boot, validation, permissions, start, label, targets, conflicts, shadow, crowd, wide, silent, stale,
                 killed, rights, no_rights, undefined, boot_alone, leader, nameless, foreign, lacking, verbs, cleanup]
    chosen = sys.argv[6:]
    for scenario in scenarios:
        if not chosen or scenario.__name__ in ["boot", "start", *chosen]:
            scenario(lab)
    for part, words in [(ship.image, [image]), (ship.chart, [])]:
        if not chosen or part.__name__ in chosen:
            part(lab, *words)
    logs(lab)
    print("end", "", "", sep="\t", flush=True)


main()
