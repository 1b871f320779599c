//! The language of `node --exec`: one operation a line, its results on standard output.
//!
//! Words are separated by blanks; a word in double quotes may contain blanks. `#` begins a comment. Contents are made from a
//! seed, so that another node can check them without having them.

use std::io::{BufRead, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use scoutfs::namespace::{Caller, RenameFlags, SetAttr};
use scoutfs::{Ino, Volume};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

pub(crate) const HELP: &str = "\
Operations of SCRIPT, one a line (# begins a comment):
  mkdir PATH            make a directory, and those above it
  write PATH SIZE SEED  make or replace a file: SIZE bytes made from SEED
  text PATH TEXT        make or replace a file that contains TEXT
  verify PATH SIZE SEED fail unless the file is as `write` made it
  read PATH             print the contents
  sum PATH              print a 64-bit sum (FNV-1a) of the contents
  append PATH TEXT      add TEXT and a line feed at the end
  ls PATH               print the names in a directory, sorted
  stat PATH             print kind, mode, links, size and number of an inode
  mv PATH PATH, rm PATH, rmdir PATH, truncate PATH SIZE
  sync                  make everything durable
  sleep SECONDS         wait
  wait PATH SECONDS     wait until PATH exists; fail after SECONDS
  exists PATH           print yes or no
  status                print how the cluster stands
  echo TEXT             print TEXT
An operation that fails ends the script and the node with an error.";

const CHUNK: usize = 1 << 20;
/// Pause between two looks of `wait`.
const LOOK: Duration = Duration::from_millis(20);

/// One operation with its line number.
pub(crate) struct Line {
    nr: usize,
    words: Vec<String>,
}

/// Reads a script and takes it apart. Nothing is checked but quotes and names of operations.
pub(crate) fn read(path: &Path) -> Outcome<Vec<Line>> {
    let text = if path == Path::new("-") {
        std::io::stdin().lock().lines().collect::<Result<Vec<_>, _>>()?.join("\n")
    } else {
        std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?
    };
    let mut lines = Vec::new();
    for (i, line) in text.lines().enumerate() {
        let words = words(line).ok_or_else(|| format!("line {}: a quote is not closed", i + 1))?;
        if let Some(operation) = words.first() {
            if arity(operation).is_none_or(|n| n != words.len() - 1) {
                return Err(format!("line {}: '{line}' is not an operation (see --help)", i + 1).into());
            }
            lines.push(Line { nr: i + 1, words });
        }
    }
    Ok(lines)
}

fn words(line: &str) -> Option<Vec<String>> {
    let (mut words, mut word, mut quoted) = (Vec::new(), None::<String>, false);
    for c in line.chars() {
        match c {
            '"' => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            '#' if !quoted && word.is_none() => break,
            c if c.is_whitespace() && !quoted => words.extend(word.take()),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    (!quoted).then_some(words)
}

fn arity(operation: &str) -> Option<usize> {
    Some(match operation {
        "sync" | "status" => 0,
        "mkdir" | "read" | "sum" | "ls" | "stat" | "rm" | "rmdir" | "sleep" | "exists" | "echo" => 1,
        "text" | "append" | "mv" | "truncate" | "wait" => 2,
        "write" | "verify" => 3,
        _ => return None,
    })
}

/// Carries the operations out.
pub(crate) fn run(volume: &Volume, lines: &[Line]) -> Outcome<()> {
    for line in lines {
        step(volume, &line.words).map_err(|e| format!("line {}: {}: {e}", line.nr, line.words.join(" ")))?;
        std::io::stdout().flush()?;
    }
    Ok(())
}

fn step(volume: &Volume, words: &[String]) -> Outcome<()> {
    let word = |i: usize| words.get(i).map_or("", String::as_str);
    let (root, path) = (Caller::root(), word(1));
    match word(0) {
        "mkdir" => drop(volume.create_dir_all(path)?),
        "write" => write(volume, path, word(2).parse()?, word(3).parse()?)?,
        "verify" => verify(volume, path, word(2).parse()?, word(3).parse()?)?,
        "text" => drop(volume.write_file(path, word(2).as_bytes())?),
        "append" => {
            let line = format!("{}\n", word(2));
            volume.append(&root, volume.resolve(path)?.ino, line.as_bytes())?;
        }
        "read" => std::io::stdout().write_all(&volume.read_file(path)?)?,
        "sum" => println!("{:016x} {path}", sum(volume, path)?),
        "ls" => ls(volume, path)?.iter().for_each(|name| println!("{}", name.display())),
        "stat" => {
            let a = volume.resolve_nofollow(path)?;
            println!("{:?} {:04o} {} {} {} {path}", a.kind, a.mode & 0o7777, a.nlink, a.size, a.ino.0);
        }
        "mv" => {
            let (from, to) = (entry(volume, path)?, entry(volume, word(2))?);
            volume.rename(&root, (from.0, &from.1), (to.0, &to.1), RenameFlags(0))?;
        }
        "rm" => {
            let (dir, name) = entry(volume, path)?;
            volume.unlink(&root, dir, &name)?;
        }
        "rmdir" => {
            let (dir, name) = entry(volume, path)?;
            volume.rmdir(&root, dir, &name)?;
        }
        "truncate" => {
            let set = SetAttr { size: Some(word(2).parse()?), ..SetAttr::default() };
            volume.setattr(&root, volume.resolve(path)?.ino, &set)?;
        }
        "sync" => volume.sync()?,
        "sleep" => std::thread::sleep(Duration::try_from_secs_f64(path.parse()?)?),
        "wait" => {
            let deadline = Instant::now() + Duration::try_from_secs_f64(word(2).parse()?)?;
            while volume.resolve(path).is_err() {
                if Instant::now() >= deadline {
                    return Err("it does not come".into());
                }
                std::thread::sleep(LOOK);
            }
        }
        "exists" => println!("{}", if volume.resolve_nofollow(path).is_ok() { "yes" } else { "no" }),
        "status" => print!("{}", volume.cluster_status()),
        "echo" => println!("{path}"),
        other => return Err(format!("no operation {other}").into()),
    }
    Ok(())
}

/// Bytes that follow from a seed and their place (the mixing function of splitmix64).
fn fill(seed: u64, offset: u64, buf: &mut [u8]) {
    for (i, word) in buf.chunks_mut(8).enumerate() {
        let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(offset / 8 + i as u64);
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word.copy_from_slice(&(x ^ (x >> 31)).to_le_bytes()[..word.len()]);
    }
}

fn write(volume: &Volume, path: &str, size: u64, seed: u64) -> Outcome<()> {
    let ino = volume.write_file(path, b"")?.ino;
    let (mut at, mut buf) = (0, vec![0; CHUNK]);
    while at < size {
        let part = &mut buf[..(size - at).min(CHUNK as u64) as usize];
        fill(seed, at, part);
        match volume.write(&Caller::root(), ino, at, part)? {
            n if n == part.len() => at += n as u64,
            n => return Err(format!("only {n} bytes could be written at {at}").into()),
        }
    }
    Ok(())
}

fn verify(volume: &Volume, path: &str, size: u64, seed: u64) -> Outcome<()> {
    let attr = volume.resolve(path)?;
    if attr.size != size {
        return Err(format!("it has {} bytes", attr.size).into());
    }
    let (mut at, mut want, mut have) = (0, vec![0; CHUNK], vec![0; CHUNK]);
    while at < size {
        let len = (size - at).min(CHUNK as u64) as usize;
        fill(seed, at, &mut want[..len]);
        if volume.read(attr.ino, at, &mut have[..len])? != len || want[..len] != have[..len] {
            return Err(format!("other contents in the {len} bytes at {at}").into());
        }
        at += len as u64;
    }
    Ok(())
}

fn sum(volume: &Volume, path: &str) -> Outcome<u64> {
    let ino = volume.resolve(path)?.ino;
    let (mut hash, mut at, mut buf) = (0xcbf2_9ce4_8422_2325u64, 0, vec![0; CHUNK]);
    loop {
        let n = volume.read(ino, at, &mut buf)?;
        if n == 0 {
            return Ok(hash);
        }
        hash = buf[..n].iter().fold(hash, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0000_0100_0000_01b3));
        at += n as u64;
    }
}

fn ls(volume: &Volume, path: &str) -> Outcome<Vec<PathBuf>> {
    let dir = volume.resolve(path)?.ino;
    let (mut names, mut cursor) = (Vec::new(), 0);
    loop {
        let batch = volume.readdir(dir, cursor, 256)?;
        let before = cursor;
        for entry in batch.iter() {
            cursor = entry.pos + 1;
            if entry.name != b"." && entry.name != b".." {
                names.push(PathBuf::from(std::ffi::OsStr::from_bytes(entry.name)));
            }
        }
        if cursor == before {
            names.sort();
            return Ok(names);
        }
    }
}

/// Directory and name of a path.
fn entry(volume: &Volume, path: &str) -> Outcome<(Ino, Vec<u8>)> {
    let path = Path::new(path);
    let parent = volume.resolve(path.parent().unwrap_or(Path::new("")))?;
    Ok((parent.ino, path.file_name().ok_or("a path without a name")?.as_bytes().to_vec()))
}
