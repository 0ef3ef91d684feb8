//! The kinds of pictures, drawn with plotters.

use plotters::coord::ranged1d::ValueFormatter;
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::finish::{INK, PALETTE, finish};
use crate::ReportError;

/// Narrow, so that letters are still read on a phone, where a picture is as wide as the screen.
const WIDTH: u32 = 480;
const HEIGHT: u32 = 300;
const FONT: i32 = 13;
/// Below this ratio of largest to smallest a logarithmic axis would have too few labels.
const LOG_SPAN: f64 = 30.0;
/// One configuration's points, and its place among all of the group's.
#[derive(Debug, Clone)]
pub struct Series {
    pub name: String,
    pub colour: usize,
    pub points: Vec<Point>,
}

#[derive(Debug, Clone, Copy)]
pub struct Point {
    pub x: f64,
    pub y: f64,
    /// An interval of y.
    pub interval: Option<(f64, f64)>,
    pub x_interval: Option<(f64, f64)>,
    /// Printed beside the mark.
    pub number: Option<u32>,
}

#[derive(Debug, Clone, Copy)]
pub struct Lines<'a> {
    pub name: &'a str,
    pub alt: &'a str,
    pub x_label: &'a str,
    pub y_label: &'a str,
    /// Logarithmic x, where the values span more than [`LOG_SPAN`].
    pub x_log: bool,
    /// Few points that deserve a mark each.
    pub marks: bool,
    /// Small changes of large values: the picture begins a little below the lowest, not at zero.
    pub y_fits: bool,
}

/// One bar with an optional limit, or one interval: a row of a horizontal chart.
#[derive(Debug, Clone)]
pub struct Row {
    pub name: String,
    pub colour: usize,
    pub value: f64,
    /// Interval of the value; drawn as a line with the value as a dot.
    pub interval: Option<(f64, f64)>,
    /// Printed at the end of the row.
    pub text: String,
}

#[derive(Debug, Clone, Copy)]
pub struct Rows<'a> {
    pub name: &'a str,
    pub alt: &'a str,
    pub x_label: &'a str,
    /// A line across all rows, with its name.
    pub limit: Option<(f64, &'a str)>,
    /// Bars from zero, or dots with intervals.
    pub bars: bool,
}

fn colour(i: usize) -> RGBColor {
    PALETTE[i % PALETTE.len()].light
}

fn failed(name: &str) -> impl Fn(String) -> ReportError + '_ {
    move |message| ReportError::Chart {
        name: name.to_owned(),
        message,
    }
}

/// Text of an axis: no more digits than the size needs.
fn tick(value: f64) -> String {
    let digits = match value.abs() {
        v if v >= 10.0 || v == 0.0 => 0,
        v if v >= 1.0 => 1,
        v if v >= 0.1 => 2,
        _ => 3,
    };
    let text = format!("{value:.digits$}");
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        text
    }
}

/// Lines over x; none without two different x.
pub fn lines(plot: Lines<'_>, series: &[Series]) -> Result<Option<String>, ReportError> {
    let all = || series.iter().flat_map(|s| &s.points);
    let bounds = |values: &mut dyn Iterator<Item = f64>| {
        values.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| {
            (l.min(v), h.max(v))
        })
    };
    let xs = |p: &Point| p.x_interval.map_or([p.x, p.x], |(low, high)| [low, high]);
    let (x_low, x_high) = bounds(&mut all().flat_map(xs));
    let ys = |p: &Point| {
        let (low, high) = p.interval.unwrap_or((p.y, p.y));
        [low.min(p.y), high.max(p.y)]
    };
    let (y_lowest, y_high) = bounds(&mut all().flat_map(ys));
    let y_low = if plot.y_fits && y_lowest < y_high {
        (y_lowest - 0.05 * (y_high - y_lowest)).max(0.0)
    } else {
        0.0
    };
    if !(x_low < x_high && y_high > 0.0) || (plot.x_log && x_low <= 0.0) {
        return Ok(None);
    }
    let mut svg = String::new();
    draw_lines(&mut svg, plot, series, (x_low, x_high), (y_low, y_high))
        .map_err(failed(plot.name))?;
    Ok(Some(finish(&svg, plot.alt)))
}

