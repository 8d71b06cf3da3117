//! Registers of a warp: every register has a value for each of the 32 lanes. PTX ISA, "State Spaces: Register State Space".

/// Lanes of a warp.
pub const WARP: usize = 32;

/// A set of lanes, one bit each.
pub type Lanes = u32;

/// Every lane.
pub const ALL: Lanes = Lanes::MAX;

/// The lanes of a set, in ascending order.
pub fn each(lanes: Lanes) -> impl Iterator<Item = usize> {
    (0..WARP).filter(move |lane| lanes >> lane & 1 == 1)
}

/// The kinds of registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Bank {
    /// True or false.
    Predicate,
    /// Up to 32 bits.
    Word,
    /// 64 bits.
    Double,
}

/// A register.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Register {
    /// Its kind.
    pub bank: Bank,
    /// Its number among those of its kind.
    pub index: usize,
}

/// A predicate register, or its complement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Condition {
    /// The number of the predicate register.
    pub index: usize,
    /// Whether lanes are chosen where it is false.
    pub negated: bool,
}

/// The number of registers of each kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sizes {
    /// Predicates.
    pub predicates: usize,
    /// Words.
    pub words: usize,
    /// Doubles.
    pub doubles: usize,
}

/// The registers of a warp, and which of their lanes were written.
#[derive(Debug, Clone)]
pub struct Registers {
    predicates: Vec<Lanes>,
    words: Vec<[u32; WARP]>,
    doubles: Vec<[u64; WARP]>,
    written: [Vec<Lanes>; 3],
}

impl Registers {
    /// Registers that hold nothing. Their bits are those of a NaN.
    pub fn new(sizes: Sizes) -> Self {
        Self {
            predicates: vec![0; sizes.predicates],
            words: vec![[u32::MAX; WARP]; sizes.words],
            doubles: vec![[u64::MAX; WARP]; sizes.doubles],
            written: [vec![0; sizes.predicates], vec![0; sizes.words], vec![0; sizes.doubles]],
        }
    }

    /// Forgets what was written.
    pub fn clear(&mut self) {
        self.written.iter_mut().for_each(|bank| bank.fill(0));
    }

    /// The lanes of a register that were written.
    pub fn written(&self, register: Register) -> Lanes {
        self.written[register.bank as usize][register.index]
    }

    /// Notes that lanes of a register were written.
    pub fn mark(&mut self, register: Register, lanes: Lanes) {
        self.written[register.bank as usize][register.index] |= lanes;
    }

    /// The lanes for which a condition holds.
    pub fn condition(&self, condition: Condition) -> Lanes {
        let lanes = self.predicates[condition.index];
        if condition.negated { !lanes } else { lanes }
    }

    /// Sets a predicate in some lanes.
    pub fn set_predicate(&mut self, index: usize, value: Lanes, lanes: Lanes) {
        let predicate = &mut self.predicates[index];
        *predicate = *predicate & !lanes | value & lanes;
    }

    /// The values of a register.
    pub fn get<T: Value>(&self, register: Register) -> [T; WARP] {
        T::get(self, register)
    }

    /// Sets a register in some lanes.
    pub fn set<T: Value>(&mut self, register: Register, values: &[T; WARP], lanes: Lanes) {
        T::set(self, register, values, lanes);
    }
}

/// What instructions read from registers: bits of a word or of a double.
pub trait Value: Copy + Send + Sync + 'static {
    /// All bits 0.
    const ZERO: Self;

    /// The values of a register.
    fn get(registers: &Registers, register: Register) -> [Self; WARP];

    /// Sets a register in some lanes. A wider register gets zeros in its upper bits, a narrower one the lower bits. PTX ISA, "Operand Size
    /// Exceeding Instruction-Type Size"; what needs the sign instead passes 64 bits.
    fn set(registers: &mut Registers, register: Register, values: &[Self; WARP], lanes: Lanes);
}

fn assign<T: Copy>(to: &mut [T; WARP], lanes: Lanes, value: impl Fn(usize) -> T) {
    if lanes == ALL {
        for (lane, to) in to.iter_mut().enumerate() {
            *to = value(lane);
        }
    } else {
        each(lanes).for_each(|lane| to[lane] = value(lane));
    }
}

impl Value for u32 {
    const ZERO: Self = 0;

    #[inline(always)]
    fn get(registers: &Registers, register: Register) -> [Self; WARP] {
        match register.bank {
            Bank::Word => registers.words[register.index],
            Bank::Double => registers.doubles[register.index].map(|value| value as u32),
            Bank::Predicate => std::array::from_fn(|lane| registers.predicates[register.index] >> lane & 1),
        }
    }

    #[inline(always)]
    fn set(registers: &mut Registers, register: Register, values: &[Self; WARP], lanes: Lanes) {
        match register.bank {
            Bank::Word => assign(&mut registers.words[register.index], lanes, |lane| values[lane]),
            Bank::Double => assign(&mut registers.doubles[register.index], lanes, |lane| values[lane].into()),
            Bank::Predicate => unreachable!("a destination of words is no predicate"),
        }
    }
}

impl Value for u64 {
    const ZERO: Self = 0;

    #[inline(always)]
    fn get(registers: &Registers, register: Register) -> [Self; WARP] {
        match register.bank {
            Bank::Double => registers.doubles[register.index],
            _ => u32::get(registers, register).map(u64::from),
        }
    }

    #[inline(always)]
    fn set(registers: &mut Registers, register: Register, values: &[Self; WARP], lanes: Lanes) {
        match register.bank {
            Bank::Double => assign(&mut registers.doubles[register.index], lanes, |lane| values[lane]),
            Bank::Word => assign(&mut registers.words[register.index], lanes, |lane| values[lane] as u32),
            Bank::Predicate => unreachable!("a destination of words is no predicate"),
        }
    }
}
