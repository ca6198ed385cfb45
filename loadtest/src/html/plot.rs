//! Lines over axes, and bars, as SVG that becomes as wide as the page, while its text keeps its size.

use std::fmt::Write;

use crate::html::markup::Element;
use crate::html::scale::Scale;

/// The coordinates of the drawings go from 0 to this, whatever their size on the screen.
const SIZE: f64 = 1_000.0;

/// How far labels beside a plot must be from each other to be read, as a part of its height.
const LABEL_GAP: f64 = 0.08;

/// How many colours the eye can distinguish. Further series have the same colours with dashes.
const COLOURS: usize = 8;

/// The classes that give something the look of a series or thread of this number.
pub fn look(number: usize) -> String {
    format!("c{} d{}", number % COLOURS, (number / COLOURS).min(2))
}

/// The number by which a series is known all over a page.
pub fn key(number: usize) -> Element {
    Element::classed("b", format!("key {}", look(number))).text(number + 1)
}

/// Lines over two axes.
#[derive(Debug)]
pub struct Plot {
    pub title: String,
    pub x: Scale,
    pub y: Scale,
    pub lines: Vec<Line>,
    /// Whether each line has the number of its series at its end.
    pub is_keyed: bool,
}

/// One line.
#[derive(Debug, Default)]
pub struct Line {
    /// Which series it belongs to.
    pub series: usize,
    /// Which look it has.
    pub look: usize,
    /// The label at its end; empty where there is none, or where the number of its series is enough.
    pub label: String,
    /// A repetition, which is drawn faintly behind the run that stands for all.
    pub is_faint: bool,
    /// Values for both axes; where one is missing the line is broken.
    pub points: Vec<Option<(f64, f64)>>,
    /// Points of it that are marked, each with its text.
    pub marks: Vec<(f64, f64, String)>,
}

impl Plot {
    pub fn draw(&self) -> Element {
        let (x, y) = (self.x.ticks(), self.y.ticks());
        let mut grid = String::new();
        for tick in &y {
            write!(grid, "M0 {}H{SIZE}", coordinate(1.0 - tick.place)).expect("a string takes everything");
        }
        for tick in &x {
            write!(grid, "M{} 0V{SIZE}", coordinate(tick.place)).expect("a string takes everything");
        }
        // The faint ones first: later ones lie above.
        let (faint, bold): (Vec<_>, Vec<_>) = self.lines.iter().partition(|line| line.is_faint);
        let svg = drawing(SIZE)
            .with("role", "img")
            .with("aria-label", &self.title)
            .put(Element::classed("path", "grid").with("d", grid))
            .put_all(faint.into_iter().chain(bold).map(|line| self.draw_line(line)));
        let label = |class: &str, side: &str, place: f64| {
            Element::classed("span", class).with("style", format!("{side}:{:.2}%", place * 100.0))
        };
        let field = Element::classed("div", "field")
            .put(svg)
            .put_all(y.iter().map(|tick| label("y", "bottom", tick.place).text(&tick.label)))
            .put_all(x.iter().map(|tick| label("x", "left", tick.place).text(&tick.label)))
            .put_all(self.ends().into_iter().map(|(line, place)| {
                let name = Element::classed("span", "name").text(&line.label);
                label(&format!("end {}", look(line.look)), "bottom", place)
                    .put(self.is_keyed.then(|| key(line.series)))
                    .put(name)
            }));
        let is_named = self.lines.iter().any(|line| !line.label.is_empty());
        let class = match (self.is_keyed, is_named) {
            (true, true) => "plot keyed named",
            (true, false) => "plot keyed",
            (false, true) => "plot named",
            (false, false) => "plot",
        };
        Element::classed("figure", class).put(caption(&self.title)).put(field)
    }

    fn draw_line(&self, line: &Line) -> Element {
        let (mut path, mut is_broken) = (String::new(), true);
        for point in &line.points {
            if let Some((x, y)) = point {
                let (x, y) = (coordinate(self.x.place(*x)), coordinate(1.0 - self.y.place(*y)));
                write!(path, "{}{x} {y}", if is_broken { 'M' } else { 'L' }).expect("a string takes everything");
                // A point without neighbours is drawn as a dot.
                if is_broken {
                    path.push_str("h0");
                }
            }
            is_broken = point.is_none();
        }
        let marks = line.marks.iter().map(|(x, y, text)| {
            let (x, y) = (coordinate(self.x.place(*x)), coordinate(1.0 - self.y.place(*y)));
            // A line of length 0 with round ends: a dot that stays round when the drawing is stretched.
            let dot = Element::classed("path", "mark").with("d", format!("M{x} {y}h0"));
            dot.put(Element::new("title").text(text))
        });
        let faint = if line.is_faint { " faint" } else { "" };
        Element::classed("g", format!("{}{faint}", look(line.look)))
            .put(Element::classed("path", "line").with("d", path))
            .put_all(marks)
    }

