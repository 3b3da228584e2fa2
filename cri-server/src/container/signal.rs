//! Stop signals: names and numbers, as images, users and the CRI write them. Pure.

use std::str::FromStr as _;

use vaina_proto::cri::Signal;

/// The kernel's range of real-time signals without the two that C libraries keep for themselves.
const RTMIN: i32 = 34;
const RTMAX: i32 = 64;

/// The number of a signal: `SIGTERM`, `TERM`, `15`, `SIGRTMIN+3`, `RTMAX-1`.
pub(super) fn parse(text: &str) -> Option<i32> {
    let text = text.trim().to_ascii_uppercase();
    if let Ok(number) = text.parse::<i32>() {
        return (1..=RTMAX).contains(&number).then_some(number);
    }
    let name = text.strip_prefix("SIG").unwrap_or(&text);
    let offset = |rest: &str, signs: [&str; 2]| -> Option<i32> {
        if rest.is_empty() {
            return Some(0);
        }
        let digits = signs.iter().find_map(|sign| rest.strip_prefix(sign))?;
        digits.parse().ok().filter(|offset| (0..=RTMAX - RTMIN).contains(offset))
    };
    if let Some(rest) = name.strip_prefix("RTMIN") {
        return offset(rest, ["+", "PLUS"]).map(|offset| RTMIN + offset);
    }
    if let Some(rest) = name.strip_prefix("RTMAX") {
        return offset(rest, ["-", "MINUS"]).map(|offset| RTMAX - offset);
    }
    let name = match name {
        "CLD" => "CHLD",
        "IOT" => "ABRT",
        "POLL" => "IO",
        other => other,
    };
    nix::sys::signal::Signal::from_str(&format!("SIG{name}")).ok().map(|signal| signal as i32)
}

/// The number of a signal of the CRI; [`None`] for "the image's".
pub(super) fn number(signal: i32) -> Option<i32> {
    let signal = Signal::try_from(signal).ok()?;
    parse(signal.as_str_name().strip_prefix("SIGNAL_")?)
}

/// The CRI's name of a number.
pub(super) fn name(number: i32) -> Signal {
    (0..=i32::from(Signal::Sigrtmax))
        // The names that other names stand for come later in the alphabet but for these.
        .filter(|value| {
            ![i32::from(Signal::Sigcld), i32::from(Signal::Sigiot), i32::from(Signal::Sigpoll)].contains(value)
        })
        .find(|value| self::number(*value) == Some(number))
        .and_then(|value| Signal::try_from(value).ok())
        .unwrap_or(Signal::RuntimeDefault)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_mean_the_same() {
        for (text, number) in [
            ("SIGTERM", Some(15)),
            ("term", Some(15)),
            ("15", Some(15)),
            ("SIGRTMIN", Some(34)),
            ("RTMIN+3", Some(37)),
            ("SIGRTMINPLUS15", Some(49)),
            ("SIGRTMAX-14", Some(50)),
            ("SIGRTMAX", Some(64)),
            ("SIGPOLL", Some(29)),
            ("0", None),
            ("65", None),
            ("SIGRTMIN+99", None),
            ("SIGRTMIN3", None),
            ("SIGNONE", None),
            ("", None),
        ] {
            assert_eq!(parse(text), number, "{text}");
        }
    }

    // proves: Signal.*
    #[test]
    fn every_signal_of_the_cri_has_a_number_and_comes_back() {
        assert_eq!(number(Signal::RuntimeDefault.into()), None);
        for value in 1..=i32::from(Signal::Sigrtmax) {
            let number = number(value).unwrap_or_else(|| panic!("{:?}", Signal::try_from(value)));
            assert_eq!(self::number(name(number).into()), Some(number));
        }
        assert_eq!(name(15), Signal::Sigterm);
        assert_eq!(name(17), Signal::Sigchld);
        assert_eq!(name(33), Signal::RuntimeDefault);
    }
}
