//! What the environment says.

use std::path::PathBuf;
use std::sync::OnceLock;

/// The settings; the module above explains them.
#[derive(Debug)]
pub struct Settings {
    /// Major and minor compute capability.
    pub capability: [i32; 2],
    pub devices: i32,
    pub threads: usize,
    pub seed: u64,
    pub execute: bool,
    /// The starts of the names of kernels that may not; `None` for all.
    strict: Option<Vec<String>>,
    pub log: Option<PathBuf>,
    pub counts: Option<PathBuf>,
    /// Blocks of a launch that run.
    pub sample: Option<u64>,
    pub dump: Option<PathBuf>,
}

impl Settings {
    /// Whether a kernel may read global memory that nothing has written, and race there.
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
            let architecture = number("EMULATOR_ARCHITECTURE", 90) as i32;
            let cores = std::thread::available_parallelism().map_or(1, usize::from);
            let path = |name: &str| std::env::var_os(name).map(PathBuf::from);
            Self {
                capability: [architecture / 10, architecture % 10],
                devices: number("EMULATOR_DEVICES", 1) as i32,
                threads: number("EMULATOR_THREADS", cores as u64) as usize,
                seed: number("EMULATOR_SEED", 0),
                execute: number("EMULATOR_EXECUTE", 1) != 0,
                strict: std::env::var("EMULATOR_STRICT").ok().map(|list| list.split(',').map(str::to_string).collect()),
                log: path("EMULATOR_LOG"),
                counts: path("EMULATOR_COUNTS"),
                sample: Some(number("EMULATOR_SAMPLE", 0)).filter(|blocks| *blocks > 0),
                dump: path("EMULATOR_DUMP"),
            }
        })
    }
}
