//! A carved student fitted to its teacher before the training, block by block and in closed form ([`slmc_compress::refit`]): what
//! attention and MLP add to the residual stream is refitted to make the teacher's stream, so that what removed blocks did
//! becomes the work of those before and after them; and what reads the stream is turned to see in it, as far as a linear map
//! can, what it would see in the teacher's.

mod origins;
mod wanted;

use std::{collections::BTreeMap, path::Path, sync::Arc, time::Duration};

use ndarray::{Array2, ArrayView2};
use serde::{Deserialize, Serialize};
use slmc_compress::{RefitStats, refit};
use slmc_interop::{WriteOptions, write_hf_folder};
use slmc_ir::{Checkpoint, Format, Host, MemorySource, Role, TensorKey, TokenId, Weight};
use slmc_model::{BlockPass, Products};
use slmc_recipe::{StageContext, StageError};

use self::{
    origins::origins,
    wanted::{States, Walk, Wanted},
};
use crate::{embedding::Embedding, kept, open::open_model};

/// Sequences that run through a block at once.
const BATCH: usize = 8;
/// Holds the projections near what they were, where the text does not say otherwise. What is fitted to one text is to
/// serve another: on 24,576 tokens 0.1 and 0.5 did better on held-out text than 0.01, and alike.
const DAMPING: f64 = 0.3;

/// Name of the fitted student in the stage's folder, and of what is known of it.
const FOLDER: &str = "fitted";
const NOTES: &str = "fitted.json";

/// A fitted student; as it was, where there was no time for a fit.
pub(super) struct Fitted {
    pub student: Checkpoint,
    pub notes: FitNotes,
}

/// What is known of a fit.
#[derive(Clone, Default, Serialize, Deserialize)]
pub(super) struct FitNotes {
    /// How long it took.
    pub seconds: f64,
    /// Tokens that were fitted to; 0 where there was no time for a fit.
    pub n_tokens: usize,
    /// Of each block, the teacher's block that it came from.
    pub origins: Vec<usize>,
    /// Of each block, the mean squared distance to what the stream after it is to be, as a share of its mean square, before
    /// the down projection's fit and after it, on the tokens that were fitted to.
    pub errors: Vec<[f64; 2]>,
}

/// What a fit has to keep to.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    /// Fewer sequences are fitted to where all of them would take longer.
    pub at_most: Option<Duration>,
    /// Tokens below which there is no fit.
    pub at_least: usize,
}

/// The fitted student: what an interrupted run had made, or a new one, kept in the stage's folder.
pub(super) fn fitted(
    student: &Checkpoint,
    teacher: &Checkpoint,
    sequences: &[Vec<TokenId>],
    products: Products,
    limits: Limits,
    context: &StageContext<'_>,
) -> Result<Fitted, StageError> {
    let (folder, notes) = (context.folder.join(FOLDER), context.folder.join(NOTES));
    if !notes.is_file() {
        // A folder without notes is an earlier try's, that ended between the two.
        remove(context.folder)?;
        let begun = context.host.elapsed();
        let fit = Fit { student, teacher, sequences, products, host: context.host };
        let (weights, mut found) = fit.in_time(limits)?;
        if let Some(weights) = weights {
            let checkpoint = Checkpoint { weights: Arc::new(weights), ..student.clone() };
            let options = WriteOptions { float: Some(Format::F32), ..WriteOptions::default() };
            write_hf_folder(&checkpoint, &folder, &options, context.host)
                .map_err(|e| kept::failed(&folder, e))?;
        }
        found.seconds = (context.host.elapsed() - begun).as_secs_f64();
        kept::write_json(&notes, &found)?;
    }
    // As it will be read by whoever goes on with this run.
    let notes: FitNotes = kept::read_json(&notes)?;
    if notes.n_tokens == 0 {
        return Ok(Fitted { student: student.clone(), notes });
    }
    let opened = open_model(&folder.to_string_lossy()).map_err(StageError::Failed)?;
    Ok(Fitted { student: Checkpoint { weights: opened.weights, ..student.clone() }, notes })
}

/// Removes what was kept for a run that goes on: the notes first, for they say that the rest is there.
pub(super) fn remove(stage: &Path) -> Result<(), StageError> {
    let (folder, notes) = (stage.join(FOLDER), stage.join(NOTES));
    if notes.is_file() {
        std::fs::remove_file(&notes).map_err(|e| kept::failed(&notes, e))?;
    }
    if folder.exists() {
        std::fs::remove_dir_all(&folder).map_err(|e| kept::failed(&folder, e))?;
    }
    Ok(())
}

#[derive(Clone, Copy)]
struct Fit<'a> {
    student: &'a Checkpoint,
    teacher: &'a Checkpoint,
    /// All of one length.
    sequences: &'a [Vec<TokenId>],
    products: Products,
    host: &'a dyn Host,
}

/// What became of a block.
struct FittedBlock {
    projections: Vec<(Role, Array2<f32>)>,
    /// As in [`FitNotes::errors`].
    error: [f64; 2],
}

