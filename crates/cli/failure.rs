//! How the program can end other than well, and the exit code for each: scripts rely on them.

use std::process::ExitCode;

/// Why a command did not do what it was asked.
#[derive(Debug)]
pub enum Failure {
    /// A gate was judged and failed: exit code 1.
    Gate(String),
    /// The command or its input is wrong: exit code 2.
    Input(anyhow::Error),
    /// The work failed (I/O, memory, numbers that are not finite): exit code 3.
    Run(anyhow::Error),
    /// The user asked to stop and everything is saved; says how to go on: exit code 130.
    Interrupted(String),
}

impl Failure {
    /// The documented exit code.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Gate(_) => ExitCode::from(1),
            Self::Input(_) => ExitCode::from(2),
            Self::Run(_) => ExitCode::from(3),
            Self::Interrupted(_) => ExitCode::from(130),
        }
    }
}

impl Failure {
    /// The same, with the part of the work in which it happened.
    pub fn within(self, place: &str) -> Self {
        match self {
            Self::Gate(message) => Self::Gate(format!("{place}: {message}")),
            Self::Input(error) => Self::Input(error.context(place.to_owned())),
            Self::Run(error) => Self::Run(error.context(place.to_owned())),
            Self::Interrupted(message) => Self::Interrupted(format!("{place}: {message}")),
        }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Input(error) | Self::Run(error) => write!(f, "{error:#}"),
            Self::Gate(message) | Self::Interrupted(message) => f.write_str(message),
        }
    }
}

/// Says which kind of failure an error is, where it happens.
pub trait OrFail<T> {
    /// The command or its input is wrong.
    fn or_input(self) -> Result<T, Failure>;
    /// The work failed.
    fn or_run(self) -> Result<T, Failure>;
}

impl<T, E: Into<anyhow::Error>> OrFail<T> for Result<T, E> {
    fn or_input(self) -> Result<T, Failure> {
        self.map_err(|error| Failure::Input(error.into()))
    }
    fn or_run(self) -> Result<T, Failure> {
        self.map_err(|error| Failure::Run(error.into()))
    }
}

/// An input error in the program's own words.
pub fn input_error(message: impl Into<String>) -> Failure {
    Failure::Input(anyhow::Error::msg(message.into()))
}
