//! An emulator that runs: a person or a script types at it and reads, and it has an end.

use std::fs::{self, File};
use std::io::{self, IsTerminal, PipeReader, Read, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tempfile::NamedTempFile;

use super::output::{Ending, Output};
use crate::command::{answer, command, root, succeeds};

/// Who types, and who reads.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Input {
    /// A person types at the terminal, and reads.
    Terminal,
    /// Nobody types; a person reads.
    Nobody,
    /// A script types and reads; what is printed goes to a log.
    Script,
}

/// How the time of an emulator ended.
pub(crate) enum End {
    /// It stopped.
    Stopped(Stopped),
    /// Its time ran out, and it was killed.
    OutOfTime,
}

/// What an emulator that stopped has left.
pub(crate) struct Stopped {
    pub status: ExitStatus,
    /// Each VM that said how it ended.
    pub endings: Vec<Ending>,
    /// What was printed and not taken by [`Session::expect`].
    pub rest: String,
}

impl Stopped {
    /// Whether the VM of that name ran and ended by its own power-off. The emulator's status
    /// alone does not tell: it is 0 too when a host that is lost resets the machine.
    pub(crate) fn judge(&self, name: &str) -> Result<&Ending> {
        if !self.status.success() {
            bail!("a VM did not end by its own power-off (the emulator: {})", self.status);
        }
        let ending = self.endings.iter().find(|ending| ending.name == name);
        ending.with_context(|| format!("the machine stopped before the host said how {name} ended"))
    }
}

/// What the thread that reads shares with the others.
struct Shared {
    output: Mutex<Output>,
    news: Condvar,
}

