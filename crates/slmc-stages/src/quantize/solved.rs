//! Every tensor solved in each format that is a candidate for it, a block at a time, with what each would cost the model.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use ndarray::{Array2, ArrayView2};
use rayon::prelude::*;
use slmc_compress::quant::{Codes, Factor, Grid, Hessian, Outputs, SolveSettings, energies, solve};
use slmc_ir::{Checkpoint, Format, Role, TensorKey, Weight};
use slmc_recipe::StageError;

use super::{
    calibrate::{Input, Passes},
    pack::{grid_of, pack},
    scheme::Scheme,
    store::{Candidate, Solved, Store},
};

/// Formats to solve each tensor in.
pub type Wanted = BTreeMap<TensorKey, Vec<Format>>;

/// How tensors are solved.
#[derive(Clone, Copy)]
pub struct How {
    /// Added to the diagonal, as a share of its mean.
    pub damping: f64,
    /// Whole levels in groups; blocks' own grids when absent.
    pub scheme: Option<Scheme>,
}

impl How {
    fn grid_of(self, format: Format) -> Option<Grid> {
        self.scheme.map(Scheme::grid).or_else(|| grid_of(format))
    }

    fn pack(self, codes: &Codes, format: Format) -> Result<Weight, String> {
        match self.scheme {
            Some(scheme) => scheme.pack(codes, format),
            None => pack(codes, format),
        }
    }
}

/// Solves them all; what an earlier run has solved is kept. How long the passes over the text took comes back, too.
pub fn solve_all(
    passes: &Passes<'_>,
    how: How,
    wanted: &Wanted,
    token_counts: &[f64],
    store: &Arc<Store>,
) -> Result<(Vec<Solved>, Duration), StageError> {
    let spec = passes.checkpoint.spec();
    let n_layers = spec.n_layers;
    let mut all = Vec::new();
    let begun = passes.host.elapsed();
    let is_complete =
        (0..n_layers).all(|i| store.record(&part(i)).is_some()) && store.record("ends").is_some();
    if is_complete {
        for part in (0..n_layers).map(part).chain(["ends".to_owned()]) {
            all.extend(store.record(&part).into_iter().flatten());
        }
        return Ok((all, Duration::ZERO));
    }
    passes.forward()?;
    let head = passes.head()?;
    passes.host.begin("solve", n_layers as u64 + 1, "blocks");
    let mut in_passes = passes.host.elapsed() - begun;
    for index in (0..n_layers).rev() {
        let known = store.record(&part(index));
        let begun = passes.host.elapsed();
        let inputs = passes.back(index, known.is_none())?;
        in_passes += passes.host.elapsed() - begun;
        let solved = match known {
            Some(solved) => solved,
            None => {
                let solved = solve_block(passes, index, inputs, wanted, how, store)?;
                store.finish(&part(index), &solved)?;
                solved
            }
        };
        all.extend(solved);
        passes.host.advance_to((n_layers - index) as u64, "");
    }
    let solved = match store.record("ends") {
        Some(solved) => solved,
        None => {
            let solved = solve_ends(passes, head, wanted, token_counts, how.damping, store)?;
            store.finish("ends", &solved)?;
            solved
        }
    };
    all.extend(solved);
    passes.host.end();
    Ok((all, in_passes))
}

fn part(index: usize) -> String {
    format!("block-{index}")
}

/// The projections of a block.
fn solve_block(
    passes: &Passes<'_>,
    index: usize,
    inputs: Vec<Input>,
    wanted: &Wanted,
    how: How,
    store: &Store,
) -> Result<Vec<Solved>, StageError> {
    let mut solved = Vec::new();
    for input in inputs {
        solved.extend(solve_input(passes, index, input, wanted, how, store)?);
    }
    Ok(solved)
}