fn draw_lines(
    svg: &mut String,
    plot: Lines<'_>,
    series: &[Series],
    x: (f64, f64),
    (y_low, y_high): (f64, f64),
) -> Result<(), String> {
    let root = SVGBackend::with_string(svg, (WIDTH, HEIGHT)).into_drawing_area();
    let legend_rows = draw_legend(&root, series)?;
    let (_, area) = root.split_vertically(4 + 20 * legend_rows);
    let mut builder = ChartBuilder::on(&area);
    builder
        .margin(6)
        .margin_right(18)
        .x_label_area_size(40)
        .y_label_area_size(58);
    let y = y_low..y_high + 0.05 * (y_high - y_low);
    if plot.x_log && x.1 / x.0 > LOG_SPAN {
        let chart = builder
            .build_cartesian_2d((x.0..x.1).log_scale(), y)
            .map_err(|e| e.to_string())?;
        plot_on(chart, plot, series)?;
    } else {
        let chart = builder
            .build_cartesian_2d(x_start(x)..x.1, y)
            .map_err(|e| e.to_string())?;
        plot_on(chart, plot, series)?;
    }
    root.present().map_err(|e| e.to_string())
}

/// Zero, or a little before values that would all crowd at the far end.
fn x_start((low, high): (f64, f64)) -> f64 {
    const MARGIN: f64 = 0.05;
    if low > high / 2.0 {
        low - MARGIN * (high - low)
    } else {
        low.min(0.0)
    }
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

/// Names with their colours above the picture; returns how many rows they took.
fn draw_legend(root: &Area<'_>, series: &[Series]) -> Result<i32, String> {
    let (mut left, mut row) = (64, 0);
    for s in series {
        let width = 34 + 8 * s.name.chars().count() as i32;
        if left + width > WIDTH as i32 && left > 64 {
            left = 64;
            row += 1;
        }
        let top = 6 + 20 * row;
        root.draw(&Rectangle::new(
            [(left, top + 4), (left + 18, top + 8)],
            colour(s.colour).filled(),
        ))
        .map_err(|e| e.to_string())?;
        root.draw(&Text::new(
            s.name.clone(),
            (left + 24, top),
            ("sans-serif", FONT).into_font().color(&INK),
        ))
        .map_err(|e| e.to_string())?;
        left += width;
    }
    Ok(row + 1)
}

fn plot_on<'a, X>(
    mut chart: ChartContext<'a, SVGBackend<'a>, Cartesian2d<X, RangedCoordf64>>,
    plot: Lines<'_>,
    series: &[Series],
) -> Result<(), String>
where
    X: Ranged<ValueType = f64> + ValueFormatter<f64>,
{
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_labels(5)
        .y_labels(6)
        .x_desc(plot.x_label)
        .y_desc(plot.y_label)
        .x_label_formatter(&|v| tick(*v))
        .y_label_formatter(&|v| tick(*v))
        .label_style(("sans-serif", FONT).into_font().color(&INK))
        .axis_style(INK.mix(0.6))
        .bold_line_style(INK.mix(0.15))
        .light_line_style(TRANSPARENT)
        .draw()
        .map_err(|e| e.to_string())?;
    for s in series {
        let style = colour(s.colour).stroke_width(2);
        let points = s.points.iter().map(|p| (p.x, p.y));
        chart
            .draw_series(LineSeries::new(points.clone(), style))
            .map_err(|e| e.to_string())?;
        if plot.marks {
            let marks = points.map(|at| Circle::new(at, 3, colour(s.colour).filled()));
            chart.draw_series(marks).map_err(|e| e.to_string())?;
        }
        let intervals = s.points.iter().filter_map(|p| {
            let (low, high) = p.interval?;
            Some(PathElement::new(
                vec![(p.x, low), (p.x, high)],
                colour(s.colour).mix(0.7),
            ))
        });
        chart.draw_series(intervals).map_err(|e| e.to_string())?;
        let x_intervals = s.points.iter().filter_map(|p| {
            let (low, high) = p.x_interval?;
            Some(PathElement::new(
                vec![(low, p.y), (high, p.y)],
                colour(s.colour).mix(0.7),
            ))
        });
        chart.draw_series(x_intervals).map_err(|e| e.to_string())?;
        let numbers = s.points.iter().filter_map(|p| {
            let style = ("sans-serif", FONT - 1).into_font().color(&INK);
            let at = EmptyElement::at((p.x, p.y));
            Some(at + Text::new(p.number?.to_string(), (6, -16), style))
        });
        chart.draw_series(numbers).map_err(|e| e.to_string())?;
    }
    Ok(())
}

/// Horizontal bars or intervals, one a row; none without rows.
pub fn rows(plot: Rows<'_>, rows: &[Row]) -> Result<Option<String>, ReportError> {
    if rows.is_empty() {
        return Ok(None);
    }
    let ends = rows
        .iter()
        .flat_map(|r| {
            [
                r.interval.map_or(r.value, |i| i.0),
                r.interval.map_or(r.value, |i| i.1),
            ]
        })
        .chain(plot.limit.map(|l| l.0))
        .chain([0.0]);
    let (low, high) = ends.fold((0.0_f64, 0.0_f64), |(l, h), v| (l.min(v), h.max(v)));
    let width = high - low;
    if width <= 0.0 || !width.is_finite() {
        return Ok(None);
    }
    let mut svg = String::new();
    draw_rows(&mut svg, plot, rows, low, high).map_err(failed(plot.name))?;
    Ok(Some(finish(&svg, plot.alt)))
}

