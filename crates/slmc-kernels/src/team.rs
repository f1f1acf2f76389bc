//! Threads that work on one product after another, and cost next to nothing to wake.
//!
//! Decoding a token is some two hundred products of a few microseconds each, one after the other. A thread that
//! sleeps in between takes longer to wake than the product takes, so the team's threads look for work in a short
//! loop first and go to sleep only when none came for some tens of microseconds. `run` takes no lock and
//! allocates nothing: a job is published by one store, tasks are handed out by a counter.

use std::{
    any::Any,
    cell::UnsafeCell,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle, Thread},
};

/// Rounds in which an idle thread looks for work before it sleeps: tens of microseconds.
const SPINS: u32 = 4000;
/// In `state`: the threads inside the job, the caller not counted.
const INSIDE: u64 = (1 << 31) - 1;
/// In `state`: whether the job may still be entered. Above it the job's number.
const OPEN: u64 = 1 << 31;
/// What is added to `state` for the next job.
const NEXT_JOB: u64 = 1 << 32;

/// A fixed number of threads, kept ready.
///
/// Dropping it ends and joins them.
pub struct Team {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    threads: Vec<Thread>,
}

/// Threads that the system would not start.
#[derive(Debug, thiserror::Error)]
#[error("{n_threads} threads cannot be started: {source}; ask for fewer")]
pub struct TeamError {
    n_threads: usize,
    source: std::io::Error,
}

/// On lines of their own, so that looking for work does not slow down who hands it out.
#[repr(align(128))]
struct Line<T>(T);

struct Shared {
    /// The job's number, whether it is open, and how many are inside.
    state: Line<AtomicU64>,
    /// The next task that nobody has taken.
    next: Line<AtomicUsize>,
    /// Written only by the caller that holds `busy`, while the job is closed and nobody is inside.
    job: UnsafeCell<Option<Job>>,
    /// Whether some thread runs a job.
    busy: AtomicBool,
    stop: AtomicBool,
    /// For each worker, whether it sleeps or is about to.
    asleep: Vec<Line<AtomicBool>>,
    /// What a task panicked with. Locked only then.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    panicked: AtomicBool,
}

// SAFETY: `job` is written by one thread at a time (`busy`) while no other is inside, and read only by threads that
// entered through `state`; the store that opens the job publishes it to them. The task that it points to is `Sync`.
#[allow(unsafe_code)]
unsafe impl Sync for Shared {}
// SAFETY: as above; the pointer in `job` is followed only while the caller that owns the task waits.
#[allow(unsafe_code)]
unsafe impl Send for Shared {}

#[derive(Clone, Copy)]
struct Job {
    task: *const (dyn Fn(usize) + Sync),
    n_tasks: usize,
    /// Tasks taken at a time.
    chunk: usize,
}

impl Team {
    /// A team of `n_threads`, the caller of [`Team::run`] among them; at least one.
    ///
    /// # Errors
    /// When the system starts no more threads.
    pub fn new(n_threads: usize) -> Result<Self, TeamError> {
        let n_workers = n_threads.max(1) - 1;
        let shared = Arc::new(Shared {
            state: Line(AtomicU64::new(0)),
            next: Line(AtomicUsize::new(0)),
            job: UnsafeCell::new(None),
            busy: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            asleep: (0..n_workers).map(|_| Line(AtomicBool::new(false))).collect(),
            panic: Mutex::new(None),
            panicked: AtomicBool::new(false),
        });
        // Already a team: when a later thread does not start, dropping it ends those that did.
        let mut team = Self { shared, workers: Vec::new(), threads: Vec::new() };
        for index in 0..n_workers {
            let shared = Arc::clone(&team.shared);
            let worker = thread::Builder::new().name(format!("team-{}", index + 1));
            let worker = worker.spawn(move || shared.work(index));
            let worker = worker.map_err(|source| TeamError { n_threads, source })?;
            team.threads.push(worker.thread().clone());
            team.workers.push(worker);
        }
        Ok(team)
    }