    /// Where the label of each line stands: at the end of the line, or as near as there is room.
    fn ends(&self) -> Vec<(&Line, f64)> {
        let bold = self.lines.iter().filter(|line| !line.is_faint && (self.is_keyed || !line.label.is_empty()));
        let end = |line: &Line| line.points.iter().rev().flatten().next().map(|(_, y)| self.y.place(*y));
        let mut ends = bold.filter_map(|line| Some((line, end(line)?))).collect::<Vec<_>>();
        ends.sort_by(|(_, one), (_, other)| one.total_cmp(other));
        let apart = apart(&ends.iter().map(|(_, place)| *place).collect::<Vec<_>>(), LABEL_GAP);
        ends.iter().zip(apart).map(|((line, _), place)| (*line, place)).collect()
    }
}

/// Moves ascending positions apart until each is a gap away from the next; by less than a gap only if they do not fit
/// between 0 and 1.
fn apart(places: &[f64], gap: f64) -> Vec<f64> {
    let gap = gap.min(1.0 / places.len().saturating_sub(1).max(1) as f64);
    // Neighbours that are too close become a block, whose middle is that of their positions. With each block is the sum of
    // the positions that its first member would have by each of its members.
    let mut blocks = Vec::<(f64, usize)>::new();
    let start = |(sum, members): (f64, usize)| {
        let last = 1.0 - gap * (members - 1) as f64;
        (sum / members as f64).min(last).max(0.0)
    };
    for place in places {
        let mut block = (*place, 1);
        while let Some(before) = blocks.last().copied()
            && start(before) + gap * before.1 as f64 > start(block)
        {
            blocks.pop();
            block = (before.0 + block.0 - gap * (before.1 * block.1) as f64, before.1 + block.1);
        }
        blocks.push(block);
    }
    blocks.iter().flat_map(|block| (0..block.1).map(|member| start(*block) + gap * member as f64)).collect()
}

/// Bars from zero on one axis.
#[derive(Debug)]
pub struct Bars {
    pub title: String,
    pub bars: Vec<Bar>,
}

#[derive(Debug)]
pub struct Bar {
    pub series: usize,
    pub label: String,
    /// What is written beside it.
    pub value: String,
    /// The parts that it consists of.
    pub parts: Vec<Part>,
    /// The range of its end over several runs.
    pub range: (f64, f64),
}

#[derive(Debug)]
pub struct Part {
    pub length: f64,
    /// The classes that give it its look.
    pub look: String,
    /// The text under the bar; none for the only part of a bar.
    pub name: String,
}

impl Bars {
    pub fn draw(&self) -> Element {
        let length = |bar: &Bar| bar.parts.iter().map(|part| part.length).sum::<f64>().max(bar.range.1);
        let longest = self.bars.iter().map(length).fold(0.0, f64::max);
        let scale = if longest > 0.0 { 1.0 / longest } else { 0.0 };
        let is_numbered = self.bars.len() > 1;
        let bars = self.bars.iter().map(|bar| bar.draw(scale, is_numbered));
        Element::classed("figure", "bars").put(caption(&self.title)).put_all(bars)
    }
}

impl Bar {
    fn draw(&self, scale: f64, is_numbered: bool) -> Element {
        let mut svg = drawing(10.0).with("role", "img").with("aria-label", format!("{}: {}", self.label, self.value));
        let mut start = 0.0;
        for part in self.parts.iter().filter(|part| part.length > 0.0) {
            let rect = Element::classed("rect", format!("part {}", part.look))
                .with("x", coordinate(start * scale))
                .with("width", coordinate(part.length * scale))
                .with("height", 10);
            svg = svg.put(rect.put((!part.name.is_empty()).then(|| Element::new("title").text(&part.name))));
            start += part.length;
        }
        let (least, most) = self.range;
        if least < most {
            let [least, most] = [least, most].map(|end| coordinate(end * scale));
            svg = svg.put(Element::classed("path", "whisker").with("d", format!("M{least} 2v6m0-3H{most}m0-3v6")));
        }
        let parts = self.parts.iter().filter(|part| !part.name.is_empty()).map(|part| {
            let swatch = Element::classed("i", format!("swatch {}", part.look));
            Element::new("span").put(swatch).text(&part.name)
        });
        let name = Element::classed("span", "name").put(is_numbered.then(|| key(self.series))).text(&self.label);
        Element::classed("div", "bar")
            .put(Element::new("p").put(name).put(Element::new("b").text(&self.value)))
            .put(svg)
            .put(Element::classed("p", "parts").put_all(parts))
    }
}

