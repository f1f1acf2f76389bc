//! Ways to round a model: channels scaled or not, brought beside their like or not, and then to nearest or with errors made up for.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use slmc_interop::Encoded;
use slmc_ir::{ChannelOrder, ChannelScales, Checkpoint, Format, Lineage, TensorKey, TokenId, WeightSource};
use slmc_model::Products;
use slmc_recipe::{StageContext, StageError};

use super::{
    Goal, Method, Quantize, awq,
    calibrate::Passes,
    order,
    scales::{self, Nearest, Rounding, SEARCHED_SEQUENCES},
    solved::{How, Wanted, failed, solve_all},
    spill::Spill,
    store::{Solved, Store},
};

/// A way to round a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Way {
    /// Channels are scaled first (AWQ).
    pub scales: bool,
    /// Channels are brought beside their like.
    pub reorders: bool,
    /// Errors are made up for by the weights not rounded yet (GPTQ); else each weight goes to the nearest level.
    pub makes_up: bool,
}

impl Way {
    /// In words.
    pub fn name(self) -> String {
        let mut name = match (self.scales, self.makes_up) {
            (false, false) => "rtn",
            (true, false) => "awq",
            (false, true) => "gptq",
            (true, true) => "awq, gptq",
        }
        .to_owned();
        if self.reorders {
            name.push_str(", channels reordered");
        }
        name
    }
}

/// What is rounded, and by what text.
pub struct Work<'a> {
    pub input: &'a Checkpoint,
    /// The formats that each matrix is solved in.
    pub wanted: &'a Wanted,
    /// What each is rounded to where that is one thing, and scales are searched for.
    pub rounding: &'a Rounding,
    /// What is stored in another float format.
    pub floats: &'a BTreeMap<TensorKey, Format>,
    pub sequences: &'a [Vec<TokenId>],
    /// How often each token comes in the whole text.
    pub counts: &'a [f64],
    /// Where it is done; kept between sittings.
    pub store: Arc<Store>,
    pub context: &'a StageContext<'a>,
}

/// What files are put together from.
pub struct Material {
    /// The model before rounding, its channels as they will be.
    pub before: Checkpoint,
    /// What is not solved.
    pub inner: Arc<dyn WeightSource>,
    pub solved: BTreeMap<TensorKey, Solved>,
    pub store: Arc<Store>,
    pub order: Option<ChannelOrder>,
    pub scales: Option<ChannelScales>,
    /// What the passes over the text took, and all else; not known where an earlier sitting did a part.
    pub seconds: Option<[f64; 2]>,
}

impl Material {
    /// The history's last step says what was done to channels.
    pub fn note_channels(&self, lineage: &mut Lineage) {
        if let Some(step) = lineage.steps.last_mut() {
            step.channel_order.clone_from(&self.order);
            step.channel_scales.clone_from(&self.scales);
        }
    }
}

impl Quantize {
    /// Rounds every matrix that is wanted in each of its formats.
    pub(super) fn material(&self, way: Way, work: &Work<'_>) -> Result<Material, StageError> {
        let Work { input, wanted, rounding, floats, sequences, counts, ref store, context } = *work;
        let begun = context.host.elapsed();
        let is_begun = store.holds(if way.makes_up { "block-" } else { "scales-" });
        let mut in_passes = Duration::ZERO;
        let mut before = input.clone();
        let spill = || Spill::create(context.folder.join("activations"));
        let mut found = Vec::new();
        if way.scales {
            // Exponents are few; who asks for AWQ alone says on how much text.
            let most = if self.method == Method::Awq { sequences.len() } else { SEARCHED_SEQUENCES };
            let sequences = spread(sequences, most);
            let passes = self.passes(false, input, &sequences, spill()?, context);
            found = scales::find_all(&passes, rounding, store)?;
            before = scales::scaled(input, &scales::steps(&found));
        }
        let mut order = None;
        if way.reorders {
            let (reordered, found) = order::reordered(&before, sequences, store, context.host)?;
            (before, order) = (reordered, Some(found));
        }
        let inner = Encoded::new(Arc::clone(&before.weights), floats.clone()).map_err(failed)?;
        let solved = if way.makes_up {
            let passes = self.passes(true, &before, sequences, spill()?, context);
            let how = How { damping: self.config.damping, scheme: self.scheme() };
            let (solved, seconds) = solve_all(&passes, how, wanted, counts, store)?;
            in_passes += seconds;
            solved
        } else {
            awq::round_all(&before, &found, rounding, store, context.host)?
        };
        let by_name: BTreeMap<String, Solved> =
            solved.into_iter().map(|solved| (solved.tensor.clone(), solved)).collect();
        let solved = wanted
            .keys()
            .filter_map(|key| by_name.get(&key.to_string()).map(|solved| (*key, solved.clone())))
            .collect();
        let all = (context.host.elapsed() - begun).as_secs_f64();
        let in_passes = in_passes.as_secs_f64();
        let scales = way.scales.then(|| scales::steps(&found));
        let store = Arc::clone(store);
        let seconds = (!is_begun).then_some([in_passes, all - in_passes]);
        Ok(Material { before, inner: Arc::new(inner), solved, store, order, scales, seconds })
    }

    fn passes<'a>(
        &self,
        makes_up: bool,
        checkpoint: &'a Checkpoint,
        sequences: &'a [Vec<TokenId>],
        spill: Spill,
        context: &StageContext<'a>,
    ) -> Passes<'a> {
        Passes {
            checkpoint,
            sequences,
            spill,
            products: Products::half().unwrap_or_default(),
            couples_rows: makes_up,
            rounds_inputs: makes_up && self.scheme().is_none(),
            seed: context.seed,
            host: context.host,
        }
    }

    /// What each matrix is rounded to where that is one thing.
    pub(super) fn rounding(&self, wanted: &Wanted) -> Rounding {
        let nearest = |format: Format| match self.goal {
            Goal::Integers(scheme) => Nearest::Groups(scheme, format),
            _ => Nearest::Blocks(format),
        };
        let one = |(key, formats): (&TensorKey, &Vec<Format>)| Some((*key, nearest(*formats.first()?)));
        wanted.iter().filter_map(one).collect()
    }
}

/// So many of them, or all, spread evenly.
pub fn spread(sequences: &[Vec<TokenId>], n: usize) -> Vec<Vec<TokenId>> {
    let n = n.min(sequences.len());
    (0..n).map(|i| sequences[i * sequences.len() / n].clone()).collect()
}
