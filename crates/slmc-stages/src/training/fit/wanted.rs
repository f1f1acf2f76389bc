//! What the student's blocks are fitted to: the teacher's hidden states, walked through a few blocks ahead.

use std::{collections::VecDeque, ops::Range, sync::Arc};

use slmc_ir::{Checkpoint, Role};
use slmc_model::{BlockPass, Products};
use slmc_recipe::StageError;

use super::failed;

/// Blocks before a gap that begin with what the removed blocks added: each takes on an equal part more of it than the one before it,
/// and the one at the gap what is left. Of 0, 2, 3 and 4, fitted and trained alike, two did best on both kinds of held-out text.
const N_AHEAD: usize = 2;

/// Hidden states `[n_tokens, d_model]` of each batch.
pub type States = Vec<Vec<f32>>;

/// The teacher's hidden states at one of the student's blocks.
struct Passed {
    /// What its origin was given.
    before: Arc<States>,
    /// Between its origin's attention and MLP.
    between: States,
    /// After its origin and the blocks that were removed behind it.
    after: Arc<States>,
    /// What those added, where there are any.
    removed: Option<States>,
}

/// The teacher's walk along the student's blocks.
pub struct Walk<'a> {
    teacher: &'a Checkpoint,
    origins: &'a [usize],
    products: Products,
    /// Sequences and their length, of each batch.
    sizes: Vec<[usize; 2]>,
    /// The last states that were reached.
    reached: Arc<States>,
    /// Of the student's blocks from the next one on.
    passed: VecDeque<Passed>,
    /// How many of the student's blocks were passed, and of the teacher's.
    n_passed: usize,
    n_teachers: usize,
}

/// What one of the student's blocks is fitted to.
pub struct Wanted {
    /// The teacher's states before the block, and between its attention and MLP: what norms and projections are to see.
    pub before: Arc<States>,
    pub between: States,
    /// What the student's own states are to be there, and after the block: the teacher's, and ahead of a gap a part of what was removed.
    pub own_between: Option<States>,
    pub own_after: Arc<States>,
}

impl<'a> Walk<'a> {
    /// A walk that begins with the teacher's embedded tokens. Blocks that were removed before the student's first are
    /// passed at once.
    pub fn new(
        teacher: &'a Checkpoint,
        origins: &'a [usize],
        products: Products,
        sizes: Vec<[usize; 2]>,
        embedded: States,
        check_stop: &dyn Fn() -> Result<(), StageError>,
    ) -> Result<Self, StageError> {
        let reached = Arc::new(embedded);
        let mut walk = Self {
            teacher,
            origins,
            products,
            sizes,
            reached,
            passed: VecDeque::new(),
            n_passed: 0,
            n_teachers: 0,
        };
        for block in 0..origins[0] {
            walk.reached = Arc::new(walk.pass(block, check_stop)?.1);
        }
        Ok(walk)
    }

    /// Blocks of the teacher that were passed.
    pub fn n_teachers(&self) -> usize {
        self.n_teachers
    }

    /// What the student's next block is fitted to.
    pub fn next(&mut self, check_stop: &dyn Fn() -> Result<(), StageError>) -> Result<Wanted, StageError> {
        while self.passed.len() <= N_AHEAD && self.n_passed < self.origins.len() {
            let next = self.origins.get(self.n_passed + 1).copied();
            let passed = self.pass_all(
                self.origins[self.n_passed]..next.unwrap_or(self.teacher.spec().n_layers),
                check_stop,
            )?;
            self.passed.push_back(passed);
            self.n_passed += 1;
        }
        // Attention's target is as far ahead as the block before it was brought, and tokens' embeddings are where they are.
        let is_first = self.n_passed == self.passed.len();
        let own_between = if is_first { None } else { self.ahead(&self.passed[0].between, 0) };
        let own_after = self.ahead(&self.passed[0].after, 1);
        let Passed { before, between, after, .. } = self.passed.pop_front().expect("asked for once a block");
        Ok(Wanted { before, between, own_between, own_after: own_after.map_or(after, Arc::new) })
    }

    /// States with the parts of what is removed at the next gaps, the first of which is that of the `first` block from the next
    /// one on; `None` where there is none.
    fn ahead(&self, states: &States, first: usize) -> Option<States> {
        let gaps = self.passed.iter().skip(first).take(N_AHEAD).enumerate();
        let mut gaps = gaps.filter_map(|(n, passed)| Some((n, passed.removed.as_ref()?))).peekable();
        gaps.peek()?;
        let mut states = states.clone();
        for (n, removed) in gaps {
            let share = (N_AHEAD - n) as f32 / (N_AHEAD + 1) as f32;
            for (states, removed) in states.iter_mut().flatten().zip(removed.iter().flatten()) {
                *states += share * removed;
            }
        }
        Some(states)
    }

    /// Passes one of the student's blocks: its origin, and those that were removed behind it.
    fn pass_all(
        &mut self,
        blocks: Range<usize>,
        check_stop: &dyn Fn() -> Result<(), StageError>,
    ) -> Result<Passed, StageError> {
        let before = Arc::clone(&self.reached);
        let (between, after_origin) = self.pass(blocks.start, check_stop)?;
        self.reached = Arc::new(after_origin);
        let after_origin = Arc::clone(&self.reached);
        for block in blocks.start + 1..blocks.end {
            self.reached = Arc::new(self.pass(block, check_stop)?.1);
        }
        let difference =
            |(after, before): (&Vec<f32>, &Vec<f32>)| after.iter().zip(before).map(|(a, b)| a - b).collect();
        let removed =
            (blocks.len() > 1).then(|| self.reached.iter().zip(&*after_origin).map(difference).collect());
        Ok(Passed { before, between, after: Arc::clone(&self.reached), removed })
    }

    /// States inside one of the teacher's blocks and after it.
    fn pass(
        &mut self,
        block: usize,
        check_stop: &dyn Fn() -> Result<(), StageError>,
    ) -> Result<(States, States), StageError> {
        let seq_len = self.sizes[0][1];
        let pass = BlockPass::load(&*self.teacher.weights, block, seq_len, self.products).map_err(failed)?;
        let (mut between, mut after) = (Vec::new(), Vec::new());
        for (states, &sizes) in self.reached.iter().zip(&self.sizes) {
            check_stop()?;
            let inside = pass.attend(states, sizes).after_attention;
            let mut out = inside.clone();
            pass.add(Role::Down, &pass.gated(&inside, sizes), &mut out, sizes);
            between.push(inside);
            after.push(out);
        }
        self.n_teachers += 1;
        Ok((between, after))
    }
}
