//! The times of tokens (`token_s`) in a form that compresses to half: a campaign's times apart from
//! its rows, as differences in nanoseconds, byte by byte in planes.
//!
//! A row keeps the number of its times in place of the list. The times of all rows follow each other
//! in [`TokenTimes`], of which every time has nine bytes: the eight of a little-endian `i64`, the
//! difference in nanoseconds to the time before it in the same row (the first: to the row's
//! `first_token_s`, or to 0), and one of an `i8`, by how many steps of an `f64` the time differs from
//! those nanoseconds / 10⁹. The file has all first bytes, then all second ones, and so on. A row
//! whose list would not come back character by character keeps it.
//!
//! Where all differences are multiples of a power of ten, as those of times that were rounded are, the
//! file begins with one more byte, the exponent, and has the differences in that unit: a third of the
//! bytes for times of 10 µs.

use std::borrow::Cow;

const KEY: &str = "\"token_s\":";
const BASE_KEY: &str = "\"first_token_s\":";
const NS_PER_S: f64 = 1e9;
const N_PLANES: usize = 9;
/// Seconds, the largest unit.
const MAX_EXPONENT: u8 = 9;

#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct TokenTimes {
    planes: [Vec<u8>; N_PLANES],
}

/// The place of the next row's times.
#[derive(Debug)]
pub struct TimesReader<'a> {
    times: &'a TokenTimes,
    next: usize,
}

impl TokenTimes {
    /// The file's content, in the largest unit that loses nothing.
    pub fn to_bytes(&self) -> Vec<u8> {
        let exponent = self.exponent();
        if exponent == 0 {
            return self.planes.concat();
        }
        let unit_ns = 10_i64.pow(u32::from(exponent));
        let in_units = self.all().map(|(ns, steps)| (ns / unit_ns, steps));
        let mut bytes = vec![exponent];
        bytes.extend(in_units.collect::<Self>().planes.concat());
        bytes
    }

    /// `None` unless the bytes are a whole number of times, in nanoseconds or in a unit of
    /// 10 to 10⁹ of them.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (exponent, planes) = match bytes.len() % N_PLANES {
            0 => (0, bytes),
            1 => (bytes[0], &bytes[1..]),
            _ => return None,
        };
        let n = planes.len() / N_PLANES;
        let mut times = Self::default();
        for (i, plane) in times.planes.iter_mut().enumerate() {
            *plane = planes[i * n..][..n].to_vec();
        }
        if bytes.len() == planes.len() {
            return Some(times);
        }
        if !(1..=MAX_EXPONENT).contains(&exponent) {
            return None;
        }
        let unit_ns = 10_i64.pow(u32::from(exponent));
        let in_ns = times
            .all()
            .map(|(units, steps)| Some((units.checked_mul(unit_ns)?, steps)));
        in_ns.collect()
    }

    /// Of the largest power of ten that divides every difference; 0 without a difference.
    fn exponent(&self) -> u8 {
        let mut exponent = MAX_EXPONENT;
        let mut unit_ns = 10_i64.pow(u32::from(MAX_EXPONENT));
        let mut is_any = false;
        for (ns, _) in self.all() {
            is_any |= ns != 0;
            while ns % unit_ns != 0 {
                unit_ns /= 10;
                exponent -= 1;
            }
        }
        if is_any { exponent } else { 0 }
    }

    fn all(&self) -> impl Iterator<Item = (i64, i8)> {
        (0..self.planes[0].len()).map_while(|i| self.get(i))
    }

    fn push(&mut self, (ns, steps): (i64, i8)) {
        let bytes = ns.to_le_bytes().into_iter().chain(steps.to_le_bytes());
        for (plane, byte) in self.planes.iter_mut().zip(bytes) {
            plane.push(byte);
        }
    }

    pub fn reader(&self) -> TimesReader<'_> {
        TimesReader {
            times: self,
            next: 0,
        }
    }

    /// The inside of a JSON row without the list of its times, which are taken; the inside as it is
    /// if it has no list that would come back.
    pub fn take<'a>(&mut self, inside: &'a str) -> Cow<'a, str> {
        let Some((before, list, after)) = list_of(inside) else {
            return Cow::Borrowed(inside);
        };
        let Some(times) = steps_of(list, base_of(before)) else {
            return Cow::Borrowed(inside);
        };
        for time in &times {
            self.push(*time);
        }
        Cow::Owned(format!("{before}{KEY}{}{after}", times.len()))
    }

    fn get(&self, i: usize) -> Option<(i64, i8)> {
        let byte = |plane: &Vec<u8>| plane.get(i).copied();
        let mut ns = [0; 8];
        for (to, plane) in ns.iter_mut().zip(&self.planes) {
            *to = byte(plane)?;
        }
        let steps = byte(&self.planes[N_PLANES - 1])?;
        Some((i64::from_le_bytes(ns), i8::from_le_bytes([steps])))
    }
}

