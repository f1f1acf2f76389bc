//! The best choice of formats under a size: a knapsack with one choice for each item (Kellerer, Pferschy and Pisinger 2004,
//! *Knapsack Problems*, chapter 11).

/// One way to store an item.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// What it costs in quality.
    pub loss: f64,
    /// Bytes that it takes.
    pub n_bytes: u64,
}

/// Steps that the size is counted in: finer ones change the result by less than a step an item.
const STEPS: u64 = 1 << 16;

/// For each item the choice with which the losses' sum is least and the sizes' sum at most `budget`; `None` when even
/// the smallest do not fit. Exact but for sizes rounded up to `budget / 65536`; of equal ones the smaller.
pub fn allocate(items: &[Vec<Choice>], budget: u64) -> Option<Vec<usize>> {
    let step = (budget / STEPS).max(1);
    let room = (budget / step) as usize;
    let size = |choice: &Choice| choice.n_bytes.div_ceil(step) as usize;
    // least[s]: the smallest loss of the items so far in at most s steps.
    let mut least = vec![0.0_f64; room + 1];
    let mut taken: Vec<Vec<u8>> = Vec::with_capacity(items.len());
    for choices in items {
        let mut next = vec![f64::INFINITY; room + 1];
        let mut which = vec![u8::MAX; room + 1];
        for (index, choice) in choices.iter().enumerate().take(usize::from(u8::MAX)) {
            for (at, before) in (size(choice)..=room).zip(0..) {
                let loss = least[before] + choice.loss;
                if loss < next[at] {
                    (next[at], which[at]) = (loss, index as u8);
                }
            }
        }
        least = next;
        taken.push(which);
    }
    // The smallest size with the least loss.
    let mut at = (0..=room).rev().fold(room, |best, at| if least[at] <= least[best] { at } else { best });
    if !least[at].is_finite() {
        return None;
    }
    let mut chosen = vec![0; items.len()];
    for (item, which) in taken.iter().enumerate().rev() {
        chosen[item] = usize::from(which[at]);
        at -= size(&items[item][chosen[item]]);
    }
    Some(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choices(of: &[(f64, u64)]) -> Vec<Choice> {
        of.iter().map(|&(loss, n_bytes)| Choice { loss, n_bytes }).collect()
    }

    #[test]
    fn the_choice_is_the_best_of_all() {
        // Few enough to try all.
        let items: Vec<Vec<Choice>> = (0..7_u64)
            .map(|i| {
                (0..3_u64)
                    .map(|j| Choice {
                        loss: ((i * 13 + 7) % 11) as f64 / (j * j + 1) as f64,
                        n_bytes: 10 + j * (3 + i % 4),
                    })
                    .collect()
            })
            .collect();
        for budget in [60, 71, 80, 95, 110, 150] {
            let best = (0..3_usize.pow(7))
                .map(|code| (0..7).map(|i| code / 3_usize.pow(i) % 3).collect::<Vec<usize>>())
                .filter(|chosen| {
                    chosen.iter().zip(&items).map(|(&c, item)| item[c].n_bytes).sum::<u64>() <= budget
                })
                .map(|chosen| chosen.iter().zip(&items).map(|(&c, item)| item[c].loss).sum::<f64>())
                .fold(f64::INFINITY, f64::min);
            match allocate(&items, budget) {
                None => assert_eq!(best, f64::INFINITY),
                Some(chosen) => {
                    let loss: f64 = chosen.iter().zip(&items).map(|(&c, item)| item[c].loss).sum();
                    let n_bytes: u64 = chosen.iter().zip(&items).map(|(&c, item)| item[c].n_bytes).sum();
                    assert!(n_bytes <= budget);
                    assert!((loss - best).abs() < 1e-9, "{budget}: {loss} {best}");
                }
            }
        }
    }

    #[test]
    fn large_sizes_never_exceed_the_budget() {
        let items = vec![choices(&[(3.0, 1_000_003), (1.0, 2_000_001)]); 60];
        let chosen = allocate(&items, 90_000_000).unwrap();
        let n_bytes: u64 = chosen.iter().zip(&items).map(|(&c, item)| item[c].n_bytes).sum();
        assert!(n_bytes <= 90_000_000 && n_bytes > 88_000_000, "{n_bytes}");
        assert_eq!(allocate(&items, 59_000_000), None);
    }
}