fn draw_rows(
    svg: &mut String,
    plot: Rows<'_>,
    rows: &[Row],
    low: f64,
    high: f64,
) -> Result<(), String> {
    const AXIS: u32 = 42;
    const LETTER: i32 = 8;
    /// Of the width; longer names stand above their rows.
    const MOST_FOR_NAMES: i32 = WIDTH as i32 * 2 / 5;
    let beside = 14 + LETTER * longest(rows);
    let is_above = beside > MOST_FOR_NAMES;
    let row_height: u32 = if is_above { 42 } else { 26 };
    let (top, left, right) = (24, if is_above { 14 } else { beside }, 76);
    let height = top as u32 + row_height * rows.len() as u32 + AXIS;
    let root = SVGBackend::with_string(svg, (WIDTH, height)).into_drawing_area();
    let width = f64::from(WIDTH as i32 - left - right);
    let at = |v: f64| left + ((v - low) / (high - low) * width).round() as i32;
    let bottom = top + (row_height as usize * rows.len()) as i32;
    let font = || ("sans-serif", FONT).into_font().color(&INK);
    let centred = font().pos(Pos::new(HPos::Center, VPos::Top));
    let say = |text: String, place: (i32, i32), style: TextStyle<'_>| {
        root.draw(&Text::new(text, place, style))
            .map_err(|e| e.to_string())
    };
    let line = |from: (i32, i32), to: (i32, i32), style: ShapeStyle| {
        root.draw(&PathElement::new(vec![from, to], style))
            .map_err(|e| e.to_string())
    };
    let step = round_step((high - low) / 5.0);
    let mut grid = (low / step).ceil() * step;
    while grid <= high + 1e-9 {
        line((at(grid), top), (at(grid), bottom), INK.mix(0.15).into())?;
        say(tick(grid), (at(grid), bottom + 4), centred.clone())?;
        grid += step;
    }
    say(
        plot.x_label.to_owned(),
        (left + (width / 2.0) as i32, bottom + 22),
        centred.clone(),
    )?;
    for (i, row) in rows.iter().enumerate() {
        let y = top + (row_height as usize * i) as i32;
        // What is drawn takes the lower half where the name stands above.
        let middle = y + if is_above { 29 } else { 13 };
        let (place, across) = if is_above {
            ((left, y + 9), HPos::Left)
        } else {
            ((left - 8, middle), HPos::Right)
        };
        say(
            row.name.clone(),
            place,
            font().pos(Pos::new(across, VPos::Center)),
        )?;
        let style = colour(row.colour);
        let mut end = at(row.value);
        if plot.bars {
            root.draw(&Rectangle::new(
                [(at(0.0), middle - 9), (end, middle + 9)],
                style.filled(),
            ))
            .map_err(|e| e.to_string())?;
        } else {
            if let Some((from, to)) = row.interval {
                line((at(from), middle), (at(to), middle), style.stroke_width(3))?;
                end = end.max(at(to));
            }
            root.draw(&Circle::new((at(row.value), middle), 4, style.filled()))
                .map_err(|e| e.to_string())?;
        }
        say(
            row.text.clone(),
            (end + 8, middle),
            font().pos(Pos::new(HPos::Left, VPos::Center)),
        )?;
    }
    line((at(0.0), top), (at(0.0), bottom), INK.mix(0.6).into())?;
    if let Some((limit, name)) = plot.limit {
        line(
            (at(limit), top - 4),
            (at(limit), bottom),
            INK.stroke_width(2),
        )?;
        say(
            name.to_owned(),
            (at(limit), 2),
            font().pos(Pos::new(HPos::Center, VPos::Top)),
        )?;
    }
    root.present().map_err(|e| e.to_string())
}

fn longest(rows: &[Row]) -> i32 {
    rows.iter()
        .map(|r| r.name.chars().count())
        .max()
        .unwrap_or(0)
        .min(60) as i32
}

