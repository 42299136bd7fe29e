//! Two kinds of plot as SVG: lines over categories, and bars. No scripts and no embedded fonts; readable on light and
//! dark pages.

use std::fmt::Write;

const WIDTH: f64 = 760.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 46.0;
/// Colour-blind safe palette (Okabe and Ito).
const COLOURS: [&str; 7] = [
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#666666",
];

/// One line: an optional value per category.
#[derive(Clone, Debug)]
pub(super) struct Series {
    pub(super) name: String,
    pub(super) values: Vec<Option<f64>>,
}

/// One stacked bar.
#[derive(Clone, Debug)]
pub(super) struct Bar {
    pub(super) name: String,
    /// Lengths of the parts, in the order of their names.
    pub(super) parts: Vec<f64>,
    /// Index of the colour of the first part.
    pub(super) colour: usize,
    /// Text after the bar.
    pub(super) label: String,
}

/// A round step of which about five reach `most`.
fn step(most: f64) -> f64 {
    let raw = (most / 5.0).max(1e-9);
    let size = 10f64.powf(raw.log10().floor());
    let steps = [1.0, 2.0, 2.5, 5.0, 10.0].map(|n| n * size);
    steps.into_iter().find(|step| *step >= raw).unwrap_or(raw)
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

fn tick(value: f64) -> String {
    // Tolerates rounding of the sum of steps.
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

struct Canvas(String);

impl Canvas {
    fn new(title: &str, height: f64) -> Self {
        let mut out = String::new();
        // Writing to a string is infallible.
        let _ = write!(
            out,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
             font-family=\"sans-serif\" font-size=\"12\" role=\"img\">\n<title>{title}</title>\n\
             <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n",
            title = escape(title)
        );
        let mut canvas = Self(out);
        canvas.text((LEFT, 20.0), "start", "#111111", title);
        canvas
    }

    fn text(&mut self, (x, y): (f64, f64), anchor: &str, colour: &str, text: &str) {
        let text = escape(text);
        let _ = writeln!(
            self.0,
            "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" fill=\"{colour}\">{text}</text>"
        );
    }

    fn line(&mut self, (x1, y1): (f64, f64), (x2, y2): (f64, f64), colour: &str) {
        let _ = writeln!(
            self.0,
            "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"{colour}\"/>"
        );
    }

    fn rect(&mut self, (x, y): (f64, f64), (width, height): (f64, f64), colour: &str) {
        let _ = writeln!(
            self.0,
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" \
             fill=\"{colour}\"/>"
        );
    }

    /// Legend, in rows of three.
    fn legend(&mut self, names: &[String], y: f64) {
        for (n, name) in names.iter().enumerate() {
            let (column, row) = ((n % 3) as f64, (n / 3) as f64);
            let (x, y) = (LEFT + column * 225.0, y + row * 18.0);
            self.rect((x, y - 9.0), (10.0, 10.0), COLOURS[n % COLOURS.len()]);
            self.text((x + 16.0, y), "start", "#111111", name);
        }
    }

    fn finish(mut self) -> String {
        self.0 += "</svg>\n";
        self.0
    }
}

/// The last colour, for secondary bars.
pub(super) const GREY: usize = COLOURS.len() - 1;

/// Lines over categories.
pub(super) fn lines(
    title: &str,
    x_title: &str,
    categories: &[String],
    series: &[Series],
) -> String {
    let plot = 250.0;
    let legend = series.len().div_ceil(3) as f64 * 18.0;
    let height = TOP + plot + 50.0 + legend + 10.0;
    let mut canvas = Canvas::new(title, height);
    let values = || {
        series
            .iter()
            .flat_map(|one| one.values.iter().flatten().copied())
    };
    let most = values().fold(0.0, f64::max).max(1e-9);
    let step = step(most);
    let top = (most / step).ceil() * step;
    let bottom = TOP + plot;
    let y = |value: f64| bottom - value / top * plot;
    let gap = (WIDTH - LEFT - RIGHT) / categories.len().max(1) as f64;
    let x = |n: usize| LEFT + gap * (n as f64 + 0.5);
    let mut value = 0.0;
    while value <= top + step / 2.0 {
        canvas.line((LEFT, y(value)), (WIDTH - RIGHT, y(value)), "#dddddd");
        canvas.text((LEFT - 8.0, y(value) + 4.0), "end", "#444444", &tick(value));
        value += step;
    }
    for (n, name) in categories.iter().enumerate() {
        canvas.text((x(n), bottom + 18.0), "middle", "#444444", name);
    }
    canvas.text((WIDTH / 2.0, bottom + 38.0), "middle", "#444444", x_title);
    for (n, one) in series.iter().enumerate() {
        let colour = COLOURS[n % COLOURS.len()];
        let points: Vec<(f64, f64)> = one
            .values
            .iter()
            .enumerate()
            .filter_map(|(n, value)| Some((x(n), y((*value)?))))
            .collect();
        let path: Vec<String> = points
            .iter()
            .map(|(x, y)| format!("{x:.1},{y:.1}"))
            .collect();
        let _ = writeln!(
            canvas.0,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
            path.join(" ")
        );
        for (x, y) in points {
            let _ = writeln!(
                canvas.0,
                "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{colour}\"/>"
            );
        }
    }
    let names: Vec<String> = series.iter().map(|one| one.name.clone()).collect();
    canvas.legend(&names, bottom + 64.0);
    canvas.finish()
}

/// Horizontal stacked bars.
pub(super) fn bars(title: &str, parts: &[String], bars: &[Bar]) -> String {
    let left = LEFT + 110.0;
    let room = WIDTH - left - RIGHT - 110.0;
    let legend = if parts.len() > 1 {
        parts.len().div_ceil(3) as f64 * 18.0
    } else {
        0.0
    };
    let bottom = TOP + bars.len() as f64 * 28.0;
    let mut canvas = Canvas::new(title, bottom + 20.0 + legend);
    let total = |bar: &Bar| bar.parts.iter().sum::<f64>();
    let most = bars.iter().map(total).fold(0.0, f64::max).max(1e-9);
    for (n, bar) in bars.iter().enumerate() {
        let y = TOP + n as f64 * 28.0;
        canvas.text((left - 8.0, y + 14.0), "end", "#111111", &bar.name);
        let mut x = left;
        for (n, part) in (bar.colour..).zip(&bar.parts) {
            let width = part / most * room;
            if width > 0.0 {
                canvas.rect((x, y), (width, 20.0), COLOURS[n % COLOURS.len()]);
            }
            x += width;
        }
        canvas.text((x + 6.0, y + 14.0), "start", "#444444", &bar.label);
    }
    if parts.len() > 1 {
        canvas.legend(parts, bottom + 18.0);
    }
    canvas.finish()
}
