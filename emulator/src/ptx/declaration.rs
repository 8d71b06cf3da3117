//! Variables and parameters. PTX ISA, "Variables".

use super::lexer::Token;
use super::tokens::Tokens;
use super::types::Type;

/// Where a variable is stored. PTX ISA, "State Spaces".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Space {
    /// Memory of the device.
    Global,
    /// Memory of a block.
    Shared,
    /// Memory of a thread.
    Local,
    /// Arguments of the kernel.
    Parameter,
    /// An address that says itself where it points.
    Generic,
}

impl Space {
    /// The space with this name, without its dot. Constant memory is global memory that nobody writes.
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "global" | "const" => Some(Self::Global),
            "shared" | "shared::cta" | "shared::cluster" => Some(Self::Shared),
            "local" => Some(Self::Local),
            "param" | "param::entry" => Some(Self::Parameter),
            _ => None,
        }
    }
}

/// A variable or a parameter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Variable {
    /// Its name.
    pub name: String,
    /// Where it is stored.
    pub space: Space,
    /// Its size; 0 for the shared memory whose size the launch gives.
    pub bytes: usize,
    /// Its alignment in bytes.
    pub align: usize,
    /// The bytes that it starts with; empty if nothing is said.
    pub initial: Vec<u8>,
}

/// Reads `[.extern] .shared .align 16 .b8 name[32] = {1, 2}`, up to the mark after it.
pub(super) fn variable(tokens: &mut Tokens<'_>) -> Result<Variable, String> {
    let (mut space, mut align, mut element) = (None, 1, None);
    let name = loop {
        match tokens.word()? {
            ".extern" | ".visible" | ".weak" | ".ptr" => {}
            ".align" => align = tokens.size()?,
            word if word.starts_with('.') => {
                let word = &word[1..];
                match (Space::parse(word), Type::parse(word)) {
                    // After `.ptr`, where the parameter points.
                    (Some(found), _) => space = space.or(Some(found)),
                    (_, Some(found)) => element = Some(found),
                    _ => return Err(format!("the directive `.{word}` is not known in a declaration")),
                }
            }
            name => break name.to_string(),
        }
    };
    let element = element.ok_or_else(|| format!("`{name}` has no type"))?.bytes();
    let mut count = 1;
    while tokens.accept('[') {
        count *= if tokens.accept(']') {
            0
        } else {
            let size = tokens.size()?;
            tokens.expect(']')?;
            size
        };
    }
    let mut initial = Vec::new();
    if tokens.accept('=') {
        let list = tokens.accept('{');
        loop {
            match tokens.next()? {
                Token::Number(value) => initial.extend_from_slice(&value.to_le_bytes()[..element]),
                other => return Err(format!("`{name}` starts with {other:?}, expected numbers")),
            }
            if !list || !tokens.accept(',') {
                break;
            }
        }
        if list {
            tokens.expect('}')?;
        }
    }
    let bytes = element * count;
    if initial.len() > bytes {
        return Err(format!("`{name}` has {bytes} bytes and starts with {}", initial.len()));
    }
    let space = space.ok_or_else(|| format!("`{name}` has no state space"))?;
    Ok(Variable { name, space, bytes, align: align.max(element), initial })
}
