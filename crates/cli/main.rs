//! `slmc`: a small language model made smaller. This file is the program's summary.
//!
//! Only here, and in the files beside it: `anyhow`, stdout, the environment, exit codes.
#![forbid(unsafe_code)]

mod args;
mod failure;
mod output;
mod terminal;
mod verbs;

use clap::Parser;

use crate::{args::Args, terminal::Terminal};

fn main() -> std::process::ExitCode {
    silence_caught_panics();
    let args = Args::parse();
    let terminal = Terminal::new(&args.global);
    match verbs::dispatch(&args, &terminal) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(failure) => {
            terminal.fail(&failure);
            failure.exit_code()
        }
    }
}

/// A panic of somebody else's parser that is reported as an error of the input needs no report of its own.
fn silence_caught_panics() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !slmc_data::panic_becomes_error() {
            report(panic);
        }
    }));
}
