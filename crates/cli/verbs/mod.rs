//! One file for each group of verbs.

mod bench;
mod data;
mod engine;
mod eval;
mod gate;
mod generate;
mod hashing;
mod inspect;
mod keeping;
mod lora;
mod meta;
mod model;
mod onnx;
mod recipe;
mod report;
mod single;
mod sweep;
mod tasks;

use std::sync::Arc;

use slmc_stages::Surroundings;

use crate::{
    args::{Args, GlobalArgs, Verb},
    failure::{Failure, OrFail, input_error},
    terminal::Terminal,
};

/// What every verb works with.
pub struct Session<'a> {
    pub global: &'a GlobalArgs,
    pub terminal: &'a Terminal,
    pub surroundings: Arc<Surroundings>,
}

/// Runs the verb that was asked for.
pub fn dispatch(args: &Args, terminal: &Terminal) -> Result<(), Failure> {
    let global = &args.global;
    if let Some(n_threads) = global.threads {
        if n_threads == 0 {
            return Err(input_error("--threads 0: at least one thread is needed"));
        }
        rayon::ThreadPoolBuilder::new().num_threads(n_threads).build_global().or_run()?;
    }
    let data_root = global.data_root.clone().or_else(|| std::env::var_os("SLMC_DATA").map(Into::into));
    let surroundings = Arc::new(Surroundings { device: global.device.clone(), data_root });
    let session = Session { global, terminal, surroundings };
    match &args.verb {
        Verb::Run(args) => recipe::run(args, &session),
        Verb::Check(args) => recipe::check(args, &session),
        Verb::Inspect(args) => inspect::inspect(args, &session),
        Verb::Convert(args) => model::convert(args, &session),
        Verb::Export(args) => model::export(args, &session),
        Verb::Train(args) => single::train(args, &session),
        Verb::Distill(args) => single::distill(args, &session),
        Verb::Lora(verb) => lora::lora(verb, &session),
        Verb::Prune(args) => single::prune(args, &session),
        Verb::Quantize(args) => single::quantize(args, &session),
        Verb::Eval(verb) => eval::eval(verb, &session),
        Verb::Gate(args) => gate::gate(args, &session),
        Verb::Sweep(args) => sweep::sweep(args, &session),
        Verb::Report(args) => report::report(args, &session),
        Verb::MeasureMemory(args) => gate::measure_memory(args, &session),
        Verb::Generate(args) => generate::generate(args, &session),
        Verb::Chat(args) => generate::chat(args, &session),
        Verb::Bench(args) => bench::bench(args, &session),
        Verb::Data(verb) => data::data(verb, &session),
        Verb::Completions { shell } => meta::completions(*shell),
        Verb::Man => meta::man(),
    }
}
