//! The abilities of terminals.

use ratatui_core::style::{Color, Modifier, Style};

/// The abilities of the terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Theme {
    /// Whether there are colours: not with `NO_COLOR`.
    pub has_color: bool,
    /// Whether the font has eighths of a block, and the terminal knows UTF-8.
    pub has_blocks: bool,
}

impl Theme {
    /// Judges the terminal by its name and by the character set of the user.
    #[must_use]
    pub fn of(variable: impl Fn(&str) -> Option<String>) -> Self {
        let get = |name| variable(name).filter(|value| !value.is_empty());
        let term = get("TERM").unwrap_or_default();
        let charset = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().find_map(get);
        let charset = charset.unwrap_or_default().to_ascii_lowercase();
        let is_utf8 = charset.ends_with("utf-8") || charset.ends_with("utf8");
        let is_old = term.starts_with("vt1") || term.starts_with("vt2");
        Self {
            has_color: get("NO_COLOR").is_none() && !is_old,
            has_blocks: is_utf8 && !is_old && term != "linux",
        }
    }

    /// A bold style, in a colour where there are colours.
    #[must_use]
    pub fn bold(self, color: Color) -> Style {
        self.color(color).add_modifier(Modifier::BOLD)
    }

    /// A style in a colour, where there are colours.
    #[must_use]
    pub fn color(self, color: Color) -> Style {
        if self.has_color {
            Style::new().fg(color)
        } else {
            Style::new()
        }
    }

    /// Rates as a line of bars, the newest last; the highest is that of the highest rate.
    #[must_use]
    pub fn bars(self, rates: &[f64]) -> String {
        const BLOCKS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
        const ASCII: [char; 9] = [' ', '.', ':', '-', '=', '+', '*', '#', '@'];
        let levels = if self.has_blocks { BLOCKS } else { ASCII };
        let most = rates.iter().copied().fold(0.0, f64::max);
        let bar = |rate: &f64| {
            let level = (2..=8)
                .rev()
                .find(|level| *rate * 8.0 > most * f64::from(level - 1));
            match level {
                _ if *rate <= 0.0 => levels[0],
                Some(level) => levels[usize::try_from(level).unwrap_or(1)],
                None => levels[1],
            }
        };
        rates.iter().map(bar).collect()
    }

    /// A text that is not wider than this; the end of a longer one is cut off.
    #[must_use]
    pub fn cut(self, text: &str, width: usize) -> String {
        if text.chars().count() <= width {
            return text.to_owned();
        }
        let mark = if self.has_blocks { '…' } else { '~' };
        let cut = text.chars().take(width.saturating_sub(1));
        cut.chain([mark]).take(width).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_terminals_get_neither_colours_nor_blocks() {
        for (variables, has_color, has_blocks) in [
            (&[("TERM", "xterm"), ("LANG", "C.UTF-8")][..], true, true),
            (&[("TERM", "screen"), ("LC_ALL", "en_US.utf8")], true, true),
            (
                &[("TERM", "screen"), ("LC_ALL", "C"), ("LANG", "C.UTF-8")],
                true,
                false,
            ),
            (&[("TERM", "linux"), ("LANG", "C.UTF-8")], true, false),
            (&[("TERM", "vt100"), ("LANG", "C.UTF-8")], false, false),
            (
                &[("TERM", "xterm"), ("LANG", "C.UTF-8"), ("NO_COLOR", "1")],
                false,
                true,
            ),
            (&[("TERM", "xterm"), ("NO_COLOR", "")], true, false),
        ] {
            let get = |name: &str| {
                let found = variables.iter().find(|(variable, _)| *variable == name);
                found.map(|(_, value)| (*value).to_owned())
            };
            let expected = Theme {
                has_color,
                has_blocks,
            };
            assert_eq!(Theme::of(get), expected, "{variables:?}");
        }
    }

    #[test]
    fn bars_are_relative_to_the_highest() {
        let theme = |has_blocks| Theme {
            has_color: false,
            has_blocks,
        };
        let [ascii, blocks] = [false, true].map(theme);
        assert_eq!(blocks.bars(&[0.0, 0.1, 1.0, 2.0, 4.0, 7.5, 8.0]), " ▁▁▂▄██");
        assert_eq!(ascii.bars(&[0.0, 1.0, 2.0, 8.0]), " .:@");
        assert_eq!(ascii.bars(&[0.0, 0.0]), "  ");
        assert_eq!(blocks.cut("80:8080", 7), "80:8080");
        assert_eq!(blocks.cut("80:8080", 6), "80:80…");
        assert_eq!(ascii.cut("80:8080", 1), "~");
    }
}
