"""The tests of the package under a real systemd, run by lab-probe.service.

Prints one line for each check: its outcome, its name and what was seen, separated by tabs.
Starts the machine again in the middle, and ends it."""

import contextlib
import os
import pathlib
import re
import subprocess
import sys
import time

DEB = "/lab/portredir.deb"
RULES = pathlib.Path("/etc/portredir/rules.toml")
REBOOTED = pathlib.Path("/lab/rebooted")
PINS = "/sys/fs/bpf"


def run(command, wanted=None):
    """Runs a command of a shell, and returns what it prints."""
    done = subprocess.run(command, shell=True, text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, timeout=3000)
    if wanted is not None and done.returncode != wanted:
        raise AssertionError(f"`{command}` gave {done.returncode}: {done.stdout.strip()}")
    return done.stdout.strip()


def code(command):
    return subprocess.run(command, shell=True, stdout=subprocess.DEVNULL,
                          stderr=subprocess.DEVNULL, timeout=3000).returncode


@contextlib.contextmanager
def check(name):
    """One check. What it appends to the list is printed; an exception is its failure."""
    seen = []
    try:
        yield seen
        outcome = "ok"
    except Exception as error: 
        outcome = "FAILED"
        seen.append(f"{type(error).__name__}: {error}")
    text = " ".join("; ".join(seen).split())
    print(outcome, name, text, sep="\t", flush=True)
    if outcome == "FAILED":
        for line in run("journalctl -b -u portredir -n 30 --no-pager -o short-monotonic").splitlines():
            print("log", name, line, sep="\t", flush=True)


def curl(url, client=True):
    where = "ip netns exec client " if client else ""
    return run(f"{where}curl -gsS --noproxy '*' -m 60 {url}")


def property_of(name, unit="portredir"):
    return run(f"systemctl show -P {name} {unit}")


def check_reaches(port=80):
    for url, client in [("10.77.0.1", True), ("[fd77::1]", True), ("127.0.0.1", False)]:
        answer = curl(f"http://{url}:{port}/", client)
        assert answer == "8080", f"{url}:{port}: {answer}"


def check_refused(port=80):
    answer = curl(f"http://10.77.0.1:{port}/")
    assert "refused" in answer or "connect to" in answer, answer


def write_rules(*more):
    rules = ", ".join(f'"{rule}"' for rule in ("80:8080", "53:5353/udp", *more))
    RULES.write_text(f"rules = [{rules}]\n")


def left():
    """What a redirect has in the kernel: pins, filters and programs on interfaces."""
    found = os.listdir(PINS)
    for interface in os.listdir("/sys/class/net"):
        for way in ["ingress", "egress"]:
            if "portredir" in run(f"tc filter show dev {interface} {way}"):
                found.append(f"{interface} {way}")
        if "xdp" in run(f"ip -d link show {interface}"):
            found.append(f"{interface} xdp")
    return found


@contextlib.contextmanager
def load(seen):
    """Traffic while something happens. A lost connection or packet is a failure."""
    process = subprocess.Popen(["ip", "netns", "exec", "client", "python3", "/lab/load.py"],
                               stdout=subprocess.PIPE, text=True)
    begun = process.stdout.readline()
    time.sleep(2)
    try:
        start = time.monotonic()
        yield
        seen.append(f"{time.monotonic() - start:.1f} s")
        time.sleep(2)
    finally:
        process.terminate()
        result = process.communicate(timeout=600)[0].strip()
        seen.append(result)
    assert begun == "begun\n", begun
    assert "5 lasting" in result, "a connection did not last"
    for word in ["broken", "failed", "udp", "lost"]:
        assert word not in result, word


def wait_active():
    for _ in range(1200):
        if property_of("ActiveState") == "active":
            return
        time.sleep(0.5)
    raise AssertionError(run("systemctl status portredir"))


def install():
    with check("install") as seen:
        run(f"apt-get install -y {DEB}", 0)
        seen.append(run("dpkg-query -W portredir"))
        run("getent group portredir", 0)
        states = run("systemctl is-enabled portredir"), run("systemctl is-active portredir")
        assert states == ("disabled", "inactive"), states
    with check("enable --now, curl") as seen:
        write_rules()
        check_refused()
        run("systemctl enable --now portredir", 0)
        check_reaches()
        seen.append("8080 answers at port 80: IPv4, IPv6, loopback")
        seen.append(run("portredir status | grep -w h0 | head -n 1"))
    with check("systemd-analyze security <= 2.4") as seen:
        text = run("systemd-analyze security --no-pager portredir").splitlines()[-1]
        level = float(re.search(r"portredir.service: ([0-9.]+)", text)[1])
        seen.append(str(level))
        assert level <= 2.4, text