    /// Threads in the team, the caller among them.
    pub fn n_threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `task` with each of `0..n_tasks`, each once, on whichever thread is free; returns when all are done.
    /// The calling thread takes part.
    ///
    /// While a job runs, a second `run` (from inside a task, or from another thread) does all of its tasks on
    /// its own calling thread: never wrong, but never faster. Hand out work in one place.
    ///
    /// # Panics
    /// When a task panics: with its payload, after every thread has left the job. Tasks not begun are skipped.
    pub fn run(&self, n_tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        let shared = &*self.shared;
        if n_tasks <= 1 || self.workers.is_empty() || shared.busy.swap(true, Ordering::Acquire) {
            (0..n_tasks).for_each(task);
            return;
        }
        // Several chunks a thread, so that one that comes late or is interrupted leaves its share to the others.
        let chunk = (n_tasks / (64 * self.n_threads())).max(1);
        // SAFETY: only the lifetime changes, and `shared.close` returns only when no thread can follow the pointer.
        #[allow(unsafe_code)]
        let task = unsafe {
            std::mem::transmute::<*const (dyn Fn(usize) + Sync + '_), *const (dyn Fn(usize) + Sync)>(task)
        };
        let job = Job { task, n_tasks, chunk };
        shared.open(job, &self.threads);
        shared.take_part(job);
        shared.close();
        let payload = if shared.panicked.swap(false, Ordering::Relaxed) {
            shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take()
        } else {
            None
        };
        shared.busy.store(false, Ordering::Release);
        if let Some(payload) = payload {
            resume_unwind(payload);
        }
    }
}

impl Shared {
    /// Publishes a job and wakes who sleeps. Only by the thread that holds `busy`.
    fn open(&self, job: Job, threads: &[Thread]) {
        // SAFETY: this thread holds `busy`, and the job before was closed with nobody inside.
        #[allow(unsafe_code)]
        unsafe {
            *self.job.get() = Some(job);
        }
        self.next.0.store(0, Ordering::Relaxed);
        // One order over this store and the loads of `asleep`, as a worker sets `asleep` and then looks at the state:
        // either it sees the job or this thread sees that it sleeps.
        self.state.0.fetch_add(NEXT_JOB | OPEN, Ordering::SeqCst);
        for (asleep, thread) in self.asleep.iter().zip(threads) {
            if asleep.0.load(Ordering::SeqCst) {
                thread.unpark();
            }
        }
    }

    /// Lets nobody in any more and waits until all are out.
    fn close(&self) {
        let mut state = self.state.0.fetch_and(!OPEN, Ordering::AcqRel);
        let mut rounds = 0_u32;
        while state & INSIDE != 0 {
            // Whoever is inside may need this core.
            if rounds < SPINS {
                rounds += 1;
                std::hint::spin_loop();
            } else {
                thread::yield_now();
            }
            state = self.state.0.load(Ordering::Acquire);
        }
    }

    /// Takes tasks until none is left.
    fn take_part(&self, job: Job) {
        // SAFETY: the caller of `run` waits in `close` until this thread has left the job.
        #[allow(unsafe_code)]
        let task = unsafe { &*job.task };
        loop {
            let first = self.next.0.fetch_add(job.chunk, Ordering::Relaxed);
            if first >= job.n_tasks {
                return;
            }
            let chunk = first..job.n_tasks.min(first + job.chunk);
            if let Err(payload) = catch_unwind(AssertUnwindSafe(|| chunk.for_each(task))) {
                self.next.0.store(job.n_tasks, Ordering::Relaxed);
                self.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(payload);
                self.panicked.store(true, Ordering::Relaxed);
            }
        }
    }

    /// A worker's life.
    fn work(&self, index: usize) {
        let mut done = 0;
        while let Some(number) = self.wait(index, done) {
            done = number;
            // SAFETY: this thread is inside, so the job was published to it and stays until it leaves.
            #[allow(unsafe_code)]
            let job = unsafe { *self.job.get() };
            if let Some(job) = job {
                self.take_part(job);
            }
            self.state.0.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// Waits for a job after number `done`, enters it, and returns its number; nothing when the team ends.
    fn wait(&self, index: usize, done: u64) -> Option<u64> {
        let asleep = &self.asleep[index].0;
        let mut rounds = 0;
        loop {
            let state = self.state.0.load(Ordering::SeqCst);
            if self.stop.load(Ordering::SeqCst) {
                return None;
            }
            if state & OPEN != 0 && state / NEXT_JOB != done {
                let entered =
                    self.state.0.compare_exchange_weak(state, state + 1, Ordering::AcqRel, Ordering::Relaxed);
                if entered.is_ok() {
                    asleep.store(false, Ordering::Relaxed);
                    return Some(state / NEXT_JOB);
                }
                continue;
            }
            rounds += 1;
            if rounds < SPINS {
                std::hint::spin_loop();
            } else if rounds == SPINS {
                // Once more around: the job may have come before this could be seen.
                asleep.store(true, Ordering::SeqCst);
            } else {
                thread::park();
                asleep.store(false, Ordering::Relaxed);
                rounds = 0;
            }
        }
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // Tasks' panics are caught, so a worker has none of its own.
            let _ = worker.join();
        }
    }
}

impl fmt::Debug for Team {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Team").field("n_threads", &self.n_threads()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const SIZES: [usize; 3] = [1, 2, 5];

