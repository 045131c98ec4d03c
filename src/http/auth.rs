//! Bearer keys and their roles.
//!
//! Three roles: read (search), write (documents), admin (everything under `/admin`). Each may have two keys, so
//! that keys can be changed without an outage. A higher role includes the lower ones. A role without a key: read
//! and write are open when the server listens on loopback only, and closed otherwise; admin routes do not exist.

use axum::http::{HeaderMap, header};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

use super::problem::{Code, Problem};

/// What a key may do. Ordered: a later role includes the earlier ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Searches, expansions, embeddings, reading documents.
    Read,
    /// Writing and deleting documents.
    Write,
    /// Administration.
    Admin,
}

impl Role {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Admin => "admin",
        }
    }
}

/// The sha256 of a key; keys themselves are not kept.
type KeyHash = [u8; 32];

/// The keys of each role.
#[derive(Clone, Default)]
pub struct Keys {
    read: Vec<KeyHash>,
    write: Vec<KeyHash>,
    admin: Vec<KeyHash>,
    loopback: bool,
}

impl Keys {
    /// Keys of each role, at most two a role; `loopback` says that the server listens on loopback only.
    ///
    /// # Errors
    /// When a role has more than two keys, or a key is shorter than 16 characters.
    pub fn new(read: &[String], write: &[String], admin: &[String], loopback: bool) -> Result<Self, String> {
        let hash = |role: Role, keys: &[String]| -> Result<Vec<KeyHash>, String> {
            if keys.len() > 2 {
                return Err(format!("role {} has {} keys; two are the limit", role.name(), keys.len()));
            }
            if keys.iter().any(|key| key.len() < 16) {
                return Err(format!(
                    "a key of role {} is shorter than 16 characters; make a longer one",
                    role.name()
                ));
            }
            Ok(keys.iter().map(|key| Sha256::digest(key.as_bytes()).into()).collect())
        };
        Ok(Self {
            read: hash(Role::Read, read)?,
            write: hash(Role::Write, write)?,
            admin: hash(Role::Admin, admin)?,
            loopback,
        })
    }

    /// Whether admin routes exist at all.
    pub fn has_admin(&self) -> bool {
        !self.admin.is_empty()
    }

    /// Roles that nobody can use, because they have no key and the server does not listen on loopback only.
    pub fn closed_roles(&self) -> Vec<&'static str> {
        [(Role::Read, &self.read), (Role::Write, &self.write)]
            .into_iter()
            .filter(|(_, keys)| keys.is_empty() && !self.loopback)
            .map(|(role, _)| role.name())
            .collect()
    }

    /// Lets a request pass that may act as `role`.
    ///
    /// # Errors
    /// `unauthorized` without a known key, `forbidden` with a key of a lower role.
    pub fn authorize(&self, headers: &HeaderMap, role: Role) -> Result<(), Problem> {
        let own_keys = match role {
            Role::Read => &self.read,
            Role::Write => &self.write,
            Role::Admin => &self.admin,
        };
        if own_keys.is_empty() && self.loopback && role != Role::Admin {
            return Ok(());
        }
        let Some(key) = bearer(headers) else {
            let detail = if own_keys.is_empty() {
                format!(
                    "role {} has no key and the server does not listen on loopback only, so this route is closed; \
                     the operator can set one (see `expandr serve --help`)",
                    role.name()
                )
            } else {
                format!("this route wants `Authorization: Bearer <key>` with a key of role {}", role.name())
            };
            return Err(Problem::new(Code::Unauthorized, detail));
        };
        match self.role_of(key) {
            Some(held) if held >= role => Ok(()),
            Some(held) => Err(Problem::new(
                Code::Forbidden,
                format!("the key has role {}, this route wants role {}", held.name(), role.name()),
            )),
            None => {
                Err(Problem::new(Code::Unauthorized, "the key is not known; check the Authorization header"))
            }
        }
    }

    /// Compares with every key, in time that does not depend on which one matches.
    fn role_of(&self, key: &str) -> Option<Role> {
        let given: KeyHash = Sha256::digest(key.as_bytes()).into();
        let holds = |keys: &[KeyHash]| -> bool {
            keys.iter().fold(Choice::from(0), |found, key| found | key.ct_eq(&given)).into()
        };
        let (read, write, admin) = (holds(&self.read), holds(&self.write), holds(&self.admin));
        [(admin, Role::Admin), (write, Role::Write), (read, Role::Read)]
            .into_iter()
            .find_map(|(found, role)| found.then_some(role))
    }
}

/// What names a key in the audit: the first 8 hexadecimal digits of its sha256.
pub(super) fn key_id(key: &str) -> String {
    Sha256::digest(key.as_bytes()).iter().take(4).map(|byte| format!("{byte:02x}")).collect()
}

/// The key that a request gives.
pub(super) fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, key) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    const READ: &str = "read-key-0123456789";
    const READ_NEXT: &str = "read-key-next-0123456789";
    const WRITE: &str = "write-key-0123456789";
    const ADMIN: &str = "admin-key-0123456789";

    fn with(key: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, format!("Bearer {key}").parse().unwrap());
        headers
    }

    fn keys() -> Keys {
        let own = |keys: &[&str]| keys.iter().map(|k| (*k).to_owned()).collect::<Vec<_>>();
        Keys::new(&own(&[READ, READ_NEXT]), &own(&[WRITE]), &own(&[ADMIN]), true).unwrap()
    }

    #[test]
    fn higher_roles_include_lower_ones() {
        let keys = keys();
        for key in [READ, READ_NEXT, WRITE, ADMIN] {
            assert_eq!(keys.authorize(&with(key), Role::Read), Ok(()), "{key}");
        }
        assert_eq!(keys.authorize(&with(WRITE), Role::Write), Ok(()));
        assert_eq!(keys.authorize(&with(READ), Role::Write).unwrap_err().code, Code::Forbidden);
        assert_eq!(keys.authorize(&with(WRITE), Role::Admin).unwrap_err().code, Code::Forbidden);
        assert_eq!(keys.authorize(&with("unknown"), Role::Read).unwrap_err().code, Code::Unauthorized);
        assert_eq!(keys.authorize(&HeaderMap::new(), Role::Read).unwrap_err().code, Code::Unauthorized);
    }

    #[test]
    fn without_keys_only_loopback_is_open() {
        let open = Keys::new(&[], &[], &[], true).unwrap();
        assert_eq!(open.authorize(&HeaderMap::new(), Role::Write), Ok(()));
        assert!(open.authorize(&HeaderMap::new(), Role::Admin).is_err());
        let closed = Keys::new(&[], &[], &[], false).unwrap();
        assert_eq!(closed.authorize(&HeaderMap::new(), Role::Read).unwrap_err().code, Code::Unauthorized);
        assert_eq!(closed.closed_roles(), ["read", "write"]);
    }

    #[test]
    fn weak_and_surplus_keys_are_refused() {
        let long = || "0123456789abcdef".to_owned();
        assert!(Keys::new(&["short".into()], &[], &[], true).is_err());
        assert!(Keys::new(&[long(), long(), long()], &[], &[], true).is_err());
    }
}