def restart():
    with check("restart under load") as seen, load(seen):
        before = property_of("MainPID")
        run("systemctl restart portredir", 0)
        assert property_of("MainPID") != before
    with check("restart with a bad file under load") as seen:
        with load(seen):
            RULES.write_text("rules = ['80:']\n")
            assert code("systemctl restart portredir") != 0
            time.sleep(3)
            write_rules()
            wait_active()


def reload():
    with check("reload under load: new rules are in force when it returns") as seen:
        with load(seen):
            write_rules("81:8080")
            run("systemctl reload portredir", 0)
            check_reaches(81)
            write_rules()
            run("systemctl reload portredir", 0)
            check_refused(81)
    with check("reload at once after a restart, and restart at once after a reload") as seen:
        with load(seen):
            write_rules("81:8080")
            run("systemctl restart portredir && systemctl reload portredir", 0)
            check_reaches(81)
            write_rules()
            run("systemctl reload portredir && systemctl restart portredir", 0)
            check_refused(81)
            wait_active()
    with check("reload of a bad file fails and keeps the rules") as seen:
        before = property_of("MainPID")
        RULES.write_text("rules = ['80:']\n")
        assert code("systemctl reload portredir") != 0, "systemctl says that it succeeded"
        write_rules()
        assert property_of("ActiveState") == "active"
        assert property_of("MainPID") == before
        check_reaches()
        text = run("journalctl -b -u portredir -n 20 --no-pager -o cat")
        errors = [line for line in text.splitlines() if "bad rule `80:`" in line]
        assert errors, text
        seen.append(errors[-1])


def crash():
    with check("kill -9 of the watcher under load") as seen:
        with load(seen):
            before = property_of("MainPID")
            os.kill(int(before), 9)
            time.sleep(0.5)
            check_reaches()
            time.sleep(1)
            wait_active()
            assert property_of("MainPID") not in ("0", before)
        seen.append(f"{property_of('NRestarts')} restarts")


def upgrade():
    with check("upgrade under load") as seen:
        # The same program with other bytes at the end, in a package of a higher version.
        run("dpkg-deb -R /lab/portredir.deb /tmp/next && printf next >>/tmp/next/usr/bin/portredir"
            " && sed -i 's/^Version: .*/&.1/' /tmp/next/DEBIAN/control"
            " && dpkg-deb -Znone -b /tmp/next /tmp/next.deb", 0)
        with load(seen):
            run("apt-get install -y /tmp/next.deb", 0)
        seen.append(run("dpkg-query -W portredir"))
        time.sleep(1)
        wait_active()
        program = os.readlink(f"/proc/{property_of('MainPID')}/exe")
        assert program == "/usr/bin/portredir", program
        check_reaches()


def stop():
    with check("stop at once after a reload leaves nothing") as seen:
        run("systemctl reload portredir && systemctl stop portredir", 0)
        assert not left(), left()
        check_refused()
        run("systemctl start portredir", 0)
        check_reaches()
    with check("stop leaves nothing") as seen:
        start = time.monotonic()
        run("systemctl stop portredir", 0)
        seen.append(f"{time.monotonic() - start:.1f} s")
        assert not left(), left()
        check_refused()
        assert property_of("Result") == "success"


def reboot():
    run("systemctl start portredir", 0)
    REBOOTED.touch()
    run("sync")
    run("systemctl reboot")
    time.sleep(600)


def after_reboot():
    with check("redirect before network-online, after a reboot") as seen:
        for _ in range(1000):
            if pathlib.Path("/lab/online").exists():
                break
            time.sleep(0.2)
        time.sleep(1)
        answer = pathlib.Path("/lab/online").read_text().strip()
        assert answer == "8080", answer
        since = "ActiveEnterTimestampMonotonic"
        ours, online = (int(property_of(since, unit)) for unit in ["portredir", "network-online.target"])
        seen.append(f"{ours / 1e6:.2f} s after boot, network-online {online / 1e6:.2f} s")
        assert 0 < ours <= online
    with check("the redirect survives a reboot") as seen:
        check_reaches()
        seen.append(run("portredir status --check"))


def rules_of(command, wanted=0):
    """The rules that `portredir import` prints for what a command prints."""
    run(f"{command} >/tmp/foreign", 0)
    return run("portredir import /tmp/foreign 2>/tmp/notes", wanted).splitlines()


