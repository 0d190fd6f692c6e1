//! The names of the columns, which every table begins with.

use crate::cli::TableArgs;

/// Whether a table begins with the names of its columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    /// The names of the columns come first.
    Shown,
    /// There are no names.
    Hidden,
}

impl From<TableArgs> for Header {
    fn from(args: TableArgs) -> Self {
        if args.no_header {
            Self::Hidden
        } else {
            Self::Shown
        }
    }
}

impl Header {
    /// The lines of a table, of which the first has the names of the columns.
    pub fn lines<Line>(self, lines: impl Iterator<Item = Line>) -> impl Iterator<Item = Line> {
        lines.skip(usize::from(self == Self::Hidden))
    }
}