impl FromIterator<(i64, i8)> for TokenTimes {
    fn from_iter<I: IntoIterator<Item = (i64, i8)>>(times: I) -> Self {
        let mut all = Self::default();
        for time in times {
            all.push(time);
        }
        all
    }
}

impl TimesReader<'_> {
    /// The inside of a row with its times again. `None` if fewer are left than the row has.
    pub fn put_back<'a>(&mut self, inside: &'a str) -> Option<Cow<'a, str>> {
        let Some((before, rest)) = inside.split_once(KEY) else {
            return Some(Cow::Borrowed(inside));
        };
        let n_digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        if n_digits == 0 {
            return Some(Cow::Borrowed(inside));
        }
        let (n, after) = rest.split_at(n_digits);
        let n: usize = n.parse().ok()?;
        let mut row = format!("{before}{KEY}[");
        let mut ns = base_of(before);
        for i in 0..n {
            let (difference, steps) = self.times.get(self.next)?;
            self.next += 1;
            ns = ns.checked_add(difference)?;
            if i > 0 {
                row.push(',');
            }
            row.push_str(&text_of(time_of(ns, steps))?);
        }
        row.push(']');
        row.push_str(after);
        Some(Cow::Owned(row))
    }

    /// Whether all times were put back.
    pub fn is_done(&self) -> bool {
        self.next == self.times.planes[0].len()
    }
}

/// Whether the row would be read as one whose times were taken.
pub fn looks_taken(inside: &str) -> bool {
    inside
        .split_once(KEY)
        .is_some_and(|(_, rest)| rest.starts_with(|c: char| c.is_ascii_digit()))
}

/// What is before the key, the list's inside, and what is after the list.
fn list_of(inside: &str) -> Option<(&str, &str, &str)> {
    let (before, rest) = inside.split_once(KEY)?;
    let (list, after) = rest.strip_prefix('[')?.split_once(']')?;
    Some((before, list, after))
}

/// Nanoseconds of the first token, 0 where the row has none.
fn base_of(before: &str) -> i64 {
    let value = before.split_once(BASE_KEY).map(|(_, rest)| rest);
    let number = value.and_then(|rest| rest.split(',').next());
    number
        .and_then(|number| number.parse().ok())
        .map_or(0, ns_of)
}

/// Every time's difference and steps; `None` if one would come back as another text.
fn steps_of(list: &str, base: i64) -> Option<Vec<(i64, i8)>> {
    let mut previous = base;
    let numbers = list.split(',').filter(|number| !number.is_empty());
    let times = numbers.map(|number| {
        let time: f64 = number.parse().ok()?;
        let ns = ns_of(time);
        let steps = (time.to_bits() as i64).checked_sub(time_of(ns, 0).to_bits() as i64)?;
        let steps = i8::try_from(steps).ok()?;
        if text_of(time_of(ns, steps))? != number {
            return None;
        }
        let difference = ns.checked_sub(previous)?;
        previous = ns;
        Some((difference, steps))
    });
    let times = times.collect::<Option<Vec<_>>>()?;
    // `,,` and a comma at the end would be lost.
    let n_numbers = if list.is_empty() {
        0
    } else {
        list.split(',').count()
    };
    (times.len() == n_numbers).then_some(times)
}

/// Saturates where there is no such number.
fn ns_of(time_s: f64) -> i64 {
    (time_s * NS_PER_S).round() as i64
}