/// 1, 2 or 5 times a power of ten, at least as large.
fn round_step(rough: f64) -> f64 {
    let power = 10_f64.powf(rough.log10().floor());
    [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .map(|factor| factor * power)
        .find(|step| *step >= rough)
        .unwrap_or(10.0 * power)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plot() -> Lines<'static> {
        Lines {
            name: "test",
            alt: "Test",
            x_label: "x",
            y_label: "y",
            x_log: true,
            marks: true,
            y_fits: false,
        }
    }

    fn series(points: &[(f64, f64)]) -> Series {
        let points = points.iter().map(|&(x, y)| Point {
            x,
            y,
            interval: Some((y * 0.9, y * 1.1)),
            x_interval: None,
            number: None,
        });
        Series {
            name: "one".into(),
            colour: 0,
            points: points.collect(),
        }
    }

    #[test]
    fn every_point_is_drawn_and_twice_the_same() {
        let data = [series(&[(1.0, 5.0), (10.0, 50.0), (100.0, 500.0)])];
        let svg = lines(plot(), &data).unwrap().unwrap();
        assert_eq!(svg.matches("<circle").count(), 3);
        assert!(
            svg.matches("<polyline").count() >= 4,
            "a line and three intervals"
        );
        assert_eq!(lines(plot(), &data).unwrap().unwrap(), svg);
    }

    #[test]
    fn numbers_and_both_intervals_are_drawn() {
        let mut data = series(&[(1.0, 5.0), (10.0, 50.0)]);
        let without = lines(plot(), &[data.clone()]).unwrap().unwrap();
        for point in &mut data.points {
            point.x_interval = Some((point.x * 0.9, point.x * 1.1));
            point.number = Some(77);
        }
        let svg = lines(plot(), &[data]).unwrap().unwrap();
        let n_lines = |svg: &str| svg.matches("<polyline").count();
        assert_eq!(n_lines(&svg), n_lines(&without) + 2);
        assert_eq!(svg.matches(">77<").count(), 2);
    }

    /// 99 % and 101 % would be one line if the picture began at zero.
    #[test]
    fn small_changes_of_large_values_fill_the_picture() {
        let data = [series(&[(1.0, 99.0), (2.0, 101.0)])];
        let height = |y_fits: bool| {
            let mut data = data.clone();
            data[0].points.iter_mut().for_each(|p| p.interval = None);
            let svg = lines(Lines { y_fits, ..plot() }, &data).unwrap().unwrap();
            let cys: Vec<i32> = svg
                .split(" cy=\"")
                .skip(1)
                .map(|rest| rest.split('"').next().unwrap().parse().unwrap())
                .collect();
            (cys[0] - cys[1]).abs()
        };
        assert!(height(true) > 150 && height(false) < 10, "{}", height(true));
    }

    #[test]
    fn nothing_to_draw_is_no_picture() {
        assert_eq!(lines(plot(), &[]).unwrap(), None);
        assert_eq!(lines(plot(), &[series(&[(1.0, 5.0)])]).unwrap(), None);
        assert_eq!(
            lines(plot(), &[series(&[(0.0, 5.0), (1.0, 5.0)])]).unwrap(),
            None
        );
    }

    #[test]
    fn a_bar_ends_where_its_value_lies_below_the_limit() {
        let bar = Row {
            name: "one".into(),
            colour: 0,
            value: 50.0,
            interval: None,
            text: "50 %".into(),
        };
        let plot = Rows {
            name: "test",
            alt: "Test",
            x_label: "x",
            limit: Some((100.0, "limit")),
            bars: true,
        };
        let svg = rows(plot, &[bar]).unwrap().unwrap();
        let width = f64::from(WIDTH as i32 - (14 + 8 * 3) - 76);
        let want = format!("width=\"{}\"", (width / 2.0).round());
        assert!(svg.contains(&want), "{want} in {svg}");
        assert!(svg.contains(">limit<"));
    }

    #[test]
    fn long_names_stand_above_their_rows_and_leave_the_picture_its_width() {
        let row = |name: &str| Row {
            name: name.into(),
            colour: 0,
            value: 50.0,
            interval: Some((40.0, 60.0)),
            text: "50 %".into(),
        };
        let plot = Rows {
            name: "test",
            alt: "Test",
            x_label: "x",
            limit: None,
            bars: false,
        };
        let height_of = |name: &str| {
            let svg = rows(plot, &[row(name)]).unwrap().unwrap();
            let height = svg.split(" height=\"").nth(1).unwrap();
            height.split('"').next().unwrap().parse::<u32>().unwrap()
        };
        assert!(height_of(&"long ".repeat(9)) > height_of("short"));
    }

    #[test]
    fn values_far_from_zero_fill_the_picture() {
        assert_eq!(x_start((1.0, 20.0)), 0.0);
        assert_eq!(x_start((80.0, 100.0)), 79.0);
        assert_eq!(x_start((-1.0, 20.0)), -1.0);
    }

    #[test]
    fn steps_and_ticks_are_round() {
        assert_eq!(round_step(0.7), 1.0);
        assert_eq!(round_step(130.0), 200.0);
        assert_eq!(
            [tick(1200.0), tick(2.5), tick(2.0), tick(0.05)],
            ["1200", "2.5", "2", "0.05"]
        );
    }
}
