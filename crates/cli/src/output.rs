//! Results on standard output, as a table for people or as data for programs.

use std::io::{self, Write};

use clap::ValueEnum;
use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

/// The form of results.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people. May change between versions.
    #[default]
    Table,
    /// JSON. Fields are added, never renamed or removed.
    Json,
    /// The same as YAML.
    Yaml,
}

/// Prints a result: `value` for programs, `table` for people.
///
/// # Errors
/// If standard output cannot be written.
pub(crate) fn print<T: Serialize>(
    format: Format,
    value: &T,
    table: impl FnOnce() -> String,
) -> anyhow::Result<()> {
    let text = render(format, value, table)?;
    match write_line(&text) {
        // `| head` has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => Ok(result?),
    }
}

fn render<T: Serialize>(
    format: Format,
    value: &T,
    table: impl FnOnce() -> String,
) -> anyhow::Result<String> {
    Ok(match format {
        Format::Table => table(),
        Format::Json => serde_json::to_string_pretty(value)?,
        Format::Yaml => serde_saphyr::to_string(value)?,
    })
}

fn write_line(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.trim_end().as_bytes())?;
    out.write_all(b"\n")?;
    out.flush()
}

/// A table with these columns: no lines between them, so that it can be read and cut.
pub(crate) fn table<const N: usize>(
    header: [&str; N],
    rows: impl Iterator<Item = [String; N]>,
) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header);
    let mut is_empty = true;
    for row in rows {
        table.add_row(row);
        is_empty = false;
    }
    if is_empty { "(none)".to_owned() } else { trimmed(&table.to_string()) }
}

/// Lines of `name  value`, names padded.
pub(crate) fn facts(facts: &[(&str, String)]) -> String {
    let width = facts.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let lines = facts.iter().map(|(name, value)| format!("{name:width$}  {value}"));
    lines.collect::<Vec<_>>().join("\n")
}

/// Without blanks at the ends of lines, and without the one that the preset begins lines with.
fn trimmed(text: &str) -> String {
    let lines = text.lines().map(|line| line.strip_prefix(' ').unwrap_or(line).trim_end());
    lines.collect::<Vec<_>>().join("\n")
}

/// A number with commas between thousands.
pub(crate) fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if 0 < index && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A number of bytes with a binary unit.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 4] = ["B", "KiB", "MiB", "GiB"];
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    let mut value = count as f64;
    let mut unit = 0;
    while 1024.0 <= value && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{count} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize)]
    struct Sample {
        name: &'static str,
        note: &'static str,
        tags: Vec<&'static str>,
        height_m: Option<f64>,
    }

    /// Values that a naive emitter would turn into something else.
    const SAMPLE: fn() -> Vec<Sample> = || {
        vec![
            Sample { name: "no", note: "a: b # c", tags: vec!["x", "1e3"], height_m: Some(1.5) },
            Sample { name: "", note: "two\nlines", tags: vec![], height_m: None },
        ]
    };

    #[test]
    fn json_and_yaml_hold_the_same_values() {
        let json = render(Format::Json, &SAMPLE(), String::new).unwrap();
        let expected: serde_json::Value = serde_json::to_value(SAMPLE()).unwrap();
        assert_eq!(serde_json::from_str::<serde_json::Value>(&json).unwrap(), expected);
        let yaml = render(Format::Yaml, &SAMPLE(), String::new).unwrap();
        let read: serde_json::Value = serde_saphyr::from_str(&yaml).unwrap();
        assert_eq!(read, expected, "{yaml}");
    }

    #[test]
    fn a_table_has_a_header_and_no_trailing_blanks() {
        let rows = [["a1".to_owned(), "up".to_owned()], ["b12".to_owned(), String::new()]];
        assert_eq!(table(["NODE", "STATE"], rows.into_iter()), "NODE  STATE\na1    up\nb12");
        assert_eq!(table(["NODE"], std::iter::empty()), "(none)");
    }

    #[test]
    fn numbers_are_grouped() {
        let cases = [(0, "0"), (999, "999"), (1_000, "1,000"), (12_345_678, "12,345,678")];
        for (number, expected) in cases {
            assert_eq!(thousands(number), expected);
        }
        assert_eq!(bytes(1_023), "1023 B");
        assert_eq!(bytes(1_536), "1.5 KiB");
    }
}
