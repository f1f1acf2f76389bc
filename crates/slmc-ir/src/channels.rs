//! The channels of a model beside those of the one that it was made from.

use crate::{ChannelOrder, ChannelScales, Lineage, ModelSpec, Reordering, TensorKey, scales::BlockScales};

/// Where each channel stands, and what the weights that read it are multiplied by: all that stages may do to a model's channels
/// while its function stays.
#[derive(Clone, Debug, PartialEq)]
pub struct Channels {
    /// Where each stands.
    pub order: Reordering,
    /// The scales of each block, of channels where they stand.
    pub scales: Vec<BlockScales<Vec<f32>>>,
}

impl Channels {
    /// Everything as it was.
    pub fn none(spec: &ModelSpec) -> Self {
        Self { order: Reordering::none(spec), scales: vec![BlockScales::none(spec); spec.n_layers] }
    }

    /// What a model's steps have done to its channels, all in all. Steps at which it had another shape do not count.
    pub fn of(lineage: &Lineage, spec: &ModelSpec) -> Self {
        let mut all = Self::none(spec);
        for step in &lineage.steps {
            if let Some(scales) = step.channel_scales.as_ref().filter(|scales| scales.fits(spec)) {
                all.scale(scales);
            }
            if let Some(order) = &step.channel_order {
                all.reorder(order);
            }
        }
        all
    }

    /// This, and then scales.
    pub fn scale(&mut self, scales: &ChannelScales) {
        for (all, scales) in self.scales.iter_mut().zip(scales.numbers()) {
            *all = all.with(&scales, |a, b| a * b);
        }
    }

    /// This, and then another order.
    pub fn reorder(&mut self, order: &ChannelOrder) {
        self.order.follow(order);
        let stream = order.stream.order();
        let is_of_all = order.hidden.len() == self.scales.len();
        for (index, block) in self.scales.iter_mut().enumerate() {
            let hidden = if is_of_all { order.hidden[index].order() } else { &[] };
            *block = block.moved(stream, hidden);
        }
    }

    /// What brings a model with those channels to these: both are of the same model.
    pub fn relative_to(&self, that: &Self) -> Self {
        let order = self.order.relative_to(&that.order);
        let pairs = self.scales.iter().zip(&that.scales).zip(&order.hidden);
        let relative = pairs
            .map(|((ours, theirs), hidden)| ours.with(&theirs.moved(&order.stream, hidden), |a, b| a / b));
        Self { scales: relative.collect(), order }
    }

    /// The same scales of the same channels where they stood first: what folders of such a model hold.
    pub fn in_first_order(&self) -> Self {
        let none = Reordering::none_of(&self.order);
        let order = none.relative_to(&self.order);
        let blocks = self.scales.iter().zip(&order.hidden);
        let scales = blocks.map(|(block, hidden)| block.moved(&order.stream, hidden)).collect();
        Self { order: none, scales }
    }

    /// What is moved of a tensor, `[rows, columns]`: row `i` of the result is row `rows[i]`. A vector's numbers are its rows.
    /// Nothing where all stays in its place.
    pub fn moves(&self, key: TensorKey) -> [Option<&[usize]>; 2] {
        let moves = |order: &&[usize]| order.iter().enumerate().any(|(i, &channel)| i != channel);
        self.order.moves(key).map(|order| order.filter(moves))
    }

    /// What its rows and columns are multiplied by, where they stand then.
    pub fn factors(&self, key: TensorKey, spec: &ModelSpec) -> [Option<Vec<f32>>; 2] {
        let block = key.block.and_then(|index| self.scales.get(index)).filter(|block| !block.is_none());
        block.map_or([None, None], |block| block.factors(key, spec))
    }

    /// Whether a channel is larger or smaller than it was.
    pub fn is_scaled(&self) -> bool {
        !self.scales.iter().all(BlockScales::is_none)
    }

    /// Whether everything is as it was.
    pub fn is_none(&self) -> bool {
        !self.is_scaled() && self.order.is_none()
    }
}

impl BlockScales<Vec<f32>> {
    fn is_none(&self) -> bool {
        self.each().into_iter().flatten().all(|&scale| scale == 1.0)
    }

