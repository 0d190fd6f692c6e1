//! The configuration: options and rules from the command line, the environment and files,
//! merged into [`settings::Settings`].

pub mod engine;
pub mod error;
pub mod file;
pub mod options;
mod plain;
pub mod safety;
pub mod save;
pub mod selection;
pub mod settings;
pub mod similar;
pub mod table;
mod trust;
pub mod value;
