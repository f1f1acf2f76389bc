//! A carved student fitted to its teacher before the training: block by block, what attention and MLP add to the residual
//! stream is refitted to make the teacher's stream, in closed form ([`slmc_compress::refit`]). What blocks that were
//! removed did becomes the work of the blocks before and after them.

use std::{collections::BTreeMap, ops::Range, path::Path, sync::Arc, time::Duration};

use ndarray::{Array2, ArrayView2};
use serde::{Deserialize, Serialize};
use slmc_compress::{RefitStats, refit};
use slmc_interop::{WriteOptions, write_hf_folder};
use slmc_ir::{Checkpoint, Format, Host, MemorySource, Role, TensorKey, TokenId, Weight};
use slmc_model::{BlockPass, Products};
use slmc_recipe::{StageContext, StageError};

use crate::{kept, open::open_model};

/// Sequences that run through a block at once.
const BATCH: usize = 4;
/// Holds the projections near what they were, where the text does not say otherwise. What is fitted to one text is to
/// serve another: on 24,576 tokens 0.1 and 0.5 did better on held-out text than 0.01, and alike.
const DAMPING: f64 = 0.3;
/// A carved block's queries are its teacher's; a trained one's may have moved by this share of their norm.
const LARGEST_DISTANCE: f64 = 0.5;

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
    /// Of each block, the mean squared distance to the teacher's stream after it, as a share of the stream's
    /// mean square, before the down projection's fit and after it, on the tokens that were fitted to.
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
    projections: [(Role, Array2<f32>); 2],
    /// As in [`FitNotes::errors`].
    error: [f64; 2],
}