fn time_of(ns: i64, steps: i8) -> f64 {
    let bits = (ns as f64 / NS_PER_S).to_bits();
    f64::from_bits(bits.wrapping_add_signed(i64::from(steps)))
}

/// As rows are written.
fn text_of(time_s: f64) -> Option<String> {
    serde_json::to_string(&time_s).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(rows: &[&str]) -> (Vec<String>, TokenTimes) {
        let mut times = TokenTimes::default();
        let rows = rows.iter().map(|row| times.take(row).into_owned());
        (rows.collect(), times)
    }

    #[test]
    fn all_rows_come_back_character_by_character() {
        let rows = [
            r#""first_token_s":0.738089952,"token_s":[0.738089952,0.742091548,21.316202101000002],"end_s":1.5"#,
            r#""first_token_s":null,"token_s":[],"end_s":1.5"#,
            r#""token_s":[3.0,2.5,100000.123456789]"#,
            r#""token_s":[1,2]"#,
            r#""token_s":[1.50]"#,
            r#""token_s":[0.1,,0.2]"#,
            r#""token_s":[0.1,null]"#,
            r#""token_s":[0.1,"a"]"#,
            r#""token_s":[1e300]"#,
            r#""token_s":[-0.5,-0.0]"#,
            r#""token_s":null"#,
            r#""case":"a""#,
        ];
        let (kept, times) = taken(&rows);
        assert!(kept[0].contains("\"token_s\":3,"), "{}", kept[0]);
        assert!(kept[1].contains("\"token_s\":0,"), "{}", kept[1]);
        for (kept, row) in kept[3..9].iter().zip(&rows[3..]) {
            assert_eq!(kept, row, "its list cannot be made again");
        }
        let times = TokenTimes::from_bytes(&times.to_bytes()).expect("whole");
        let mut reader = times.reader();
        for (kept, row) in kept.iter().zip(rows) {
            assert_eq!(reader.put_back(kept).as_deref(), Some(row));
        }
        assert!(reader.is_done());
    }

    #[test]
    fn rounded_times_are_kept_in_their_unit() {
        let rows = [
            r#""first_token_s":0.73809,"token_s":[0.73809,0.74209,21.3162]"#,
            r#""first_token_s":2.00001,"token_s":[2.00001,2.0,100000.12345]"#,
        ];
        let (kept, times) = taken(&rows);
        let bytes = times.to_bytes();
        assert_eq!(bytes.len(), 1 + 6 * N_PLANES);
        assert_eq!(bytes[0], 4, "10 µs");
        // All first bytes of the differences 0, 400, 2057411, 0, -1, 9999812345.
        assert_eq!(bytes[1..7], [0x0, 0x90, 0xc3, 0x0, 0xff, 0xf9]);
        let read = TokenTimes::from_bytes(&bytes).expect("whole");
        assert_eq!(read, times);
        let mut reader = read.reader();
        for (kept, row) in kept.iter().zip(rows) {
            assert_eq!(reader.put_back(kept).as_deref(), Some(row));
        }
    }

    #[test]
    fn a_unit_that_no_file_has_is_refused() {
        let units_of = |exponent: u8, units: i64| {
            let mut bytes = vec![exponent];
            bytes.extend(units.to_le_bytes());
            bytes.push(0);
            TokenTimes::from_bytes(&bytes)
        };
        assert!(units_of(9, 1).is_some());
        assert_eq!(units_of(10, 1), None);
        assert_eq!(units_of(0, 1), None);
        assert_eq!(
            units_of(9, i64::MAX),
            None,
            "more than an i64 of nanoseconds"
        );
        assert_eq!(TokenTimes::from_bytes(&[0; 11]), None);
    }

    #[test]
    fn times_that_are_missing_or_cut_off_are_noticed() {
        let row = r#""token_s":[0.1,0.200000001]"#;
        let (kept, times) = taken(&[row]);
        let mut reader = times.reader();
        assert_eq!(reader.put_back(&kept[0]).as_deref(), Some(row));
        assert_eq!(reader.put_back(&kept[0]), None);
        let bytes = times.to_bytes();
        assert_eq!(TokenTimes::from_bytes(&bytes[1..]), None);
        assert!(looks_taken(&kept[0]) && !looks_taken(row));
    }
}
