"""The control plane: etcd, a kube-apiserver, and behind it a newer server of definitions. All
three are in the network namespace `cp`, and clients see one address for both."""

import base64
import http.client
import json
import os
import pathlib
import signal
import ssl
import subprocess
import time

CP = "10.77.0.10"
AGENT = "system:serviceaccount:portredir-system:portredir-agent"
GROUP = "/apis/portredir.io/v1alpha1"
MERGE = "application/merge-patch+json"


def run(*command, ok=(0,), text=None):
    """Runs a program, and returns what it prints."""
    done = subprocess.run(command, text=True, input=text, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, timeout=300)
    if done.returncode not in ok:
        raise AssertionError(f"{' '.join(command)} gave {done.returncode}: {done.stdout.strip()}")
    return done.stdout.strip()


def inside(netns, *command):
    return ["nsenter", f"--net=/run/netns/{netns}", *map(str, command)]


def wait_for(what, is_there, seconds=30.0, step=0.001):
    """Asks until the answer is true, and returns the milliseconds until then."""
    start = time.monotonic()
    while not (found := is_there()):
        if time.monotonic() - start > seconds:
            raise AssertionError(f"{what}: not within {seconds:g} s; last seen: {found!r}")
        time.sleep(step)
    return (time.monotonic() - start) * 1000


class Refused(Exception):
    """An answer of the API that is an error."""

    def __init__(self, code, message):
        super().__init__(f"{code}: {message}")
        self.code, self.message = code, message


class Api:
    """A client of an API server, with the rights of an administrator."""

    def __init__(self, port, ca, timeout=30):
        context = ssl.create_default_context(cafile=ca)
        self.new = lambda: http.client.HTTPSConnection(CP, port, timeout=timeout, context=context)
        self.conn = self.new()

    def ask(self, method, path, body=None, kind="application/json"):
        headers = {"Authorization": "Bearer admin", "Content-Type": kind}
        text = None if body is None else json.dumps(body)
        try:
            self.conn.request(method, path, text, headers)
            answer = self.conn.getresponse()
        except (OSError, http.client.HTTPException):
            # The server closes a connection that was idle, or ended meanwhile.
            self.conn.close()
            self.conn = self.new()
            self.conn.request(method, path, text, headers)
            answer = self.conn.getresponse()
        data = answer.read()
        if answer.status >= 300:
            try:
                message = json.loads(data)["message"]
            except (ValueError, KeyError):
                message = data.decode(errors="replace")
            raise Refused(answer.status, message)
        return json.loads(data) if data.startswith(b"{") else data.decode()

    def get(self, path):
        return self.ask("GET", path)

    def find(self, path):
        """An object, or nothing."""
        try:
            return self.get(path)
        except Refused as refused:
            if refused.code != 404:
                raise
            return None

    def create(self, path, body):
        return self.ask("POST", path, body)

    def merge(self, path, body):
        return self.ask("PATCH", path, body, MERGE)

    def delete(self, path):
        return self.ask("DELETE", path)