/// Hidden states of some sequences, `[n_tokens, d_model]`, in both models.
struct Streams {
    sizes: [usize; 2],
    student: Vec<f32>,
    teacher: Vec<f32>,
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
        let origins = self.origins()?;
        let mut streams = self.embedded()?;
        let begun = self.host.elapsed();
        self.fit_block(0, &origins, &mut streams)?;
        // Each of the teacher's blocks is passed once, each of the student's twice.
        let blocks = |own: usize, teachers: usize| (2 * own + teachers) as f64;
        let (n_own, n_teachers) = (self.student.spec().n_layers, self.teacher.spec().n_layers);
        let first = blocks(1, self.next_origin(0, &origins));
        Ok((self.host.elapsed() - begun).as_secs_f64() * blocks(n_own, n_teachers) / first)
    }

    fn run(&self) -> Result<(MemorySource, FitNotes), StageError> {
        let spec = self.student.spec().clone();
        let origins = self.origins()?;
        let mut weights = BTreeMap::new();
        for &key in self.student.weights.keys() {
            weights.insert(key, self.student.weights.read(key).map_err(failed)?);
        }
        let mut streams = self.embedded()?;
        let mut errors = Vec::new();
        self.host.begin("fit", spec.n_layers as u64, "blocks");
        for block in 0..spec.n_layers {
            let FittedBlock { projections, error } = self.fit_block(block, &origins, &mut streams)?;
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

    /// Fits a block's two projections and moves the streams through it.
    fn fit_block(
        &self,
        block: usize,
        origins: &[usize],
        streams: &mut [Streams],
    ) -> Result<FittedBlock, StageError> {
        let between = self.teacher_states(origins[block]..self.next_origin(block, origins), streams)?;
        let mut pass = self.load(self.student, block)?;
        let attention = self.fit_attention(&mut pass, streams, &between)?;
        let (down, error) = self.fit_mlp(&mut pass, streams)?;
        Ok(FittedBlock { projections: [(Role::AttnOutput, attention), (Role::Down, down)], error })
    }

    /// The teacher's block that the student's next one came from; one past its last after the student's last.
    fn next_origin(&self, block: usize, origins: &[usize]) -> usize {
        origins.get(block + 1).copied().unwrap_or(self.teacher.spec().n_layers)
    }

    fn load(&self, model: &Checkpoint, block: usize) -> Result<BlockPass, StageError> {
        BlockPass::load(&*model.weights, block, self.sequences[0].len(), self.products).map_err(failed)
    }

    fn check_stop(&self) -> Result<(), StageError> {
        if self.host.stop_requested() {
            return Err(StageError::Interrupted("while fitting, which begins anew".to_owned()));
        }
        Ok(())
    }

    /// Of each of the student's blocks, the teacher's block that it came from: the one with its queries.
    fn origins(&self) -> Result<Vec<usize>, StageError> {
        let [ours, theirs] = [self.student, self.teacher].map(|model| model.spec().d_model);
        if ours != theirs {
            return Err(StageError::Input(format!(
                "fit_tokens: the student's d_model is {ours} and the teacher's {theirs}: leave it at 0"
            )));
        }
        let queries = |model: &Checkpoint, block: usize| {
            let weight = model.weights.read(TensorKey::block(block, Role::Query)).map_err(failed)?;
            slmc_blocks::decode_weight(&weight).map_err(failed)
        };
        let n_teacher = self.teacher.spec().n_layers;
        let teachers: Vec<Vec<f32>> =
            (0..n_teacher).map(|block| queries(self.teacher, block)).collect::<Result<_, _>>()?;
        let mut origins: Vec<usize> = Vec::new();
        for block in 0..self.student.spec().n_layers {
            let own = queries(self.student, block)?;
            let first = origins.last().map_or(0, |last| last + 1);
            let distances = (first..n_teacher).map(|other| (other, distance(&own, &teachers[other])));
            let nearest = distances.min_by(|a, b| a.1.total_cmp(&b.1));
            match nearest.filter(|&(_, distance)| distance < LARGEST_DISTANCE) {
                Some((origin, _)) => origins.push(origin),
                None => {
                    return Err(StageError::Input(format!(
                        "fit_tokens: the student's block {block} is none of the teacher's: only a student that was \
                         carved out of its teacher can be fitted to it; leave it at 0"
                    )));
                }
            }
        }
        Ok(origins)
    }

    fn embedded(&self) -> Result<Vec<Streams>, StageError> {
        let embed = |model: &Checkpoint, tokens: &[Vec<TokenId>]| {
            let table = model.weights.read(TensorKey::model(Role::Embedding)).map_err(failed)?;
            let rows: Vec<usize> = tokens.iter().flatten().map(|&token| token as usize).collect();
            slmc_blocks::decode_weight(&table.with_rows(&rows)).map_err(failed)
        };
        let streams = self.sequences.chunks(BATCH).map(|some| {
            let sizes = [some.len(), some[0].len()];
            Ok(Streams { sizes, student: embed(self.student, some)?, teacher: embed(self.teacher, some)? })
        });
        streams.collect()
    }

    /// Moves the teacher's streams through some of its blocks; its hidden states between the first one's attention and MLP.
    fn teacher_states(
        &self,
        blocks: Range<usize>,
        streams: &mut [Streams],
    ) -> Result<Vec<Vec<f32>>, StageError> {
        let mut between = Vec::new();
        for block in blocks.clone() {
            let pass = self.load(self.teacher, block)?;
            for streams in streams.iter_mut() {
                self.check_stop()?;
                let states = pass.attend(&streams.teacher, streams.sizes).after_attention;
                let product = pass.gated(&states, streams.sizes);
                streams.teacher.copy_from_slice(&states);
                pass.add(Role::Down, &product, &mut streams.teacher, streams.sizes);
                if block == blocks.start {
                    between.push(states);
                }
            }
        }
        Ok(between)
    }

    /// Also moves the student's streams through the attention as it then is.
    fn fit_attention(
        &self,
        pass: &mut BlockPass,
        streams: &mut [Streams],
        between: &[Vec<f32>],
    ) -> Result<Array2<f32>, StageError> {
        let d = self.student.spec().d_model;
        let old = matrix(pass, Role::AttnOutput, d)?;
        let mut stats = RefitStats::empty(old.ncols(), d);
        let mut mixes = Vec::new();
        for (streams, wanted) in streams.iter().zip(between) {
            self.check_stop()?;
            let mixed = pass.attend(&streams.student, streams.sizes);
            observe(&mut stats, &mixed.attn_mix, &mixed.after_attention, wanted, d);
            mixes.push(mixed.attn_mix);
        }
        let new = refit(old.view(), &stats, DAMPING).map_err(failed)?.weight;
        pass.replace(Role::AttnOutput, new.iter().copied().collect());
        for (streams, mix) in streams.iter_mut().zip(&mixes) {
            pass.add(Role::AttnOutput, mix, &mut streams.student, streams.sizes);
        }
        Ok(new)
    }

    /// As [`Fit::fit_attention`].
    fn fit_mlp(
        &self,
        pass: &mut BlockPass,
        streams: &mut [Streams],
    ) -> Result<(Array2<f32>, [f64; 2]), StageError> {
        let d = self.student.spec().d_model;
        let old = matrix(pass, Role::Down, d)?;
        let mut stats = RefitStats::empty(old.ncols(), d);
        let mut products = Vec::new();
        for streams in streams.iter() {
            self.check_stop()?;
            let product = pass.gated(&streams.student, streams.sizes);
            let mut out = streams.student.clone();
            pass.add(Role::Down, &product, &mut out, streams.sizes);
            observe(&mut stats, &product, &out, &streams.teacher, d);
            products.push(product);
        }
        let refitted = refit(old.view(), &stats, DAMPING).map_err(failed)?;
        pass.replace(Role::Down, refitted.weight.iter().copied().collect());
        for (streams, product) in streams.iter_mut().zip(&products) {
            pass.add(Role::Down, product, &mut streams.student, streams.sizes);
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

/// As a share of the other's norm; none is too far where the sizes differ.
fn distance(own: &[f32], other: &[f32]) -> f64 {
    if own.len() != other.len() {
        return f64::INFINITY;
    }
    let square = |x: f32| f64::from(x) * f64::from(x);
    let apart: f64 = own.iter().zip(other).map(|(a, b)| square(a - b)).sum();
    let norm: f64 = other.iter().map(|&x| square(x)).sum();
    (apart / norm.max(f64::MIN_POSITIVE)).sqrt()
}

fn failed(error: impl std::fmt::Display) -> StageError {
    StageError::Failed(error.to_string())
}
