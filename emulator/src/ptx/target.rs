//! The devices that a module is for.

use std::fmt;

/// What `.target` names. PTX ISA, "PTX Module Directives: .target".
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Target {
    /// Compute capability: ten times the major number plus the minor one.
    pub capability: u32,
    /// Whether the module may use what only this architecture has (`sm_90a`), and runs on no other.
    pub only: bool,
}

impl Target {
    /// Reads `sm_90` or `sm_90a`.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let number =
            text.strip_prefix("sm_").map(|rest| rest.strip_suffix('a').map_or((rest, false), |rest| (rest, true)));
        let target = number.and_then(|(number, only)| Some(Self { capability: number.parse().ok()?, only }));
        target.ok_or_else(|| format!("the target `{text}` is not known"))
    }

    /// Whether a device of this compute capability can run it.
    pub fn runs_on(self, capability: u32) -> bool {
        match self.only {
            true => self.capability == capability,
            false => self.capability <= capability,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sm_{}{}", self.capability, if self.only { "a" } else { "" })
    }
}
