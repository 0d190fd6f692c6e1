//! Installation of the programs that the tests and the eBPF build call.
//!
//! The search is for programs, not for packages: any distribution may provide
//! them.

use anyhow::{Context, Result, bail, ensure};

use crate::toolchain::{BPF_LINKER, Toolchain};
use crate::{cargo, process};

/// The way to deal with a missing program.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// Install the Debian package.
    Install,
    /// Name the program in an error.
    Report,
}

/// A program, or the path of a file, and the Debian package that has it.
type Tool = (&'static str, &'static str);

const TEST_TOOLS: [Tool; 30] = [
    ("bpftool", "bpftool"),
    ("capsh", "libcap2-bin"),
    ("chrt", "util-linux"),
    ("curl", "curl"),
    ("dig", "bind9-dnsutils"),
    ("dnsmasq", "dnsmasq-base"),
    ("ethtool", "ethtool"),
    ("fish", "fish"),
    ("groff", "groff-base"),
    ("gtlsclient", "ngtcp2-client"),
    ("gtlsserver", "ngtcp2-server"),
    ("ip", "iproute2"),
    ("iperf3", "iperf3"),
    ("nft", "nftables"),
    ("openssl", "openssl"),
    ("ping", "iputils-ping"),
    ("python3", "python3"),
    (
        "/usr/lib/python3/dist-packages/jsonschema",
        "python3-jsonschema",
    ),
    ("rpmbuild", "rpm"),
    ("setpriv", "util-linux"),
    ("strace", "strace"),
    ("sysctl", "procps"),
    ("systemd-analyze", "systemd"),
    ("taskset", "util-linux"),
    ("tc", "iproute2"),
    ("tcpdump", "tcpdump"),
    ("tmux", "tmux"),
    ("unshare", "util-linux"),
    ("wg", "wireguard-tools"),
    ("zsh", "zsh"),
];

/// The programs that `portredir bench` compares with and starts them with.
const BENCH_TOOLS: [Tool; 11] = [
    ("chrt", "util-linux"),
    ("haproxy", "haproxy"),
    ("ip", "iproute2"),
    ("iptables-legacy", "iptables"),
    ("iptables-nft", "iptables"),
    ("ipvsadm", "ipvsadm"),
    ("nft", "nftables"),
    ("nginx", "nginx-light"),
    (
        "/usr/lib/nginx/modules/ngx_stream_module.so",
        "libnginx-mod-stream",
    ),
    ("setpriv", "util-linux"),
    ("socat", "socat"),
];

/// The programs that download Debian's kernel packages and boot them.
const KERNEL_TOOLS: [Tool; 8] = [
    ("apt-get", "apt"),
    // Static: the guest has no libraries at first.
    ("/bin/busybox", "busybox-static"),
    ("depmod", "kmod"),
    ("dpkg-deb", "dpkg"),
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("timeout", "coreutils"),
    (
        "/usr/share/keyrings/debian-archive-keyring.gpg",
        "debian-archive-keyring",
    ),
    ("xz", "xz-utils"),
];

/// The programs that `portredir bench` calls to be compared with netfilter alone.
const COUNT_TOOLS: [Tool; 5] = [
    ("chrt", "util-linux"),
    ("ip", "iproute2"),
    ("iptables-nft", "iptables"),
    ("nft", "nftables"),
    ("setpriv", "util-linux"),
];

/// The programs that make a root file system with systemd.
const SYSTEMD_TOOLS: [Tool; 3] = [
    ("debootstrap", "debootstrap"),
    ("mkfs.ext4", "e2fsprogs"),
    ("objdump", "binutils"),
];

/// The programs that build the components of a cluster, and start them.
const KUBE_TOOLS: [Tool; 11] = [
    ("apt-get", "apt"),
    ("bpftool", "bpftool"),
    ("cc", "gcc"),
    // The kube-proxy of a node forgets flows of UDP pods with it.
    ("conntrack", "conntrack"),
    ("dpkg-source", "dpkg-dev"),
    ("ip", "iproute2"),
    ("iptables", "iptables"),
    ("openssl", "openssl"),
    ("python3", "python3"),
    ("setpriv", "util-linux"),
    (
        "/usr/share/keyrings/debian-archive-keyring.gpg",
        "debian-archive-keyring",
    ),
];

const DEBIAN_TOOLCHAIN: [Tool; 4] = [
    ("/usr/bin/rustc", "rustc-web"),
    ("/usr/bin/cargo", "cargo-web"),
    ("/usr/bin/cargo-clippy", "rust-web-clippy"),
    ("/usr/lib/rustlib/src/rust/library/core", "rust-web-src"),
];

