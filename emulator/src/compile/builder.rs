//! A kernel while it is compiled: names to registers and addresses, and the modifiers of an opcode.

use std::collections::HashMap;

use super::changed::Changed;
use super::instruction::Instruction;
use super::kernel::Kernel;
use super::special::Special;
use crate::error::LoadError;
use crate::memory::INSIDE;
use crate::ptx::{KernelSource, Kind, ModuleSource, Operand, Space, Statement, Type, Variable};
use crate::registers::{Bank, Condition, Register, Registers, Sizes, WARP};

/// An address: a register or a constant, and what is added to it.
#[derive(Debug, Clone, Copy)]
pub struct Base {
    pub register: Register,
    pub offset: u64,
}

impl Base {
    /// The address of every lane. A register of 32 bits wraps around at 32 bits.
    #[inline(always)]
    pub fn addresses(self, registers: &Registers) -> [u64; WARP] {
        let bits = if self.register.bank == Bank::Word { u32::MAX.into() } else { u64::MAX };
        registers.get::<u64>(self.register).map(|value| value.wrapping_add(self.offset) & bits)
    }

    /// The addresses in shared memory, whether or not they are generic.
    pub fn in_shared(self, registers: &Registers) -> [u64; WARP] {
        self.addresses(registers).map(|address| address & INSIDE)
    }
}

/// The registers of a statement; see [`Instruction`].
#[derive(Debug, Default)]
pub struct Used {
    pub reads: Vec<Register>,
    pub writes: Vec<Register>,
    pub addresses: Vec<Register>,
}

pub struct Builder<'a> {
    source: &'a KernelSource,
    statement: &'a Statement,
    /// Modifiers of the statement that were not read yet.
    modifiers: Vec<&'a str>,
    used: Used,
    registers: HashMap<&'a str, Register>,
    sizes: Sizes,
    /// By kind and value.
    constants: HashMap<(u8, u64), Register>,
    specials: Vec<(Register, Special)>,
    parameters: HashMap<&'a str, usize>,
    layout: Vec<(usize, usize)>,
    parameter_bytes: usize,
    variables: HashMap<&'a str, (Space, u64)>,
    shared_bytes: usize,
    local_bytes: usize,
}

impl<'a> Builder<'a> {
    pub fn new(
        module: &'a ModuleSource,
        source: &'a KernelSource,
        place: &mut dyn FnMut(&Variable) -> Result<u64, LoadError>,
    ) -> Result<Self, LoadError> {
        let (mut parameters, mut layout, mut parameter_bytes) = (HashMap::new(), Vec::new(), 0usize);
        for parameter in &source.parameters {
            parameter_bytes = parameter_bytes.next_multiple_of(parameter.align);
            parameters.insert(parameter.name.as_str(), parameter_bytes);
            layout.push((parameter_bytes, parameter.bytes));
            parameter_bytes += parameter.bytes;
        }
        let (mut shared_bytes, mut local_bytes) = (0usize, 0usize);
        let mut variables = HashMap::new();
        let all = || module.variables.iter().chain(&source.variables);
        for variable in all().filter(|variable| !is_dynamic(variable)) {
            let next = |used: &mut usize| {
                let at = used.next_multiple_of(variable.align);
                *used = at + variable.bytes;
                at as u64
            };
            let address = match variable.space {
                Space::Shared => next(&mut shared_bytes),
                Space::Local => next(&mut local_bytes),
                _ => place(variable)?,
            };
            variables.insert(variable.name.as_str(), (variable.space, address));
        }
        // What the launch adds comes last.
        for variable in all().filter(|variable| is_dynamic(variable)) {
            shared_bytes = shared_bytes.next_multiple_of(variable.align.max(16));
            variables.insert(variable.name.as_str(), (Space::Shared, shared_bytes as u64));
        }
        let Some(statement) = source.statements.first() else {
            return Err(LoadError::of_module(format!("kernel `{}` has no instructions", source.name)));
        };
        Ok(Self {
            source,
            statement,
            modifiers: Vec::new(),
            used: Used::default(),
            registers: HashMap::new(),
            sizes: Sizes::default(),
            constants: HashMap::new(),
            specials: Vec::new(),
            parameters,
            layout,
            parameter_bytes,
            variables,
            shared_bytes,
            local_bytes,
        })
    }

    pub fn finish(self, instructions: Vec<Instruction>, changed: Option<Changed>) -> Kernel {
        Kernel {
            name: self.source.name.clone(),
            most_threads: self.source.most_threads,
            parameters: self.layout,
            parameter_bytes: self.parameter_bytes,
            instructions,
            sizes: self.sizes,
            constants: self.constants.into_iter().map(|((_, value), register)| (register, value)).collect(),
            specials: self.specials,
            shared_bytes: self.shared_bytes,
            least_dynamic_shared: 0,
            allowed_dynamic_shared: Default::default(),
            changed,
            local_bytes: self.local_bytes,
        }
    }

