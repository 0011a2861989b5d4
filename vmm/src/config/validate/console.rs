//! `serial`, `console` and `debug_console`.

use super::checks::{lacking, off, value};
use crate::config::{ConfigError, ConsoleConfig, ConsoleMode, VmConfig};

impl VmConfig {
    pub(super) fn validate_consoles(&self) -> Result<(), ConfigError> {
        validate("serial", &self.serial)?;
        validate("console", &self.console)?;
        if self.console.mode == ConsoleMode::Tty && self.serial.mode == ConsoleMode::Tty {
            return Err(value(
                "console.mode",
                "Tty",
                "another mode than serial.mode, for there is one terminal",
            ));
        }
        if !matches!(self.debug_console.mode, ConsoleMode::Off | ConsoleMode::Null) {
            return Err(lacking(
                "debug_console.mode",
                format!("mode {:?}", self.debug_console.mode),
                "Off",
            ));
        }
        Ok(())
    }
}

fn validate(at: &str, console: &ConsoleConfig) -> Result<(), ConfigError> {
    let field = |name: &str| format!("{at}.{name}");
    off(&field("iommu"), console.iommu)?;
    match console.mode {
        ConsoleMode::File if console.file.is_none() => Err(value(
            &field("file"),
            "missing",
            format!("the path of the file, for {at}.mode is File"),
        )),
        ConsoleMode::Socket if console.socket.is_none() => Err(value(
            &field("socket"),
            "missing",
            format!("the path of the socket, for {at}.mode is Socket"),
        )),
        _ => Ok(()),
    }
}
