//! Which channels share a block's scale.
//!
//! A block's step follows its largest weight, so a channel with large weights costs all that stand beside it. The channels
//! of a residual stream, and those of an MLP, may stand in any order: the model is the same if all that writes and all that reads
//! them has that order. Here they are put beside their like, so that the sum over rows and blocks of `max w² · Σ c` is small, `c`
//! being what an error in a channel costs: rounding costs that sum, up to a factor that is the format's.

use super::widest::widest;
use crate::MatRef;

/// Exchanges that are looked at for each channel: half as many find a few thousandths less.
const TRIALS: usize = 256;

/// Numbers that are added up side by side.
const LANES: usize = 16;

/// What an exchange has to save, as a share of the costs of both blocks: less is noise of the sums.
const LEAST_GAIN: f32 = 1e-5;

/// A matrix whose columns are the channels.
pub struct Reader<'a> {
    /// Some of its rows, or all, `[n_rows, n_channels]`.
    pub rows: MatRef<'a>,
    /// What a squared error in each channel costs.
    pub costs: &'a [f32],
}

/// An order of channels: `order[i]` is the channel that comes `i`-th. `block` channels share a scale. The result depends on
/// nothing else; with fewer than two whole blocks there is nothing to choose but a sort. Wide models take tens of seconds:
/// `go_on` is asked now and then, and there is no result once it says no.
///
/// # Panics
/// When the matrices have different numbers of channels, or there are none.
pub fn neighbours(readers: &[Reader<'_>], block: usize, go_on: &dyn Fn() -> bool) -> Option<Vec<usize>> {
    let n = readers[0].rows.ncols();
    let fits = |reader: &Reader<'_>| reader.rows.ncols() == n && reader.costs.len() == n;
    assert!(readers.iter().all(fits), "matrices have the same channels");
    let layout = Layout::of(readers);
    let sums: Vec<f64> =
        layout.squares.iter().map(|column| column.iter().map(|&x| f64::from(x)).sum()).collect();
    // Large ones together is most of it; the rest are exchanges.
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|&a, &b| sums[b].total_cmp(&sums[a]).then(a.cmp(&b)));
    // A last, shorter block stays as it is.
    let n_whole = n / block * block;
    let is_done = n_whole < 2 * block
        || widest(
            #[inline(always)]
            || exchange(&layout, &mut order[..n_whole], block, go_on),
        );
    is_done.then_some(order)
}

/// Squares of weights, and what they count by.
struct Layout {
    /// Of each channel, the rows of all matrices one after the other, each matrix's filled up to whole lanes.
    squares: Vec<Vec<f32>>,
    /// Where each matrix's rows end, in groups of lanes.
    ends: Vec<usize>,
    /// Of each channel, its costs in each matrix.
    costs: Vec<Vec<f32>>,
}

impl Layout {
    fn of(readers: &[Reader<'_>]) -> Self {
        let n = readers[0].rows.ncols();
        let squares = (0..n).map(|channel| {
            let mut column: Vec<f32> = Vec::new();
            for reader in readers {
                column.extend(reader.rows.column(channel).iter().map(|w| w * w));
                column.resize(column.len().next_multiple_of(LANES), 0.0);
            }
            column
        });
        let groups = |reader: &Reader<'_>| reader.rows.nrows().div_ceil(LANES);
        Self {
            squares: squares.collect(),
            ends: readers
                .iter()
                .scan(0, |end, reader| {
                    *end += groups(reader);
                    Some(*end)
                })
                .collect(),
            costs: (0..n)
                .map(|channel| readers.iter().map(|reader| reader.costs[channel]).collect())
                .collect(),
        }
    }
}

/// A block of channels.
struct Block {
    /// The largest square of each row, and the second largest.
    first: Vec<f32>,
    second: Vec<f32>,
    /// Sum of its channels' costs, for each matrix.
    costs: Vec<f32>,
}

impl Block {
    #[inline(always)]
    fn of(layout: &Layout, channels: &[usize]) -> Self {
        let n_rows = layout.squares[0].len();
        let (mut first, mut second) = (vec![0.0_f32; n_rows], vec![0.0_f32; n_rows]);
        let mut costs = vec![0.0; layout.ends.len()];
        for &channel in channels {
            for ((first, second), &x) in first.iter_mut().zip(&mut second).zip(&layout.squares[channel]) {
                *second = second.max(x.min(*first));
                *first = first.max(x);
            }
            costs.iter_mut().zip(&layout.costs[channel]).for_each(|(sum, cost)| *sum += cost);
        }
        Self { first, second, costs }
    }
}

/// Exchanges channels of different blocks as long as that saves something; whether it came to the end.
#[inline(always)]
fn exchange(layout: &Layout, order: &mut [usize], n_block: usize, go_on: &dyn Fn() -> bool) -> bool {
    let n = order.len();
    let mut blocks: Vec<Block> = order.chunks(n_block).map(|channels| Block::of(layout, channels)).collect();
    for sweep in 1..=TRIALS {
        if !go_on() {
            return false;
        }
        // Partners at distances that fill the circle evenly: multiples of the golden section.
        let share = sweep as f64 * 0.618_033_988_749_894_9;
        let distance = 1 + ((share - share.floor()) * (n - 1) as f64) as usize;
        for place in 0..n {
            let other = (place + distance) % n;
            let (a, b) = (place / n_block, other / n_block);
            if a == b {
                continue;
            }
            let [gain, before] = gain(layout, [&blocks[a], &blocks[b]], [order[place], order[other]]);
            if gain > LEAST_GAIN * before {
                order.swap(place, other);
                for index in [a, b] {
                    blocks[index] = Block::of(layout, &order[index * n_block..(index + 1) * n_block]);
                }
            }
        }
    }
    true
}

/// What is saved when two blocks exchange a channel of the first for one of the second, and what both cost before.
#[inline(always)]
fn gain(layout: &Layout, [a, b]: [&Block; 2], [out, into]: [usize; 2]) -> [f32; 2] {
    let (x, y) = (layout.squares[out].as_chunks::<LANES>().0, layout.squares[into].as_chunks::<LANES>().0);
    let (a1, a2) = (a.first.as_chunks::<LANES>().0, a.second.as_chunks::<LANES>().0);
    let (b1, b2) = (b.first.as_chunks::<LANES>().0, b.second.as_chunks::<LANES>().0);
    let (mut before, mut after) = ([0.0_f32; LANES], [0.0_f32; LANES]);
    let mut start = 0;
    for (matrix, &end) in layout.ends.iter().enumerate() {
        let moved = layout.costs[into][matrix] - layout.costs[out][matrix];
        let (cost_a, cost_b) = (a.costs[matrix], b.costs[matrix]);
        for at in start..end {
            let (x, y) = (&x[at], &y[at]);
            let (a1, a2, b1, b2) = (&a1[at], &a2[at], &b1[at], &b2[at]);
            for i in 0..LANES {
                let rest_of_a = if x[i] >= a1[i] { a2[i] } else { a1[i] };
                let rest_of_b = if y[i] >= b1[i] { b2[i] } else { b1[i] };
                before[i] += a1[i] * cost_a + b1[i] * cost_b;
                after[i] += rest_of_a.max(y[i]) * (cost_a + moved) + rest_of_b.max(x[i]) * (cost_b - moved);
            }
        }
        start = end;
    }
    let [before, after] = [before, after].map(|lanes| lanes.iter().sum::<f32>());
    [before - after, before]
}

#[cfg(test)]
mod tests {
    use ndarray::Array2;