    /// Begins with a statement.
    pub fn begin(&mut self, statement: &'a Statement) {
        self.statement = statement;
        self.modifiers = statement.opcode.parts[1..].iter().map(String::as_str).collect();
        self.used = Used::default();
    }

    pub fn opcode(&self) -> &'a str {
        self.statement.opcode.name()
    }

    /// The registers that the statement reads and writes.
    pub fn registers_used(&mut self) -> Used {
        std::mem::take(&mut self.used)
    }

    /// Whether the opcode has this modifier.
    pub fn flag(&mut self, name: &str) -> bool {
        let found = self.modifiers.iter().position(|modifier| *modifier == name);
        found.map(|at| self.modifiers.remove(at)).is_some()
    }

    /// The modifier of the opcode among these.
    pub fn one_of(&mut self, names: &[&'static str]) -> Option<&'static str> {
        names.iter().copied().find(|name| self.flag(name))
    }

    /// The next type of the opcode.
    pub fn type_(&mut self) -> Result<Type, String> {
        let found = self.modifiers.iter().position(|modifier| Type::parse(modifier).is_some());
        let at = found.ok_or("the opcode has no type")?;
        Type::parse(self.modifiers.remove(at)).ok_or_else(|| "the opcode has no type".into())
    }

    /// The state space of the opcode.
    pub fn space(&mut self) -> Space {
        let found = self.modifiers.iter().position(|modifier| Space::parse(modifier).is_some());
        let space = found.and_then(|at| Space::parse(self.modifiers.remove(at)));
        // `.shared::cta.global` of a copy names both.
        space.unwrap_or(Space::Generic)
    }

    /// The modifier that starts so.
    pub fn starting(&mut self, start: &str) -> Option<&'a str> {
        let found = self.modifiers.iter().position(|modifier| modifier.starts_with(start))?;
        Some(self.modifiers.remove(found))
    }

    /// An error if a modifier of the opcode was not read.
    pub fn check_modifiers(&self) -> Result<(), String> {
        match &self.modifiers[..] {
            [] => Ok(()),
            [first, ..] => Err(format!("the modifier `.{first}` is not supported here")),
        }
    }

    pub fn operands(&self) -> &'a [Operand] {
        &self.statement.operands
    }

    pub fn operand(&self, index: usize) -> Result<&'a Operand, String> {
        self.statement.operands.get(index).ok_or_else(|| format!("operand {} is missing", index + 1))
    }

    fn fresh(&mut self, bank: Bank) -> Register {
        let count = match bank {
            Bank::Predicate => &mut self.sizes.predicates,
            Bank::Word => &mut self.sizes.words,
            Bank::Double => &mut self.sizes.doubles,
        };
        *count += 1;
        Register { bank, index: *count - 1 }
    }

    /// The register of this name, or what a special register, a variable or a parameter of this name holds.
    fn named(&mut self, name: &'a str, bits: u32) -> Result<Register, String> {
        if let Some(register) = self.registers.get(name) {
            return Ok(*register);
        }
        if let Some(kind) = self.source.registers.get(name) {
            let bank = match kind {
                Type { kind: Kind::Predicate, .. } => Bank::Predicate,
                kind if kind.width() > 32 => Bank::Double,
                _ => Bank::Word,
            };
            let register = self.fresh(bank);
            self.registers.insert(name, register);
            return Ok(register);
        }
        // The address of a variable or parameter is one in its space; `cvta` makes it generic.
        if let Some((_, address)) = self.variables.get(name).copied() {
            return Ok(self.constant(address, bits));
        }
        if let Some(offset) = self.parameters.get(name).copied() {
            return Ok(self.constant(offset as u64, bits));
        }
        if name == "WARP_SZ" {
            return Ok(self.constant(WARP as u64, bits));
        }
        if let Some(special) = Special::parse(name) {
            let register = self.fresh(if bits > 32 { Bank::Double } else { Bank::Word });
            self.specials.push((register, special));
            self.registers.insert(name, register);
            return Ok(register);
        }
        Err(format!("`{name}` is no register, variable or parameter"))
    }

    /// A register that holds a constant.
    pub fn constant(&mut self, value: u64, bits: u32) -> Register {
        let bank = if bits > 32 { Bank::Double } else { Bank::Word };
        let value = crate::numbers::low(value, bits);
        if let Some(register) = self.constants.get(&(bank as u8, value)) {
            return *register;
        }
        let register = self.fresh(bank);
        self.constants.insert((bank as u8, value), register);
        register
    }

    /// An operand of `bits` bits that is read.
    pub fn source(&mut self, index: usize, bits: u32) -> Result<Register, String> {
        let operand = self.operand(index)?;
        self.source_of(operand, bits)
    }

    pub fn source_of(&mut self, operand: &'a Operand, bits: u32) -> Result<Register, String> {
        match operand {
            Operand::Number(value) => Ok(self.constant(*value, bits)),
            Operand::Name(name) => {
                let register = self.named(name, bits)?;
                if register.bank == Bank::Predicate {
                    return Err(format!("`{name}` is a predicate where a number is read"));
                }
                self.used.reads.push(register);
                Ok(register)
            }
            other => Err(format!("{other:?} where a register or a number is read")),
        }
    }

    /// A register that is written.
    pub fn destination(&mut self, index: usize) -> Result<Register, String> {
        let operand = self.operand(index)?;
        self.destination_of(operand)
    }

    pub fn destination_of(&mut self, operand: &'a Operand) -> Result<Register, String> {
        let Operand::Name(name) = operand else { return Err(format!("{operand:?} where a register is written")) };
        let register = match name.as_str() {
            "_" => self.fresh(Bank::Double),
            name => self.named(name, 0)?,
        };
        if register.bank == Bank::Predicate {
            return Err(format!("`{name}` is a predicate where a number is written"));
        }
        self.used.writes.push(register);
        Ok(register)
    }

    /// The registers of a vector operand, or one.
    pub fn vector(&mut self, index: usize, bits: u32, written: bool) -> Result<Vec<Register>, String> {
        let operand = self.operand(index)?;
        let list = match operand {
            Operand::Vector(list) => list.as_slice(),
            one => std::slice::from_ref(one),
        };
        let register = |one| if written { self.destination_of(one) } else { self.source_of(one, bits) };
        list.iter().map(register).collect()
    }

    /// The number of a predicate register that is written.
    pub fn predicate(&mut self, operand: &'a Operand) -> Result<usize, String> {
        let Operand::Name(name) = operand else { return Err(format!("{operand:?} where a predicate is written")) };
        let register = match name.as_str() {
            "_" => self.fresh(Bank::Predicate),
            name => self.named(name, 1)?,
        };
        if register.bank != Bank::Predicate {
            return Err(format!("`{name}` is no predicate"));
        }
        self.used.writes.push(register);
        Ok(register.index)
    }

    /// A predicate that is read.
    pub fn condition(&mut self, index: usize) -> Result<Condition, String> {
        let operand = self.operand(index)?;
        self.condition_of(operand)
    }

    pub fn condition_of(&mut self, operand: &'a Operand) -> Result<Condition, String> {
        match operand {
            Operand::Not(inner) => {
                let Condition { index, negated } = self.condition_of(inner)?;
                Ok(Condition { index, negated: !negated })
            }
            Operand::Name(name) => self.guard(name, false),
            other => Err(format!("{other:?} where a predicate is read")),
        }
    }

    /// The predicate register of this name.
    pub fn guard(&mut self, name: &'a str, negated: bool) -> Result<Condition, String> {
        let register = self.named(name, 1)?;
        if register.bank != Bank::Predicate {
            return Err(format!("`{name}` is no predicate"));
        }
        self.used.reads.push(register);
        Ok(Condition { index: register.index, negated })
    }

    /// An address operand, and its space if the name of a variable or parameter says it.
    pub fn address(&mut self, index: usize) -> Result<(Base, Option<Space>), String> {
        let Operand::Address(base, offset) = self.operand(index)? else { return Err("an address is missing".into()) };
        let space = match &**base {
            Operand::Name(name) if self.parameters.contains_key(name.as_str()) => Some(Space::Parameter),
            Operand::Name(name) => self.variables.get(name.as_str()).map(|(space, _)| *space),
            _ => None,
        };
        let register = self.source_of(base, 64)?;
        self.used.addresses.push(register);
        Ok((Base { register, offset: *offset as u64 }, space))
    }

    /// The instruction at a label.
    pub fn label(&self, index: usize) -> Result<usize, String> {
        let Operand::Name(name) = self.operand(index)? else { return Err("a label is missing".into()) };
        self.source.labels.get(name).copied().ok_or_else(|| format!("there is no label `{name}`"))
    }
}

/// Whether the launch gives the size of this variable.
fn is_dynamic(variable: &Variable) -> bool {
    variable.space == Space::Shared && variable.bytes == 0
}
