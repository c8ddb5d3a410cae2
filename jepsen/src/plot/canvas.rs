//! The axis of time, frames and text.

use std::fmt::Write as _;

use crate::event::{Injection, Micros};

/// Pixels that the plots are wide, and the margin for labels at their left.
pub(super) const WIDTH: u32 = 1_200;
pub(super) const LEFT: u32 = 110;

/// Maps times to columns of pixels.
#[derive(Debug, Clone, Copy)]
pub(super) struct Axis {
    end: Micros,
}

impl Axis {
    /// An axis from 0 to an end.
    pub(super) fn over(end: Micros) -> Axis {
        Axis { end: end.max(1) }
    }

    /// How long the axis is.
    pub(super) fn end(&self) -> Micros {
        self.end
    }

    /// The column of a time, without the margin.
    pub(super) fn column(&self, time: Micros) -> u32 {
        let column = u128::from(time.min(self.end)) * u128::from(WIDTH - 1) / u128::from(self.end);
        u32::try_from(column).expect("a column is less than the width")
    }

    /// Lines and labels for some times, over a height.
    fn ticks(&self, height: u32) -> String {
        let wanted = self.end / 10;
        let mut step = 1;
        // 1, 2, 5, 10, ... microseconds.
        while step < wanted.max(1) {
            step = match step.to_string().as_bytes()[0] {
                b'2' => step / 2 * 5,
                _ => step * 2,
            };
        }
        let mut text = String::new();
        for at in (0..=self.end / step).map(|n| n * step) {
            let x = LEFT + self.column(at);
            write!(
                text,
                "<path class=\"grid\" d=\"M{x} 0V{height}\"/><text x=\"{x}\" y=\"{}\">{}</text>",
                height + 12,
                time(at)
            )
            .expect("writing to a string does not fail");
        }
        text
    }
}

/// A time as short as it may be.
pub(super) fn time(at: Micros) -> String {
    match at {
        _ if at.is_multiple_of(1_000_000) => format!("{} s", at / 1_000_000),
        1_000_000.. => format!("{}.{:03} s", at / 1_000_000, at / 1_000 % 1_000),
        _ if at.is_multiple_of(1_000) => format!("{} ms", at / 1_000),
        _ => format!("{at} µs"),
    }
}

/// A plot with a frame around what is drawn, the axis of time below and a title.
pub(super) fn plot(axis: &Axis, title: &str, height: u32, content: &str) -> String {
    let (width, whole) = (LEFT + WIDTH + 10, height + 36);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{whole}\"><text x=\"{LEFT}\" y=\"12\">{}</text>\
         <g transform=\"translate(0 18)\">{}{content}<rect class=\"frame\" style=\"stroke-width:1\" x=\"{LEFT}\" width=\"{WIDTH}\" height=\"{height}\"/></g></svg>",
        escape(title),
        axis.ticks(height)
    )
}

/// The colour of the shade of a nemesis: the same name has the same one everywhere.
pub(super) fn colour(nemesis: &str, injection: Injection) -> String {
    let hash = nemesis.bytes().fold(5_381_u32, |hash, byte| hash.wrapping_mul(33) ^ u32::from(byte));
    let lightness = if injection == Injection::Installed { 45 } else { 75 };
    format!("hsl({} 55% {lightness}%)", hash % 360)
}

/// Text for a page.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            c if c.is_control() && c != '\n' => escaped.push(' '),
            c => escaped.push(c),
        }
    }
    escaped
}
