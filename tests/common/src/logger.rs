//! Captures `log` records of the calling thread.

use std::{cell::RefCell, sync::Once};

use log::{Level, LevelFilter, Log, Metadata, Record};

/// A captured record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogRecord {
    /// Its level.
    pub level: Level,
    /// The module that wrote it.
    pub target: String,
    /// Its text.
    pub message: String,
}

thread_local! {
    static CAPTURED: RefCell<Vec<Vec<LogRecord>>> = const { RefCell::new(Vec::new()) };
}

struct Logger;

impl Log for Logger {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let captured = LogRecord {
            level: record.level(),
            target: record.target().to_owned(),
            message: record.args().to_string(),
        };
        // A thread that ends may log when its locals are gone.
        let _ = CAPTURED.try_with(|stack| {
            if let Some(top) = stack.borrow_mut().last_mut() {
                top.push(captured);
            }
        });
    }

    fn flush(&self) {}
}

/// Captures what this thread logs, at every level, until it is dropped.
pub struct LogCapture(());

impl LogCapture {
    /// Begins.
    ///
    /// # Panics
    /// When the process has another logger.
    pub fn start() -> Self {
        static INSTALL: Once = Once::new();
        INSTALL.call_once(|| {
            log::set_logger(&Logger).expect("testkit: the process has another logger");
            log::set_max_level(LevelFilter::Trace);
        });
        CAPTURED.with_borrow_mut(|stack| stack.push(Vec::new()));
        Self(())
    }

    /// What was captured so far.
    pub fn records(&self) -> Vec<LogRecord> {
        CAPTURED.with_borrow(|stack| stack.last().cloned().unwrap_or_default())
    }

    /// How many records contain all of `parts`.
    pub fn count(&self, parts: &[&str]) -> usize {
        let holds = |record: &LogRecord| parts.iter().all(|part| record.message.contains(part));
        self.records().iter().filter(|record| holds(record)).count()
    }

    /// Panics unless a record contains all of `parts`, such as a field's name and its value.
    #[track_caller]
    pub fn assert_mentions(&self, parts: &[&str]) {
        assert!(self.count(parts) > 0, "no message with {parts:?} in {:#?}", self.records());
    }
}

impl Drop for LogCapture {
    fn drop(&mut self) {
        let _ = CAPTURED.try_with(|stack| stack.borrow_mut().pop());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_captured_by_thread_and_only_while_asked_for() {
        let capture = LogCapture::start();
        log::warn!("field cpu_num: 65 is more than 64");
        std::thread::spawn(|| log::warn!("cpu_num of another thread")).join().unwrap();
        capture.assert_mentions(&["cpu_num", "65"]);
        assert_eq!(capture.count(&["cpu_num"]), 1);
        assert_eq!(capture.records()[0].level, Level::Warn);
        drop(capture);
        log::warn!("nobody listens");
        assert_eq!(LogCapture::start().records(), []);
    }
}
