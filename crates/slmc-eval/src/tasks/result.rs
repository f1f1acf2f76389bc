//! What a task came to, item by item, and whether two models differ on it.

use serde::{Deserialize, Serialize};

use super::{Metric, TaskFile, TaskKind, WritingFigures, WrittenAnswer};
use crate::stats::{Interval, McNemar, Resampling, interval, mcnemar};

/// What a model thinks of one item.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ItemResult {
    /// The item's place in its file, from 0.
    pub item: usize,
    /// The right choice.
    pub label: usize,
    /// Log-likelihood of each choice, in nats.
    pub log_likelihoods: Vec<f64>,
    /// Bytes of each choice.
    pub bytes: Vec<usize>,
    /// Characters of each choice.
    pub chars: Vec<usize>,
    /// Whether each token of a choice was the likeliest.
    pub greedy: Vec<bool>,
    /// What the model wrote, where it was to write.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub written: Option<WrittenAnswer>,
}

impl ItemResult {
    /// The choice that a metric makes: the first of the best.
    pub fn choice(&self, metric: Metric) -> usize {
        let score = |i: usize| match metric {
            Metric::Acc => self.log_likelihoods[i],
            Metric::AccNorm => self.log_likelihoods[i] / self.bytes[i] as f64,
            Metric::AccNormChars => self.log_likelihoods[i] / self.chars[i] as f64,
        };
        (1..self.log_likelihoods.len()).fold(0, |best, i| if score(i) > score(best) { i } else { best })
    }

    /// Whether the choice is right; of a continuation, whether the model would have written it; of a written text, whether
    /// its answer is.
    pub fn right(&self, metric: Metric, kind: TaskKind) -> bool {
        match kind {
            TaskKind::Continuation => self.greedy.iter().all(|&greedy| greedy),
            TaskKind::Generation => self.written.as_ref().is_some_and(|written| written.right),
            _ => self.choice(metric) == self.label,
        }
    }
}

/// A task's figures.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskFigures {
    /// Share of the items answered right by likelihood; of continuations, written right.
    pub acc: f64,
    /// The same by likelihood a byte; of choices alone.
    pub acc_norm: Option<f64>,
    /// The same by likelihood a character; of choices alone.
    pub acc_norm_chars: Option<f64>,
    /// Standard error of `acc`, as the harness gives it: of a sample's mean.
    pub acc_stderr: f64,
    /// `exp` of the mean negative log-likelihood of a continuation, as the harness has it for LAMBADA.
    pub ppl: Option<f64>,
    /// How texts fail, where the model writes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub writing: Option<WritingFigures>,
}

/// What a task came to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskResult {
    /// The task.
    pub task: String,
    /// How answers were compared.
    pub kind: TaskKind,
    /// The figure that counts.
    pub metric: Metric,
    /// Items.
    pub n: usize,
    /// The figures.
    #[serde(flatten)]
    pub figures: TaskFigures,
    /// Item by item.
    pub items: Vec<ItemResult>,
}

impl TaskResult {
    pub(super) fn new(task: &TaskFile, items: Vec<ItemResult>) -> Self {
        let n = items.len();
        let share = |metric| {
            items.iter().filter(|item| item.right(metric, task.kind)).count() as f64 / n.max(1) as f64
        };
        let acc = share(Metric::Acc);
        let is_choice = matches!(task.kind, TaskKind::MultipleChoice | TaskKind::MultipleContext);
        let nll = items.iter().flat_map(|item| &item.log_likelihoods).map(|x| -x).sum::<f64>();
        let figures = TaskFigures {
            acc,
            acc_norm: is_choice.then(|| share(Metric::AccNorm)),
            acc_norm_chars: is_choice.then(|| share(Metric::AccNormChars)),
            acc_stderr: if n > 1 { (acc * (1.0 - acc) / (n - 1) as f64).sqrt() } else { 0.0 },
            ppl: (task.kind == TaskKind::Continuation).then(|| (nll / n.max(1) as f64).exp()),
            writing: (task.kind == TaskKind::Generation)
                .then(|| WritingFigures::of(items.iter().filter_map(|item| item.written.as_ref()))),
        };
        Self { task: task.name.clone(), kind: task.kind, metric: task.metric, n, figures, items }
    }

    /// The figure that counts.
    pub fn score(&self) -> f64 {
        let figures = &self.figures;
        match self.metric {
            Metric::Acc => figures.acc,
            Metric::AccNorm => figures.acc_norm.unwrap_or(figures.acc),
            Metric::AccNormChars => figures.acc_norm_chars.unwrap_or(figures.acc),
        }
    }
}

/// Two models on the same items.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TaskComparison {
    /// The task.
    pub task: String,
    /// The figure that is compared.
    pub metric: Metric,
    /// Items that both answered.
    pub n: usize,
    /// The first model's figure.
    pub first: f64,
    /// The second model's.
    pub second: f64,
    /// `second - first`, items drawn in pairs.
    pub difference: Interval,
    /// `second / first`.
    pub ratio: Interval,
    /// The items on which they differ.
    pub mcnemar: McNemar,
    /// Share of the items with the same choice.
    pub same_choice: f64,
    /// Whether the difference is more than chance: its interval leaves 0 out and McNemar's test agrees.
    pub real: bool,
}

/// Compares two results of one task, item by item; `None` when they are not about the same items.
pub fn compare(first: &TaskResult, second: &TaskResult, how: Resampling) -> Option<TaskComparison> {
    let same_items = first.items.len() == second.items.len()
        && first.items.iter().zip(&second.items).all(|(a, b)| a.item == b.item && a.label == b.label);
    if first.task != second.task || !same_items || first.items.is_empty() {
        return None;
    }
    let (metric, kind) = (first.metric, first.kind);
    let rights: Vec<(bool, bool)> = (first.items.iter().zip(&second.items))
        .map(|(a, b)| (a.right(metric, kind), b.right(metric, kind)))
        .collect();
    let number = |right: bool| f64::from(u8::from(right));
    let clusters: Vec<Vec<f64>> = rights.iter().map(|&(a, b)| vec![1.0, number(a), number(b)]).collect();
    let count = |wanted: (bool, bool)| rights.iter().filter(|&&pair| pair == wanted).count() as u64;
    let test = mcnemar(count((true, false)), count((false, true)));
    let difference = interval(&clusters, &|sums| (sums[2] - sums[1]) / sums[0], how);
    let same = |(a, b): &(&ItemResult, &ItemResult)| match kind {
        TaskKind::Continuation => a.right(metric, kind) == b.right(metric, kind),
        TaskKind::Generation => {
            let answer = |item: &ItemResult| item.written.as_ref().and_then(|written| written.answer.clone());
            answer(a) == answer(b)
        }
        _ => a.choice(metric) == b.choice(metric),
    };
    let n_same = first.items.iter().zip(&second.items).filter(same).count();
    Some(TaskComparison {
        task: first.task.clone(),
        metric,
        n: rights.len(),
        first: first.score(),
        second: second.score(),
        difference,
        ratio: interval(&clusters, &|sums| if sums[2] == sums[1] { 1.0 } else { sums[2] / sums[1] }, how),
        mcnemar: test,
        same_choice: n_same as f64 / rights.len() as f64,
        real: !difference.holds(0.0) && test.p_value < 1.0 - how.confidence,
    })
}