    use super::*;
    use crate::quant::test_support::numbers;

    /// Two matrices of 192 channels that have other sizes in each, and other costs.
    fn matrices() -> [(Array2<f32>, Vec<f32>); 2] {
        [0, 1].map(|kind| {
            let size = |channel: usize| ((channel * (17 + 12 * kind) % 64) as f32 / 20.0).exp();
            let mut rows = numbers(40 + 9 * kind, 192, 3 + kind);
            rows.indexed_iter_mut().for_each(|((_, channel), w)| *w *= size(channel));
            let cost = |channel: usize| 1.0 + ((channel * (7 + kind)) % 5) as f32;
            (rows, (0..192).map(cost).collect())
        })
    }

    fn readers(matrices: &[(Array2<f32>, Vec<f32>); 2]) -> Vec<Reader<'_>> {
        matrices.iter().map(|(rows, costs)| Reader { rows: rows.view(), costs }).collect()
    }

    /// As defined.
    fn cost(matrices: &[(Array2<f32>, Vec<f32>)], order: &[usize], block: usize) -> f64 {
        let mut sum = 0.0;
        for (rows, costs) in matrices {
            for (row, channels) in
                rows.rows().into_iter().flat_map(|row| order.chunks(block).map(move |c| (row, c)))
            {
                let largest = channels.iter().map(|&c| row[c] * row[c]).fold(0.0, f32::max);
                let costs: f32 = channels.iter().map(|&c| costs[c]).sum();
                sum += f64::from(largest * costs);
            }
        }
        sum
    }

    #[test]
    fn channels_stand_beside_their_like() {
        let matrices = matrices();
        let order = neighbours(&readers(&matrices), 32, &|| true).unwrap();
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert!(sorted.iter().enumerate().all(|(i, &channel)| i == channel));
        let squares = |channel: usize| -> f32 {
            matrices.iter().flat_map(|(rows, _)| rows.column(channel).to_vec()).map(|w| w * w).sum()
        };
        let mut by_size: Vec<usize> = (0..192).collect();
        by_size.sort_by(|&a, &b| squares(b).total_cmp(&squares(a)));
        let [found, by_size, before] =
            [order, by_size, (0..192).collect()].map(|order| cost(&matrices, &order, 32));
        assert!(by_size < 0.6 * before, "{by_size} {before}");
        assert!(found < 0.97 * by_size, "{found} {by_size}");
    }

    #[test]
    fn a_gain_is_what_the_costs_differ_by() {
        let matrices = matrices();
        let layout = Layout::of(&readers(&matrices));
        let before: Vec<usize> = (0..64).collect();
        let blocks = [Block::of(&layout, &before[..32]), Block::of(&layout, &before[32..])];
        for (x, y) in [(0, 32), (7, 63), (31, 40), (17, 50)] {
            let mut after = before.clone();
            after.swap(x, y);
            let expected = cost(&matrices, &before, 32) - cost(&matrices, &after, 32);
            let [found, all] = gain(&layout, [&blocks[0], &blocks[1]], [x, y]);
            let both = cost(&matrices, &before, 32);
            assert!((f64::from(all) / both - 1.0).abs() < 1e-5, "{all} {both}");
            assert!((f64::from(found) - expected).abs() < 1e-5 * both, "{found} {expected}");
        }
    }

    #[test]
    fn few_channels_and_no_rows() {
        let rows = numbers(5, 40, 1);
        let few = neighbours(&[Reader { rows: rows.view(), costs: &[1.0; 40] }], 32, &|| true);
        assert_eq!(few.unwrap().len(), 40);
        let none = Array2::zeros((0, 64));
        let none = [Reader { rows: none.view(), costs: &[1.0; 64] }];
        assert_eq!(neighbours(&none, 32, &|| true), Some((0..64).collect::<Vec<_>>()));
        assert_eq!(neighbours(&none, 32, &|| false), None);
    }
}
