//! The list of the crates that the program is built from, as CycloneDX JSON.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::{Value, json};

use super::release::Release;
use crate::{cargo, process};

/// The part of `cargo metadata` that the list needs.
#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    resolve: Resolve,
}

#[derive(Deserialize)]
struct Package {
    id: String,
    name: String,
    version: String,
    license: Option<String>,
    /// `None` for a crate of this workspace.
    source: Option<String>,
}

#[derive(Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    id: String,
    deps: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    pkg: String,
    dep_kinds: Vec<DependencyKind>,
}

#[derive(Deserialize)]
struct DependencyKind {
    /// `dev` or `build`; `None` for what is linked.
    kind: Option<String>,
}

/// Writes the list, and returns its path.
pub fn write(release: &Release, out: &Path) -> Result<PathBuf> {
    let mut metadata = cargo::cargo(&["metadata", "--format-version=1", "--locked"]);
    metadata.arg("--filter-platform=x86_64-unknown-linux-gnu");
    let metadata = process::output(&mut metadata)?;
    let metadata = serde_json::from_str(&metadata).context("read cargo's metadata")?;
    fs::create_dir_all(out).with_context(|| format!("create {}", out.display()))?;
    let path = out.join("sbom.json");
    let list = serde_json::to_string_pretty(&list(&metadata, release)?)?;
    fs::write(&path, list + "\n").with_context(|| format!("write {}", path.display()))?;
    Ok(path)
}

fn list(metadata: &Metadata, release: &Release) -> Result<Value> {
    let packages: BTreeMap<_, _> = metadata.packages.iter().map(|p| (&*p.id, p)).collect();
    let nodes: BTreeMap<_, _> = metadata.resolve.nodes.iter().map(|n| (&*n.id, n)).collect();
    let is_root = |package: &&Package| package.name == "portredir" && package.source.is_none();
    let root = metadata.packages.iter().find(is_root);
    let root = root.context("find portredir among the packages")?;
    let mut used = BTreeSet::new();
    let mut todo = vec![&*root.id];
    while let Some(id) = todo.pop() {
        if used.insert(id) {
            todo.extend(linked(nodes.get(id).context("find a package")?));
        }
    }
    let mut components = Vec::new();
    let mut dependencies = Vec::new();
    for id in &used {
        let package = packages.get(id).context("find a package")?;
        if *id != root.id {
            components.push(component("library", package));
        }
        let on = linked(nodes[id]).map(|id| reference(packages[id]));
        let on: BTreeSet<_> = on.collect();
        dependencies.push(json!({"ref": reference(package), "dependsOn": on}));
    }
    Ok(json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "timestamp": time(&release.epoch)?,
            "component": component("application", root),
        },
        "components": components,
        "dependencies": dependencies,
    }))
}

/// The packages that are linked into this one, or that its build script calls.
fn linked(node: &Node) -> impl Iterator<Item = &str> {
    let is_dev = |kind: &DependencyKind| kind.kind.as_deref() == Some("dev");
    let dependencies = node.deps.iter();
    let dependencies = dependencies.filter(move |dep| !dep.dep_kinds.iter().all(is_dev));
    dependencies.map(|dependency| &*dependency.pkg)
}

fn component(kind: &str, package: &Package) -> Value {
    let mut component = json!({
        "type": kind,
        "bom-ref": reference(package),
        "name": package.name,
        "version": package.version,
        "purl": reference(package),
    });
    if let Some(license) = &package.license {
        // Old manifests separate alternatives by a slash.
        let license = license.replace('/', " OR ");
        component["licenses"] = json!([{"expression": license}]);
    }
    component
}

/// The package URL, which names a package everywhere.
fn reference(package: &Package) -> String {
    format!("pkg:cargo/{}@{}", package.name, package.version)
}

/// Seconds since 1970 as RFC 3339.
fn time(epoch: &str) -> Result<String> {
    let mut date = std::process::Command::new("date");
    date.args(["--utc", "+%Y-%m-%dT%H:%M:%SZ", "--date"]);
    process::output(date.arg(format!("@{epoch}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crates_of_tests_are_no_part_of_the_program() {
        let metadata = json!({
            "packages": [
                {"id": "p", "name": "portredir", "version": "1.0.0", "license": "MIT", "source": null},
                {"id": "a", "name": "aya", "version": "2.0.0", "license": "MIT/Apache-2.0", "source": "r"},
                {"id": "i", "name": "insta", "version": "3.0.0", "license": "MIT", "source": "r"},
            ],
            "resolve": {"nodes": [
                {"id": "p", "deps": [
                    {"pkg": "a", "dep_kinds": [{"kind": null}, {"kind": "dev"}]},
                    {"pkg": "i", "dep_kinds": [{"kind": "dev"}]},
                ]},
                {"id": "a", "deps": []},
                {"id": "i", "deps": []},
            ]},
        });
        let metadata = serde_json::from_value(metadata).expect("metadata");
        let release = Release {
            version: "1.0.0".to_owned(),
            epoch: "1700000000".to_owned(),
        };
        let list = list(&metadata, &release).expect("a list");
        assert_eq!(list["metadata"]["timestamp"], "2023-11-14T22:13:20Z");
        let components = list["components"].as_array().expect("an array");
        assert_eq!(components.len(), 1, "{components:?}");
        assert_eq!(components[0]["purl"], "pkg:cargo/aya@2.0.0");
        assert_eq!(
            components[0]["licenses"][0]["expression"],
            "MIT OR Apache-2.0"
        );
        assert_eq!(
            list["dependencies"][1]["dependsOn"][0],
            "pkg:cargo/aya@2.0.0"
        );
    }
}
