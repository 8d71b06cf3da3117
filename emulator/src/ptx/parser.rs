//! Modules, kernels and statements.

use std::collections::HashMap;

use super::declaration::{Variable, variable};
use super::lexer::{self, Token};
use super::target::Target;
use super::tokens::Tokens;
use super::types::Type;
use crate::error::LoadError;

/// A module: kernels, and the variables that they share.
#[derive(Debug, Clone, Default)]
pub struct ModuleSource {
    /// The devices that it is for.
    pub target: Target,
    /// Variables outside of kernels.
    pub variables: Vec<Variable>,
    /// The kernels.
    pub kernels: Vec<KernelSource>,
}

/// A kernel.
#[derive(Debug, Clone, Default)]
pub struct KernelSource {
    /// Its name.
    pub name: String,
    /// Most threads of a block; `None` if it does not say.
    pub most_threads: Option<u32>,
    /// Its parameters, in order.
    pub parameters: Vec<Variable>,
    /// Its variables.
    pub variables: Vec<Variable>,
    /// Registers and their types. Names declared in an inner scope end in `@` and a number.
    pub registers: HashMap<String, Type>,
    /// What it executes.
    pub statements: Vec<Statement>,
    /// Labels, with the index of the statement after them.
    pub labels: HashMap<String, usize>,
    /// The index of a statement that was changed on purpose, and what it was.
    pub changed: Option<(usize, Statement)>,
}

/// An instruction.
#[derive(Debug, Clone)]
pub struct Statement {
    /// The register that decides which lanes execute it, and whether they do where it is false.
    pub predicate: Option<(String, bool)>,
    /// The opcode.
    pub opcode: Opcode,
    /// Its operands, in order.
    pub operands: Vec<Operand>,
    /// The line of the CUDA source that it belongs to; 0 if unknown.
    pub line: u32,
    /// Its text on one line.
    pub text: String,
}

/// An opcode with its modifiers: `ld.global.nc.v4.f32`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opcode {
    /// The text between the dots.
    pub parts: Vec<String>,
}

impl Opcode {
    /// What comes before the first dot.
    pub fn name(&self) -> &str {
        &self.parts[0]
    }

    /// The whole opcode.
    pub fn text(&self) -> String {
        self.parts.join(".")
    }
}

/// An operand. PTX ISA, "Instruction Operands".
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operand {
    /// A register, a special register, a variable or a label.
    Name(String),
    /// A constant.
    Number(u64),
    /// `{a, b}`.
    Vector(Vec<Operand>),
    /// `[base+offset]`.
    Address(Box<Operand>, i64),
    /// `!p`.
    Not(Box<Operand>),
    /// `d|p`.
    Pair(Box<Operand>, Box<Operand>),
}

/// Reads a module.
///
/// # Errors
/// [`LoadError`] with what is not understood.
pub fn parse(text: &str) -> Result<ModuleSource, LoadError> {
    let lexed = lexer::tokens(text).map_err(LoadError::of_module)?;
    let mut tokens = Tokens { text, tokens: &lexed, at: 0 };
    let mut module = ModuleSource::default();
    while let Some(token) = tokens.peek() {
        let Token::Word(word) = token else {
            return Err(LoadError::of_module(format!("{token:?} outside of a kernel")));
        };
        top_level(word, &mut tokens, &mut module)
            .map_err(|reason| LoadError::of_module(format!("{reason}, near `{}`", tokens.nearby())))?;
    }
    Ok(module)
}

fn top_level(word: &str, tokens: &mut Tokens<'_>, module: &mut ModuleSource) -> Result<(), String> {
    match word {
        ".version" | ".address_size" => tokens.skip(2),
        ".target" => {
            tokens.skip(1);
            module.target = Target::parse(tokens.word()?)?;
            while tokens.accept(',') {
                tokens.skip(1);
            }
        }
        ".file" => {
            tokens.skip(3); // number and path
            while tokens.accept(',') {
                tokens.skip(1); // time and size
            }
        }
        ".section" => tokens.skip_section()?,
        ".visible" | ".weak" if tokens.peek_second() == Some(Token::Word(".entry")) => tokens.skip(1),
        ".entry" => {
            tokens.skip(1);
            let kernel = kernel(tokens)?;
            module.kernels.push(kernel);
        }
        ".extern" | ".visible" | ".weak" | ".global" | ".const" | ".shared" => {
            let declared = variable(tokens)?;
            tokens.expect(';')?;
            module.variables.push(declared);
        }
        other => return Err(format!("the directive `{other}` is not supported outside of a kernel")),
    }
    Ok(())
}

fn kernel(tokens: &mut Tokens<'_>) -> Result<KernelSource, String> {
    let mut kernel = KernelSource { name: tokens.word()?.to_string(), ..KernelSource::default() };
    if tokens.accept('(') {
        while !tokens.accept(')') {
            kernel.parameters.push(variable(tokens)?);
            tokens.accept(',');
        }
    }
    while let Some(Token::Word(directive @ (".maxntid" | ".reqntid" | ".minnctapersm" | ".maxnreg"))) = tokens.peek() {
        tokens.skip(1);
        let mut product = tokens.number()?;
        while tokens.accept(',') {
            product = product.saturating_mul(tokens.number()?);
        }
        // PTX ISA, "Performance-Tuning Directives: .maxntid": the product of the sizes is what a block must not exceed.
        if let ".maxntid" | ".reqntid" = directive {
            kernel.most_threads = Some(u32::try_from(product).unwrap_or(u32::MAX));
        }
    }
    tokens.expect('{')?;
    let mut body = Body { scopes: vec![HashMap::new()], unique: 0, line: 0, kernel };
    while !body.scopes.is_empty() {
        body.item(tokens)?;
    }
    Ok(body.kernel)
}

