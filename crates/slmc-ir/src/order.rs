//! Channels in another order.
//!
//! What writes and what reads the residual stream agree on which channel is which, and nothing else depends on it; the same
//! holds for the channels of an MLP. A stage that puts them in another order leaves a model of the same function whose tensors
//! cannot be laid beside those of the model before. So its [`Step`](crate::Step) says which order that is.

use serde::{Deserialize, Serialize};

use crate::{ModelSpec, Part, Role, TensorKey, scales::DIGITS};

/// What a stage did to the order of channels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChannelOrder {
    /// Of the residual stream.
    pub stream: BlockOrder,
    /// Of each block's MLP.
    pub hidden: Vec<BlockOrder>,
}

impl ChannelOrder {
    /// Whether a model of this shape has these channels.
    pub fn fits(&self, spec: &ModelSpec) -> bool {
        self.stream.order.len() == spec.d_model
            && self.hidden.len() == spec.n_layers
            && self.hidden.iter().all(|hidden| hidden.order.len() == spec.d_ff)
    }
}

/// An order in which only the block matters that a channel is in: within a block channels are as they were.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Text", into = "Text")]
pub struct BlockOrder {
    block: usize,
    /// `order[i]` is the channel that comes `i`-th.
    order: Vec<usize>,
}

/// As it is stored: for each channel the number of its block in digits of base 64.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    block: usize,
    members: String,
}

/// An order that is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an order of channels: {0}")]
pub struct OrderError(&'static str);

impl BlockOrder {
    /// From any order, and the number of channels in a block.
    ///
    /// # Errors
    /// When not each channel comes once.
    pub fn new(mut order: Vec<usize>, block: usize) -> Result<Self, OrderError> {
        if block == 0 {
            return Err(OrderError("a block has no channels"));
        }
        let mut is_there = vec![false; order.len()];
        for &channel in &order {
            match is_there.get_mut(channel) {
                Some(seen) if !*seen => *seen = true,
                _ => return Err(OrderError("not each channel comes once")),
            }
        }
        order.chunks_mut(block).for_each(<[usize]>::sort_unstable);
        Ok(Self { block, order })
    }

    /// `order[i]` is the channel that comes `i`-th.
    pub fn order(&self) -> &[usize] {
        &self.order
    }
}

/// Digits that number `n` blocks.
fn n_digits(n: usize) -> usize {
    let mut digits = 1;
    while 64_usize.checked_pow(digits as u32).is_some_and(|most| most < n) {
        digits += 1;
    }
    digits
}

impl From<BlockOrder> for Text {
    fn from(BlockOrder { block, order }: BlockOrder) -> Self {
        let mut number = vec![0; order.len()];
        for (index, channels) in order.chunks(block).enumerate() {
            channels.iter().for_each(|&channel| number[channel] = index);
        }
        let width = n_digits(order.len().div_ceil(block)) as u32;
        let digits =
            number.iter().flat_map(|&n| (0..width).rev().map(move |place| n / 64_usize.pow(place) % 64));
        Self { block, members: digits.map(|digit| char::from(DIGITS[digit])).collect() }
    }
}

impl TryFrom<Text> for BlockOrder {
    type Error = OrderError;

    fn try_from(Text { block, members }: Text) -> Result<Self, OrderError> {
        if block == 0 {
            return Err(OrderError("a block has no channels"));
        }
        // The number of digits follows from that of blocks, and the other way round.
        let width = (1..=4).find(|&width| n_digits((members.len() / width).div_ceil(block)) <= width);
        let width = width.ok_or(OrderError("there are too many channels"))?;
        if !members.len().is_multiple_of(width) {
            return Err(OrderError("the last channel's block is cut off"));
        }
        let n_channels = members.len() / width;
        let mut numbers = Vec::with_capacity(n_channels);
        for digits in members.as_bytes().chunks(width) {
            let mut number = 0;
            for digit in digits {
                let digit = DIGITS.iter().position(|known| known == digit);
                number = number * 64 + digit.ok_or(OrderError("a block's number is none"))?;
            }
            numbers.push(number);
        }
        let mut order: Vec<usize> = (0..n_channels).collect();
        order.sort_by_key(|&channel| numbers[channel]);
        if order.iter().enumerate().any(|(i, &channel)| numbers[channel] != i / block) {
            return Err(OrderError("a block has too many channels or too few"));
        }
        Ok(Self { block, order })
    }
}

/// An order for each kind of channels of a model: `order[i]` is the channel that comes `i`-th.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reordering {
    /// Of the residual stream, `d_model` channels.
    pub stream: Vec<usize>,
    /// Of each block's MLP, `d_ff` channels.
    pub hidden: Vec<Vec<usize>>,
}

impl Reordering {
    /// Everything where it was.
    pub fn none(spec: &ModelSpec) -> Self {
        Self { stream: (0..spec.d_model).collect(), hidden: vec![(0..spec.d_ff).collect(); spec.n_layers] }
    }

    /// Everything where it was, of the same shape.
    pub(crate) fn none_of(other: &Self) -> Self {
        let none = |order: &Vec<usize>| (0..order.len()).collect();
        Self { stream: none(&other.stream), hidden: other.hidden.iter().map(none).collect() }
    }

    /// This, and then another; of that, what is of this shape.
    pub(crate) fn follow(&mut self, ChannelOrder { stream, hidden }: &ChannelOrder) {
        let follow = |before: &mut Vec<usize>, BlockOrder { order, .. }: &BlockOrder| {
            if order.len() == before.len() {
                *before = order.iter().map(|&channel| before[channel]).collect();
            }
        };
        follow(&mut self.stream, stream);
        if hidden.len() == self.hidden.len() {
            self.hidden.iter_mut().zip(hidden).for_each(|(before, order)| follow(before, order));
        }
    }

