//! The configuration: options and rules from the command line, the environment and files,
//! merged into [`settings::Settings`].

pub mod engine;
pub mod file;
pub mod options;
pub mod safety;
pub mod selection;
pub mod settings;
pub mod value;
