//! The terminal as the libraries' host: progress bars and messages on stderr, the clock, Ctrl-C.

use std::{
    io::IsTerminal,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use slmc_ir::Host;

use crate::{args::GlobalArgs, failure::Failure};

/// Between two lines of progress where there is no terminal to redraw.
const PLAIN_LINE_EVERY: Duration = Duration::from_secs(10);

/// Where messages and progress go.
pub struct Terminal {
    started: Instant,
    stop: Arc<AtomicBool>,
    quiet: bool,
    colours: bool,
    interactive: bool,
    bar: Mutex<Option<Running>>,
}

struct Running {
    bar: ProgressBar,
    what: String,
    unit: String,
    total: u64,
    /// When progress was first told, and how much was done by then: what a resumed run begins with took no time now.
    first: Option<(Instant, u64)>,
    last_line: Instant,
}

impl Terminal {
    /// Takes over Ctrl-C: the first asks the work to save and stop, the second ends at once.
    pub fn new(args: &GlobalArgs) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&stop);
        // A handler that is already there (none in this program) is the only way that this can fail.
        let _ = ctrlc::set_handler(move || {
            if flag.swap(true, Ordering::SeqCst) {
                std::process::exit(130);
            }
        });
        let interactive = std::io::stderr().is_terminal();
        let no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let colours = interactive && !no_colour;
        Self { started: Instant::now(), stop, quiet: args.quiet, colours, interactive, bar: Mutex::new(None) }
    }

    /// Tells the user something, unless they asked for quiet.
    pub fn say(&self, message: &str) {
        if !self.quiet {
            self.line(message);
        }
    }

    /// Tells the user why the program ends.
    pub fn fail(&self, failure: &Failure) {
        let word = match failure {
            Failure::Interrupted(_) => "interrupted",
            _ => "error",
        };
        let word = if self.colours { format!("\x1b[1;31m{word}\x1b[0m") } else { word.to_owned() };
        self.line(&format!("{word}: {failure}"));
    }

    fn line(&self, message: &str) {
        let bar = self.bar.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let print = || {
            use std::io::Write;
            // A closed stderr leaves nobody to tell.
            let _ = writeln!(std::io::stderr(), "{message}");
        };
        match &*bar {
            Some(running) => running.bar.suspend(print),
            None => print(),
        }
    }

    fn running(&self, change: impl FnOnce(&mut Running)) {
        let mut bar = self.bar.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(running) = bar.as_mut() {
            change(running);
        }
    }
}

impl Host for Terminal {
    fn begin(&self, what: &str, total: u64, unit: &str) {
        let target = if self.quiet || !self.interactive {
            ProgressDrawTarget::hidden()
        } else {
            ProgressDrawTarget::stderr_with_hz(8)
        };
        let bar = ProgressBar::with_draw_target(Some(total), target);
        let template = "{prefix:<12} {wide_bar} {human_pos}/{human_len} {unit} · {eta} left {msg}";
        let template = template.replace("{unit}", unit);
        let style = ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar());
        bar.set_style(style);
        bar.set_prefix(what.to_owned());
        let now = Instant::now();
        let (what, unit) = (what.to_owned(), unit.to_owned());
        let running = Running { bar, what, unit, total, first: None, last_line: now };
        *self.bar.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(running);
    }

    fn advance_to(&self, done: u64, note: &str) {
        let (interactive, quiet) = (self.interactive, self.quiet);
        self.running(|running| {
            if running.first.is_none() {
                running.first = Some((Instant::now(), done));
                running.bar.reset_eta();
            }
            running.bar.set_position(done);
            running.bar.set_message(if note.is_empty() { String::new() } else { format!("· {note}") });
            if !interactive && !quiet && running.last_line.elapsed() >= PLAIN_LINE_EVERY {
                running.last_line = Instant::now();
                use std::io::Write;
                let (since, before) = running.first.unwrap_or((running.last_line, done));
                let left = time_left(
                    since.elapsed(),
                    done - before.min(done),
                    running.total - done.min(running.total),
                );
                let Running { what, unit, total, .. } = running;
                let _ = writeln!(std::io::stderr(), "{what}: {done}/{total} {unit}{left} {note}");
            }
        });
    }

    fn end(&self) {
        let mut bar = self.bar.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(running) = bar.take() {
            running.bar.finish_and_clear();
        }
    }

    fn warn(&self, message: &str) {
        let word = if self.colours { "\x1b[1;33mwarning\x1b[0m" } else { "warning" };
        self.line(&format!("{word}: {message}"));
    }

    fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    fn stop_requested(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }
}

fn time_left(elapsed: Duration, done: u64, to_do: u64) -> String {
    if done == 0 || to_do == 0 {
        return String::new();
    }
    let seconds = elapsed.as_secs_f64() * to_do as f64 / done as f64;
    format!(" · {} left", minutes(seconds))
}

/// `95 s` as "1:35".
pub fn minutes(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole / 3600 {
        0 => format!("{}:{:02}", whole / 60, whole % 60),
        hours => format!("{hours}:{:02}:{:02}", whole / 60 % 60, whole % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_left_is_of_what_was_done_since_the_beginning() {
        assert_eq!(time_left(Duration::from_secs(10), 5, 20), " · 0:40 left");
        assert_eq!(time_left(Duration::from_secs(10), 0, 20), "");
        assert_eq!(time_left(Duration::from_secs(10), 5, 0), "");
        assert_eq!(minutes(3725.0), "1:02:05");
    }
}
