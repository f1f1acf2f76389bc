//! Results on stdout: text for people, or one JSON document and nothing else.

use std::io::Write;

use crate::failure::Failure;

/// Prints the result of a verb: the document when JSON was asked for, the text otherwise.
pub fn print(json: bool, document: &serde_json::Value, text: &str) -> Result<(), Failure> {
    let line = if json { document.to_string() } else { text.trim_end().to_owned() };
    match writeln!(std::io::stdout().lock(), "{line}") {
        // The reader has seen enough (`slmc … | head`).
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other.map_err(|error| Failure::Run(error.into())),
    }
}

/// Columns of text, aligned: the first to the left, the others to the right.
pub fn table(rows: &[Vec<String>]) -> String {
    let n_columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|r| r.get(column)).map(|s| s.chars().count()).max();
    let widths: Vec<usize> = (0..n_columns).map(|c| width(c).unwrap_or(0)).collect();
    let cell = |column: usize, text: &String| {
        let width = widths[column];
        if column == 0 { format!("{text:<width$}") } else { format!("{text:>width$}") }
    };
    let line = |row: &Vec<String>| {
        let cells: Vec<String> = row.iter().enumerate().map(|(column, text)| cell(column, text)).collect();
        cells.join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// Bytes as MB (10^6), as llama.cpp and model cards count them.
pub fn megabytes(n_bytes: u64) -> String {
    format!("{:.1} MB", n_bytes as f64 / 1e6)
}

/// A count in millions or thousands: `134.5 M`.
pub fn count(n: u64) -> String {
    match n {
        0..1_000 => n.to_string(),
        1_000..1_000_000 => format!("{:.1} k", n as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} M", n as f64 / 1e6),
        _ => format!("{:.2} B", n as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_align() {
        let rows = [vec!["stage".to_owned(), "size".to_owned()], vec!["in".to_owned(), "7.3 MB".to_owned()]];
        assert_eq!(table(&rows), "stage    size\nin     7.3 MB");
    }
}
