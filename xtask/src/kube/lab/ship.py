"""What is shipped: the image, the chart, and the manifests."""

import hashlib
import json
import os
import pathlib
import tarfile

from control import run
from lab import check

# Values that the schema of the chart refuses, with words of the message.
BAD = [("replicas=3", "additional properties 'replicas' not allowed"), ("listen.port=0", "minimum"),
       ("staleAfter=5", "want string"), ("image.pullPolicy=Maybe", "must be one of")]
# A namespace and a name that nothing has.
TRY = "portredir-try"
GOOD = ["image.tag=2", "image.tag=1.2.3", "listen.host=::1", "staleAfter=30s", "options={--iface,all}"]


def image(lab, path):
    with check("image: OCI layout, whole digests, runs FROM scratch") as seen:
        files = lab.folder / "layout"
        with tarfile.open(path) as tar:
            tar.extractall(files, filter="data")
        assert json.loads((files / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}

        def blob(descriptor):
            data = (files / "blobs/sha256" / descriptor["digest"].removeprefix("sha256:")).read_bytes()
            assert "sha256:" + hashlib.sha256(data).hexdigest() == descriptor["digest"], descriptor
            assert len(data) == descriptor["size"], descriptor
            return data

        index = json.loads((files / "index.json").read_text())
        name = index["manifests"][0]["annotations"]["io.containerd.image.name"]
        assert f"image: {name}\n" in base_of(lab), f"{name} is not the image of the manifests"
        manifest = json.loads(blob(index["manifests"][0]))
        config = json.loads(blob(manifest["config"]))
        layer = lab.folder / "layer.tar.gz"
        layer.write_bytes(blob(manifest["layers"][0]))
        plain = run("sh", "-c", f"gzip -dc {layer} | sha256sum").split()[0]
        assert config["rootfs"]["diff_ids"] == [f"sha256:{plain}"], config
        scratch = lab.folder / "scratch"
        with tarfile.open(layer) as tar:
            assert [one.name for one in tar if one.isfile()] == ["usr/bin/portredir"], tar.getnames()
            tar.extractall(scratch, filter="data")
        version = run("chroot", str(scratch), *config["config"]["Entrypoint"], "--version")
        crds = run("chroot", str(scratch), *config["config"]["Entrypoint"], "agent", "--print-crds")
        assert "kind: CustomResourceDefinition" in crds, crds
        size = lambda path: f"{os.path.getsize(path) / 1e6:.1f} MB"
        seen.append(f"{name}, {version.splitlines()[0]}: program {size(lab.program)}, image {size(path)}")


def chart(lab):
    source = str(lab.source / "deploy/helm/portredir")
    helm = str(lab.control.bin / "helm")
    with check("chart: lint, schema, and the same objects as the kustomize base") as seen:
        run(helm, "lint", "--strict", source)
        for value in GOOD:
            run(helm, "template", "portredir", source, "--set", value)
        for value, words in BAD:
            said = run(helm, "template", "portredir", source, "--set", value, ok=(1,))
            assert words in said, f"{value}: {said}"
        lab.control.kubectl("create", "namespace", TRY)
        text = run(helm, "template", "portredir", source, "-n", "portredir-system")
        ours, base = objects(lab, text), objects(lab, base_of(lab))
        assert ours.keys() == base.keys() - {f"Namespace {TRY}"}, ours.keys() ^ base.keys()
        for name, one in ours.items():
            assert one == base[name], f"{name}: {difference(one, base[name])}"
        seen.append(f"{len(ours)} objects are equal on the server; {len(BAD)} values refused")
        text = (lab.source / "deploy/install.yaml").read_text()
        head = "".join(line for line in text.splitlines(True) if line.startswith("#"))
        assert text.removeprefix(head) == base_of(lab) + "\n", "deploy/install.yaml is not the base; see its first line"


def base_of(lab):
    return lab.control.kubectl("kustomize", str(lab.source / "deploy/kustomize/base"))


def objects(lab, text):
    """The objects of a manifest with the defaults of the server, by kind and name."""
    # What is there already has selectors that cannot change.
    text = text.replace("portredir-system", TRY).replace("portredir-agent", TRY)
    listed = lab.control.kubectl("apply", "--dry-run=server", "-o", "json", "-f", "-", text=text)
    # A warning of the server may come first.
    items = json.JSONDecoder().raw_decode(listed, listed.index("{"))[0]["items"]
    return {f"{item['kind']} {item['metadata']['name']}": strip(item) for item in items}


def strip(item):
    """An object without what differs on purpose: labels of the release, and times."""
    item.pop("status", None)
    item["metadata"] = {"name": item["metadata"]["name"]}
    text = json.dumps(item, sort_keys=True).replace('"app.kubernetes.io/instance": "portredir", ', "")
    # The chart names the defaults of the program.
    return json.loads(text.replace(', "--listen=127.0.0.1:9474", "--stale-after=10min"]', "]"))


def difference(one, other, path=""):
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted(one.keys() | other.keys()):
            if one.get(key) != other.get(key):
                return difference(one.get(key), other.get(key), f"{path}.{key}")
    return f"{path}: {one!r} is not {other!r}"
