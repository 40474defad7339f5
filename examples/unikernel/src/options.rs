//! The boot arguments: words, separated by blanks.

use log::LevelFilter;

/// What the boot arguments ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// `stats`: at the end of each VM, a table of what its vCPUs did.
    pub stats: bool,
    /// `trace`: a line for each exit.
    pub trace: bool,
    /// `retake`: at each reset of a VM, virtualization of the CPU that does it is switched off and
    /// on again.
    pub retake: bool,
    /// `log=LEVEL`: what is logged, `off`, `error`, `warn`, `info`, `debug` or `trace`.
    pub log: LevelFilter,
}

impl Default for Options {
    fn default() -> Self {
        Self { stats: false, trace: false, retake: false, log: LevelFilter::Warn }
    }
}

impl Options {
    /// Reads the boot arguments. A word that means nothing is handed to `unknown`, and ignored:
    /// boot loaders have words of their own.
    pub fn parse<'a>(bootargs: &'a str, mut unknown: impl FnMut(&'a str)) -> Self {
        let mut options = Self::default();
        for word in bootargs.split_ascii_whitespace() {
            match (word, word.strip_prefix("log=").and_then(|level| level.parse().ok())) {
                ("stats", _) => options.stats = true,
                ("trace", _) => options.trace = true,
                ("retake", _) => options.retake = true,
                (_, Some(level)) => options.log = level,
                (word, None) => unknown(word),
            }
        }
        options
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;

    #[test]
    fn each_word_sets_what_it_names_and_no_word_sets_nothing() {
        let parse =
            |bootargs| Options::parse(bootargs, |word| std::panic!("{word} means something"));
        let default = Options::default();
        assert_eq!(parse(" "), default);
        assert_eq!(parse("stats"), Options { stats: true, ..default });
        assert_eq!(
            parse("  trace log=debug "),
            Options { trace: true, log: LevelFilter::Debug, ..default }
        );
        assert_eq!(parse("retake"), Options { retake: true, ..default });
    }

    #[test]
    fn what_means_nothing_is_told_and_changes_nothing() {
        let mut unknown = Vec::new();
        let options = Options::parse("stat log=loud stats=1 log", |word| unknown.push(word));
        assert_eq!(unknown, ["stat", "log=loud", "stats=1", "log"]);
        assert_eq!(options, Options::default());
    }
}