class Control:
    """The three servers, with certificates and tokens below a folder."""

    def __init__(self, bin, folder):
        self.bin, self.folder = pathlib.Path(bin), pathlib.Path(folder)
        self.certs = self.folder / "certs"
        self.audit = self.folder / "audit.log"
        self.running = {}
        self.certs.mkdir(parents=True)
        self.make_certs()
        self.core = Api(6443, self.certs / "ca.crt")
        self.crds = Api(6444, self.certs / "ca.crt")

    def make_certs(self):
        sign = lambda *words: run("openssl", *words)
        for ca in ["ca", "front-ca"]:
            sign("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN=lab-{ca}",
                 "-addext", "basicConstraints=critical,CA:TRUE",
                 "-keyout", self.path(f"{ca}.key"), "-out", self.path(f"{ca}.crt"))
        names = f"subjectAltName=IP:{CP},IP:10.0.0.1,DNS:crds.kube-system.svc"
        for name, ca, extra in [("api", "ca", names), ("front", "front-ca", "extendedKeyUsage=clientAuth")]:
            (self.certs / "extra").write_text(f"{extra}\nbasicConstraints=CA:FALSE\n")
            sign("req", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN=lab-{name}",
                 "-keyout", self.path(f"{name}.key"), "-out", self.path(f"{name}.csr"))
            sign("x509", "-req", "-in", self.path(f"{name}.csr"), "-CA", self.path(f"{ca}.crt"),
                 "-CAkey", self.path(f"{ca}.key"), "-CAcreateserial", "-days", "2",
                 "-extfile", self.path("extra"), "-out", self.path(f"{name}.crt"))
        sign("genrsa", "-out", self.path("sa.key"), "2048")
        sign("rsa", "-in", self.path("sa.key"), "-pubout", "-out", self.path("sa.pub"))
        (self.certs / "tokens.csv").write_text('admin,admin,admin,"system:masters"\n')
        cluster = {"server": f"https://{CP}:6443", "certificate-authority": self.path("ca.crt")}
        (self.folder / "kubeconfig").write_text(json.dumps({
            "apiVersion": "v1", "kind": "Config", "current-context": "lab",
            "clusters": [{"name": "lab", "cluster": cluster}],
            "users": [{"name": "admin", "user": {"token": "admin"}}],
            "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "admin"}}],
        }))
        agent = {"level": "Metadata", "users": [AGENT], "omitStages": ["RequestReceived"]}
        (self.folder / "audit.json").write_text(json.dumps({
            "apiVersion": "audit.k8s.io/v1", "kind": "Policy", "rules": [agent, {"level": "None"}],
        }))

    def path(self, name):
        return str(self.certs / name)

    def start(self, name, *words):
        log = open(self.folder / f"{name}.log", "ab")
        command = inside("cp", self.bin / words[0], *words[1:])
        self.running[name] = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.folder)

    def start_etcd(self):
        self.start("etcd", "etcd", "--data-dir", self.folder / "etcd", "--unsafe-no-fsync",
                   "--listen-client-urls=http://127.0.0.1:2379", "--advertise-client-urls=http://127.0.0.1:2379",
                   "--listen-peer-urls=http://127.0.0.1:0")

    def serving(self):
        """What both servers are told about certificates and the front proxy."""
        path = self.path
        return [f"--tls-cert-file={path('api.crt')}", f"--tls-private-key-file={path('api.key')}",
                f"--client-ca-file={path('ca.crt')}", f"--requestheader-client-ca-file={path('front-ca.crt')}",
                "--requestheader-allowed-names=lab-front", "--requestheader-username-headers=X-Remote-User",
                "--requestheader-group-headers=X-Remote-Group", "--requestheader-extra-headers-prefix=X-Remote-Extra-",
                f"--bind-address={CP}"]

    def start_core(self, *more):
        path = self.path
        self.start("core", "kube-apiserver", "--etcd-servers=http://127.0.0.1:2379", *self.serving(),
                   f"--advertise-address={CP}", "--secure-port=6443", f"--token-auth-file={path('tokens.csv')}",
                   "--service-account-issuer=https://kubernetes.default.svc",
                   f"--service-account-key-file={path('sa.pub')}",
                   f"--service-account-signing-key-file={path('sa.key')}",
                   f"--proxy-client-cert-file={path('front.crt')}", f"--proxy-client-key-file={path('front.key')}",
                   "--enable-aggregator-routing=true", "--authorization-mode=RBAC", "--allow-privileged=true",
                   "--service-cluster-ip-range=10.0.0.0/24", "--kubelet-preferred-address-types=InternalIP",
                   f"--audit-policy-file={self.folder / 'audit.json'}", f"--audit-log-path={self.audit}", *more)
        self.more = more
        return wait_for("kube-apiserver", lambda: self.is_ready(6443), 120, 0.05)

    def start_crds(self):
        config = self.folder / "kubeconfig"
        self.start("crds", "apiextensions-apiserver", "--etcd-servers=http://127.0.0.1:2379",
                   "--etcd-prefix=/registry/crds", *self.serving(), "--secure-port=6444",
                   f"--kubeconfig={config}", f"--authentication-kubeconfig={config}",
                   f"--authorization-kubeconfig={config}", "--authentication-skip-lookup=true",
                   "--enable-priority-and-fairness=false",
                   "--disable-admission-plugins=NamespaceLifecycle,MutatingAdmissionWebhook,"
                   "ValidatingAdmissionWebhook,ValidatingAdmissionPolicy,MutatingAdmissionPolicy")
        return wait_for("the server of definitions", lambda: self.is_ready(6444), 60, 0.05)

    def is_ready(self, port):
        try:
            return Api(port, self.path("ca.crt"), 2).get("/readyz") == "ok"
        except (OSError, http.client.HTTPException, Refused):
            return False

    def join(self):
        """Has the group of portredir served by the newer server."""
        services = "/api/v1/namespaces/kube-system"
        self.core.create(f"{services}/services", {
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "crds"},
            "spec": {"ports": [{"port": 443, "targetPort": 6444}]}})
        self.core.create(f"{services}/endpoints", {
            "apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": "crds"},
            "subsets": [{"addresses": [{"ip": CP}], "ports": [{"port": 6444}]}]})
        ca = base64.b64encode((self.certs / "ca.crt").read_bytes()).decode()
        self.core.create("/apis/apiregistration.k8s.io/v1/apiservices", {
            "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
            "metadata": {"name": "v1alpha1.portredir.io"},
            "spec": {"group": "portredir.io", "version": "v1alpha1", "groupPriorityMinimum": 1000,
                     "versionPriority": 10, "service": {"name": "crds", "namespace": "kube-system"}, "caBundle": ca}})

    def kubectl(self, *words, server=6443, ok=(0,), text=None):
        return run(str(self.bin / "kubectl"), f"--kubeconfig={self.folder / 'kubeconfig'}",
                   f"--server=https://{CP}:{server}", f"--cache-dir={self.folder / 'cache'}", *words, ok=ok, text=text)

    def kill(self, name):
        self.running[name].kill()
        self.running.pop(name).wait()

    def stop(self, name):
        self.running[name].send_signal(signal.SIGSTOP)

    def go_on(self, name):
        self.running[name].send_signal(signal.SIGCONT)

    def restart_core(self):
        """A server that forgets its open watches."""
        self.kill("core")
        self.start_core(*self.more)
        self.wait_joined()

    def wait_joined(self):
        def is_served():
            try:
                return self.core.get(GROUP)
            except (Refused, OSError, http.client.HTTPException):
                return None
        return wait_for("the group portredir.io", is_served, 60, 0.05)

    def requests(self, since=0.0):
        """The requests of the agents from the audit log, from a time on."""
        import datetime
        found = []
        for line in self.audit.read_text().splitlines():
            entry = json.loads(line)
            at = datetime.datetime.fromisoformat(entry["stageTimestamp"].replace("Z", "+00:00"))
            if at.timestamp() >= since:
                about = entry.get("objectRef", {})
                name = "/".join(filter(None, [about.get("resource"), about.get("subresource")]))
                found.append({"verb": entry["verb"], "group": about.get("apiGroup", ""), "resource": name,
                              "name": about.get("name", ""), "code": entry.get("responseStatus", {}).get("code"),
                              "at": at.timestamp()})
        return found
