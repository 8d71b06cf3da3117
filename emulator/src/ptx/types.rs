//! Types of values. PTX ISA, "Types".

/// How the bits of an element are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Without a meaning.
    Bits,
    /// An unsigned integer.
    Unsigned,
    /// A signed integer.
    Signed,
    /// IEEE binary32 or binary64.
    Float,
    /// IEEE binary16.
    Half,
    /// bfloat16.
    Brain,
    /// binary32 of which tensor cores read the upper 19 bits.
    TensorFloat,
    /// True or false.
    Predicate,
}

/// The type of a value: one element, or two of 16 bits in a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Type {
    /// How an element is read.
    pub kind: Kind,
    /// Bits of an element.
    pub bits: u32,
    /// Whether two elements are packed into a word (`f16x2`, `bf16x2`).
    pub packed: bool,
}

impl Type {
    /// The type with this name, without its dot.
    pub fn parse(name: &str) -> Option<Self> {
        let of = |kind, bits, packed| Some(Self { kind, bits, packed });
        match name {
            "pred" => of(Kind::Predicate, 1, false),
            "f16" => of(Kind::Half, 16, false),
            "f16x2" => of(Kind::Half, 16, true),
            "bf16" => of(Kind::Brain, 16, false),
            "bf16x2" => of(Kind::Brain, 16, true),
            "tf32" => of(Kind::TensorFloat, 32, false),
            "f32" => of(Kind::Float, 32, false),
            "f64" => of(Kind::Float, 64, false),
            _ => {
                let (kind, bits) = name.split_at_checked(1)?;
                let kind = match kind {
                    "b" => Kind::Bits,
                    "u" => Kind::Unsigned,
                    "s" => Kind::Signed,
                    _ => return None,
                };
                of(kind, bits.parse().ok().filter(|bits| matches!(bits, 8 | 16 | 32 | 64))?, false)
            }
        }
    }

    /// Bits of the whole value.
    pub fn width(self) -> u32 {
        if self.packed { 2 * self.bits } else { self.bits }
    }

    /// Bytes of the whole value in memory.
    pub fn bytes(self) -> usize {
        self.width().div_ceil(8) as usize
    }

    /// Whether elements are floating-point numbers.
    pub fn is_float(self) -> bool {
        matches!(self.kind, Kind::Float | Kind::Half | Kind::Brain | Kind::TensorFloat)
    }

    /// Whether elements are signed integers.
    pub fn is_signed(self) -> bool {
        self.kind == Kind::Signed
    }
}
