//! Which layers to drop: greedily, each time the one whose removal raises the loss least, measured anew after every
//! removal.
//!
//! Shortened LLaMA (Kim et al. 2024, arXiv:2402.02834) ranks blocks once by the perplexity without
//! each; measuring again after each removal sees that two blocks which can each be spared may not both be.

use crate::ChooseError;

/// Which of the remaining layers are tried at each step.
#[derive(Clone, Copy, Debug)]
pub enum Candidates<'a> {
    /// Every one: `n_layers * n_remove` evaluations or a little less.
    All,
    /// The `n` that a cheap measure such as [`crate::BlockInfluence`] thinks least of.
    LeastInfluential {
        /// One influence for each layer.
        influences: &'a [f64],
        /// Layers tried at each step.
        n: usize,
    },
}

/// One evaluation.
#[derive(Clone, Debug, PartialEq)]
pub struct Trial {
    /// Layers left out, ascending.
    pub removed: Vec<usize>,
    /// The loss without them.
    pub loss: f64,
}

/// What was chosen, and why.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerChoice {
    /// The layers to remove, in the order in which they were chosen.
    pub removed: Vec<usize>,
    /// The loss after each removal.
    pub losses: Vec<f64>,
    /// Every evaluation made, in order.
    pub trials: Vec<Trial>,
}

/// Chooses `n_remove` of `n_layers` layers to remove. `loss_without` is given the layers to leave out, ascending,
/// and measures the model without them; smaller is better, and a loss that is not finite is never
/// chosen. Of equal losses the lower layer goes.
///
/// # Errors
/// [`ChooseError::TooMany`] and [`ChooseError::Candidates`] for requests that do not fit, before any evaluation;
/// [`ChooseError::Loss`] when an evaluation fails; [`ChooseError::NoFiniteLoss`].
pub fn choose_layers<E: std::error::Error + 'static>(
    n_layers: usize,
    n_remove: usize,
    candidates: Candidates<'_>,
    mut loss_without: impl FnMut(&[usize]) -> Result<f64, E>,
) -> Result<LayerChoice, ChooseError<E>> {
    if n_remove > 0 && n_remove >= n_layers {
        return Err(ChooseError::TooMany { n_remove, n_layers });
    }
    if let Candidates::LeastInfluential { influences, n } = candidates
        && (n == 0 || influences.len() != n_layers || influences.iter().any(|i| !i.is_finite()))
    {
        return Err(ChooseError::Candidates { n_layers });
    }
    let mut choice = LayerChoice { removed: Vec::new(), losses: Vec::new(), trials: Vec::new() };
    while choice.removed.len() < n_remove {
        let mut best: Option<(f64, usize)> = None;
        for layer in to_try(n_layers, &choice.removed, candidates) {
            let removed = ascending(&choice.removed, Some(layer));
            let loss = match loss_without(&removed) {
                Ok(loss) => loss,
                Err(source) => return Err(ChooseError::Loss { removed, source }),
            };
            choice.trials.push(Trial { removed, loss });
            if loss.is_finite() && best.is_none_or(|(least, _)| loss < least) {
                best = Some((loss, layer));
            }
        }
        let Some((loss, layer)) = best else {
            return Err(ChooseError::NoFiniteLoss { removed: ascending(&choice.removed, None) });
        };
        choice.removed.push(layer);
        choice.losses.push(loss);
    }
    Ok(choice)
}

/// The layers to try next, ascending.
fn to_try(n_layers: usize, removed: &[usize], candidates: Candidates<'_>) -> Vec<usize> {
    let mut layers: Vec<usize> = (0..n_layers).filter(|layer| !removed.contains(layer)).collect();
    if let Candidates::LeastInfluential { influences, n } = candidates {
        layers.sort_by(|&a, &b| influences[a].total_cmp(&influences[b]).then(a.cmp(&b)));
        layers.truncate(n);
        layers.sort_unstable();
    }
    layers
}

fn ascending(removed: &[usize], next: Option<usize>) -> Vec<usize> {
    let mut layers: Vec<usize> = removed.iter().copied().chain(next).collect();
    layers.sort_unstable();
    layers
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    /// Removing a layer costs its weight; removing 1 and 2 together costs 100 more.
    fn loss(removed: &[usize]) -> Result<f64, Infallible> {
        let cost = [5.0, 1.0, 2.0, 3.0, 4.0];
        let both = removed.contains(&1) && removed.contains(&2);
        Ok(removed.iter().map(|&l| cost[l]).sum::<f64>() + if both { 100.0 } else { 0.0 })
    }

    #[test]
    fn each_removal_sees_the_ones_before() {
        let choice = choose_layers(5, 3, Candidates::All, loss).unwrap();
        // A ranking made once would take 1, 2, 3.
        assert_eq!(choice.removed, [1, 3, 4]);
        assert_eq!(choice.losses, [1.0, 4.0, 8.0]);
        assert_eq!(choice.trials.len(), 5 + 4 + 3);
        assert!(choice.trials.contains(&Trial { removed: vec![1, 2], loss: 103.0 }));
    }

    #[test]
    fn the_prefilter_bounds_the_evaluations() {
        let influences = [0.9, 0.8, 0.1, 0.2, 0.3];
        let candidates = Candidates::LeastInfluential { influences: &influences, n: 2 };
        let choice = choose_layers(5, 2, candidates, loss).unwrap();
        assert_eq!(choice.removed, [2, 3]);
        let tried: Vec<&[usize]> = choice.trials.iter().map(|t| &t.removed[..]).collect();
        assert_eq!(tried, [&[2][..], &[3], &[2, 3], &[2, 4]]);
    }

    #[test]
    fn a_removal_that_breaks_the_model_is_not_chosen() {
        let broken = |removed: &[usize]| Ok::<_, Infallible>(if removed == [0] { f64::NAN } else { 1.0 });
        assert_eq!(choose_layers(3, 1, Candidates::All, broken).unwrap().removed, [1]);
        let all_broken = |_: &[usize]| Ok::<_, Infallible>(f64::INFINITY);
        let error = choose_layers(3, 1, Candidates::All, all_broken).unwrap_err();
        assert!(matches!(error, ChooseError::NoFiniteLoss { removed } if removed.is_empty()));
    }

    #[test]
    fn requests_are_checked_and_errors_handed_on() {
        assert!(matches!(choose_layers(3, 3, Candidates::All, loss), Err(ChooseError::TooMany { .. })));
        assert_eq!(choose_layers(3, 0, Candidates::All, loss).unwrap().removed, []);
        for influences in [&[0.1, 0.2][..], &[0.1, f64::NAN, 0.2]] {
            let candidates = Candidates::LeastInfluential { influences, n: 1 };
            assert!(matches!(choose_layers(3, 1, candidates, loss), Err(ChooseError::Candidates { .. })));
        }
        let fails = |removed: &[usize]| if removed == [1] { Err(std::fmt::Error) } else { Ok(0.0) };
        let error = choose_layers(3, 1, Candidates::All, fails).unwrap_err();
        assert!(matches!(error, ChooseError::Loss { removed, .. } if removed == [1]));
    }
}