/// Provides the programs that the tests call.
pub fn test_tools(missing_tools: Missing) -> Result<()> {
    provide(&missing(&TEST_TOOLS), missing_tools)
}

/// Provides the programs that the benchmark compares with.
pub fn bench_tools(missing_tools: Missing) -> Result<()> {
    provide(&missing(&BENCH_TOOLS), missing_tools)
}

/// Provides the programs that boot other kernels.
pub fn kernel_tools(missing_tools: Missing) -> Result<()> {
    provide(&missing(&KERNEL_TOOLS), missing_tools)
}

/// Provides the programs that count the instructions of the benchmark in a guest.
pub fn count_tools(missing_tools: Missing) -> Result<()> {
    kernel_tools(missing_tools)?;
    provide(&missing(&COUNT_TOOLS), missing_tools)
}

/// Provides the programs that boot a Debian with systemd.
pub fn systemd_tools(missing_tools: Missing) -> Result<()> {
    kernel_tools(missing_tools)?;
    provide(&missing(&SYSTEMD_TOOLS), missing_tools)
}

/// Provides the programs that run a cluster.
pub fn kube_tools(missing_tools: Missing) -> Result<()> {
    provide(&missing(&KUBE_TOOLS), missing_tools)
}

/// Provides the toolchain that `build-ebpf` needs.
pub fn ebpf_tools(missing_tools: Missing) -> Result<()> {
    let is_debians = |found: Toolchain| found.program("rustc").starts_with("/usr/bin");
    if Toolchain::find().map_or(true, is_debians) {
        provide(&missing(&DEBIAN_TOOLCHAIN), missing_tools)?;
    }
    if process::find("bpf-linker").is_some() {
        return Ok(());
    }
    if missing_tools == Missing::Report {
        bail!("missing: bpf-linker");
    }
    install_linker(&Toolchain::find()?.llvm)
}

/// Compiles the linker with the LLVM version of the compiler: an older LLVM could
/// not read what the compiler writes.
fn install_linker(llvm: &str) -> Result<()> {
    let packages = [
        format!("llvm-{llvm}-dev"),
        format!("libpolly-{llvm}-dev"),
        "libffi-dev".into(),
        "libxml2-dev".into(),
        "libzstd-dev".into(),
        "zlib1g-dev".into(),
    ];
    apt_install(&packages.each_ref().map(String::as_str))
        .context("compile bpf-linker; `cargo binstall bpf-linker` gets a compiled one")?;
    let mut install = cargo::cargo(&["install", "--locked", "bpf-linker"]);
    install
        .args(["--version", BPF_LINKER, "--no-default-features"])
        .args(["--features", &format!("llvm-{llvm}")]);
    // Without these variables the build takes the default LLVM of any version.
    let prefix = format!("/usr/lib/llvm-{llvm}");
    install
        .env("LLVM_PREFIX", &prefix)
        .env(format!("LLVM_SYS_{llvm}1_PREFIX"), &prefix);
    process::run(&mut install)?;
    println!("installed bpf-linker {BPF_LINKER}");
    Ok(())
}

fn missing(tools: &[Tool]) -> Vec<Tool> {
    let is_missing = |(program, _): &&Tool| process::find(program).is_none();
    tools.iter().filter(is_missing).copied().collect()
}

/// Installs the packages of missing tools, or names the tools in an error.
fn provide(tools: &[Tool], missing_tools: Missing) -> Result<()> {
    if tools.is_empty() {
        return Ok(());
    }
    if missing_tools == Missing::Install && process::find("apt-get").is_some() {
        let mut packages: Vec<_> = tools.iter().map(|(_, package)| *package).collect();
        packages.sort_unstable();
        packages.dedup();
        apt_install(&packages)?;
    }
    let tools = missing(tools);
    let names: Vec<_> = tools
        .iter()
        .map(|(program, package)| format!("{program} (Debian package {package})"))
        .collect();
    ensure!(names.is_empty(), "missing: {}", names.join(", "));
    Ok(())
}

fn apt_install(packages: &[&str]) -> Result<()> {
    let apt_get = || {
        let mut command = process::as_root("env");
        command.args(["DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq"]);
        command.args(["-o", "Dpkg::Use-Pty=0"]);
        command
    };
    // One unreachable package source must not end the installation. A package
    // that is then not found fails in the next step.
    if let Err(error) = process::run(apt_get().arg("update")) {
        eprintln!("warning: {error:#}");
    }
    process::run(
        apt_get()
            .args(["install", "-y", "--no-install-recommends"])
            .args(packages),
    )?;
    for package in packages {
        println!("installed {package}");
    }
    Ok(())
}
