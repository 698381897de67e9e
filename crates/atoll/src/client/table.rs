//! Columns for people.
use anyhow::Result;

use crate::out;

/// Prints rows below their headings, each column as wide as its widest cell.
pub(crate) fn print<const N: usize>(headings: [&str; N], rows: &[[String; N]]) -> Result<()> {
    let width = |i: usize| {
        rows.iter()
            .map(|row| row[i].chars().count())
            .chain([headings[i].len()])
            .max()
            .unwrap_or(0)
    };
    let widths: [usize; N] = std::array::from_fn(width);
    let line = |cells: [&str; N]| {
        let padded: Vec<String> = cells
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        format!("{}\n", padded.join("  ").trim_end())
    };
    let lines = rows
        .iter()
        .map(|row| line(std::array::from_fn(|i| row[i].as_str())));
    let table: String = std::iter::once(line(headings)).chain(lines).collect();
    out::text(&table)
}
