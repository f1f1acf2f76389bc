//! What the program says of itself: shell completions and the manual page.

use clap::CommandFactory;

use crate::{
    args::Args,
    failure::{Failure, OrFail},
    output,
};

/// Prints a completion script.
pub fn completions(shell: clap_complete::Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Args::command(), "slmc", &mut script);
    print_bytes(script)
}

/// Prints the manual page.
pub fn man() -> Result<(), Failure> {
    let mut page = Vec::new();
    clap_mangen::Man::new(Args::command()).render(&mut page).or_run()?;
    print_bytes(page)
}

fn print_bytes(bytes: Vec<u8>) -> Result<(), Failure> {
    let text = String::from_utf8(bytes).or_run()?;
    output::print(false, &serde_json::Value::Null, &text)
}
