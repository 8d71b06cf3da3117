//! Matrices in the formats of their files.

use super::float::Floats;
use super::matrix;
use super::piece::Piece;
use super::runs::{Run, Segment};
use crate::block::{BlockFormat, BlockRows, RowFormats, RowPart};
use crate::element::ElementType;
use crate::error::WeightError;
use crate::layout::Orientation;

/// The matrix `[out, in]` that these pieces make, each row in the format of its file; with `wanted`, floats are rounded to that. Rows
/// that have no format become f32, or `wanted`: those in int8 or f64, and those of which a part is needed that cuts a block.
pub(super) fn read(
    pieces: &[Piece<'_>],
    [outputs, inputs]: [usize; 2],
    wanted: Option<BlockFormat>,
) -> Result<BlockRows, WeightError> {
    pieces.iter().try_for_each(Piece::check)?;
    let forms: Vec<Form> = pieces.iter().map(|piece| Form::of(piece, wanted)).collect();
    let formats = rows(pieces, &forms, [outputs, inputs], wanted)?;
    let mut bytes = vec![0; formats.bytes()];
    let parts: Vec<RowPart> = formats.parts().collect();
    let place = |output: usize| {
        let part = &parts[parts.partition_point(|part| part.outputs.end <= output)];
        let row = part.bytes.len() / part.outputs.len();
        (part.format, part.bytes.start + (output - part.outputs.start) * row, row)
    };
    let (mut others, mut rounded) = (Vec::new(), Vec::new());
    for (piece, form) in pieces.iter().zip(&forms) {
        let rows = || piece.outputs.iter().flat_map(|rows| (0..rows.len).map(|at| (rows.from + at, rows.to + at)));
        match *form {
            Form::Copied(format) if rows().all(|(_, to)| place(to).0 == format) => {
                let (elements, size) = (format.elements(), format.bytes());
                let row = piece.shape[1] / elements;
                let runs = rows().flat_map(|(from, to)| {
                    let first = place(to).1;
                    piece.inputs.iter().map(move |run| Run {
                        start: from * row + run.from / elements,
                        len: run.len / elements,
                        to: first + run.to / elements * size,
                    })
                });
                piece.checkpoint.read_blocks((piece.matrix, &piece.stored_shape()), format, runs, &mut bytes)?;
                piece.checkpoint.log_loaded(piece.matrix);
            }
            _ => {
                rounded.extend(rows().map(|(_, to)| to));
                others.push(piece.clone());
            }
        }
    }
    rounded.sort_unstable();
    rounded.dedup();
    if let Floats::F32(values) = floats(&others, [outputs, inputs])? {
        for output in rounded {
            let (format, first, len) = place(output);
            let row = format.quantise(&values[output * inputs..][..inputs]);
            bytes[first..first + len].copy_from_slice(&row);
        }
    }
    Ok(BlockRows { formats, bytes })
}

/// How a piece is read.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Form {
    /// Its bytes are copied.
    Copied(BlockFormat),
    /// Its floats are rounded to this.
    Rounded(BlockFormat),
}

impl Form {
    fn of(piece: &Piece<'_>, wanted: Option<BlockFormat>) -> Self {
        let stored = piece.checkpoint.format(piece.matrix);
        let Some(format) = stored else { return Self::Rounded(wanted.unwrap_or(BlockFormat::F32)) };
        let elements = format.elements();
        let whole = |Segment { from, len, to }: &Segment| [from, len, to].iter().all(|at| at.is_multiple_of(elements));
        let in_rows = piece.orientation == Orientation::OutputInput;
        match wanted.filter(|_| elements == 1) {
            Some(wanted) if wanted != format => Self::Rounded(wanted),
            _ if in_rows && piece.inputs.iter().all(whole) => Self::Copied(format),
            // Floats lose nothing.
            _ if elements == 1 => Self::Rounded(format),
            _ => Self::Rounded(wanted.unwrap_or(BlockFormat::F32)),
        }
    }

    fn format(self) -> BlockFormat {
        match self {
            Self::Copied(format) | Self::Rounded(format) => format,
        }
    }
}

/// The format of each row. Where pieces of a row have several, it is f32, or `wanted`.
fn rows(
    pieces: &[Piece<'_>],
    forms: &[Form],
    [outputs, inputs]: [usize; 2],
    wanted: Option<BlockFormat>,
) -> Result<RowFormats, WeightError> {
    let mut formats = vec![None; outputs];
    for (piece, form) in pieces.iter().zip(forms) {
        for output in piece.outputs.iter().flat_map(|rows| rows.to..rows.to + rows.len) {
            let format = form.format();
            let several = formats[output].is_some_and(|other| other != format);
            formats[output] = Some(if several { wanted.unwrap_or(BlockFormat::F32) } else { format });
        }
    }
    let formats = formats.into_iter().map(|format| format.unwrap_or(BlockFormat::F32));
    RowFormats::new(inputs, formats).ok_or_else(|| {
        let (matrix, format) = (pieces.first().map_or("", |piece| piece.matrix), wanted.unwrap_or(BlockFormat::F32));
        WeightError::BlocksDoNotDivide { matrix: matrix.into(), inputs, format, elements: format.elements() }
    })
}

/// The elements of these pieces in their places, and zeros elsewhere.
fn floats(pieces: &[Piece<'_>], shape: [usize; 2]) -> Result<Floats, WeightError> {
    match pieces.is_empty() {
        true => Ok(Floats::F32(Vec::new())),
        false => matrix::dense(pieces, shape, Orientation::OutputInput, ElementType::F32),
    }
}
