//! The container image: one static program `FROM scratch`, as an OCI image layout in a tar
//! file, which container engines and registries take as it is.
//!
//! Equal sources and an equal toolchain give equal bytes, as with the packages.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::package::Release;
use crate::root::root;
use crate::{cargo, package, process, sources};

/// The target of the program. With this C library a static program needs no other compiler.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The types of the parts of an image.
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// The options of `cargo xtask image`.
#[derive(clap::Args)]
pub struct Options {
    /// Pack a static program that was built before, with the feature `agent`.
    #[arg(long, value_name = "PATH")]
    program: Option<PathBuf>,
}

/// An image.
pub struct Image {
    /// The path of the tar file.
    pub path: PathBuf,
    /// The path of the program that is in it.
    pub program: PathBuf,
}

/// Builds the image, and prints its path and the digest of its manifest.
pub fn image(options: &Options) -> Result<()> {
    build(options.program.clone()).map(drop)
}

/// Builds the image with a program, or with one that it compiles first.
pub fn build(program: Option<PathBuf>) -> Result<Image> {
    let release = Release::of_sources()?;
    let out = root().join("target/image");
    let program = match program {
        Some(program) => program,
        None => compile(&release, &out)?,
    };
    let (path, digest) = pack(&release, (&out, &program))?;
    println!("{digest}  {}", path.display());
    Ok(Image { path, program })
}

/// Compiles the static program with the agent.
fn compile(release: &Release, out: &Path) -> Result<PathBuf> {
    let mut cargo = cargo::cargo(&["build", "--locked", "--release", "--target", TARGET]);
    cargo.args(["--package=portredir", "--bin=portredir", "--features=agent"]);
    cargo.arg("--target-dir").arg(out.join("build"));
    let flags = package::flags().join("\x1f") + "\x1f-Ctarget-feature=+crt-static";
    cargo
        .env("CARGO_ENCODED_RUSTFLAGS", flags)
        .env("CARGO_INCREMENTAL", "0")
        // The pages of the program count as memory of the pod.
        .env("CARGO_PROFILE_RELEASE_LTO", "fat")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1")
        .env("SOURCE_DATE_EPOCH", &release.epoch);
    let mut programs = cargo::programs(cargo)?.into_iter();
    let program = programs.rfind(|program| program.kind == "bin");
    Ok(program.context("find portredir after its build")?.path)
}

/// Packs the program, and returns the path of the image and the digest of its manifest.
fn pack(release: &Release, (out, program): (&Path, &Path)) -> Result<(PathBuf, String)> {
    let (files, layout) = (out.join("files"), out.join("layout"));
    for folder in [&files, &layout] {
        if folder.exists() {
            fs::remove_dir_all(folder).context("remove the last image")?;
        }
    }
    fs::create_dir_all(files.join("usr/bin")).context("make a folder")?;
    fs::create_dir_all(layout.join("blobs/sha256")).context("make a folder")?;
    fs::copy(program, files.join("usr/bin/portredir")).context("copy the program")?;
    let plain = out.join("layer.tar");
    tar(release, &files, &plain)?;
    let diff = digest(&fs::read(&plain).context("read the layer")?);
    process::run(Command::new("gzip").args(["-9", "-n", "-f"]).arg(&plain))?;
    let layer = fs::read(out.join("layer.tar.gz")).context("read the layer")?;
    let layer = blob(&layout, LAYER, &layer)?;
    let config = blob(&layout, CONFIG, &text(&config(&diff)))?;
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer],
    });
    let manifest = blob(&layout, MANIFEST, &text(&manifest))?;
    let digest = manifest["digest"].as_str().unwrap_or_default().to_owned();
    let index = text(&index(&release.version, manifest));
    fs::write(layout.join("index.json"), index).context("write the index")?;
    let version = text(&json!({"imageLayoutVersion": "1.0.0"}));
    fs::write(layout.join("oci-layout"), version).context("write the version")?;
    let path = out.join(format!("portredir-{}.tar", release.version));
    tar(release, &layout, &path)?;
    Ok((path, digest))
}

