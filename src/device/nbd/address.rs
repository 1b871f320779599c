//! Where an export is: the URI form of the NBD project, `nbd://host[:port]/export` and `nbd+unix:///export?socket=path`.

use std::path::PathBuf;
use std::time::Duration;

use crate::error::{Error, Result};

/// The registered port.
const PORT: u16 = 10809;

/// Longest name of an export that the protocol allows, in bytes.
const MAX_EXPORT_NAME: usize = 4096;

/// Where the server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Tcp { host: String, port: u16 },
    Unix(PathBuf),
}

/// A server and one of its exports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Address {
    pub(super) place: Place,
    pub(super) export: String,
    /// `timeout=SECONDS` of the query, an extension of ours.
    pub(super) timeout: Option<Duration>,
}

/// Does this look like something for [`parse`]? Otherwise it is a path.
pub(crate) fn is_url(location: &str) -> bool {
    ["nbd://", "nbd+unix://", "nbds://", "nbds+unix://"].iter().any(|scheme| location.starts_with(scheme))
}

/// Takes a URL apart.
pub(super) fn parse(url: &str) -> Result<Address> {
    let wrong = |why: &str| Error::invalid(format!("{url}: {why}"));
    let (scheme, rest) = url.split_once("://").ok_or_else(|| wrong("not a URL"))?;
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, export) = rest.split_once('/').unwrap_or((rest, ""));
    let export = decode(export).ok_or_else(|| wrong("the name of the export is not valid"))?;
    if export.len() > MAX_EXPORT_NAME {
        return Err(wrong("the name of the export is too long"));
    }
    let (mut socket, mut timeout) = (None, None);
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = decode(value).ok_or_else(|| wrong("the query is not valid"))?;
        match key {
            "socket" => socket = Some(PathBuf::from(value)),
            "timeout" => {
                let secs = value.parse().map_err(|_| wrong("the timeout is not a number of seconds"))?;
                timeout = Some(Duration::from_secs(secs));
            }
            _ => return Err(wrong(&format!("unknown parameter {key}"))),
        }
    }
    let place = match (scheme, socket) {
        ("nbd", None) => tcp(authority).ok_or_else(|| wrong("host[:port] is not valid"))?,
        ("nbd+unix", Some(path)) if authority.is_empty() && !path.as_os_str().is_empty() => Place::Unix(path),
        ("nbd+unix", _) => return Err(wrong("expected nbd+unix:///export?socket=path")),
        ("nbd", Some(_)) => return Err(wrong("a socket goes with nbd+unix")),
        _ => return Err(Error::Unsupported(format!("{url}: {scheme} is not supported, only nbd and nbd+unix"))),
    };
    Ok(Address { place, export, timeout })
}

/// `host`, `host:port`, `[v6]` or `[v6]:port`.
fn tcp(authority: &str) -> Option<Place> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, after) = rest.split_once(']')?;
            (host, after.strip_prefix(':').or(after.is_empty().then_some("")).filter(|p| p.len() < 6)?)
        }
        None => authority.split_once(':').unwrap_or((authority, "")),
    };
    let port = if port.is_empty() { PORT } else { port.parse().ok().filter(|port| *port != 0)? };
    (!host.is_empty()).then(|| Place::Tcp { host: host.to_owned(), port })
}

/// Undoes percent encoding.
fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digit = |b: u8| char::from(b).to_digit(16);
        bytes.push((digit(rest.next()?)? * 16 + digit(rest.next()?)?) as u8);
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_of_the_nbd_project_are_understood() {
        let tcp = |host: &str, port| Place::Tcp { host: host.into(), port };
        for (url, place, export) in [
            ("nbd://example.com", tcp("example.com", 10809), ""),
            ("nbd://example.com/", tcp("example.com", 10809), ""),
            ("nbd://10.0.0.1:9999/meta", tcp("10.0.0.1", 9999), "meta"),
            ("nbd://[::1]:7/a%20b/c", tcp("::1", 7), "a b/c"),
            ("nbd://[::1]/x", tcp("::1", 10809), "x"),
            ("nbd+unix:///disk?socket=/run/a%3Db", Place::Unix("/run/a=b".into()), "disk"),
        ] {
            assert!(is_url(url));
            assert_eq!(parse(url).unwrap(), Address { place, export: export.into(), timeout: None }, "{url}");
        }
        assert_eq!(parse("nbd://h/x?timeout=7").unwrap().timeout, Some(Duration::from_secs(7)));
        assert!(!is_url("/dev/nbd0") && !is_url("nbd:x"));
    }

    #[test]
    fn wrong_urls_are_refused() {
        for url in [
            "nbd://",
            "nbd:///x",
            "nbd://h:0/x",
            "nbd://h:x/x",
            "nbd://[::1/x",
            "nbd://[::1]x/x",
            "nbd://h/%zz",
            "nbd://h/%4",
            "nbd://h/x?socket=/s",
            "nbd://h/x?colour=red",
            "nbd://h/x?timeout=soon",
            "nbd+unix:///x",
            "nbd+unix://h/x?socket=/s",
            "nbds://h/x",
        ] {
            assert!(parse(url).is_err(), "{url}");
        }
    }
}