/// A kernel while its body is read.
struct Body {
    kernel: KernelSource,
    /// The names that each open scope declares, and what they are called in the kernel.
    scopes: Vec<HashMap<String, String>>,
    unique: usize,
    line: u32,
}

impl Body {
    fn item(&mut self, tokens: &mut Tokens<'_>) -> Result<(), String> {
        let start = tokens.offset();
        match tokens.next()? {
            Token::Mark('{') => self.scopes.push(HashMap::new()),
            Token::Mark('}') => drop(self.scopes.pop()),
            Token::Mark(';') => {}
            Token::Mark('@') => {
                let negated = tokens.accept('!');
                let register = self.resolve(tokens.word()?);
                let opcode = tokens.word()?.to_string();
                self.statement(Some((register, negated)), &opcode, start, tokens)?;
            }
            Token::Word(".reg") => self.registers(tokens)?,
            Token::Word(".loc") => self.location(tokens)?,
            Token::Word(".pragma") => {
                tokens.skip(1);
                tokens.expect(';')?;
            }
            Token::Word(word) if word.starts_with('.') => {
                tokens.back();
                let declared = variable(tokens)?;
                tokens.expect(';')?;
                self.kernel.variables.push(declared);
            }
            Token::Word(word) if tokens.accept(':') => {
                let label = self.resolve(word);
                self.kernel.labels.insert(label, self.kernel.statements.len());
            }
            Token::Word(word) => self.statement(None, word, start, tokens)?,
            other => return Err(format!("{other:?} where a statement was expected")),
        }
        Ok(())
    }

    /// `.reg .b32 %r<5>;` declares `%r0` to `%r4`; `.reg .pred p, q;` declares two. Inline assembly has scopes of its own.
    fn registers(&mut self, tokens: &mut Tokens<'_>) -> Result<(), String> {
        let word = tokens.word()?;
        let kind = word.strip_prefix('.').and_then(Type::parse).ok_or_else(|| format!("registers of type `{word}`"))?;
        loop {
            let name = tokens.word()?.to_string();
            if tokens.accept('<') {
                let count = tokens.size()?;
                tokens.expect('>')?;
                self.kernel.registers.extend((0..count).map(|number| (format!("{name}{number}"), kind)));
            } else if self.scopes.len() == 1 {
                self.kernel.registers.insert(name, kind);
            } else {
                self.unique += 1;
                let fresh = format!("{name}@{}", self.unique);
                self.kernel.registers.insert(fresh.clone(), kind);
                self.scopes.last_mut().map(|scope| scope.insert(name, fresh));
            }
            if !tokens.accept(',') {
                break;
            }
        }
        tokens.expect(';')?;
        Ok(())
    }

    /// `.loc file line column[, function_name label[+offset], inlined_at file line column]`, which no semicolon ends.
    fn location(&mut self, tokens: &mut Tokens<'_>) -> Result<(), String> {
        tokens.skip(1);
        self.line = tokens.size()? as u32;
        tokens.skip(1);
        while tokens.accept(',') {
            match tokens.word()? {
                "function_name" => {
                    tokens.skip(1);
                    if tokens.accept('+') {
                        tokens.skip(1);
                    }
                }
                "inlined_at" => tokens.skip(3),
                other => return Err(format!("`{other}` in a `.loc`")),
            }
        }
        Ok(())
    }

    fn statement(
        &mut self,
        predicate: Option<(String, bool)>,
        opcode: &str,
        start: usize,
        tokens: &mut Tokens<'_>,
    ) -> Result<(), String> {
        let mut operands = Vec::new();
        while !tokens.accept(';') {
            operands.push(self.operand(tokens)?);
            tokens.accept(',');
        }
        let text = tokens.text[start..tokens.last_offset()].split_whitespace().collect::<Vec<_>>().join(" ");
        let opcode = Opcode { parts: opcode.split('.').map(str::to_string).collect() };
        self.kernel.statements.push(Statement { predicate, opcode, operands, line: self.line, text });
        Ok(())
    }

    fn operand(&self, tokens: &mut Tokens<'_>) -> Result<Operand, String> {
        let operand = match tokens.next()? {
            Token::Number(value) => Operand::Number(value),
            Token::Word(name) => Operand::Name(self.resolve(name)),
            Token::Mark('!') => Operand::Not(Box::new(self.operand(tokens)?)),
            Token::Mark('{') => {
                let mut list = Vec::new();
                while !tokens.accept('}') {
                    list.push(self.operand(tokens)?);
                    tokens.accept(',');
                }
                Operand::Vector(list)
            }
            Token::Mark('[') => {
                let base = self.operand(tokens)?;
                let offset = if tokens.accept('+') { tokens.number()? as i64 } else { 0 };
                tokens.expect(']')?;
                Operand::Address(Box::new(base), offset)
            }
            other => return Err(format!("{other:?} where an operand was expected")),
        };
        match tokens.accept('|') {
            true => Ok(Operand::Pair(Box::new(operand), Box::new(self.operand(tokens)?))),
            false => Ok(operand),
        }
    }

    fn resolve(&self, name: &str) -> String {
        let declared = self.scopes.iter().rev().find_map(|scope| scope.get(name));
        declared.map_or_else(|| name.to_string(), String::clone)
    }
}
