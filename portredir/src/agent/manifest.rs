//! The definitions of the objects, as files for `kubectl apply`.

use kube::CustomResourceExt as _;

use super::crd::{PortRedirect, PortRedirectNode};

/// The definition of each kind: its name and its text in YAML.
#[must_use]
pub fn definitions() -> [(&'static str, String); 2] {
    let text = |definition| serde_saphyr::to_string(&definition).expect("a definition is YAML");
    [
        ("portredirects", text(PortRedirect::crd())),
        ("portredirectnodes", text(PortRedirectNode::crd())),
    ]
}

/// Both definitions as one stream of documents.
#[must_use]
pub fn crds() -> String {
    definitions().map(|(_, text)| text).join("---\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// To renew the files, run `portredir agent --print-crds` of a build with the feature
    /// `agent`, split the output at `---`, and copy both files to both folders.
    #[test]
    fn the_files_of_definitions_are_those_of_the_types() {
        for folder in ["crds", "helm/portredir/files"] {
            for (name, text) in definitions() {
                let root = env!("CARGO_MANIFEST_DIR");
                let path = format!("{root}/../deploy/{folder}/{name}.yaml");
                let file = std::fs::read_to_string(&path).expect("a committed definition");
                assert!(file == text, "{path} differs from the types");
            }
        }
    }

    /// A server of version 1.25 takes the definitions: they use no newer function.
    #[test]
    fn the_definitions_use_old_functions_alone() {
        let text = crds();
        for newer in ["isIP", "isCIDR", "ip(", "cidr(", "format(", "quantity("] {
            assert!(!text.contains(newer), "{newer}");
        }
        for message in [
            "endPort must not be less than port",
            "must have the same number of ports",
            "to.port must differ from port",
            "exactly one of port, service and pods is needed",
        ] {
            assert!(text.contains(message), "{message}");
        }
    }
}
