//! Where the bytes of files with holes lie.
use super::header::{BLOCK, number};
use super::pax::decimal;

/// Bytes of a sparse file that are in the archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Piece {
    /// Where they lie in the file.
    pub(crate) offset: u64,
    /// How many they are.
    pub(crate) bytes: u64,
}

const MAP: &str = "the map of a sparse file is broken";
/// A number with its newline: 20 digits hold any length.
const DIGITS_MAX: usize = 20;

/// In order, without overlap, within the file, and together as long as what follows.
pub(super) fn check(map: &[Piece], real: u64, stored: u64) -> Result<(), &'static str> {
    let (mut end, mut sum) = (0_u64, 0_u64);
    for piece in map {
        if piece.offset < end {
            return Err("pieces of a sparse file overlap, or are not in order");
        }
        end = piece.offset.checked_add(piece.bytes).ok_or(MAP)?;
        sum = sum.checked_add(piece.bytes).ok_or(MAP)?;
    }
    if end > real {
        return Err("a piece of a sparse file lies beyond its end");
    }
    if sum != stored {
        return Err("the pieces of a sparse file are not as long as what the archive has of it");
    }
    Ok(())
}

/// The map in GNU's header: at most four pieces, the whole length, and whether more blocks follow.
pub(super) fn in_header(block: &[u8; BLOCK]) -> Result<(Vec<Piece>, u64, bool), &'static str> {
    let mut map = Vec::new();
    pieces(&block[386..482], &mut map)?;
    let real = length(&block[483..495])?;
    Ok((map, real, block[482] != 0))
}

/// A block that goes on with the map; tells whether another follows.
pub(super) fn in_extension(block: &[u8; BLOCK], map: &mut Vec<Piece>) -> Result<bool, &'static str> {
    pieces(&block[..504], map)?;
    Ok(block[504] != 0)
}

fn pieces(fields: &[u8], map: &mut Vec<Piece>) -> Result<(), &'static str> {
    for field in fields.chunks_exact(24) {
        // What is not used is empty.
        if field[0] == 0 || field[12] == 0 {
            break;
        }
        map.push(Piece {
            offset: length(&field[..12])?,
            bytes: length(&field[12..])?,
        });
    }
    Ok(())
}

fn length(field: &[u8]) -> Result<u64, &'static str> {
    number(field)
        .and_then(|number| u64::try_from(number).ok())
        .ok_or(MAP)
}

/// A map that is text: the number of pieces, then offsets and lengths, each on a line, in whole blocks.
#[derive(Default)]
pub(super) struct Text {
    digits: Vec<u8>,
    expected: Option<u64>,
    offset: Option<u64>,
    map: Vec<Piece>,
}

impl Text {
    /// Takes a block; the map, when this was its last.
    pub(super) fn take(
        &mut self,
        block: &[u8; BLOCK],
        most: usize,
    ) -> Result<Option<Vec<Piece>>, &'static str> {
        for byte in block {
            if *byte != b'\n' {
                if self.digits.len() >= DIGITS_MAX {
                    return Err(MAP);
                }
                self.digits.push(*byte);
                continue;
            }
            let number = decimal(&self.digits).ok_or(MAP)?;
            self.digits.clear();
            match (self.expected, self.offset.take()) {
                (None, _) if number > most as u64 => return Err("a sparse file has too many pieces"),
                (None, _) => self.expected = Some(number),
                (Some(_), None) => self.offset = Some(number),
                (Some(_), Some(offset)) => self.map.push(Piece {
                    offset,
                    bytes: number,
                }),
            }
            if self.expected == Some(self.map.len() as u64) && self.offset.is_none() {
                return Ok(Some(std::mem::take(&mut self.map)));
            }
        }
        Ok(None)
    }
}
