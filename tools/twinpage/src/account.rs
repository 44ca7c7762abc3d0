// SPDX-License-Identifier: GPL-2.0

//! Users, by name or number.

use crate::error::Error;
use crate::host::Host;

/// Where users are listed.
const PASSWD: &str = "/etc/passwd";

/// Longest list that is read, in bytes.
const PASSWD_BYTES: usize = 16 << 20;

/// The number of the user `name`, which may be the number itself.
///
/// # Errors
///
/// There is no such user, or the list cannot be read.
pub fn number(host: &Host, name: &str) -> Result<u32, Error> {
    if let Ok(number) = name.parse() {
        return Ok(number);
    }
    let users = host.read_text(PASSWD, PASSWD_BYTES)?;
    find(&users, name).ok_or_else(|| Error::NoUser(name.to_owned()))
}

/// The number of the user `name` in the text of `/etc/passwd`.
fn find(users: &str, name: &str) -> Option<u32> {
    users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let found = fields.next()? == name;
        let number = fields.nth(1)?.parse().ok()?;
        found.then_some(number)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_found_by_name() {
        let users = "root:x:0:0::/:/bin/sh\nbroken\nlibvirt-qemu:x:64055:112::/:/bin/false\n";
        let table = [
            ("root", Some(0)),
            ("libvirt-qemu", Some(64055)),
            ("broken", None),
            ("nobody", None),
            ("", None),
        ];
        for (name, number) in table {
            assert_eq!(find(users, name), number, "{name:?}");
        }
    }
}