def import_firewalld():
    with check("import from firewalld: the same ports, by us") as seen:
        run("systemctl start firewalld", 0)
        run("firewall-cmd --zone=public --change-interface=h0", 0)
        run("firewall-cmd --add-forward-port=port=82:proto=tcp:toport=8080", 0)
        run("firewall-cmd --add-rich-rule='rule family=ipv4 source address=10.77.0.0/24"
            " forward-port port=84 protocol=tcp to-port=8080'", 0)
        for port in [82, 84]:
            assert curl(f"http://10.77.0.1:{port}/") == "8080", "firewalld does not redirect"
        rules = rules_of("firewall-cmd --list-all")
        seen.append(", ".join(rules))
        assert rules == ["82:8080 on h0", "84:8080 from 10.77.0.0/24 on h0"], rules
        run("firewall-cmd --runtime-to-permanent", 0)
        zone = rules_of("cat /etc/firewalld/zones/public.xml")
        assert zone in (rules, [rule.removesuffix(" on h0") for rule in rules]), zone
        run("firewall-cmd --remove-forward-port=port=82:proto=tcp:toport=8080", 0)
        run("firewall-cmd --remove-rich-rule='rule family=ipv4 source address=10.77.0.0/24"
            " forward-port port=84 protocol=tcp to-port=8080'", 0)
        run("firewall-cmd --add-port=8080/tcp", 0)
        check_refused(82)
        run("portredir add " + " ".join(f"'{rule}'" for rule in rules), 0)
        for port in [82, 84]:
            assert curl(f"http://10.77.0.1:{port}/") == "8080", f"we do not redirect {port}"
        run("portredir rm " + " ".join(f"'{rule}'" for rule in rules), 0)
        run("systemctl stop firewalld", 0)
        check_reaches()


def import_docker():
    with check("import from docker: a container's port, by us") as seen:
        run("mkdir -p /tmp/box/bin /tmp/box/www && cp /bin/busybox /tmp/box/bin"
            " && echo docker >/tmp/box/www/index.html", 0)
        run("systemctl start docker", 0)
        run("tar -C /tmp/box -c . | docker import - box", 0)
        # The guest has no apparmor_parser.
        run("docker run -d --name web --security-opt apparmor=unconfined -p 85:80 box"
            " /bin/busybox httpd -f -p 80 -h /www", 0)
        wanted = "docker"
        for _ in range(100):
            if curl("http://10.77.0.1:85/") == wanted:
                break
            time.sleep(0.5)
        # Docker's proxy serves IPv6 clients; the container has no IPv6 address.
        rules = rules_of("docker inspect web", 1)
        notes = pathlib.Path("/tmp/notes").read_text()
        assert "not taken over: web: :::85" in notes, notes
        seen.append(", ".join(rules))
        assert re.fullmatch(r"85:172\.[0-9.]+:80 name web", rules[0]) and len(rules) == 1, rules
        # Port 86 is none of docker's.
        rule = rules[0].replace("85:", "86:", 1)
        run(f"portredir add {rule}", 0)
        assert curl("http://10.77.0.1:86/") == wanted, curl("http://10.77.0.1:86/")
        assert curl("http://10.77.0.1:85/") == wanted, "docker's own port"
        run("portredir rm web", 0)
        run("docker rm -f web && systemctl stop docker docker.socket containerd", 0)
        check_reaches()


def purge():
    with check("purge leaves nothing") as seen:
        RULES.with_name("conf.d").joinpath("mine.toml").write_text("rules = []\n")
        run("apt-get purge -y portredir", 0)
        check_refused()
        assert not left(), left()
        files = run("find / -xdev -name '*portredir*' -not -path '/proc/*' -not -path '/lab/*'"
                    " -not -path '*/portredir.service.d'"
                    " -not -path '/tmp/*' -not -path '/var/log/*'; find /run -name '*portredir*'")
        assert not files, files
        assert code("getent group portredir") != 0, "the group is there"
        units = run("systemctl list-unit-files --no-legend 'portredir*'")
        assert not units, units
        seen.append(run("dpkg -l portredir 2>&1 | tail -n 1"))


def main():
    run("systemctl is-system-running --wait")
    if not REBOOTED.exists():
        system = run(". /etc/os-release; echo $PRETTY_NAME")
        version = run("systemctl --version | head -n 1")
        print("system", system, f"{version}, Linux {os.uname().release}", sep="\t", flush=True)
        pathlib.Path("/lab/online").unlink(missing_ok=True)
        for part in [install, restart, reload, crash, upgrade, stop]:
            part()
        reboot()
    for part in [after_reboot, import_firewalld, import_docker, purge]:
        part()
    print("end", flush=True)
    run("systemctl poweroff")


try:
    main()
except BaseException as error:
    print("FAILED", "probe", repr(error), sep="\t", flush=True)
    run("systemctl poweroff")
    sys.exit(1)
