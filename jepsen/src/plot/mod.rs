//! Plots: one page for each run, by itself, for any browser.
//!
//! From top to bottom, over one axis of time: the faults, a row for each nemesis; the operations, a row for each process,
//! coloured by what became of them; their latencies, on a logarithmic scale; how many ended in each moment. Where a fault
//! stood, the plots are shaded.
//!
//! A page stays small whatever the length of the history: nothing is drawn twice in the same place. Operations are merged by
//! column of pixels, and there the worst outcome shows; points of latency are merged on a grid. Only a short history has a
//! shape for each operation, which tells about it when pointed at.

mod canvas;
mod panels;
#[cfg(test)]
mod tests;

use std::{fmt::Write as _, io, path::Path};

use canvas::{Axis, escape};

use crate::{
    event::{Micros, Phase, Verdict},
    history::{History, Span},
};

/// An operation as it is drawn.
#[derive(Debug, Clone, Copy)]
struct Mark<'a> {
    span: Span<'a>,
    from: Micros,
    to: Micros,
    outcome: Phase,
}

/// Writes the page of a run: to the path, or as `plot.html` in it if it is a directory. The verdict, if there is one, stands
/// above the plots.
///
/// # Errors
/// What writing the file says.
pub fn write(path: &Path, history: &History, title: &str, verdict: Option<&Verdict>) -> io::Result<()> {
    let path = if path.is_dir() { path.join("plot.html") } else { path.to_owned() };
    fs_err::write(path, page(history, title, verdict))
}

/// The page of a run. A history that is not well formed has a page that says so.
pub fn page(history: &History, title: &str, verdict: Option<&Verdict>) -> String {
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"/><title>{0}</title>\n<style>{STYLE}</style></head>\n<body><h1>{0}</h1>\n",
        escape(title)
    );
    if let Some(verdict) = verdict {
        told(&mut page, verdict);
    }
    match history.spans() {
        Ok(spans) => plots(&mut page, history, &spans),
        Err(error) => line(&mut page, &format!("<p class=\"bad\">{}</p>", escape(&error.to_string()))),
    }
    page.push_str("</body></html>\n");
    page
}

const STYLE: &str = "\
body{font:14px sans-serif;margin:16px;color:#222}h1{font-size:18px}svg{display:block;margin:6px 0}\
text{font:11px sans-serif;fill:#444}pre{white-space:pre-wrap;background:#f6f6f6;padding:6px;max-height:20em;overflow:auto}\
.bad{color:#b00020}.frame{fill:none;stroke:#999}.grid{stroke:#ddd;fill:none}\
.ok{stroke:#2f9e6e}.fail{stroke:#e8a33d}.info{stroke:#c2255c}\
path.ok,path.fail,path.info{fill:none}rect.ok{fill:#2f9e6e}rect.fail{fill:#e8a33d}rect.info{fill:#c2255c}rect{stroke-width:0}";

fn line(page: &mut String, text: &str) {
    page.push_str(text);
    page.push('\n');
}

fn told(page: &mut String, verdict: &Verdict) {
    line(page, &format!("<p><b>{}</b></p>", verdict.outcome()));
    for (name, class, sentences) in [("violations", "bad", &verdict.violations), ("void because", "", &verdict.void)] {
        if !sentences.is_empty() {
            line(page, &format!("<p class=\"{class}\">{name}</p><pre>{}</pre>", escape(&sentences.join("\n"))));
        }
    }
    let mut counts = String::new();
    for (name, count) in &verdict.counts {
        writeln!(counts, "{count:>10} {name}").expect("writing to a string does not fail");
    }
    line(page, &format!("<details><summary>counts</summary><pre>{}</pre></details>", escape(&counts)));
}

fn plots(page: &mut String, history: &History, spans: &[Span<'_>]) {
    let axis = Axis::over(history.end());
    let marks: Vec<Mark<'_>> = spans
        .iter()
        .map(|span| Mark {
            span: *span,
            from: span.begun.time,
            to: span.ended.map_or_else(|| history.end(), |(event, _)| event.time),
            outcome: span.outcome(),
        })
        .collect();
    line(
        page,
        "<p><span style=\"color:#2f9e6e\">■ ok</span> <span style=\"color:#e8a33d\">■ fail</span> <span style=\"color:#c2255c\">■ unknown</span></p>",
    );
    line(page, &panels::faults(&axis, &history.faults));
    let shades = panels::shades(&axis, &history.faults);
    line(page, &panels::timeline(&axis, &marks, &shades));
    line(page, &panels::latency(&axis, &marks, &shades));
    line(page, &panels::rate(&axis, &marks, &shades));
}
