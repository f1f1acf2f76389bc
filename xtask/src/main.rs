//! Chores of the repository, as `cargo xtask COMMAND`: what CI runs, and what a contributor runs before a commit.

mod fetch;
mod neon;
mod quickstart;
mod repo;
mod test;
mod tidy;

use std::process::ExitCode;

use anyhow::{Result, bail};

const USAGE: &str = "\
cargo xtask COMMAND

  tidy                       check the invariants of docs/ARCHITECTURE.md on the tree
  fetch [DIR] [WHAT]         get real models into DIR (models-cache), checked by sha256
                             WHAT: smollm2 | float | oracle | gemma3 | all   (float: smollm2 and its float form)
  test                       every test that needs nothing from outside
  test --real                the tests on real models (fetched) and texts (SLMC_DATA or ../shared/data)
  test --fast                the crates without Burn alone, overflow checks on
  test --unchecked           the crates whose release build lets numbers wrap around, overflow checks on
  test --neon                the kernels on emulated ARM CPUs: a compiler is fetched into target/neon, once
  quickstart [--print]       run (or show) the commands of README.md's quick start
";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["tidy"] => tidy::run(),
        ["fetch", rest @ ..] => fetch::run(rest),
        ["test"] => test::plain(),
        ["test", "--real"] => test::real(),
        ["test", "--fast"] => test::fast(),
        ["test", "--unchecked"] => test::unchecked(),
        ["test", "--neon"] => neon::run(),
        ["quickstart"] => quickstart::run(),
        ["quickstart", "--print"] => quickstart::print(),
        [] | ["help" | "--help" | "-h"] => {
            print!("{USAGE}");
            Ok(())
        }
        _ => bail!("I don't know `{}`\n\n{USAGE}", words.join(" ")),
    }
}
