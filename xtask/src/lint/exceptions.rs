//! Violations of the walls that are known. Each line is a debt: the check fails
//! when a line is no longer needed, and the list is to end empty.

/// A file, what it imports or does, and why it still does. The second is a file,
/// or one of `aya`, `tokio`, `anyhow`, `print`, `unsafe` and `no floor`.
pub type Exception = (&'static str, &'static str, &'static str);

/// The line of [`EXCEPTIONS`] that would accept a violation.
pub fn line(from: &str, to: &str) -> String {
    format!("({from:?}, {to:?}, \"why\"),")
}

/// The known violations, each on one line.
#[rustfmt::skip]
pub const EXCEPTIONS: &[Exception] = &[];
