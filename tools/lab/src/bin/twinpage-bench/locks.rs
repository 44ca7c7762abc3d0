// SPDX-License-Identifier: GPL-2.0

//! How long locks are held, by the kernel's lock statistics, which only the debug kernel has.

use std::fs;
use std::time::Duration;

use twinpage_lab::tap::Failure;

use crate::data::Data;
use crate::merger::{
    Merger,
    Setting,
    BOTH, //
};
use crate::rows::Row;

const SWITCH: &str = "/proc/sys/kernel/lock_stat";
const STATISTICS: &str = "/proc/lock_stat";

/// The locks: what they are called, and how their lines begin there.
const LOCKS: [(&str, &str); 2] = [
    ("mmap_lock", "&mm->mmap_lock"),
    ("page table lock", "ptlock_ptr(ptdesc)"),
];

/// The longest that either lock was held while memory came together.
pub fn held(size: usize) -> Result<Vec<Row>, Failure> {
    const REST: Duration = Duration::from_secs(1);
    let data = Data::Copies;
    let mut times = Vec::new();
    for which in BOTH {
        let merger = Merger::new(which, Setting::Full, data.guests(size)?)?;
        fs::write(STATISTICS, "0")?;
        fs::write(SWITCH, "1")?;
        merger.set("run", 1)?;
        // Whoever looks meanwhile takes the processor from one that holds a lock.
        while merger.saved()? < data.possible(size) {
            std::thread::sleep(REST);
        }
        merger.set("run", 0)?;
        fs::write(SWITCH, "0")?;
        let text = fs::read_to_string(STATISTICS)?;
        times.push(LOCKS.map(|(_, line)| longest(&text, line)));
        merger.end()?;
    }
    let row = |(index, (name, _)): (usize, &(&str, &str))| {
        let both = [times[0][index], times[1][index]];
        let metric = format!("longest hold, {name}");
        Row::of(&metric, data.name(), size, "thousand instructions", both)
    };
    Ok(LOCKS.iter().enumerate().map(row).collect())
}

/// The longest hold of locks whose name begins so, in microseconds: `holdtime-max`, the tenth of the
/// numbers behind the name and its colon (Documentation/locking/lockstat.rst).
fn longest(text: &str, name: &str) -> f64 {
    let held = |line: &str| {
        let (lock, numbers) = line.rsplit_once(": ")?;
        let lock = lock.trim_start();
        lock.starts_with(name)
            .then(|| numbers.split_whitespace().nth(9)?.parse::<f64>().ok())?
    };
    text.lines().filter_map(held).fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
lock_stat version 0.4
class name    con-bounces    contentions   waittime-min   waittime-max
                          &mm->mmap_lock-W:   0  1  0.11  0.22  0.33  0.44  7  8  0.50  61.25  9.00  1.00
                          &mm->mmap_lock-R:   0  1  0.11  0.22  0.33  0.44  7  8  0.50  93.50  9.00  1.00
                          ---------------
                          &mm->mmap_lock          1          [<0000000000000000>] do_user_addr_fault+0x1
                     ptlock_ptr(ptdesc)#2:   0  0  0.00  0.00  0.00  0.00  7  8  0.50  12.00  9.00  1.00
";

    #[test]
    fn the_longest_hold_is_that_of_readers_and_writers() {
        assert_eq!(longest(TEXT, "&mm->mmap_lock"), 93.5);
        assert_eq!(longest(TEXT, "ptlock_ptr(ptdesc)"), 12.0);
        assert_eq!(longest(TEXT, "nobody"), 0.0);
    }
}
