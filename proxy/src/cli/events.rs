//! `palisade events`.

use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use super::Failure;
use super::args;
use super::client::{Admin, converse};
use super::output::print;
use super::status::understood;

#[derive(Debug, Deserialize)]
struct Answer {
    events: Vec<Value>,
}

/// What is shown of an event.
#[derive(Debug, Deserialize)]
struct Event {
    number: u64,
    instance: Option<usize>,
    plugin: String,
    at: f64,
    pid: Option<i32>,
    from: String,
    to: String,
    reason: Option<String>,
}

pub(super) fn events(args: args::Events) -> Result<(), Failure> {
    let admin = Admin::of(&args.target)?;
    converse(async {
        let Answer { mut events } = admin.get("/events").await?;
        let mut last = 0;
        loop {
            for event in events {
                let shown: Event = understood(event.clone())?;
                last = shown.number;
                if args.json { print(event)? } else { print(line(&shown))? }
            }
            if !args.follow {
                return Ok(());
            }
            events = admin.wait::<Answer>(&format!("/events?after={last}&wait")).await?.events;
        }
    })
}

fn line(event: &Event) -> String {
    let Event { instance, plugin, at, pid, from, to, reason, .. } = event;
    let label = instance.map_or_else(|| plugin.clone(), |instance| format!("{plugin} #{instance}"));
    let pid = pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default();
    let reason = reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
    format!("{}  {label}  {from} -> {to}{pid}{reason}", utc(*at))
}

/// A moment as RFC 3339 writes it, to the millisecond, as in the log.
fn utc(epoch: f64) -> String {
    let since = Duration::try_from_secs_f64(epoch).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    // Howard Hinnant, "chrono-compatible low-level date algorithms": civil_from_days, for days since 1970. Years begin
    // in March, so that the day that some have more is the last one.
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute) = (second / 3_600, second / 60 % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{:02}.{:03}Z", second % 60, since.subsec_millis())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use serde_json::json;

    use super::*;

    #[test]
    fn moments_are_written_as_in_the_log() {
        // date -u -d @EPOCH
        for (epoch, expected) in [
            (0.0, "1970-01-01T00:00:00.000Z"),
            (951_782_399.5, "2000-02-28T23:59:59.500Z"),
            (951_782_400.0, "2000-02-29T00:00:00.000Z"),
            (1_709_251_199.0, "2024-02-29T23:59:59.000Z"),
            (1_795_250_000.25, "2026-11-21T08:33:20.250Z"),
            (4_107_542_400.0, "2100-03-01T00:00:00.000Z"),
            (-1.0, "1970-01-01T00:00:00.000Z"),
        ] {
            assert_eq!(utc(epoch), expected);
        }
    }

    #[test]
    fn an_event_reads_well() {
        let event = json!({
            "number": 7, "instance": 2, "plugin": "auth", "at": 0.0, "start": 3, "pid": 42, "from": "serving",
            "to": "not_serving", "reason": "it reports so",
        });
        let shown = line(&understood(event.clone()).unwrap());
        assert_eq!(shown, "1970-01-01T00:00:00.000Z  auth #2  serving -> not_serving (pid 42): it reports so");
        let mut plain = event;
        plain["pid"] = Value::Null;
        plain["reason"] = Value::Null;
        plain.as_object_mut().unwrap().remove("instance");
        let shown = line(&understood(plain).unwrap());
        assert_eq!(shown, "1970-01-01T00:00:00.000Z  auth  serving -> not_serving");
    }
}
