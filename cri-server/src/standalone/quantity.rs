//! Kubernetes quantities (`250m`, `1.5Gi`, `2e3`) as exact numbers. Pure.
//!
//! Kept in billionths, which no suffix goes below; what is smaller is rounded up, as the API server does.

use k8s_openapi::apimachinery::pkg::api::resource;

const NANOS: i128 = 1_000_000_000;

/// An exact amount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) struct Quantity(i128);

impl Quantity {
    /// Reads the text of a quantity; `None` when it is none.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (negative, unsigned) = match text.as_bytes().first()? {
            b'-' => (true, &text[1..]),
            b'+' => (false, &text[1..]),
            _ => (false, text),
        };
        let end = unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len());
        let (number, suffix) = unsigned.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return None;
        }
        let (factor, divisor) = scale(suffix)?;
        let mut digits: i128 = 0;
        for digit in whole.bytes().chain(fraction.bytes()) {
            digits = digits.checked_mul(10)?.checked_add(i128::from(digit - b'0'))?;
        }
        let divisor = divisor.checked_mul(10i128.checked_pow(u32::try_from(fraction.len()).ok()?)?)?;
        let scaled = digits.checked_mul(factor)?.checked_mul(NANOS)?;
        let nanos = div_ceil(scaled, divisor);
        Some(Self(if negative { -nanos } else { nanos }))
    }

    /// The value rounded up to whole units: bytes of memory.
    pub(super) fn value(self) -> i64 {
        clamp(div_ceil(self.0, NANOS))
    }

    /// The value rounded up to thousandths: millicores.
    pub(super) fn milli(self) -> i64 {
        clamp(div_ceil(self.0, NANOS / 1000))
    }

    pub(super) fn is_negative(self) -> bool {
        self.0 < 0
    }

    pub(super) fn is_zero(self) -> bool {
        self.0 == 0
    }
}

impl TryFrom<&resource::Quantity> for Quantity {
    type Error = ();

    fn try_from(quantity: &resource::Quantity) -> Result<Self, ()> {
        Self::parse(&quantity.0).ok_or(())
    }
}

/// Suffix to factor and divisor.
fn scale(suffix: &str) -> Option<(i128, i128)> {
    Some(match suffix {
        "" => (1, 1),
        "n" => (1, 1_000_000_000),
        "u" => (1, 1_000_000),
        "m" => (1, 1_000),
        "k" => (1_000, 1),
        "M" => (1_000_000, 1),
        "G" => (1_000_000_000, 1),
        "T" => (1_000_000_000_000, 1),
        "P" => (1_000_000_000_000_000, 1),
        "E" => (1_000_000_000_000_000_000, 1),
        "Ki" => (1 << 10, 1),
        "Mi" => (1 << 20, 1),
        "Gi" => (1 << 30, 1),
        "Ti" => (1 << 40, 1),
        "Pi" => (1 << 50, 1),
        "Ei" => (1 << 60, 1),
        _ => {
            let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            let power = 10i128.checked_pow(exponent.unsigned_abs())?;
            if exponent < 0 { (1, power) } else { (power, 1) }
        }
    })
}

fn div_ceil(value: i128, divisor: i128) -> i128 {
    value.div_euclid(divisor) + i128::from(value.rem_euclid(divisor) != 0)
}

fn clamp(value: i128) -> i64 {
    i64::try_from(value).unwrap_or(if value < 0 { i64::MIN } else { i64::MAX })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_exact() {
        for (text, value, milli) in [
            ("0", 0, 0),
            ("1", 1, 1000),
            ("250m", 1, 250),
            ("0.5", 1, 500),
            (".5", 1, 500),
            ("5.", 5, 5000),
            ("+2", 2, 2000),
            ("-1", -1, -1000),
            ("64Mi", 67_108_864, 67_108_864_000),
            ("1.5Gi", 1_610_612_736, 1_610_612_736_000),
            ("128k", 128_000, 128_000_000),
            ("1e3", 1000, 1_000_000),
            ("1E3", 1000, 1_000_000),
            ("2E", 2_000_000_000_000_000_000, i64::MAX),
            ("15e-1", 2, 1500),
            ("1u", 1, 1),
            ("99999Ei", i64::MAX, i64::MAX),
        ] {
            let quantity = Quantity::parse(text).unwrap_or_else(|| panic!("{text}"));
            assert_eq!((quantity.value(), quantity.milli()), (value, milli), "{text}");
        }
    }

    #[test]
    fn what_is_no_quantity_is_refused() {
        for text in ["", "-", "+", ".", "m", "1.2.3", "1 Gi", "1gi", "1Kib", "0x10", "1e", "1e1.5", "½", "--1"] {
            assert_eq!(Quantity::parse(text), None, "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_parsed_or_refused(text in "[-+]?[0-9.]{0,45}[a-zA-Z0-9.+-]{0,6}") {
            let _ = Quantity::parse(&text);
        }
    }
}