fn config(diff: &str) -> Value {
    json!({
        "architecture": "amd64", "os": "linux",
        "config": {"Entrypoint": ["/usr/bin/portredir"]},
        "rootfs": {"type": "layers", "diff_ids": [diff]},
    })
}

/// The index of the images of all architectures, of which there is one now.
fn index(version: &str, mut manifest: Value) -> Value {
    // A name without a registry would be one of Docker's to a kubelet.
    let name = format!("localhost/portredir:{version}");
    manifest["platform"] = json!({"architecture": "amd64", "os": "linux"});
    manifest["annotations"] = json!({
        "org.opencontainers.image.ref.name": version, "io.containerd.image.name": name,
    });
    json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [manifest],
    })
}

/// Writes a part of the image, and returns its descriptor.
fn blob(layout: &Path, kind: &str, bytes: &[u8]) -> Result<Value> {
    let digest = digest(bytes);
    let name = digest.trim_start_matches("sha256:");
    fs::write(layout.join("blobs/sha256").join(name), bytes).context("write a blob")?;
    Ok(json!({"mediaType": kind, "digest": digest, "size": bytes.len()}))
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", sources::hex(&Sha256::digest(bytes)))
}

fn text(value: &Value) -> Vec<u8> {
    value.to_string().into_bytes()
}

/// Packs a folder: sorted, owned by root, with the time of the commit.
fn tar(release: &Release, folder: &Path, to: &Path) -> Result<()> {
    let mut tar = Command::new("tar");
    tar.args(["--sort=name", "--owner=0", "--group=0", "--numeric-owner"])
        .args(["--format=ustar", "--mode=u=rwX,go=rX"])
        .arg(format!("--mtime=@{}", release.epoch))
        .arg("-cf")
        .arg(to)
        .arg("-C")
        .arg(folder)
        .arg("--")
        .args(names(folder)?);
    process::run(&mut tar)
}

/// The names in a folder, in order.
fn names(folder: &Path) -> Result<Vec<std::ffi::OsString>> {
    let entries = fs::read_dir(folder).context("list a folder")?;
    let names = entries.map(|entry| Ok(entry?.file_name()));
    let mut names: Vec<_> = names.collect::<Result<_>>()?;
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn release() -> Release {
        Release {
            version: "1.2.3".to_owned(),
            epoch: "1700000000".to_owned(),
        }
    }

    fn packed(name: &str) -> (PathBuf, String) {
        let out = std::env::temp_dir().join(format!("{name}-{}", std::process::id()));
        fs::create_dir_all(&out).expect("a folder");
        let program = out.join("program");
        fs::write(&program, "a program").expect("a file");
        let (path, digest) = pack(&release(), (&out, &program)).expect("an image");
        (path, digest)
    }

    #[test]
    fn an_image_has_the_same_bytes_wherever_it_is_made() {
        let (one, digest) = packed("image-one");
        let (other, again) = packed("image-other");
        let bytes = |path: &Path| fs::read(path).expect("an image");
        assert!(bytes(&one) == bytes(&other) && digest == again);
        let layout = one.parent().expect("a folder").join("layout");
        let read = |name: &str| -> Value {
            let text = fs::read_to_string(layout.join(name)).expect("a file");
            serde_json::from_str(&text).expect("JSON")
        };
        let blob = |digest: &Value| {
            let digest = digest.as_str().expect("a digest").replace(':', "/");
            format!("blobs/{digest}")
        };
        let index = read("index.json");
        assert_eq!(index["manifests"][0]["digest"], digest);
        let manifest = read(&blob(&index["manifests"][0]["digest"]));
        let config = read(&blob(&manifest["config"]["digest"]));
        assert_eq!(config["config"]["Entrypoint"][0], "/usr/bin/portredir");
        let layer = layout.join(blob(&manifest["layers"][0]["digest"]));
        let size = fs::metadata(layer).expect("a layer").len();
        assert_eq!(manifest["layers"][0]["size"], size);
        for path in [one, other] {
            fs::remove_dir_all(path.parent().expect("a folder")).expect("removed");
        }
    }
}