/// What a projection is given of hidden states of these many sequences of this length.
type InputsOf = dyn Fn(&BlockPass, &[f32], [usize; 2]) -> Vec<f32>;

/// The student's hidden states, and the sizes of its batches.
struct Streams {
    sizes: Vec<[usize; 2]>,
    states: States,
}

impl Fit<'_> {
    /// A fit to as many of the sequences as there is time for; no weights where that is too few.
    fn in_time(self, limits: Limits) -> Result<(Option<MemorySource>, FitNotes), StageError> {
        let seq_len = self.sequences[0].len();
        let least = limits.at_least.div_ceil(seq_len).min(self.sequences.len());
        let n_sequences = match limits.at_most {
            Some(at_most) => {
                let few = Fit { sequences: &self.sequences[..least], ..self };
                let share = at_most.as_secs_f64() / few.expected_seconds()?;
                ((least as f64 * share) as usize).min(self.sequences.len())
            }
            None => self.sequences.len(),
        };
        if n_sequences < least {
            return Ok((None, FitNotes::default()));
        }
        let (weights, notes) = Fit { sequences: &self.sequences[..n_sequences], ..self }.run()?;
        Ok((Some(weights), notes))
    }

    /// What a fit would take, after the first block's.
    fn expected_seconds(&self) -> Result<f64, StageError> {
        let origins = origins(self.student, self.teacher)?;
        let begun = self.host.elapsed();
        let (mut walk, mut streams) = self.begin(&origins)?;
        self.fit_block(0, &mut walk, &mut streams)?;
        // Each of the teacher's blocks is passed once, each of the student's twice.
        let blocks = |own: usize, teachers: usize| (2 * own + teachers) as f64;
        let (n_own, n_teachers) = (self.student.spec().n_layers, self.teacher.spec().n_layers);
        let first = blocks(1, walk.n_teachers());
        Ok((self.host.elapsed() - begun).as_secs_f64() * blocks(n_own, n_teachers) / first)
    }

    fn run(&self) -> Result<(MemorySource, FitNotes), StageError> {
        let spec = self.student.spec().clone();
        let origins = origins(self.student, self.teacher)?;
        let mut weights = BTreeMap::new();
        for &key in self.student.weights.keys() {
            weights.insert(key, self.student.weights.read(key).map_err(failed)?);
        }
        let (mut walk, mut streams) = self.begin(&origins)?;
        let mut errors = Vec::new();
        self.host.begin("fit", spec.n_layers as u64, "blocks");
        for block in 0..spec.n_layers {
            let FittedBlock { projections, error } = self.fit_block(block, &mut walk, &mut streams)?;
            for (role, numbers) in projections {
                let numbers = numbers.as_slice().expect("row order").to_vec();
                let key = TensorKey::block(block, role);
                let shape = weights[&key].shape().to_vec();
                weights.insert(key, Weight::from_f32(shape, &numbers).map_err(failed)?);
            }
            errors.push(error);
            self.host.advance_to(block as u64 + 1, &format!("{:.3} of the stream is missing", error[1]));
        }
        self.host.end();
        let source = MemorySource::new(spec, weights).map_err(failed)?;
        let n_tokens = self.sequences.iter().map(Vec::len).sum();
        Ok((source, FitNotes { seconds: 0.0, n_tokens, origins, errors }))
    }

    /// Both models before their first blocks.
    fn begin<'o>(&'o self, origins: &'o [usize]) -> Result<(Walk<'o>, Streams), StageError> {
        let embed = |model: &Checkpoint, tokens: &[Vec<TokenId>]| {
            let embedding = Embedding::of(model).map_err(failed)?;
            embedding.rows(tokens.iter().flatten()).map_err(StageError::Input)
        };
        let batches = || self.sequences.chunks(BATCH);
        let embedded = |model| batches().map(|some| embed(model, some)).collect::<Result<States, _>>();
        let sizes: Vec<[usize; 2]> = batches().map(|some| [some.len(), some[0].len()]).collect();
        let states = embedded(self.student)?;
        let teachers = embedded(self.teacher)?;
        let walk =
            Walk::new(self.teacher, origins, self.products, sizes.clone(), teachers, &|| self.check_stop())?;
        Ok((walk, Streams { sizes, states }))
    }

    /// Fits a block's projections and moves the student's states through it.
    fn fit_block(
        &self,
        block: usize,
        walk: &mut Walk<'_>,
        streams: &mut Streams,
    ) -> Result<FittedBlock, StageError> {
        let Wanted { before, between, own_between, own_after } = walk.next(&|| self.check_stop())?;
        let seq_len = self.sequences[0].len();
        let mut pass =
            BlockPass::load(&*self.student.weights, block, seq_len, self.products).map_err(failed)?;
        let readers = [Role::Query, Role::Key, Role::Value];
        let mut projections = self.turn(&mut pass, Role::AttnNorm, &readers, streams, &before)?;
        drop(before);
        let attends = |pass: &BlockPass, states: &[f32], sizes| pass.attend(states, sizes).attn_mix;
        let wanted = own_between.as_ref().unwrap_or(&between);
        let (output, _) = self.fit_added(&mut pass, Role::AttnOutput, &attends, streams, wanted)?;
        projections.extend(self.turn(
            &mut pass,
            Role::FfnNorm,
            &[Role::Gate, Role::Up],
            streams,
            &between,
        )?);
        let gates = |pass: &BlockPass, states: &[f32], sizes| pass.gated(states, sizes);
        let (down, error) = self.fit_added(&mut pass, Role::Down, &gates, streams, &own_after)?;
        projections.extend([(Role::AttnOutput, output), (Role::Down, down)]);
        Ok(FittedBlock { projections, error })
    }

    fn check_stop(&self) -> Result<(), StageError> {
        if self.host.stop_requested() {
            return Err(StageError::Interrupted("while fitting, which begins anew".to_owned()));
        }
        Ok(())
    }

    /// Turns the projections that read the stream behind a norm: `W' = W P`, where `P` brings what the norm gives in the student
    /// nearest to what it gives in the teacher.
    fn turn(
        &self,
        pass: &mut BlockPass,
        norm: Role,
        readers: &[Role],
        streams: &Streams,
        teachers: &States,
    ) -> Result<Vec<(Role, Array2<f32>)>, StageError> {
        let d = self.student.spec().d_model;
        let mut stats = RefitStats::empty(d, d);
        for (own, wanted) in streams.states.iter().zip(teachers) {
            self.check_stop()?;
            let [own, wanted] = [own, wanted].map(|states| pass.normed(norm, states));
            let missing: Vec<f32> = wanted.iter().zip(&own).map(|(wanted, own)| wanted - own).collect();
            stats.observe(rows(&own, d), rows(&missing, d), &vec![1.0; own.len() / d]);
        }
        let map = refit(Array2::eye(d).view(), &stats, DAMPING).map_err(failed)?.weight;
        let turned = readers.iter().map(|&role| {
            let numbers = pass.matrix(role).ok_or_else(|| failed(format!("a block without {role:?}")))?;
            let new = rows(numbers, d).dot(&map);
            pass.replace(role, new.iter().copied().collect());
            Ok((role, new))
        });
        turned.collect()
    }

    /// Refits a projection that adds to the stream, and moves the student's states past it. `inputs_of` gives what it is given.
    fn fit_added(
        &self,
        pass: &mut BlockPass,
        role: Role,
        inputs_of: &InputsOf,
        streams: &mut Streams,
        wanted: &States,
    ) -> Result<(Array2<f32>, [f64; 2]), StageError> {
        let d = self.student.spec().d_model;
        let old = matrix(pass, role, d)?;
        let mut stats = RefitStats::empty(old.ncols(), d);
        let mut inputs = Vec::new();
        for ((states, wanted), &sizes) in streams.states.iter().zip(wanted).zip(&streams.sizes) {
            self.check_stop()?;
            let input = inputs_of(pass, states, sizes);
            let mut out = states.clone();
            pass.add(role, &input, &mut out, sizes);
            observe(&mut stats, &input, &out, wanted, d);
            inputs.push(input);
        }
        let refitted = refit(old.view(), &stats, DAMPING).map_err(failed)?;
        pass.replace(role, refitted.weight.iter().copied().collect());
        for ((states, input), &sizes) in streams.states.iter_mut().zip(&inputs).zip(&streams.sizes) {
            pass.add(role, input, states, sizes);
        }
        // Tokens count by the inverse of their mean square: the sum over a row is d times a share.
        let errors = [refitted.error_before, refitted.error].map(|error| error / d as f64);
        Ok((refitted.weight, errors))
    }
}

