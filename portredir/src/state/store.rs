//! Documents in a BPF map: JSON, cut into elements of equal size.

use aya::maps::{HashMap, Map, MapData, MapError};
use portredir_common::map::StateKey;
use serde::Serialize;

/// The number of bytes in one element.
const CHUNK: usize = 1024;

/// The map with the documents. A document is known by its number.
pub struct Store<M>(HashMap<M, StateKey, [u8; CHUNK]>);

impl<'a> Store<&'a MapData> {
    /// Opens the map for reading.
    ///
    /// # Errors
    ///
    /// When it is another kind of map.
    pub fn of(map: &'a Map) -> Result<Self, MapError> {
        HashMap::try_from(map).map(Self)
    }

    /// The numbers of all documents.
    #[must_use]
    pub fn documents(&self) -> Vec<u32> {
        let keys = self.0.keys().filter_map(Result::ok);
        keys.filter(|key| key.chunk == 0)
            .map(|key| key.document)
            .collect()
    }

    /// The text of a document, or `None` when there is no such document.
    #[must_use]
    pub fn read(&self, document: u32) -> Option<Vec<u8>> {
        let mut text = Vec::new();
        for chunk in 0.. {
            let Ok(bytes) = self.0.get(&StateKey { document, chunk }, 0) else {
                break;
            };
            text.extend(bytes);
        }
        let end = text.iter().rposition(|&byte| byte != 0)?;
        text.truncate(end + 1);
        Some(text)
    }
}

impl<'a> Store<&'a mut MapData> {
    /// Opens the map for writing.
    ///
    /// # Errors
    ///
    /// When it is another kind of map.
    pub fn of_mut(map: &'a mut Map) -> Result<Self, MapError> {
        HashMap::try_from(map).map(Self)
    }

    /// Writes a document, in one step where it fits into one element. A longer one
    /// gets its first element last, so that a reader finds all of it or nothing.
    ///
    /// # Errors
    ///
    /// The map is full.
    ///
    /// # Panics
    ///
    /// The value cannot be written as JSON.
    pub fn write(&mut self, document: u32, value: &impl Serialize) -> Result<(), MapError> {
        let text = serde_json::to_vec(value).expect("state is JSON");
        let chunks: Vec<_> = (0..).zip(text.chunks(CHUNK)).collect();
        if chunks.len() > 1 {
            self.cut(document, 0);
        }
        for (chunk, text) in chunks.into_iter().rev() {
            let mut bytes = [0; CHUNK];
            bytes[..text.len()].copy_from_slice(text);
            self.0.insert(StateKey { document, chunk }, bytes, 0)?;
        }
        self.cut(
            document,
            u32::try_from(text.len().div_ceil(CHUNK)).expect("a small document"),
        );
        Ok(())
    }

    /// Removes a document, if there is one.
    pub fn remove(&mut self, document: u32) {
        self.cut(document, 0);
    }

    /// Removes the elements of a document from `first` on.
    fn cut(&mut self, document: u32, first: u32) {
        for chunk in first.. {
            if self.0.remove(&StateKey { document, chunk }).is_err() {
                break;
            }
        }
    }
}