    /// How often each task was called in one run.
    fn calls(team: &Team, n_tasks: usize) -> Vec<usize> {
        let calls: Vec<_> = (0..n_tasks).map(|_| AtomicUsize::new(0)).collect();
        team.run(n_tasks, &|i| {
            calls[i].fetch_add(1, Ordering::Relaxed);
        });
        calls.into_iter().map(AtomicUsize::into_inner).collect()
    }

    #[test]
    fn every_task_is_called_once() {
        for n_threads in SIZES {
            let team = Team::new(n_threads).unwrap();
            assert_eq!(team.n_threads(), n_threads);
            // Below, at and above the threads, and around the sizes of a chunk.
            for n_tasks in [0, 1, 2, 4, 5, 6, 127, 128, 129, 319, 320, 321, 1000] {
                assert_eq!(calls(&team, n_tasks), vec![1; n_tasks], "{n_threads} threads");
            }
        }
    }

    #[test]
    fn many_short_runs_see_each_others_writes() {
        for n_threads in SIZES {
            let team = Team::new(n_threads).unwrap();
            // Plain loads and stores: an entry that were not visible to the next run would be counted twice.
            let cells: Vec<_> = (0..7).map(|_| AtomicUsize::new(0)).collect();
            for _ in 0..20_000 {
                team.run(cells.len(), &|i| {
                    let before = cells[i].load(Ordering::Relaxed);
                    cells[i].store(before + 1, Ordering::Relaxed);
                });
            }
            assert!(cells.iter().all(|cell| cell.load(Ordering::Relaxed) == 20_000));
        }
    }

    #[test]
    fn sleeping_threads_wake() {
        let team = Team::new(2).unwrap();
        for pause_us in [0, 50, 500, 20_000] {
            thread::sleep(Duration::from_micros(pause_us));
            // Both tasks must run at once: each waits for the other, so a worker that sleeps on would hang here.
            let arrived = AtomicUsize::new(0);
            team.run(2, &|_| {
                arrived.fetch_add(1, Ordering::SeqCst);
                while arrived.load(Ordering::SeqCst) < 2 {
                    thread::yield_now();
                }
            });
        }
    }

    #[test]
    fn a_run_inside_a_task_is_done_by_its_thread() {
        let team = Team::new(2).unwrap();
        let total = AtomicUsize::new(0);
        team.run(10, &|i| {
            let caller = thread::current().id();
            team.run(10, &|j| {
                assert_eq!(thread::current().id(), caller);
                total.fetch_add(10 * i + j, Ordering::Relaxed);
            });
        });
        assert_eq!(total.into_inner(), (0..100).sum::<usize>());
    }

    #[test]
    fn two_callers_do_not_meet() {
        let team = Team::new(2).unwrap();
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| (0..500).for_each(|_| assert_eq!(calls(&team, 20), [1; 20])));
            }
        });
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_team_goes_on() {
        for n_threads in SIZES {
            let team = Team::new(n_threads).unwrap();
            for bad in [0, 57, 99] {
                let run = || team.run(100, &|i| assert_ne!(i, bad, "task {bad}"));
                let payload = catch_unwind(AssertUnwindSafe(run)).unwrap_err();
                assert!(payload.downcast_ref::<String>().unwrap().contains(&format!("task {bad}")));
                assert_eq!(calls(&team, 100), [1; 100]);
            }
        }
    }

    #[test]
    fn dropping_joins() {
        let held = Arc::new(());
        for _ in 0..50 {
            let team = Team::new(5).unwrap();
            let held = Arc::clone(&held);
            team.run(5, &move |_| assert!(Arc::strong_count(&held) >= 2));
            let shared = Arc::downgrade(&team.shared);
            drop(team);
            assert!(shared.upgrade().is_none(), "a worker outlived its team");
        }
    }
}