/// The projections that share an input.
fn solve_input(
    passes: &Passes<'_>,
    index: usize,
    input: Input,
    wanted: &Wanted,
    how: How,
    store: &Store,
) -> Result<Vec<Solved>, StageError> {
    let Input { hessian, weight, rows: all_rows, gradients, rounding } = input;
    let hessian = mean_of(hessian, weight);
    let mut factors = Factors { hessian: &hessian, damping: how.damping, found: Vec::new() };
    let mut projections = Vec::new();
    for ((role, rows), gradients) in all_rows.iter().zip(gradients) {
        let key = TensorKey::block(index, *role);
        let Some(formats) = wanted.get(&key) else { continue };
        let shape = key.shape(passes.checkpoint.spec());
        let weight = Array2::from_shape_vec((shape[0], shape[1]), weight_of(passes, key)?).map_err(failed)?;
        let n_tokens = passes.n_tokens() as f64;
        let by_rows: Vec<f64> = rows.iter().map(|&row| f64::from(row) / n_tokens).collect();
        let gradients = gradients.map(|sum| mean_of(sum, n_tokens));
        let energies = match &gradients {
            _ if rounding.is_empty() => Vec::new(),
            Some(gradients) => energies(weight.view(), gradients),
            None => energies_by_rows(weight.view(), &by_rows),
        };
        let inputs_kl = rounding.iter().map(|of| (of.block(), of.cost(&energies) / 2.0)).collect();
        let outputs = gradients.map(|mean| Outputs::new(&mean, OUTPUT_DAMPING));
        let outputs = outputs.transpose().map_err(|e| failed(format!("{key}: {e}")))?;
        let row_weights = match &outputs {
            Some(outputs) => outputs.weights().to_vec(),
            None => by_rows,
        };
        for &format in formats {
            let grid = how.grid_of(format).ok_or_else(|| failed(format!("{format} is not solved for")))?;
            factors.make(&grid).map_err(|e| failed(format!("{key}: {e}")))?;
        }
        projections.push(Projection { key, weight, outputs, row_weights, inputs_kl });
    }
    // Each format of each projection by itself: rows that make up for each other leave little to do at once.
    let each = projections.iter().flat_map(|of| wanted[&of.key].iter().map(move |&format| (of, format)));
    let each: Vec<(&Projection, Format)> = each.collect();
    let candidates = each.par_iter().map(|&(projection, format)| {
        let candidate = projection.solve(format, &factors, how, store)?;
        Ok((projection.key, candidate))
    });
    let candidates: Vec<(TensorKey, Candidate)> = candidates.collect::<Result<_, StageError>>()?;
    let of = |projection: &Projection| {
        let key = projection.key;
        let own = candidates.iter().filter(|(of, _)| *of == key).map(|(_, candidate)| candidate.clone());
        let dampings = factors.found.iter().map(|(_, factor)| factor.damping);
        Solved {
            tensor: key.to_string(),
            damping: dampings.fold(0.0, f64::max),
            n_dead: factors.found.first().map_or(0, |(_, factor)| factor.n_dead),
            couples_rows: projection.outputs.is_some(),
            candidates: own.collect(),
        }
    };
    Ok(projections.iter().map(of).collect())
}

/// A projection to be solved.
struct Projection {
    key: TensorKey,
    weight: Array2<f32>,
    /// What its rows have in common, where that is looked at.
    outputs: Option<Outputs>,
    /// What a row's error costs, twice.
    row_weights: Vec<f64>,
    /// What rounding its inputs in blocks of this width costs.
    inputs_kl: Vec<(usize, f64)>,
}

/// The cost of the width that a runtime takes for a format: the format's own. What schemes hold is multiplied by floats.
fn inputs_kl(of: &[(usize, f64)], format: Format) -> Option<f64> {
    of.iter().find(|(block, _)| *block == format.block_weights()).map(|(_, kl)| *kl)
}

/// `Σ over rows of r w²` of each column.
fn energies_by_rows(weight: ArrayView2<'_, f32>, row_weights: &[f64]) -> Vec<f64> {
    let mut sums = vec![0.0; weight.ncols()];
    for (row, by) in weight.rows().into_iter().zip(row_weights) {
        sums.iter_mut().zip(row).for_each(|(sum, &w)| *sum += by * f64::from(w) * f64::from(w));
    }
    sums
}

impl Projection {
    /// Solved in one format, and kept.
    fn solve(
        &self,
        format: Format,
        factors: &Factors<'_>,
        how: How,
        store: &Store,
    ) -> Result<Candidate, StageError> {
        let key = self.key;
        let grid = how.grid_of(format).ok_or_else(|| failed(format!("{format} is not solved for")))?;
        let (factor, settings) = (factors.of(&grid), SolveSettings::default());
        let codes = match &self.outputs {
            Some(outputs) => outputs.solve(self.weight.view(), factor, &grid, settings),
            None => solve(self.weight.view(), factor, &grid, settings),
        };
        let codes = codes.map_err(|e| failed(format!("{key}: {e}")))?;
        let packed = how.pack(&codes, format).map_err(failed)?;
        store.keep(key, &packed)?;
        let costs =
            codes.row_errors.iter().zip(&self.row_weights).map(|(error, weight)| error * weight / 2.0);
        Ok(Candidate {
            format,
            kl: Some(costs.sum()),
            inputs_kl: inputs_kl(&self.inputs_kl, format),
            relative_error: relative(codes.squares(self.weight.view())),
            n_bytes: packed.bytes().len() as u64,
        })
    }
}

