//! Progress on standard error: a bar on a terminal, otherwise one line each five seconds.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use tokio::time::Instant;

use crate::output::thousands;

/// How far something has come.
pub(crate) struct Progress {
    what: String,
    total: u64,
    done: u64,
    start: Instant,
    form: Form,
}

enum Form {
    Bar(ProgressBar),
    Lines { last: Instant },
}

/// Between two lines where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

impl Progress {
    /// Begins; `what` names the things that are counted.
    pub(crate) fn new(what: &str, total: u64) -> Self {
        let start = Instant::now();
        let form = if std::io::stderr().is_terminal() {
            let bar = ProgressBar::new(total);
            let style = ProgressStyle::with_template(
                "  {bar:32} {human_pos}/{human_len} {msg}  {per_sec}  {eta} left",
            );
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.set_message(what.to_owned());
            Form::Bar(bar)
        } else {
            Form::Lines { last: start }
        };
        Self { what: what.to_owned(), total, done: 0, start, form }
    }

    /// Counts on.
    pub(crate) fn add(&mut self, count: u64) {
        self.done += count;
        match &mut self.form {
            Form::Bar(bar) => bar.inc(count),
            Form::Lines { last } if LINE_INTERVAL <= last.elapsed() => {
                *last = Instant::now();
                let percent = (self.done * 100).checked_div(self.total).unwrap_or(100);
                eprintln!(
                    "  {} of {} {} ({percent} %), {} s",
                    thousands(self.done),
                    thousands(self.total),
                    self.what,
                    self.start.elapsed().as_secs()
                );
            }
            Form::Lines { .. } => {}
        }
    }
}

/// Takes the bar away: what follows says how it ended.
impl Drop for Progress {
    fn drop(&mut self) {
        if let Form::Bar(bar) = &self.form {
            bar.finish_and_clear();
        }
    }
}
