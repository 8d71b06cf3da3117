//! What the environment says.

use std::path::PathBuf;
use std::sync::OnceLock;

use crate::limits::Limits;

/// The settings; the module above explains them.
#[derive(Debug)]
pub struct Settings {
    /// What the devices allow.
    pub limits: Limits,
    pub devices: i32,
    pub threads: usize,
    pub seed: u64,
    pub execute: bool,
    /// The starts of the names of kernels that may not; `None` for all.
    strict: Option<Vec<String>>,
    /// Words that count as unwritten if the host writes them.
    pub canaries: Vec<u32>,
    pub log: Option<PathBuf>,
    pub counts: Option<PathBuf>,
    /// Blocks of a launch that run.
    pub sample: Option<u64>,
    pub dump: Option<PathBuf>,
    /// The file for candidates.
    pub mutants: Option<PathBuf>,
    pub mutant: Option<Chosen>,
}

/// The mutant that is wanted.
#[derive(Debug, PartialEq, Eq)]
pub struct Chosen {
    /// The start of the names of its kernels.
    pub kernel: String,
    /// The module; `None` for all.
    pub module: Option<String>,
    /// The number among the candidates of a kernel.
    pub number: usize,
}

impl Chosen {
    /// Reads `<start of the kernel's name>[@<module>]:<number>`.
    fn parse(text: &str) -> Option<Self> {
        let (name, number) = text.rsplit_once(':')?;
        let (kernel, module) = match name.split_once('@') {
            Some((kernel, module)) => (kernel, Some(module.to_string())),
            None => (name, None),
        };
        Some(Self { kernel: kernel.into(), module, number: number.parse().ok()? })
    }
}

impl Settings {
    /// Whether a kernel may read global memory that nothing has written, and race there or between lanes of a warp.
    pub fn is_lenient(&self, kernel: &str) -> bool {
        self.strict.as_ref().is_some_and(|strict| !strict.iter().any(|start| kernel.starts_with(start)))
    }

    /// Those of this process.
    pub fn get() -> &'static Self {
        static SETTINGS: OnceLock<Settings> = OnceLock::new();
        SETTINGS.get_or_init(|| {
            let number = |name: &str, default: u64| match std::env::var(name) {
                Ok(text) => text.parse().unwrap_or_else(|_| {
                    eprintln!("emulator: `{name}` is `{text}`, expected a number; using {default}");
                    default
                }),
                Err(_) => default,
            };
            let cores = std::thread::available_parallelism().map_or(1, usize::from);
            let path = |name: &str| std::env::var_os(name).map(PathBuf::from);
            Self {
                limits: Limits::of(number("EMULATOR_ARCHITECTURE", 90) as u32),
                devices: number("EMULATOR_DEVICES", 1) as i32,
                threads: number("EMULATOR_THREADS", cores as u64) as usize,
                seed: number("EMULATOR_SEED", 0),
                execute: number("EMULATOR_EXECUTE", 1) != 0,
                strict: std::env::var("EMULATOR_STRICT").ok().map(|list| list.split(',').map(str::to_string).collect()),
                canaries: std::env::var("EMULATOR_CANARIES").map(|list| canaries(&list)).unwrap_or_default(),
                log: path("EMULATOR_LOG"),
                counts: path("EMULATOR_COUNTS"),
                sample: Some(number("EMULATOR_SAMPLE", 0)).filter(|blocks| *blocks > 0),
                dump: path("EMULATOR_DUMP"),
                mutants: path("EMULATOR_MUTANTS"),
                mutant: std::env::var("EMULATOR_MUTANT").ok().and_then(|text| {
                    let chosen = Chosen::parse(&text);
                    if chosen.is_none() {
                        eprintln!("emulator: `EMULATOR_MUTANT` is `{text}`, expected `kernel:number` or `kernel@module:number`");
                    }
                    chosen
                }),
            }
        })
    }
}

/// Hexadecimal words, with commas between them.
fn canaries(list: &str) -> Vec<u32> {
    let word = |text: &str| {
        let word = u32::from_str_radix(text, 16).ok();
        if word.is_none() {
            eprintln!("emulator: `EMULATOR_CANARIES` has `{text}`, expected a hexadecimal number of 32 bits");
        }
        word
    };
    list.split(',').filter_map(word).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canaries_are_hexadecimal_words() {
        assert_eq!(canaries("7fc0beef,80808080"), [0x7fc0_beef, 0x8080_8080]);
        assert_eq!(canaries("1,x"), [1]);
    }

    #[test]
    fn a_mutant_is_chosen_by_kernel_number_and_module() {
        let chosen =
            |module: Option<&str>| Chosen { kernel: "decode".into(), module: module.map(Into::into), number: 7 };
        assert_eq!(Chosen::parse("decode:7"), Some(chosen(None)));
        assert_eq!(Chosen::parse("decode@00ff:7"), Some(chosen(Some("00ff"))));
        assert_eq!(Chosen::parse("decode"), None);
        assert_eq!(Chosen::parse("decode:all"), None);
    }
}
