//! The redirects of other programs, as rules: `iptables-save`, `nft -j list ruleset`, firewalld
//! and docker.
//!
//! Each reader turns its text into redirects and into lines that it cannot take over, each
//! with the reason. A condition that a rule cannot have is such a reason: no line becomes a rule
//! for more packets than it was for, but for what [`Note`] says.

mod docker;
mod firewalld;
mod found;
mod iptables;
mod merge;
mod nft;
mod redirect;

use serde_json::Value;
use thiserror::Error;

use self::found::Found;
pub use self::found::{Imported, Note, Refused};
pub use self::iptables::typed;

/// The reason why a text is not read.
#[derive(Debug, Error)]
pub enum ImportError {
    /// The text is of no known kind.
    #[error(
        "the text is none of these: iptables-save, nft -j list ruleset, firewall-cmd --list-all, \
         a zone file of firewalld, docker inspect"
    )]
    NotKnown,
    /// The text begins like JSON, and is not.
    #[error("the JSON is damaged")]
    Json(#[from] serde_json::Error),
    /// The text begins like XML, and is not.
    #[error("the XML is damaged")]
    Xml(#[from] roxmltree::Error),
}

/// Reads a text, whose kind its content tells.
///
/// # Errors
///
/// [`ImportError`].
pub fn read(text: &str) -> Result<Imported, ImportError> {
    let text = text.trim_start_matches('\u{feff}').trim();
    let found = if text.starts_with('<') {
        firewalld::xml(text)?
    } else if text.starts_with(['{', '[']) {
        json(text)?
    } else if iptables::is_meant(text) {
        iptables::read(text)
    } else if firewalld::is_meant(text) {
        firewalld::list(text)
    } else {
        return Err(ImportError::NotKnown);
    };
    Ok(merge::merge(found))
}

/// Reads JSON: one value, or one on each line.
fn json(text: &str) -> Result<Found, ImportError> {
    let values = serde_json::Deserializer::from_str(text).into_iter::<Value>();
    let values = values.collect::<Result<Vec<_>, _>>()?;
    if let [value] = &values[..]
        && let Some(objects) = value["nftables"].as_array()
    {
        return Ok(nft::read(objects));
    }
    let is_list = |value: &Value| value.is_array();
    let values: Vec<_> = if values.iter().all(is_list) {
        values
            .iter()
            .filter_map(Value::as_array)
            .flatten()
            .collect()
    } else {
        values.iter().collect()
    };
    docker::read(&values).ok_or(ImportError::NotKnown)
}

#[cfg(test)]
mod tests;
