//! Numbers that fit in a column.

/// A count: exact up to five digits, then three digits and a unit.
#[must_use]
pub fn count(number: u64) -> String {
    if number < 100_000 {
        return number.to_string();
    }
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    scaled(number as f64)
}

/// A rate: three digits, and a unit that is a power of 1000.
#[must_use]
pub fn rate(number: f64) -> String {
    if number > 0.0 && number < 9.95 {
        return format!("{number:.1}");
    }
    if number < 999.5 {
        return format!("{number:.0}");
    }
    scaled(number)
}

fn scaled(mut number: f64) -> String {
    let mut unit = "";
    for larger in ["k", "M", "G", "T", "P", "E"] {
        if number < 999.5 {
            break;
        }
        number /= 1000.0;
        unit = larger;
    }
    let digits = match number {
        number if number < 9.995 => 2,
        number if number < 99.95 => 1,
        _ => 0,
    };
    format!("{number:.digits$}{unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_rates_have_five_characters_at_most() {
        for (number, expected) in [
            (0, "0"),
            (99_999, "99999"),
            (100_000, "100k"),
            (999_499, "999k"),
            (999_500, "1.00M"),
            (12_345_678, "12.3M"),
            (u64::MAX, "18.4E"),
        ] {
            assert_eq!(count(number), expected);
        }
        for (number, expected) in [
            (0.0, "0"),
            (0.04, "0.0"),
            (2.25, "2.2"),
            (9.96, "10"),
            (999.4, "999"),
            (999.6, "1.00k"),
            (1234.0, "1.23k"),
            (99_960.0, "100k"),
            (1.5e6, "1.50M"),
        ] {
            assert_eq!(rate(number), expected);
        }
    }
}
