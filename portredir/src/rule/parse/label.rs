//! Parses the label of a rule: `name NAME` among the conditions, and `# COMMENT` at the end.

use super::Parser;
use super::options::Words;
use crate::rule::{LabelError, RuleError};

impl Parser<'_> {
    /// Reads `name NAME`.
    pub(super) fn name_of_rule(&mut self, words: &mut Words) -> Result<(), RuleError> {
        const EXAMPLE: &str = "as in `80:8080 name web`";
        if words.label.name.is_some() {
            return Err(self.error(
                "`name` is given twice",
                "a rule has one name, as in `name web`",
            ));
        }
        self.at += "name".len();
        self.skip_spaces();
        let word = self.word();
        if word.is_empty() {
            return Err(self.error("expected a name after `name`, but the rule ends", EXAMPLE));
        }
        let name = word.to_owned().try_into();
        words.label.name = Some(name.map_err(|error| self.label_error(error, EXAMPLE))?);
        self.at += word.len();
        Ok(())
    }

    /// Reads a comment, which takes the rest of the text.
    pub(super) fn comment(&mut self, words: &mut Words) -> Result<(), RuleError> {
        let text = self.rest()["#".len()..].to_owned();
        let comment = text.try_into();
        let example = "as in `80:8080 # OPS-1`";
        words.label.comment = Some(comment.map_err(|error| self.label_error(error, example))?);
        self.at = self.text.len();
        Ok(())
    }

    fn label_error(&self, error: LabelError, example: &str) -> RuleError {
        self.error(error.to_string(), example)
    }
}
