//! Keys, as a terminal sends them.

/// A key that the view knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// A character.
    Char(char),
    /// Enter.
    Enter,
    /// Escape.
    Escape,
    /// Backspace or Delete.
    Backspace,
    /// The arrow up.
    Up,
    /// The arrow down.
    Down,
    /// Page up.
    PageUp,
    /// Page down.
    PageDown,
    /// Home.
    Home,
    /// Ctrl-L.
    Redraw,
}

/// The keys of one read. A terminal sends the bytes of a key at once; what comes in parts, as
/// over a very slow line, is taken for an escape and letters.
#[must_use]
pub fn keys(bytes: &[u8]) -> Vec<Key> {
    const SEQUENCES: [(&str, Key); 12] = [
        ("\x1b[A", Key::Up),
        ("\x1bOA", Key::Up),
        ("\x1b[B", Key::Down),
        ("\x1bOB", Key::Down),
        ("\x1b[5~", Key::PageUp),
        ("\x1b[6~", Key::PageDown),
        ("\x1b[H", Key::Home),
        ("\x1bOH", Key::Home),
        ("\x1b[1~", Key::Home),
        ("\x1b[7~", Key::Home),
        ("\x1b[3~", Key::Backspace),
        ("\x0c", Key::Redraw),
    ];
    let text = String::from_utf8_lossy(bytes);
    let mut rest = text.as_ref();
    let mut keys = Vec::new();
    while let Some(char) = rest.chars().next() {
        let known = SEQUENCES
            .iter()
            .find(|(sequence, _)| rest.starts_with(sequence));
        let (length, key) = match (char, known) {
            (_, Some((sequence, key))) => (sequence.len(), Some(*key)),
            ('\x1b', None) => unknown(rest),
            ('\r' | '\n', _) => (1, Some(Key::Enter)),
            ('\x08' | '\x7f', _) => (1, Some(Key::Backspace)),
            (char, _) => {
                let key = (!char.is_control()).then_some(Key::Char(char));
                (char.len_utf8(), key)
            }
        };
        keys.extend(key);
        rest = &rest[length..];
    }
    keys
}

/// The length of a sequence that means nothing to us (ECMA-48, section 5.4), or of the key
/// Escape, which is no sequence.
fn unknown(text: &str) -> (usize, Option<Key>) {
    let is_final = |char: char| ('@'..='~').contains(&char);
    let length = match text.as_bytes().get(1) {
        Some(b'[') => text[2..].find(is_final).map_or(text.len(), |at| at + 3),
        Some(b'O') if text.is_char_boundary(3.min(text.len())) => 3.min(text.len()),
        _ => return (1, Some(Key::Escape)),
    };
    (length, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_keys() {
        for (bytes, expected) in [
            ("q", &[Key::Char('q')][..]),
            ("/é\r", &[Key::Char('/'), Key::Char('é'), Key::Enter]),
            ("\x1b", &[Key::Escape]),
            ("\x1b[A\x1bOB\x1b[6~", &[Key::Up, Key::Down, Key::PageDown]),
            // A function key, a mouse report and a paste that are not known.
            ("\x1b[15~x", &[Key::Char('x')]),
            ("\x1b[<0;3;4Mx", &[Key::Char('x')]),
            ("\x1bOPx", &[Key::Char('x')]),
            ("\x1b[", &[]),
            ("\x1bO", &[]),
            ("\x7f\x0c\0", &[Key::Backspace, Key::Redraw]),
        ] {
            assert_eq!(keys(bytes.as_bytes()), expected, "{bytes:?}");
        }
        assert_eq!(keys("\x1bOé".as_bytes()).len(), 3);
        assert_eq!(keys(&[0xff]), [Key::Char('\u{fffd}')]);
    }
}