    fn with(&self, other: &Self, f: impl Fn(f32, f32) -> f32) -> Self {
        let both = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f(a, b)).collect();
        Self {
            attn: both(&self.attn, &other.attn),
            value: both(&self.value, &other.value),
            ffn: both(&self.ffn, &other.ffn),
            hidden: both(&self.hidden, &other.hidden),
        }
    }

    /// Of the same channels in another order; one of another shape changes nothing.
    fn moved(&self, stream: &[usize], hidden: &[usize]) -> Self {
        let moved = |scales: &Vec<f32>, order: &[usize]| match order.len() == scales.len() {
            true => order.iter().map(|&channel| scales[channel]).collect(),
            false => scales.clone(),
        };
        Self {
            attn: moved(&self.attn, stream),
            value: self.value.clone(),
            ffn: moved(&self.ffn, stream),
            hidden: moved(&self.hidden, hidden),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{Activation, Biases, BlockOrder, Family, RopeScaling, ScaleSteps, Step};

    fn small() -> ModelSpec {
        ModelSpec {
            family: Family::Llama,
            vocab_size: 11,
            context_len: 32,
            d_model: 10,
            n_layers: 2,
            n_heads: 4,
            n_kv_heads: 2,
            d_head: 2,
            d_ff: 14,
            norm_eps: 1e-5,
            rope_theta: 10_000.0,
            rope_scaling: RopeScaling::None,
            activation: Activation::Silu,
            biases: Biases::default(),
            qk_norm: false,
            tied_head: true,
        }
    }

    fn step(channel_scales: Option<ChannelScales>, channel_order: Option<ChannelOrder>) -> Step {
        Step {
            stage: "scale".to_owned(),
            slmc_version: "0.1.0".to_owned(),
            settings: json!({}),
            seed: 0,
            inputs: Vec::new(),
            fallbacks: Vec::new(),
            channel_order,
            channel_scales,
        }
    }

    fn scales(spec: &ModelSpec, phase: f32) -> ChannelScales {
        let block = |index: usize| {
            BlockScales::none(spec).map(|ones| {
                let one = |i: usize| ((i + index) as f32 + phase).sin().exp2();
                ScaleSteps::nearest(&(0..ones.len()).map(one).collect::<Vec<_>>())
            })
        };
        ChannelScales { blocks: (0..spec.n_layers).map(block).collect() }
    }

    fn order(spec: &ModelSpec, step: usize) -> ChannelOrder {
        let shuffled = |n: usize| BlockOrder::new((0..n).map(|i| (i * step + 3) % n).collect(), 1).unwrap();
        ChannelOrder { stream: shuffled(spec.d_model), hidden: vec![shuffled(spec.d_ff); spec.n_layers] }
    }

    /// What the steps make of numbers that stand for the readers' weights.
    fn by_hand(spec: &ModelSpec, steps: &[Step], index: usize) -> [Vec<f32>; 2] {
        let mut weights =
            [spec.d_model, spec.d_ff].map(|n| (0..n).map(|i| i as f32 + 1.0).collect::<Vec<f32>>());
        for step in steps {
            if let Some(scales) = &step.channel_scales {
                let block = &scales.numbers()[index];
                for (weights, scales) in weights.iter_mut().zip([&block.ffn, &block.hidden]) {
                    weights.iter_mut().zip(scales).for_each(|(w, s)| *w *= s);
                }
            }
            if let Some(order) = &step.channel_order {
                let orders = [order.stream.order(), order.hidden[index].order()];
                for (weights, order) in weights.iter_mut().zip(orders) {
                    *weights = order.iter().map(|&channel| weights[channel]).collect();
                }
            }
        }
        weights
    }

    #[test]
    fn steps_one_after_the_other_and_from_one_to_another() {
        let spec = small();
        let steps = [
            step(Some(scales(&spec, 0.0)), None),
            step(None, Some(order(&spec, 11))),
            step(Some(scales(&spec, 1.0)), Some(order(&spec, 9))),
        ];
        let upto = |n: usize| Channels::of(&Lineage { steps: steps[..n].to_vec() }, &spec);
        assert!(upto(0).is_none() && !upto(1).is_none() && upto(1).order.is_none() && !upto(3).is_none());
        let index = spec.n_layers - 1;
        for (from, to) in [(0, 1), (0, 3), (1, 3), (3, 1), (2, 0)] {
            let (before, after) =
                (by_hand(&spec, &steps[..from], index), by_hand(&spec, &steps[..to], index));
            let way = upto(to).relative_to(&upto(from));
            let orders = [&way.order.stream, &way.order.hidden[index]];
            let block = &way.scales[index];
            for (which, (order, scales)) in orders.into_iter().zip([&block.ffn, &block.hidden]).enumerate() {
                for (i, (&channel, scale)) in order.iter().zip(scales).enumerate() {
                    let found = before[which][channel] * scale;
                    assert!((found / after[which][i] - 1.0).abs() < 1e-5, "{from} {to} {which} {i}");
                }
            }
        }
    }

    #[test]
    fn steps_of_another_shape_do_not_count() {
        let spec = small();
        let other = ModelSpec { d_ff: spec.d_ff + 1, n_layers: spec.n_layers + 1, ..spec.clone() };
        let lineage = Lineage { steps: vec![step(Some(scales(&other, 0.0)), None)] };
        assert!(Channels::of(&lineage, &spec).is_none());
    }
}