/// Damping of what outputs have in common, as a share of the mean diagonal. Gradients tell less of that than inputs tell of
/// theirs: with a tenth of it rows make up for what other texts do not have.
const OUTPUT_DAMPING: f64 = 0.5;

/// The factors of one Hessian, for grids that cut columns in different ways.
struct Factors<'a> {
    hessian: &'a Hessian,
    damping: f64,
    found: Vec<([usize; 2], Factor)>,
}

impl Factors<'_> {
    fn make(&mut self, grid: &Grid) -> Result<(), slmc_compress::CompressError> {
        let cut = [grid.group, grid.unit()];
        if self.found.iter().all(|(known, _)| *known != cut) {
            self.found.push((cut, Factor::new(self.hessian, grid, self.damping, true)?));
        }
        Ok(())
    }

    /// The factor for a grid for which one was made.
    fn of(&self, grid: &Grid) -> &Factor {
        let cut = [grid.group, grid.unit()];
        let found = self.found.iter().find(|(known, _)| *known == cut);
        &found.expect("made before the solving began").1
    }
}

/// Rows of embedding and head that are decoded and solved at once: such a matrix is the largest of a model.
const ROWS_AT_ONCE: usize = 8192;

/// Classes of rows of a tied embedding, by how much they matter as inputs beside as outputs.
const CLASSES: usize = 6;

/// Embedding and head. A tied one is both: the error of its row `v` costs `ρ_v δᵀ H δ` as an output and `n_v δᵀ G δ` as an
/// input, `n_v` being how often the token comes. Rows with similar shares are solved together.
fn solve_ends(
    passes: &Passes<'_>,
    head: Input,
    wanted: &Wanted,
    token_counts: &[f64],
    damping: f64,
    store: &Store,
) -> Result<Vec<Solved>, StageError> {
    let spec = passes.checkpoint.spec();
    let n_tokens = passes.n_tokens() as f64;
    let total: f64 = token_counts.iter().sum();
    // A token that the text lacks may still come.
    let counts: Vec<f64> = token_counts
        .iter()
        .map(|count| (count + 0.2) / (total + 0.2 * token_counts.len() as f64) * n_tokens)
        .collect();
    let input = normalized(&passes.embedded()?, n_tokens);
    let output = normalized(&head.hessian, head.weight);
    let outputs: Vec<f64> = head.rows[0].1.iter().map(|&rho| f64::from(rho)).collect();
    let none = vec![0.0; spec.vocab_size];
    let mut all = Vec::new();
    for role in [Role::Embedding, Role::Head] {
        let key = TensorKey::model(role);
        let Some(formats) = wanted.get(&key) else { continue };
        let (ins, outs) = match (role, spec.tied_head) {
            (Role::Embedding, true) => (&counts, &outputs),
            (Role::Embedding, false) => (&counts, &none),
            _ => (&none, &outputs),
        };
        let weight = passes.checkpoint.weights.read(key).map_err(failed)?;
        let mut solved = Solved {
            tensor: key.to_string(),
            damping: 0.0,
            n_dead: 0,
            couples_rows: false,
            candidates: Vec::new(),
        };
        let energies = energies_of_head(&weight, outs, n_tokens)?;
        let rounding: Vec<(usize, f64)> =
            head.rounding.iter().map(|of| (of.block(), of.cost(&energies) / 2.0)).collect();
        let classes = classes(ins, outs, &input, &output);
        for &format in formats {
            let grid = grid_of(format).ok_or_else(|| failed(format!("{format} is not solved for")))?;
            let mut codes = Codes::empty(&grid, spec.vocab_size, spec.d_model);
            let (mut kl, mut squares) = (0.0, [0.0; 2]);
            for rows in classes.iter().filter(|rows| !rows.is_empty()) {
                let (a, b) = rows.iter().fold((0.0, 0.0), |(a, b), &row| (a + ins[row], b + outs[row]));
                let mut mixed = <Hessian as slmc_compress::LayerStats>::empty(spec.d_model);
                mixed.add_scaled(&input, (a / rows.len() as f64) as f32);
                mixed.add_scaled(&output, (b / rows.len() as f64) as f32);
                let factor =
                    Factor::new(&mixed, &grid, damping, true).map_err(|e| failed(format!("{key}: {e}")))?;
                (solved.damping, solved.n_dead) = (factor.damping, factor.n_dead);
                for rows in rows.chunks(ROWS_AT_ONCE) {
                    let numbers = slmc_blocks::decode_weight(&weight.with_rows(rows)).map_err(failed)?;
                    let part =
                        ArrayView2::from_shape((rows.len(), spec.d_model), &numbers).map_err(failed)?;
                    let found = solve(part, &factor, &grid, SolveSettings::default());
                    let found = found.map_err(|e| failed(format!("{key}: {e}")))?;
                    kl += found.row_errors.iter().sum::<f64>() / 2.0 / n_tokens;
                    let own = found.squares(part);
                    squares = [squares[0] + own[0], squares[1] + own[1]];
                    codes.put_rows(&found, rows);
                }
            }
            slmc_formats::release(weight.bytes());
            let packed = pack(&codes, format).map_err(failed)?;
            store.keep(key, &packed)?;
            solved.candidates.push(Candidate {
                format,
                kl: Some(kl),
                inputs_kl: inputs_kl(&rounding, format),
                relative_error: relative(squares),
                n_bytes: packed.bytes().len() as u64,
            });
        }
        all.push(solved);
    }
    Ok(all)
}

