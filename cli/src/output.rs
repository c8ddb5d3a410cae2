//! What a command prints: data on standard output as a table or as JSON, everything else on standard error.

use std::fmt::Display;
use std::io::Write;

use comfy_table::{ContentArrangement, Table, presets};
use serde_json::Value;

/// How data is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Tables for people.
    #[default]
    Table,
    /// One JSON document for programs.
    Json,
}

impl Format {
    /// Prints a list of records: a JSON array, or a table with one row a record and the given columns.
    pub fn list(self, records: &[Value], columns: &[&str]) {
        if self == Format::Json {
            return print(&Value::Array(records.to_vec()));
        }
        let mut table = Table::new();
        table.load_preset(presets::UTF8_HORIZONTAL_ONLY).set_content_arrangement(ContentArrangement::Dynamic);
        table.set_header(columns.iter().map(|column| column.replace('_', " ")));
        for record in records {
            table.add_row(columns.iter().map(|column| cell(&record[*column])));
        }
        print(&table);
    }

    /// Prints one record: a JSON object, or a table with one row a field.
    pub fn record(self, record: &Value) {
        if self == Format::Json {
            return print(record);
        }
        let mut table = Table::new();
        table.load_preset(presets::UTF8_HORIZONTAL_ONLY).set_content_arrangement(ContentArrangement::Dynamic);
        for (field, value) in record.as_object().into_iter().flatten() {
            table.add_row([field.replace('_', " "), cell(value)]);
        }
        print(&table);
    }
}

/// A reader that has gone, as in `quorate task list | head`, is no error.
fn print(data: &impl Display) {
    let mut out = std::io::stdout().lock();
    if let Err(error) = writeln!(out, "{data}").and_then(|()| out.flush())
        && error.kind() != std::io::ErrorKind::BrokenPipe
    {
        eprintln!("error: standard output cannot be written: {error}");
    }
}

fn cell(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Number(number) => match number.as_f64() {
            Some(float) if !number.is_i64() && !number.is_u64() => format!("{float:.3}"),
            _ => number.to_string(),
        },
        Value::Array(items) => items.iter().map(cell).collect::<Vec<_>>().join(", "),
        Value::Object(fields) => {
            fields.iter().map(|(name, value)| format!("{name} {}", cell(value))).collect::<Vec<_>>().join(", ")
        }
        Value::Bool(yes) => if *yes { "yes" } else { "no" }.to_owned(),
    }
}
