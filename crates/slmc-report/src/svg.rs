//! Charts: lines, bars, and a scatter with names.

use crate::html::escape;

const WIDTH: f64 = 520.0;
const HEIGHT: f64 = 260.0;
const LEFT: f64 = 58.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 34.0;
/// Points that a curve is thinned to: more cannot be told apart.
const MAX_POINTS: usize = 400;

/// A named row of points.
pub(crate) struct Series<'a> {
    pub name: &'a str,
    pub points: Vec<(f64, f64)>,
}

/// From data to the picture.
struct Frame {
    x: (f64, f64),
    y: (f64, f64),
}

impl Frame {
    fn of(points: impl Iterator<Item = (f64, f64)> + Clone) -> Option<Self> {
        let span = |values: &mut dyn Iterator<Item = f64>| {
            let (low, high) =
                values.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
            (low.is_finite() && high.is_finite()).then_some((low, if high > low { high } else { low + 1.0 }))
        };
        let finite = points.filter(|(x, y)| x.is_finite() && y.is_finite());
        let x = span(&mut finite.clone().map(|(x, _)| x))?;
        let y = span(&mut finite.map(|(_, y)| y))?;
        let margin = 0.04 * (y.1 - y.0);
        Some(Self { x, y: (y.0 - margin, y.1 + margin) })
    }

    fn place(&self, (x, y): (f64, f64)) -> (f64, f64) {
        let across = (x - self.x.0) / (self.x.1 - self.x.0);
        let up = (y - self.y.0) / (self.y.1 - self.y.0);
        (LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM))
    }

    fn axes(&self, x_name: &str, y_name: &str) -> String {
        let mut text = String::new();
        for i in 0..=4 {
            let share = f64::from(i) / 4.0;
            let value = self.y.0 + share * (self.y.1 - self.y.0);
            let (_, y) = self.place((self.x.0, value));
            text += &format!(
                "<line class=\"axis\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>",
                WIDTH - RIGHT
            );
            text += &format!(
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                LEFT - 5.0,
                y + 4.0,
                tick(value)
            );
            let value = self.x.0 + share * (self.x.1 - self.x.0);
            let (x, _) = self.place((value, self.y.0));
            let anchor = ["start", "middle", "middle", "middle", "end"][i as usize];
            text += &format!(
                "<text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\">{}</text>",
                HEIGHT - BOTTOM + 14.0,
                tick(value)
            );
        }
        let middle = (LEFT + WIDTH - RIGHT) / 2.0;
        text += &format!(
            "<text x=\"{middle:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            HEIGHT - 4.0,
            escape(x_name)
        );
        text + &format!(
            "<text x=\"{:.1}\" y=\"{:.1}\" transform=\"rotate(-90 12 {:.1})\" text-anchor=\"middle\">{}</text>",
            12.0,
            HEIGHT / 2.0,
            HEIGHT / 2.0,
            escape(y_name)
        )
    }
}

/// A number for an axis.
pub(crate) fn tick(value: f64) -> String {
    let size = value.abs();
    match size {
        _ if size >= 1e9 => format!("{:.1}G", value / 1e9),
        _ if size >= 1e6 => format!("{:.1}M", value / 1e6),
        _ if size >= 1e4 => format!("{:.0}k", value / 1e3),
        _ if size >= 100.0 || value == 0.0 => format!("{value:.0}"),
        _ if size >= 1.0 => short(format!("{value:.2}")),
        _ => short(format!("{value:.4}")),
    }
}

/// Without zeros at the end of its fraction.
fn short(number: String) -> String {
    number.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn figure(title: &str, picture: &str, legend: &str) -> String {
    let title = escape(title);
    format!(
        "<figure><svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{title}\"><title>{title}</title>{picture}</svg>\
         <figcaption>{title}{legend}</figcaption></figure>"
    )
}

/// Curves over one axis.
pub(crate) fn lines(title: &str, x_name: &str, y_name: &str, series: &[Series<'_>]) -> String {
    let Some(frame) = Frame::of(series.iter().flat_map(|s| s.points.iter().copied())) else {
        return String::new();
    };
    let mut picture = frame.axes(x_name, y_name);
    let mut legend = String::new();
    for (index, series) in series.iter().enumerate() {
        let every = series.points.len().div_ceil(MAX_POINTS).max(1);
        let last = series.points.len().saturating_sub(1);
        let kept = series.points.iter().enumerate().filter(|(i, _)| i % every == 0 || *i == last);
        let points: Vec<String> = kept
            .filter(|(_, (x, y))| x.is_finite() && y.is_finite())
            .map(|(_, &point)| frame.place(point))
            .map(|(x, y)| format!("{x:.1},{y:.1}"))
            .collect();
        let class = index % 4;
        picture += &format!("<polyline class=\"curve s{class}\" points=\"{}\"/>", points.join(" "));
        legend += &format!(" · <span class=\"k{class}\">▬</span> {}", escape(series.name));
    }
    figure(title, &picture, &legend)
}

/// Bars from zero, in order, side by side over the stretch `x`; each has its name for who points at it or has it read out.
pub(crate) fn bars(
    title: &str,
    (x_name, x): (&str, (f64, f64)),
    y_name: &str,
    values: &[(String, f64)],
) -> String {
    let highest = values.iter().map(|(_, v)| *v).filter(|v| v.is_finite()).fold(0.0, f64::max);
    if values.is_empty() || highest <= 0.0 {
        return String::new();
    }
    let frame = Frame { x, y: (0.0, highest * 1.04) };
    let step = (x.1 - x.0) / values.len() as f64;
    let mut picture = frame.axes(x_name, y_name);
    for (index, (name, value)) in values.iter().enumerate() {
        let (left, y) = frame.place((x.0 + step * index as f64, value.max(0.0)));
        let (right, bottom) = frame.place((x.0 + step * (index + 1) as f64, 0.0));
        let width = (right - left - 0.6).max(0.5);
        picture += &format!(
            "<rect class=\"bar s0\" x=\"{left:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{:.1}\"><title>{}: {}</title></rect>",
            (bottom - y).max(0.0),
            escape(name),
            tick(*value)
        );
    }
    figure(title, &picture, "")
}

/// Named points, and a line through those that no other beats.
pub(crate) fn scatter(
    title: &str,
    x_name: &str,
    y_name: &str,
    points: &[(String, f64, f64)],
    front: &[usize],
) -> String {
    let Some(frame) = Frame::of(points.iter().map(|p| (p.1, p.2))) else { return String::new() };
    let mut picture = frame.axes(x_name, y_name);
    let at = |i: usize| frame.place((points[i].1, points[i].2));
    let line: Vec<String> = front.iter().map(|&i| at(i)).map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    picture += &format!("<polyline class=\"curve s1\" points=\"{}\"/>", line.join(" "));
    for (index, (name, ..)) in points.iter().enumerate() {
        let (x, y) = at(index);
        let class = usize::from(front.contains(&index));
        let anchor = if x > WIDTH * 0.7 { ("end", -7.0) } else { ("start", 7.0) };
        picture += &format!("<circle class=\"dot s{class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4.5\"/>");
        picture += &format!(
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"{}\">{}</text>",
            x + anchor.1,
            y - 6.0,
            anchor.0,
            escape(name)
        );
    }
    figure(title, &picture, "")
}