fn matrix(pass: &BlockPass, role: Role, d_out: usize) -> Result<Array2<f32>, StageError> {
    let numbers = pass.matrix(role).ok_or_else(|| failed(format!("a block without {role:?}")))?;
    Ok(rows(numbers, numbers.len() / d_out).to_owned())
}

fn rows(numbers: &[f32], width: usize) -> ArrayView2<'_, f32> {
    ArrayView2::from_shape((numbers.len() / width, width), numbers).expect("whole rows")
}

/// What is missing from `found` to be `wanted`, each token's error being seen as a share of its size: what reads the
/// stream norms it first.
fn observe(stats: &mut RefitStats, inputs: &[f32], found: &[f32], wanted: &[f32], d: usize) {
    let missing: Vec<f32> = wanted.iter().zip(found).map(|(wanted, found)| wanted - found).collect();
    let mean_square = |row: &[f32]| row.iter().map(|x| x * x).sum::<f32>() / d as f32;
    let weights: Vec<f32> =
        wanted.chunks_exact(d).map(|row| 1.0 / mean_square(row).max(f32::MIN_POSITIVE)).collect();
    stats.observe(rows(inputs, inputs.len() / weights.len()), rows(&missing, d), &weights);
}

fn failed(error: impl std::fmt::Display) -> StageError {
    StageError::Failed(error.to_string())
}
