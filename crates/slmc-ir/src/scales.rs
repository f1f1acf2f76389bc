//! Channels that were made larger.
//!
//! Where something in front of a projection can be divided by as much, the weights that read a channel may be multiplied by
//! any number, and the function stays: norms stand before queries, keys, values, gates and ups, rows of values before outputs, rows of
//! ups before downs. A stage that does so leaves tensors that cannot be laid beside those of the model before. So its
//! [`Step`](crate::Step) says which numbers those are.

use serde::{Deserialize, Serialize};

use crate::{ModelSpec, Part, Role, TensorKey};

/// What a stage multiplied the weights by, for each block.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ChannelScales {
    /// In the order of blocks.
    pub blocks: Vec<BlockSteps>,
}

/// The scales of a block.
pub type BlockSteps = BlockScales<ScaleSteps>;

/// What stands for the scales of a block's channels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlockScales<T> {
    /// Of what queries, keys and values read, `d_model` channels.
    pub attn: T,
    /// Of the heads' values, `n_kv_heads · d_head` channels.
    pub value: T,
    /// Of what gates and ups read, `d_model` channels.
    pub ffn: T,
    /// Of the MLP's channels, `d_ff`.
    pub hidden: T,
}

impl<T> BlockScales<T> {
    /// The same of each.
    pub fn map<U>(&self, mut f: impl FnMut(&T) -> U) -> BlockScales<U> {
        BlockScales { attn: f(&self.attn), value: f(&self.value), ffn: f(&self.ffn), hidden: f(&self.hidden) }
    }

    pub(crate) fn each(&self) -> [&T; 4] {
        [&self.attn, &self.value, &self.ffn, &self.hidden]
    }
}

impl ChannelScales {
    /// Whether a model of this shape has these channels.
    pub fn fits(&self, spec: &ModelSpec) -> bool {
        let sizes = n_channels(spec);
        let fits =
            |block: &BlockSteps| block.each().iter().zip(sizes).all(|(steps, n)| steps.n_channels() == n);
        self.blocks.len() == spec.n_layers && self.blocks.iter().all(fits)
    }

    /// The scales as numbers.
    pub fn numbers(&self) -> Vec<BlockScales<Vec<f32>>> {
        self.blocks.iter().map(|block| block.map(ScaleSteps::scales)).collect()
    }
}

/// In the order of the fields.
fn n_channels(spec: &ModelSpec) -> [usize; 4] {
    [spec.d_model, spec.n_kv_heads * spec.d_head, spec.d_model, spec.d_ff]
}

impl BlockScales<Vec<f32>> {
    /// Nothing scaled.
    pub fn none(spec: &ModelSpec) -> Self {
        let [attn, value, ffn, hidden] = n_channels(spec).map(|n| vec![1.0; n]);
        Self { attn, value, ffn, hidden }
    }

    /// What a tensor's rows and columns are multiplied by, where that is not 1 alone. A vector's numbers are its rows.
    pub fn factors(&self, key: TensorKey, spec: &ModelSpec) -> [Option<Vec<f32>>; 2] {
        let changing =
            |factors: Option<Vec<f32>>| factors.filter(|all| all.iter().any(|&factor| factor != 1.0));
        let inverse = |scales: &[f32]| Some(scales.iter().map(|scale| 1.0 / scale).collect());
        let [rows, columns] = match key.role {
            Role::AttnNorm => [inverse(&self.attn), None],
            Role::FfnNorm => [inverse(&self.ffn), None],
            Role::Query | Role::Key => [None, Some(self.attn.clone())],
            Role::Value => [inverse(&self.value), Some(self.attn.clone())],
            Role::AttnOutput => [None, Some(self.of_heads(spec))],
            Role::Gate => [None, Some(self.ffn.clone())],
            Role::Up => [inverse(&self.hidden), Some(self.ffn.clone())],
            Role::Down => [None, Some(self.hidden.clone())],
            _ => [None, None],
        };
        [rows, if key.part == Part::Bias { None } else { columns }].map(changing)
    }

    /// Those of the values that each query head gives.
    fn of_heads(&self, spec: &ModelSpec) -> Vec<f32> {
        spec.value_channels().into_iter().map(|channel| self.value[channel]).collect()
    }
}

/// Scales in steps of a sixth of a power of two, from about a fortieth to about forty.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ScaleSteps(Vec<u8>);

/// Steps to a power of two.
const STEPS: f32 = 6.0;
/// The step that is 1.
const ONE: u8 = 32;

/// Numbers below 64 as characters.
pub(crate) const DIGITS: &[u8; 64] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-_";

impl ScaleSteps {
    /// The nearest of the steps to each of these; 1 for what is no number.
    pub fn nearest(scales: &[f32]) -> Self {
        let step = |&scale: &f32| {
            let step = (scale.log2() * STEPS).round();
            if step.is_nan() { ONE } else { (step + f32::from(ONE)).clamp(0.0, 63.0) as u8 }
        };
        Self(scales.iter().map(step).collect())
    }

    /// The same channels in another order: `order[i]` is the one that comes `i`-th.
    ///
    /// # Panics
    /// When the order has other channels.
    pub fn moved(&self, order: &[usize]) -> Self {
        assert_eq!(order.len(), self.0.len(), "an order of these channels");
        Self(order.iter().map(|&channel| self.0[channel]).collect())
    }

    /// As numbers.
    pub fn scales(&self) -> Vec<f32> {
        self.0.iter().map(|&step| ((f32::from(step) - f32::from(ONE)) / STEPS).exp2()).collect()
    }

    /// Channels.
    pub fn n_channels(&self) -> usize {
        self.0.len()
    }
}

impl From<ScaleSteps> for String {
    fn from(ScaleSteps(steps): ScaleSteps) -> Self {
        steps.into_iter().map(|step| char::from(DIGITS[usize::from(step)])).collect()
    }
}

/// A text that stands for no scales.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a scale of channels: `{0}` is no step")]
pub struct ScaleError(char);

impl TryFrom<String> for ScaleSteps {
    type Error = ScaleError;

    fn try_from(text: String) -> Result<Self, ScaleError> {
        let step = |c: char| {
            let place = DIGITS.iter().position(|&digit| char::from(digit) == c);
            place.map(|step| step as u8).ok_or(ScaleError(c))
        };
        text.chars().map(step).collect::<Result<_, _>>().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_come_back_as_text_and_are_near() {
        let scales: Vec<f32> = (0..200).map(|i| ((i as f32 - 100.0) / 20.0).exp2()).collect();
        let steps = ScaleSteps::nearest(&scales);
        for (scale, found) in scales.iter().zip(steps.scales()) {
            assert!((found / scale).log2().abs() < 0.5 / STEPS + 1e-4, "{scale} {found}");
        }
        let text = serde_json::to_string(&steps).unwrap();
        assert_eq!(text.len(), 202);
        assert_eq!(serde_json::from_str::<ScaleSteps>(&text).unwrap(), steps);
        assert_eq!(ScaleSteps::nearest(&[1.0, f32::NAN, 0.0, 1e9]).scales()[..2], [1.0, 1.0]);
        for wrong in ["\"é\"", "\"0 \"", "3"] {
            assert!(serde_json::from_str::<ScaleSteps>(wrong).is_err(), "{wrong}");
        }
    }
}