impl Shared {
    fn output(&self) -> MutexGuard<'_, Output> {
        self.output.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `found` finds something, or nothing more can come, or the deadline.
    fn wait<T>(
        &self,
        deadline: Option<Instant>,
        mut found: impl FnMut(&mut Output) -> Option<T>,
    ) -> Option<T> {
        let mut output = self.output();
        loop {
            let found = found(&mut output);
            if found.is_some() || output.closed {
                return found;
            }
            let Some(deadline) = deadline else {
                output = self.news.wait(output).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            let woken = self.news.wait_timeout(output, left);
            output = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Reads to the end; shows what comes if someone watches.
    fn read(&self, mut pipe: PipeReader, show: bool) {
        let mut buffer = [0; 4096];
        loop {
            let bytes = match pipe.read(&mut buffer) {
                Ok(0) => break,
                Ok(length) => &buffer[..length],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => break,
            };
            if show {
                let mut stdout = io::stdout();
                // Who does not look any more does not stop the machine.
                let _ = stdout.write_all(bytes).and_then(|()| stdout.flush());
            }
            self.output().push(bytes);
            self.news.notify_all();
        }
        self.output().close();
        self.news.notify_all();
    }
}

/// A running emulator. Dropped, it is killed.
pub(crate) struct Session {
    child: Child,
    stdin: Option<ChildStdin>,
    shared: Arc<Shared>,
    reader: Option<JoinHandle<()>>,
    start: Instant,
    deadline: Option<Instant>,
    /// How the terminal was, in `stty`'s words.
    terminal: Option<String>,
    /// Lasts as long as the emulator, which reads it.
    _bundle: Option<NamedTempFile>,
}

impl Session {
    /// Starts the emulator; after `limit`, it is killed.
    pub(super) fn start(
        name: &str,
        mut qemu: Command,
        input: Input,
        limit: Option<Duration>,
        bundle: Option<NamedTempFile>,
    ) -> Result<Self> {
        let (reader, writer) = io::pipe()?;
        let mut log = None;
        match input {
            Input::Terminal => qemu.stdin(Stdio::inherit()),
            Input::Nobody => qemu.stdin(Stdio::null()),
            Input::Script => {
                log = Some(log_file(name)?);
                qemu.stdin(Stdio::piped()).stderr(writer.try_clone()?)
            }
        };
        let terminal = (input == Input::Terminal && io::stdin().is_terminal())
            .then(|| answer(command("stty", &["-g"]).stdin(Stdio::inherit())))
            .flatten();
        let mut child = qemu
            .stdout(writer)
            .spawn()
            .with_context(|| format!("cannot start {}", qemu.get_program().to_string_lossy()))?;
        // The command holds ends of the pipe, which would never close.
        drop(qemu);
        let stdin = child.stdin.take();
        let output = Mutex::new(Output::new(log));
        let shared = Arc::new(Shared { output, news: Condvar::new() });
        let reader = thread::spawn({
            let shared = Arc::clone(&shared);
            move || shared.read(reader, input != Input::Script)
        });
        let start = Instant::now();
        let deadline = limit.and_then(|limit| start.checked_add(limit));
        let reader = Some(reader);
        Ok(Self { child, stdin, shared, reader, start, deadline, terminal, _bundle: bundle })
    }

    /// The time since the start.
    pub(crate) fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// Waits until `text` is printed and returns what comes before it and was not taken yet.
    pub(crate) fn expect(&mut self, text: &str, within: Duration) -> Result<String> {
        let soon = Instant::now().checked_add(within);
        let deadline = soon.into_iter().chain(self.deadline).min();
        if let Some(before) = self.shared.wait(deadline, |output| output.take_until(text)) {
            return Ok(before);
        }
        let mut output = self.shared.output();
        let why = if output.closed { "the emulator stopped" } else { "time ran out" };
        let rest = output.take();
        let end = rest.trim_end().lines().rev().take(5).collect::<Vec<_>>();
        let end = end.into_iter().rev().collect::<Vec<_>>().join("\n    ");
        bail!("{why} before {text:?} was printed; what was printed last:\n    {end}");
    }

    /// The line that begins with `text`, to its end.
    pub(crate) fn expect_line(&mut self, text: &str, within: Duration) -> Result<String> {
        self.expect(text, within)?;
        let rest = self.expect("\n", within)?;
        Ok(format!("{text}{}", rest.trim_end_matches('\r')))
    }

    /// Types a line.
    pub(crate) fn type_line(&mut self, text: &str) -> Result<()> {
        let stdin = self.stdin.as_mut().context("nobody can type at this machine")?;
        stdin.write_all(format!("{text}\r").as_bytes()).context("the emulator does not listen")?;
        Ok(stdin.flush()?)
    }

    /// Waits for the end.
    pub(crate) fn wait(mut self) -> Result<End> {
        let closed = self.shared.wait(self.deadline, |output| output.closed.then_some(()));
        if closed.is_none() && !self.shared.output().closed {
            return Ok(End::OutOfTime);
        }
        let status = self.child.wait()?;
        let mut output = self.shared.output();
        let endings = output.endings().to_vec();
        Ok(End::Stopped(Stopped { status, endings, rest: output.take() }))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // Fails if it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
        if let Some(terminal) = &self.terminal {
            succeeds(command("stty", &[terminal]).stdin(Stdio::inherit()));
        }
    }
}

/// Where the log of a session is, from the repository's top folder.
pub(crate) fn log_path(name: &str) -> PathBuf {
    PathBuf::from(format!("target/xtask/logs/{name}.log"))
}

fn log_file(name: &str) -> Result<File> {
    let file = root().join(log_path(name));
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder)?;
    }
    File::create(&file).with_context(|| format!("cannot write {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn script(name: &str, shell: &str, limit: Duration) -> Result<Session> {
        Session::start(name, command("sh", &["-c", shell]), Input::Script, Some(limit), None)
    }

    const SOON: Duration = Duration::from_secs(20);

    #[test]
    fn a_script_types_and_reads_and_sees_the_end() -> Result<()> {
        let shell = "echo name?; IFS= read -r a; echo \"<$a>\"; \
                     echo 'vm x: powered off, 1 exits, 2 ms'; echo bye >&2; exit 3";
        let mut session = script("test-session", shell, SOON)?;
        assert_eq!(session.expect("name?", SOON)?, "");
        session.type_line("me")?;
        // A machine's terminal would make a newline of it.
        session.stdin.take();
        assert_eq!(session.expect_line("<me", SOON)?, "<me\r>");
        let End::Stopped(stopped) = session.wait()? else { bail!("out of time") };
        assert_eq!(stopped.status.code(), Some(3));
        assert_eq!(stopped.endings.len(), 1);
        assert!(stopped.rest.ends_with("bye\n"));
        let log = fs::read_to_string(root().join(log_path("test-session")))?;
        assert!(log.lines().any(|line| line.trim_start().ends_with(" name?")), "{log}");
        Ok(())
    }

    #[test]
    fn an_end_before_what_is_expected_is_an_error_at_once() -> Result<()> {
        let start = Instant::now();
        let mut session = script("test-early", "echo this is all", SOON)?;
        let error = session.expect("more", SOON).err().map(|error| error.to_string());
        assert!(error.is_some_and(|error| error.contains("this is all")));
        assert!(start.elapsed() < SOON);
        Ok(())
    }

    #[test]
    fn who_does_not_end_is_killed_when_time_runs_out() -> Result<()> {
        let session = script("test-late", "exec sleep 60", Duration::from_millis(50))?;
        let pid = session.child.id();
        let start = Instant::now();
        assert!(matches!(session.wait()?, End::OutOfTime));
        assert!(start.elapsed() < SOON);
        assert!(!succeeds(&mut command("kill", &["-0", &pid.to_string()])));
        Ok(())
    }
}
