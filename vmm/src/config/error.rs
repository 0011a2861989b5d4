//! What can be wrong with a configuration.

/// A configuration is refused. Each names the field, in JSON path notation, and what was expected.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The text is not JSON, or not of this shape: a syntax error, an unknown or missing field, a wrong type.
    #[error("the configuration cannot be read{}", at(path))]
    Json {
        /// The JSON path, `.` for the whole.
        path: String,
        /// What is wrong there, with line and column.
        source: serde_json::Error,
    },
    /// A known field asks for something that is not there.
    #[error("`{field}` asks for {asked}, which is not supported; expected {expected}")]
    NotSupported {
        /// The JSON path of the field.
        field: String,
        /// What it asks for.
        asked: String,
        /// What would be accepted.
        expected: String,
    },
    /// A value that makes no machine.
    #[error("`{field}` is {value}; expected {expected}")]
    Value {
        /// The JSON path of the field.
        field: String,
        /// What it is.
        value: String,
        /// What would be accepted.
        expected: String,
    },
}

/// Where it cannot be read; nothing if it is the whole.
fn at(path: &str) -> String {
    match path {
        "." => String::new(),
        path => format!(" at `{path}`"),
    }
}
