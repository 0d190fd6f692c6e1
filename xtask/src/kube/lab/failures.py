"""What fails around the agent: the API server, permissions, definitions, nodes, interfaces."""

import sys
import time

from control import GROUP, inside, run, wait_for
from lab import CAPS, PINS, check
from traffic import Load, in_netns, who


def silent(lab):
    node = lab.nodes["node1"]
    with check("API server stands still for 20 s, then is killed for 10 s") as seen:
        lab.web()
        load = Load(node.addr, 80)
        lab.control.stop("core")
        time.sleep(20)
        lab.control.go_on("core")
        lab.change("web", {"rules": [{"name": "more", "port": 81, "to": {"port": 8080}},
                                     {"name": "r0", "port": 80, "protocol": "Both", "to": {"port": 8080}}]})
        seen.append(f"a change after {node.wait_who(81, 8080, 60):.0f} ms")
        lab.control.kill("core")
        time.sleep(10)
        assert node.who(81) == "8080" and node.probe("/readyz")[0] == 200
        lab.control.start_core(*lab.control.more)
        lab.control.wait_joined()
        lab.change("web", {"rules": [{"name": "r0", "port": 80, "protocol": "Both", "to": {"port": 8080}}]})
        seen.append(f"after its restart {node.wait_who(81, 'ConnectionRefusedError', 60):.0f} ms")
        seen.append(load.end())


def stale(lab):
    node = lab.nodes["node2"]
    with check("API server down for longer than --stale-after: not ready, rules stay") as seen:
        lab.web()
        node.end()
        node.start("--stale-after=5s")
        node.wait_ready()
        node.wait_who(80, 8080)
        lab.control.kill("core")
        begin = time.monotonic()
        wait_for("not ready", lambda: node.probe("/readyz")[0] == 503, 60, 0.1)
        seen.append(f"not ready after {time.monotonic() - begin:.0f} s: {node.probe('/readyz')[1].strip()}")
        assert node.probe("/livez")[0] == 200 and node.who(80) == "8080"
        lab.control.start_core(*lab.control.more)
        seen.append(f"ready again after {node.wait_ready(90):.0f} ms")
        node.end()
        node.start()
        node.wait_ready()


def killed(lab):
    node = lab.nodes["node1"]
    with check("agent killed (-9) under load, rules changed meanwhile, agent back") as seen:
        lab.web()
        load = Load(node.addr, 80)
        time.sleep(1)
        node.kill()
        lab.redirect("late", (82, 8081, {}))
        time.sleep(2)
        assert node.who(82) == "ConnectionRefusedError"
        begin = time.monotonic()
        node.start()
        node.wait_who(82, 8081)
        seen.append(f"the late rule {(time.monotonic() - begin) * 1000:.0f} ms after the start")
        time.sleep(1)
        seen.append(load.end())
        lab.remove("late")


def rights(lab):
    node = lab.nodes["node1"]
    roles = "/apis/rbac.authorization.k8s.io/v1/clusterroles/portredir-agent"
    with check("a permission is taken away: Degraded says which, rules stay") as seen:
        lab.web()
        rules = lab.core.get(roles)["rules"]
        load = Load(node.addr, 80)
        fewer = [{**rule, "resources": [one for one in rule["resources"] if one != "services"]} for rule in rules]
        try:
            lab.core.merge(roles, {"rules": fewer})
            lab.control.restart_core()
            # A server that has just started refuses everything for a moment.
            only = lambda text: text.startswith("watch Services: ") and "; " not in text
            wait_for("Degraded", lambda: only(node.condition("Degraded")[1]), 120, 0.1)
            seen.append(node.condition("Degraded")[1])
            before = node.metric("portredir_agent_passes_total")
            writes = len(lab.control.requests())
            time.sleep(10)
            spent = len(lab.control.requests()) - writes
            assert spent < 100, f"{spent} requests in 10 s"
            seen.append(f"{spent} requests of two agents in 10 s, {node.metric('portredir_agent_passes_total') - before:.0f} passes")
        finally:
            lab.core.merge(roles, {"rules": rules})
        took = wait_for("no longer Degraded", lambda: node.condition("Degraded")[0] == "False", 90, 0.1)
        seen.append(f"given back: well after {took / 1000:.0f} s")
        seen.append(load.end())