/// What an error of each input of a head costs. As an embedding a matrix is looked up, and nothing is rounded.
fn energies_of_head(weight: &Weight, outs: &[f64], n_tokens: f64) -> Result<Vec<f64>, StageError> {
    let mut energies = vec![0.0; weight.n_columns()];
    let rows: Vec<usize> = (0..weight.n_rows()).collect();
    for rows in rows.chunks(ROWS_AT_ONCE) {
        let numbers = slmc_blocks::decode_weight(&weight.with_rows(rows)).map_err(failed)?;
        let part = ArrayView2::from_shape((rows.len(), energies.len()), &numbers).map_err(failed)?;
        let by_rows: Vec<f64> = rows.iter().map(|&row| outs[row] / n_tokens).collect();
        energies.iter_mut().zip(energies_by_rows(part, &by_rows)).for_each(|(sum, part)| *sum += part);
    }
    Ok(energies)
}

/// Rows by the share of their input part, in equal steps of its logarithm.
fn classes(ins: &[f64], outs: &[f64], input: &Hessian, output: &Hessian) -> Vec<Vec<usize>> {
    let trace = |hessian: &Hessian| hessian.diagonal().iter().map(|&h| f64::from(h)).sum::<f64>().max(1e-30);
    let (of_input, of_output) = (trace(input), trace(output));
    let share = |row: usize| ((ins[row] * of_input + 1e-30) / (outs[row] * of_output + 1e-30)).ln();
    let mut classes = vec![Vec::new(); CLASSES];
    for row in 0..ins.len() {
        // From 1 : 8 to 8 : 1; beyond that one part is all that counts.
        let class = (share(row) / 8.0_f64.ln() + 1.0) / 2.0 * CLASSES as f64;
        classes[class.clamp(0.0, CLASSES as f64 - 1.0) as usize].push(row);
    }
    classes
}

/// As [`normalized`], in the sum's own memory.
fn mean_of(mut sum: Hessian, weight: f64) -> Hessian {
    sum.scale(if weight > 0.0 { (1.0 / weight) as f32 } else { 0.0 });
    sum
}

/// A Hessian divided by the weight of its tokens.
pub(super) fn normalized(hessian: &Hessian, weight: f64) -> Hessian {
    let mut mean = <Hessian as slmc_compress::LayerStats>::empty(hessian.n_columns());
    mean.add_scaled(hessian, if weight > 0.0 { (1.0 / weight) as f32 } else { 0.0 });
    mean
}

/// Squared error over squares.
fn relative([error, squares]: [f64; 2]) -> f64 {
    error / squares.max(1e-300)
}

pub(super) fn weight_of(passes: &Passes<'_>, key: TensorKey) -> Result<Vec<f32>, StageError> {
    weight_in(passes.checkpoint, key)
}

/// A tensor's numbers.
pub(super) fn weight_in(checkpoint: &Checkpoint, key: TensorKey) -> Result<Vec<f32>, StageError> {
    let weight = checkpoint.weights.read(key).map_err(failed)?;
    slmc_blocks::decode_weight(&weight).map_err(failed)
}

pub(super) fn failed(error: impl std::fmt::Display) -> StageError {
    StageError::Failed(error.to_string())
}
