//! Seconds since 1970 as date and time of the proleptic Gregorian calendar, and back.

use serde::{Deserialize, Serialize};

/// A date and a time of day in UTC. Fields may be out of their ranges; [`CalendarTime::unix_seconds`] carries over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CalendarTime {
    /// The year; 0 is 1 BC.
    pub year: i64,
    /// The month, January being 1.
    pub month: i64,
    /// The day of the month, from 1.
    pub day: i64,
    /// The hour, from 0.
    pub hour: i64,
    /// The minute.
    pub minute: i64,
    /// The second; there are no leap seconds.
    pub second: i64,
}

const DAY: i64 = 86_400;
/// The calendar repeats after 400 years.
const DAYS_IN_400_YEARS: i64 = 146_097;
/// From 1 March of year 0 to 1 January 1970.
const EPOCH: i64 = 719_468;

// Both ways count years from March, which puts the leap day at a year's end, and months by the rule that the days before
// month m (March being 0) are (153 m + 2) / 5.

impl CalendarTime {
    /// The date and time `seconds` after 1970-01-01T00:00:00Z. The year is right for any date with at most 12 digits.
    #[must_use]
    pub fn from_unix_seconds(seconds: i64) -> Self {
        let (days, of_day) = (seconds.div_euclid(DAY) + EPOCH, seconds.rem_euclid(DAY));
        let (era, of_era) = (days.div_euclid(DAYS_IN_400_YEARS), days.rem_euclid(DAYS_IN_400_YEARS));
        // Leap days of this era up to now: one each 4 years (1461 days), none each 100, but the last day is the 400th year's.
        let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - days_before_year(year_of_era);
        let march_month = (5 * of_year + 2) / 153;
        let month = if march_month < 10 {
            march_month + 3
        } else {
            march_month - 9
        };
        Self {
            year: year_of_era + era * 400 + i64::from(month <= 2),
            month,
            day: of_year - (153 * march_month + 2) / 5 + 1,
            hour: of_day / 3600,
            minute: of_day / 60 % 60,
            second: of_day % 60,
        }
    }

    /// Seconds from 1970-01-01T00:00:00Z. A month 13 is next year's January, a day 0 last month's last, and so on.
    #[must_use]
    pub fn unix_seconds(&self) -> i64 {
        let months = self
            .year
            .saturating_mul(12)
            .saturating_add(self.month)
            .saturating_sub(3);
        let (march_year, march_month) = (months.div_euclid(12), months.rem_euclid(12));
        let (era, year_of_era) = (march_year.div_euclid(400), march_year.rem_euclid(400));
        let of_era = days_before_year(year_of_era) + (153 * march_month + 2) / 5;
        let days = era
            .saturating_mul(DAYS_IN_400_YEARS)
            .saturating_add(of_era)
            .saturating_sub(EPOCH);
        let days = days.saturating_add(self.day).saturating_sub(1);
        [(days, DAY), (self.hour, 3600), (self.minute, 60), (self.second, 1)]
            .into_iter()
            .fold(0, |sum: i64, (count, unit)| {
                sum.saturating_add(count.saturating_mul(unit))
            })
    }

    /// The day of the week, Sunday being 1.
    #[must_use]
    pub fn weekday(&self) -> u8 {
        // 1970-01-01 was a Thursday. The sum is within 1..=7.
        let days = self.unix_seconds().div_euclid(DAY);
        u8::try_from((days + 4).rem_euclid(7) + 1).unwrap_or(1)
    }
}

/// Days of an era before its year `year` (0..400), which begins in March.
fn days_before_year(year: i64) -> i64 {
    year * 365 + year / 4 - year / 100
}