def no_rights(lab):
    node = lab.nodes["node1"]
    path = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings"
    with check("all permissions are taken away, and given back") as seen:
        lab.web()
        binding = lab.core.get(f"{path}/portredir-agent")
        load = Load(node.addr, 80)
        lab.core.delete(f"{path}/portredir-agent")
        lab.control.restart_core()
        wait_for("degraded", lambda: node.metric("portredir_agent_degraded") == 1, 90, 0.1)
        time.sleep(5)
        assert node.probe("/livez")[0] == 200 and node.agent.poll() is None
        for key in ["resourceVersion", "uid", "creationTimestamp", "managedFields"]:
            binding["metadata"].pop(key, None)
        lab.core.create(path, binding)
        lab.redirect("again", (83, 8080, {}))
        seen.append(f"given back: a new object in force after {node.wait_who(83, 8080, 90) / 1000:.0f} s")
        seen.append(load.end())
        lab.remove("again")


def undefined(lab):
    node = lab.nodes["node1"]
    with check("the definition is deleted, and comes back") as seen:
        lab.web()
        load = Load(node.addr, 80)
        crd = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/portredirects.portredir.io"
        lab.crds.delete(crd)
        wait_for("it is gone", lambda: lab.crds.find(crd) is None, 60, 0.1)
        time.sleep(15)
        assert node.who(80) == "8080"
        words = "the last rules stay in force"
        wait_for("Degraded", lambda: words in node.condition("Degraded")[1], 60, 0.1)
        seen.append(node.condition("Degraded")[1])
        lab.define()
        time.sleep(35)  # The agent asks again after 30 s at the latest, and finds no object.
        assert node.who(80) == "8080"
        lab.web()
        lab.redirect("other", (84, 8080, {}))
        seen.append(f"made again: an object in force after {node.wait_who(84, 8080, 90):.0f} ms")
        lab.remove("other")
        seen.append(load.end())
        wait_for("not Degraded", lambda: node.condition("Degraded")[0] == "False", 120, 0.1)


def boot_alone(lab):
    node = lab.nodes["node1"]
    with check("node reboots while the API server is down: rules from the disk") as seen:
        lab.web()
        lab.redirect("other", (84, 8080, {}))
        node.wait_who(84, 8080)
        for one in lab.nodes.values():
            one.end()
        lab.change("web", {"rules": [{"name": "r0", "port": 80, "to": {"port": 8081}}]})
        lab.control.kill("core")
        # A reboot empties bpffs, and with it all programs are gone.
        run("umount", str(PINS))
        run("mount", "-t", "bpf", "bpf", str(PINS))
        wait_for("the programs are gone", lambda: node.who(80) == "ConnectionRefusedError", 10)
        begin = time.monotonic()
        node.start()
        node.wait_who(80, 8080)
        seen.append(f"the last rules {(time.monotonic() - begin) * 1000:.0f} ms after the start")
        assert node.who(84) == "8080" and node.probe("/readyz")[0] == 200
        lab.control.start_core(*lab.control.more)
        seen.append(f"corrected {node.wait_who(80, 8081, 90) / 1000:.1f} s after the API server is back")
        lab.nodes["node2"].start()
        lab.nodes["node2"].wait_ready()
        lab.remove("other")
        lab.web()


def leader(lab):
    with check("the holder of the Lease is killed: another agent writes the summaries") as seen:
        path = "/apis/coordination.k8s.io/v1/namespaces/portredir-system/leases/portredir-agent"
        holder = lambda: lab.core.get(path)["spec"]["holderIdentity"].split("_")[0]
        summary = lambda: lab.core.get(f"{GROUP}/portredirects/web").get("status", {})
        lab.web()
        # A holder that ended before is forgotten after its 15 s.
        wait_for("a living holder", lambda: summary().get("nodes", {}).get("selected") == 2, 60, 0.1)
        first = lab.nodes[holder()]
        first.kill()
        begin = time.monotonic()
        other = wait_for("another holder", lambda: holder() != first.name, 60, 0.1)
        lab.change("web", {"rules": [{"name": "r0", "port": 80, "to": {"port": 8080}}]})
        wait_for("a summary", lambda: any(one["reason"] == "Pending" for one in summary().get("conditions", [])), 30, 0.1)
        seen.append(f"{first.name} gave way after {other / 1000:.0f} s; {summary()['conditions'][0]['message']}")
        first.start()
        first.wait_ready()
        wait_for("all nodes", lambda: summary()["conditions"][0]["status"] == "True", 60, 0.1)