    /// What brings a model in that order into this one: both are orders of the same channels.
    pub fn relative_to(&self, that: &Self) -> Self {
        let from = |ours: &[usize], theirs: &[usize]| {
            let mut place = vec![0; theirs.len()];
            theirs.iter().enumerate().for_each(|(i, &channel)| place[channel] = i);
            ours.iter().map(|&channel| place[channel]).collect()
        };
        Self {
            stream: from(&self.stream, &that.stream),
            hidden: self.hidden.iter().zip(&that.hidden).map(|(ours, theirs)| from(ours, theirs)).collect(),
        }
    }

    /// What is moved of a tensor, `[rows, columns]`: row `i` of the result is row `rows[i]`. A vector's numbers are its rows.
    pub fn moves(&self, key: TensorKey) -> [Option<&[usize]>; 2] {
        let stream = Some(&self.stream[..]);
        let hidden = key.block.and_then(|index| self.hidden.get(index)).map(Vec::as_slice);
        let [rows, columns] = match key.role {
            Role::Embedding | Role::Head | Role::Query | Role::Key | Role::Value => [None, stream],
            Role::Gate | Role::Up => [hidden, stream],
            Role::Down => [stream, hidden],
            Role::AttnOutput | Role::AttnNorm | Role::FfnNorm | Role::FinalNorm => [stream, None],
            Role::QueryNorm | Role::KeyNorm => [None, None],
        };
        if key.part == Part::Bias { [rows, None] } else { [rows, columns] }
    }

    /// Whether everything is where it was.
    pub fn is_none(&self) -> bool {
        let is_none = |order: &Vec<usize>| order.iter().enumerate().all(|(i, &channel)| i == channel);
        is_none(&self.stream) && self.hidden.iter().all(is_none)
    }
}

impl From<&ChannelOrder> for Reordering {
    fn from(order: &ChannelOrder) -> Self {
        let of = |order: &BlockOrder| order.order.clone();
        Self { stream: of(&order.stream), hidden: order.hidden.iter().map(of).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shuffled(n: usize, step: usize) -> Vec<usize> {
        (0..n).map(|i| (i * step + 3) % n).collect()
    }

    #[test]
    fn an_order_comes_back() {
        for (n, step, block) in [(576, 5, 32), (70, 9, 32), (40, 3, 64), (9000, 7, 32), (3, 2, 1)] {
            let order = BlockOrder::new(shuffled(n, step), block).unwrap();
            let text = serde_json::to_string(&order).unwrap();
            assert_eq!(serde_json::from_str::<BlockOrder>(&text).unwrap(), order, "{n} {block}");
            for channels in order.order().chunks(block) {
                assert!(channels.is_sorted());
            }
        }
        // A character for each channel, up to 64 blocks.
        let text = serde_json::to_string(&BlockOrder::new(shuffled(2048, 5), 32).unwrap()).unwrap();
        assert!(text.len() < 2048 + 40, "{}", text.len());
    }

    #[test]
    fn what_is_no_order_is_refused() {
        assert!(BlockOrder::new(vec![0, 0], 1).is_err());
        assert!(BlockOrder::new(vec![0, 2], 1).is_err());
        assert!(BlockOrder::new(vec![0], 0).is_err());
        for text in [
            r#"{"block":0,"members":"01"}"#,
            r#"{"block":1,"members":"00"}"#,
            r#"{"block":1,"members":"02"}"#,
            r#"{"block":2,"members":"001"}x"#,
            r#"{"block":2,"members":"0011 "}"#,
            r#"{"block":2,"members":"0001"}"#,
            r#"{"block":18446744073709551615,"members":"10"}"#,
            r#"{"block":1,"members":"é"}"#,
        ] {
            assert!(serde_json::from_str::<BlockOrder>(text).is_err(), "{text}");
        }
        assert!(serde_json::from_str::<BlockOrder>(r#"{"block":2,"members":"011"}"#).is_err());
        assert!(serde_json::from_str::<BlockOrder>(r#"{"block":2,"members":"001"}"#).is_ok());
    }

    #[test]
    fn one_after_the_other_and_back() {
        let block = |step| BlockOrder::new(shuffled(6, step), 2).unwrap();
        let first = ChannelOrder { stream: block(5), hidden: vec![block(1)] };
        let second = ChannelOrder { stream: block(1), hidden: vec![block(5)] };
        let then = |before: &Reordering, order: &ChannelOrder| {
            let mut after = before.clone();
            after.follow(order);
            after
        };
        let none = Reordering { stream: (0..6).collect(), hidden: vec![(0..6).collect()] };
        let one = then(&none, &first);
        let both = then(&one, &second);
        // Channel names in the first order, then in the second.
        let expected: Vec<usize> =
            second.stream.order().iter().map(|&place| first.stream.order()[place]).collect();
        assert_eq!(both.stream, expected);
        // What brings the first into both is the second.
        assert_eq!(both.relative_to(&one), Reordering::from(&second));
        assert!(both.relative_to(&both).is_none() && !both.is_none());
        // Of another shape: left alone.
        let other = ChannelOrder { stream: BlockOrder::new(shuffled(8, 3), 2).unwrap(), hidden: vec![] };
        assert_eq!(then(&one, &other), one);
    }
}