fn caption(title: &str) -> Element {
    Element::new("figcaption").text(title)
}

/// A drawing that is stretched to the size of its element.
fn drawing(height: f64) -> Element {
    Element::new("svg").with("viewBox", format!("0 0 {SIZE} {height}")).with("preserveAspectRatio", "none")
}

/// A position from 0 to 1 as a coordinate of the drawing, rounded to what can be seen.
fn coordinate(place: f64) -> f64 {
    (place * SIZE * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::html::markup::Markup;
    use crate::html::scale::Unit;

    fn plot(points: Vec<Option<(f64, f64)>>) -> String {
        let line = Line { points, label: "one".to_owned(), ..Line::default() };
        let plot = Plot {
            title: "Title".to_owned(),
            x: Scale::of_time(10.0),
            y: Scale::from_zero(Unit::Count, 100.0),
            lines: vec![line],
            is_keyed: true,
        };
        Markup::from(plot.draw()).as_str().to_owned()
    }

    #[test]
    fn a_line_goes_through_its_points() {
        let drawn = plot(vec![Some((0.0, 0.0)), Some((5.0, 50.0)), Some((10.0, 100.0))]);
        assert!(drawn.contains(r#"d="M0 1000h0L500 500L1000 0""#), "{drawn}");
        assert!(
            drawn.contains(r#"style="bottom:100.00%"><b class="key c0 d0">1</b><span class="name">one"#),
            "{drawn}"
        );
    }

    #[test]
    fn a_line_is_broken_where_nothing_was_measured() {
        let drawn = plot(vec![Some((0.0, 10.0)), None, Some((5.0, 50.0)), Some((6.0, 50.0)), None]);
        assert!(drawn.contains(r#"d="M0 900h0M500 500h0L600 500""#), "{drawn}");
        assert!(plot(vec![None]).contains(r#"class="line" d="""#));
    }

    #[test]
    fn bars_are_as_long_as_their_values() {
        let part = |length, name: &str| Part { length, look: look(0), name: name.to_owned() };
        let bar = |parts, range| Bar { series: 0, label: String::new(), value: String::new(), parts, range };
        let bars = vec![bar(vec![part(1.0, "a"), part(2.0, "b")], (3.0, 3.0)), bar(vec![part(3.0, "")], (2.0, 4.0))];
        let drawn = Bars { title: String::new(), bars }.draw();
        let drawn = Markup::from(drawn);
        for expected in
            [r#"x="0" width="250""#, r#"x="250" width="500""#, r#"x="0" width="750""#, r#"d="M500 2v6m0-3H1000m0-3v6""#]
        {
            assert_eq!(drawn.as_str().matches(expected).count(), 1, "{expected}: {}", drawn.as_str());
        }
        assert_eq!(drawn.as_str().matches("whisker").count(), 1, "a single value has no range");
    }

    #[test]
    fn labels_that_are_too_close_stand_around_their_middle() {
        for (places, moved) in [
            (&[0.5, 0.5][..], &[0.45, 0.55][..]),
            (&[0.4, 0.4, 0.4], &[0.3, 0.4, 0.5]),
            (&[0.1, 0.5, 0.52, 0.9], &[0.1, 0.46, 0.56, 0.9]),
            (&[0.0, 0.0, 0.7], &[0.0, 0.1, 0.7]),
            (&[0.3, 1.0, 1.0], &[0.3, 0.9, 1.0]),
        ] {
            let found = apart(places, 0.1);
            let is_near = found.iter().zip(moved).all(|(found, moved)| (found - moved).abs() < 1e-9);
            assert!(is_near && found.len() == moved.len(), "{places:?}: {found:?}");
        }
    }

    proptest! {
        #[test]
        fn labels_are_moved_apart_and_no_further(mut places in prop::collection::vec(0.0..=1.0, 0..30), gap in 0.01..0.2) {
            places.sort_by(f64::total_cmp);
            let moved = apart(&places, gap);
            prop_assert_eq!(moved.len(), places.len());
            let room = gap.min(1.0 / places.len().saturating_sub(1).max(1) as f64);
            prop_assert!(moved.windows(2).all(|pair| pair[1] - pair[0] > room - 1e-9), "{:?}", moved);
            prop_assert!(moved.iter().all(|place| (-1e-9..=1.0 + 1e-9).contains(place)), "{:?}", moved);
            if places.windows(2).all(|pair| pair[1] - pair[0] >= gap) {
                prop_assert!(places.iter().zip(&moved).all(|(place, moved)| (place - moved).abs() < 1e-9), "{:?}", moved);
            }
        }
    }
}