def nameless(lab):
    node = lab.nodes["node2"]
    with check("the Node object is deleted, and comes back") as seen:
        lab.web()
        lab.core.delete("/api/v1/nodes/node2")
        wait_for("degraded", lambda: node.metric("portredir_agent_degraded") == 1, 30, 0.1)
        time.sleep(2)
        assert node.who(80) == "8080"
        assert "there is no Node node2" in node.log.read_text(), "the log says nothing"
        lab.add_node("node2")
        wait_for("well", lambda: node.metric("portredir_agent_degraded") == 0, 30, 0.1)
        seen.append("the rules stayed, and the log says why")


XDP = """
import ctypes, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
code = ctypes.create_string_buffer(struct.pack("<BBhiBBhi", 0xb7, 0, 0, 2, 0x95, 0, 0, 0))
name = ctypes.create_string_buffer(b"GPL")
attr = ctypes.create_string_buffer(struct.pack("<IIQQ", 6, 2, ctypes.addressof(code), ctypes.addressof(name)), 128)
prog = libc.syscall(321, 5, attr, 128)
path = ctypes.create_string_buffer(sys.argv[1].encode())
attr = ctypes.create_string_buffer(struct.pack("<QI", ctypes.addressof(path), prog), 128)
assert prog > 0 and libc.syscall(321, 6, attr, 128) == 0
"""


def foreign(lab):
    node = lab.nodes["node2"]
    with check("a foreign XDP program has the interface") as seen:
        lab.web()
        node.end()
        node.portredir("down")
        pin = f"{PINS}/foreign"
        run(sys.executable, "-c", XDP, pin)
        # `ip -n` would see another /sys/fs/bpf.
        link = lambda *words: run(*inside("node2", "ip", "link", *words))
        link("set", "dev", "eth0", "xdp", "pinned", pin)
        shown = lambda: link("show", "eth0")
        assert "xdp" in shown(), shown()
        node.start()
        node.wait_ready()
        seen.append(f"in force after {node.wait_who(80, 8080):.0f} ms, beside it")
        assert "prog/xdp" in shown(), shown()
        node.end()
        node.portredir("down")
        node.start("--engine=xdp")
        time.sleep(3)
        ended = node.agent.poll()
        words = node.log.read_text().strip().splitlines()[-1]
        assert ended == 1 and "XDP" in words, f"{ended}: {words}"
        seen.append(f"--engine=xdp: {words}")
        link("set", "dev", "eth0", "xdp", "off")
        node.start()
        node.wait_ready()


def lacking(lab):
    node = lab.nodes["node2"]
    with check("a capability, bpffs or the cgroup is missing: the agent names it, and what to do") as seen:
        lab.web()
        node.end()
        caps = CAPS.split(",")
        for one in caps:
            left = ",".join(other for other in caps if other != one)
            said = refusal(node, 4, caps=left)
            name = f"CAP_{one.removeprefix('+').upper()}"
            assert f"the container lacks {name}; " in said and "capabilities: {add: [" in said, said
        seen.append(said)
        said = refusal(node, 1, without=[PINS])
        assert "bpffs is not mounted" in said and "hostPath /sys/fs/bpf" in said, said
        seen.append(said)
        assert node.who(80) == "8080", "the redirect of the last agent has ended"
        node.start(without=["/sys/fs/cgroup"])
        node.wait_ready()
        words = "give the pod the hostPath /sys/fs/cgroup at /host/cgroup"
        wait_for("Degraded", lambda: words in node.condition("Degraded")[1], 30, 0.1)
        seen.append(f"ready, and Degraded: {node.condition('Degraded')[1]}")
        assert words in node.log.read_text(), "the log says nothing"
        node.wait_who(80, 8080)
        for host in ["127.0.0.1", node.addr]:
            answer = in_netns(node.name, lambda: who(host, 80))
            assert answer.startswith("8080 "), f"a client on the node at {host}: {answer}"
        node.end()
        node.start()
        node.wait_ready()
        wait_for("no longer Degraded", lambda: node.condition("Degraded")[0] == "False", 30, 0.1)


def refusal(node, code, **lacks):
    """The last words of an agent that cannot run."""
    node.start(**lacks)
    ended = node.agent.wait(30)
    words = node.log.read_text().strip().splitlines()[-1]
    assert ended == code, f"{ended}: {words}"
    return words
