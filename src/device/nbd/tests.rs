//! The client against a server of our own: one that crashes and loses what was not flushed, and one that lies.
//! Real servers are in `tests/nbd.rs`.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use super::*;
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};

const SIZE: usize = 1 << 20;
/// Flush, FUA, trim, several connections.
const FLAGS: u16 = 1 | 4 | 8 | 32 | 256;

/// A disk with a volatile cache.
struct Disk {
    durable: Vec<u8>,
    cached: Vec<u8>,
}

/// An honest server that can crash.
struct Server {
    port: u16,
    disk: Mutex<Disk>,
    sockets: Mutex<Vec<TcpStream>>,
    /// Requests left until the next crash.
    crash_in: AtomicU64,
    crashes: AtomicU64,
    flushes: AtomicU64,
    fail_flush: AtomicBool,
    mute: AtomicBool,
    flags: AtomicU64,
}

impl Server {
    fn start() -> Arc<Server> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = Arc::new(Server {
            port: listener.local_addr().unwrap().port(),
            disk: Mutex::new(Disk { durable: vec![0; SIZE], cached: vec![0; SIZE] }),
            sockets: Mutex::default(),
            crash_in: AtomicU64::new(u64::MAX),
            crashes: AtomicU64::new(0),
            flushes: AtomicU64::new(0),
            fail_flush: AtomicBool::new(false),
            mute: AtomicBool::new(false),
            flags: AtomicU64::new(u64::from(FLAGS)),
        });
        let accepting = server.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (server, stream) = (accepting.clone(), stream.unwrap());
                let mut sockets = server.sockets.lock();
                sockets.push(stream.try_clone().unwrap());
                let born = server.crashes.load(Ordering::Relaxed);
                drop(sockets);
                std::thread::spawn(move || server.serve(stream, born));
            }
        });
        server
    }

    fn url(&self) -> String {
        format!("nbd://127.0.0.1:{}/disk", self.port)
    }

    /// Loses the cache and all connections.
    fn crash(&self) {
        let mut disk = self.disk.lock();
        disk.cached = disk.durable.clone();
        let mut sockets = self.sockets.lock();
        sockets.drain(..).for_each(|s| drop(s.shutdown(Shutdown::Both)));
        self.crashes.fetch_add(1, Ordering::Relaxed);
    }

    fn serve(&self, mut stream: TcpStream, born: u64) -> Option<()> {
        stream.set_nodelay(true).unwrap();
        greet(&mut stream, SIZE as u64, self.flags.load(Ordering::Relaxed) as u16)?;
        loop {
            let mut head = [0; 28];
            stream.read_exact(&mut head).ok()?;
            let flags = u16::from_be_bytes(head[4..6].try_into().unwrap());
            let command = u16::from_be_bytes(head[6..8].try_into().unwrap());
            let at = u64::from_be_bytes(head[16..24].try_into().unwrap()) as usize;
            let len = u32::from_be_bytes(head[24..].try_into().unwrap()) as usize;
            let mut payload = vec![0; if command == 1 { len } else { 0 }];
            stream.read_exact(&mut payload).ok()?;
            if self.crash_in.fetch_sub(1, Ordering::Relaxed) == 0 {
                self.crash_in.store(u64::MAX, Ordering::Relaxed);
                self.crash();
                return None;
            }
            let mut error = 0u32;
            let mut disk = self.disk.lock();
            // A connection that was cut by a crash does nothing more.
            if self.crashes.load(Ordering::Relaxed) != born {
                return None;
            }
            let mut answer = Vec::new();
            match command {
                0 => answer.extend_from_slice(&disk.cached[at..at + len]),
                1 => {
                    disk.cached[at..at + len].copy_from_slice(&payload);
                    if flags & 1 != 0 {
                        disk.durable[at..at + len].copy_from_slice(&payload);
                    }
                }
                3 if self.fail_flush.swap(false, Ordering::Relaxed) => {
                    // As disks do: what could not be made durable is forgotten, and the next flush knows nothing of it.
                    disk.cached = disk.durable.clone();
                    error = 5;
                }
                3 => {
                    disk.durable = disk.cached.clone();
                    self.flushes.fetch_add(1, Ordering::Relaxed);
                }
                4 => {}
                _ => return None,
            }
            drop(disk);
            if self.mute.load(Ordering::Relaxed) {
                continue;
            }
            let mut reply = 0x6744_6698u32.to_be_bytes().to_vec();
            reply.extend(error.to_be_bytes());
            reply.extend_from_slice(&head[8..16]);
            reply.extend(answer);
            stream.write_all(&reply).ok()?;
        }
    }
}

/// The server's part of a correct handshake.
fn greet(stream: &mut TcpStream, size: u64, flags: u16) -> Option<()> {
    let mut hello = b"NBDMAGICIHAVEOPT".to_vec();
    hello.extend(3u16.to_be_bytes());
    stream.write_all(&hello).ok()?;
    let mut head = [0; 20];
    stream.read_exact(&mut head).ok()?;
    let len = u32::from_be_bytes(head[16..].try_into().unwrap());
    stream.read_exact(&mut vec![0; len as usize]).ok()?;
    let mut export = 0u16.to_be_bytes().to_vec();
    export.extend(size.to_be_bytes());
    export.extend(flags.to_be_bytes());
    stream.write_all(&option_reply(3, &export)).ok()?;
    let mut sizes = 3u16.to_be_bytes().to_vec();
    [1u32, 4096, 32 << 20].iter().for_each(|n| sizes.extend(n.to_be_bytes()));
    stream.write_all(&option_reply(3, &sizes)).ok()?;
    stream.write_all(&option_reply(1, &[])).ok()
}

fn option_reply(kind: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = 0x0003_e889_0455_65a9u64.to_be_bytes().to_vec();
    [7u32, kind, data.len() as u32].iter().for_each(|n| bytes.extend(n.to_be_bytes()));
    bytes.extend_from_slice(data);
    bytes
}

fn open(server: &Server, timeout: u64) -> Arc<NbdDevice> {
    let timeout = Duration::from_secs(timeout);
    NbdDevice::open(&server.url(), &NbdOptions { shared: true, timeout, ..NbdOptions::default() }).unwrap()
}

#[test]
fn what_was_answered_survives_crashes_of_the_server() {
    let server = Server::start();
    let dev = open(&server, 60);
    let mut model = vec![0u8; SIZE];
    let mut seed = 12345u64;
    let mut random = move |below: u64| {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (seed >> 33) % below
    };
    for round in 0..600 {
        if round % 7 == 0 {
            server.crash_in.store(random(12), Ordering::Relaxed);
        }
        let at = random(200) as usize * 4096;
        let len = (1 + random(20) as usize) * 4096;
        let value = random(256) as u8;
        match random(6) {
            0 => {
                let mut back = vec![0; len];
                dev.read_at(at as u64, &mut back).unwrap();
                assert_eq!(back, model[at..at + len], "round {round}");
            }
            1 => {
                dev.flush().unwrap();
                assert!(server.disk.lock().durable == model, "round {round}: a flush is a flush");
            }
            2 => {
                dev.write_durable(at as u64, &vec![value; len]).unwrap();
                model[at..at + len].fill(value);
                assert!(server.disk.lock().durable[at..at + len] == model[at..at + len], "round {round}");
            }
            _ => {
                dev.write_at(at as u64, &vec![value; len]).unwrap();
                model[at..at + len].fill(value);
            }
        }
    }
    server.crash_in.store(u64::MAX, Ordering::Relaxed);
    dev.flush().unwrap();
    server.crash();
    let mut back = vec![0; SIZE];
    dev.read_at(0, &mut back).unwrap();
    assert!(back == model);
    let crashes = server.crashes.load(Ordering::Relaxed);
    assert!(crashes > 25 && dev.reconnects() >= crashes / 2, "{crashes} crashes, {} reconnects", dev.reconnects());
}

#[test]
fn many_threads_at_once_get_their_own_answers_while_the_server_crashes() {
    let server = Server::start();
    let dev = open(&server, 60);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(50));
                server.crash();
            }
        });
        let workers: Vec<_> = (0..8u64)
            .map(|nr| {
                let dev = &dev;
                scope.spawn(move || {
                    let base = nr * (SIZE as u64 / 8);
                    for i in 0..150u64 {
                        let (a, b) = (vec![(nr * 16 + i % 16) as u8; 8192], vec![i as u8; 4096]);
                        dev.write_batch(&[(base, &a), (base + 8192, &b), (base + 65536, &b)]).unwrap();
                        let mut back = vec![0; 12288];
                        dev.read_at(base, &mut back).unwrap();
                        assert!(back[..8192] == a && back[8192..] == b, "worker {nr} round {i}");
                        if i % 10 == 0 {
                            dev.flush().unwrap();
                        }
                    }
                })
            })
            .collect();
        workers.into_iter().for_each(|w| w.join().unwrap());
        done.store(true, Ordering::Relaxed);
    });
}

/// What went wrong (in clients that trust the second flush): a flush fails once, the server forgets the writes, the next
/// flush succeeds, and the data is gone.
#[test]
fn a_failed_flush_loses_nothing() {
    let server = Server::start();
    let dev = open(&server, 10);
    dev.write_at(4096, &[7; 4096]).unwrap();
    server.fail_flush.store(true, Ordering::Relaxed);
    let error = dev.flush().unwrap_err().to_string();
    assert!(error.contains("input/output error"), "{error}");
    dev.flush().unwrap();
    assert_eq!(server.disk.lock().durable[4096..8192], [7; 4096]);
}

/// What went wrong: a device that was dropped before its thread had begun to receive waited for that thread for ever.
#[test]
fn a_device_can_be_closed_at_once() {
    let server = Server::start();
    for _ in 0..200 {
        drop(open(&server, 10));
    }
}

#[test]
fn kept_writes_are_bounded() {
    let server = Server::start();
    let options = NbdOptions { keep_bytes: 4 << 20, ..NbdOptions::default() };
    let dev = NbdDevice::open(&server.url(), &options).unwrap();
    for i in 0..64 {
        dev.write_at(0, &vec![i; SIZE]).unwrap();
    }
    let flushes = server.flushes.load(Ordering::Relaxed);
    assert!((10..=64).contains(&flushes), "{flushes}");
    dev.flush().unwrap();
    let before = server.flushes.load(Ordering::Relaxed);
    dev.flush().unwrap();
    assert_eq!(server.flushes.load(Ordering::Relaxed), before, "nothing was to be flushed");
}

#[test]
fn a_silent_server_is_an_error_in_time_and_can_come_back() {
    let server = Server::start();
    let dev = open(&server, 1);
    server.mute.store(true, Ordering::Relaxed);
    let start = Instant::now();
    let error = dev.read_at(0, &mut [0; 4096]).unwrap_err().to_string();
    assert!(error.contains("no answer") && error.contains("nbd://"), "{error}");
    let took = start.elapsed();
    assert!((Duration::from_secs(1)..Duration::from_secs(4)).contains(&took), "{took:?}");
    server.mute.store(false, Ordering::Relaxed);
    dev.read_at(0, &mut [0; 4096]).unwrap();
}

#[test]
fn exports_that_cannot_serve_are_refused() {
    let server = Server::start();
    let refused = |flags: u16, options: NbdOptions, what: &str| {
        server.flags.store(u64::from(flags), Ordering::Relaxed);
        let error = NbdDevice::open(&server.url(), &options).err().expect(what).to_string();
        assert!(error.contains(what), "{error}");
    };
    refused(FLAGS | 2, NbdOptions::default(), "read-only");
    refused(FLAGS & !4, NbdOptions::default(), "no flush");
    refused(FLAGS & !256, NbdOptions { shared: true, ..NbdOptions::default() }, "CAN_MULTI_CONN");
    refused(FLAGS & !1, NbdOptions::default(), "flags");
    server.flags.store(u64::from(FLAGS | 2), Ordering::Relaxed);
    let dev = NbdDevice::open(&server.url(), &NbdOptions { read_only: true, ..NbdOptions::default() }).unwrap();
    dev.read_at(0, &mut [0; 4096]).unwrap();
    assert!(dev.write_at(0, &[0; 4096]).is_err());
    // It comes back without what it had promised.
    server.flags.store(u64::from(FLAGS), Ordering::Relaxed);
    let dev = open(&server, 30);
    server.flags.store(u64::from(FLAGS & !256), Ordering::Relaxed);
    server.crash();
    let start = Instant::now();
    let error = dev.write_at(0, &[1; 4096]).unwrap_err().to_string();
    assert!(error.contains("another export"), "{error}");
    assert!(start.elapsed() < Duration::from_secs(10), "not only when the time is over");
}

/// Opens a device whose server is `script`, and uses it for a short time.
fn against(script: impl Fn(TcpStream) -> Option<()> + Send + Sync + 'static) -> Vec<String> {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("nbd://{}/disk", listener.local_addr().unwrap());
    let script = Arc::new(script);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let script = script.clone();
            std::thread::spawn(move || script(stream.unwrap()));
        }
    });
    let start = Instant::now();
    let options = NbdOptions { timeout: Duration::from_secs(1), ..NbdOptions::default() };
    let mut errors = Vec::new();
    match NbdDevice::open(&url, &options) {
        Err(e) => errors.push(e.to_string()),
        Ok(dev) => {
            errors.extend(dev.read_at(0, &mut [0; 8192]).err().map(|e| e.to_string()));
            errors.extend(dev.write_at(0, &[0; 8192]).err().map(|e| e.to_string()));
        }
    }
    assert!(start.elapsed() < Duration::from_secs(12), "bounded: {:?}", start.elapsed());
    errors
}

#[test]
fn lies_in_the_handshake_are_errors() {
    fn said(bytes: Vec<u8>) -> impl Fn(TcpStream) -> Option<()> + Send + Sync {
        move |mut stream| {
            let _ = stream.write_all(&bytes);
            // Until the client goes.
            std::io::copy(&mut stream, &mut std::io::sink()).ok().map(drop)
        }
    }
    fn info(size: u64, sizes: [u32; 3]) -> Vec<u8> {
        let mut export = 0u16.to_be_bytes().to_vec();
        export.extend(size.to_be_bytes());
        export.extend(FLAGS.to_be_bytes());
        let mut blocks = 3u16.to_be_bytes().to_vec();
        sizes.iter().for_each(|n| blocks.extend(n.to_be_bytes()));
        [option_reply(3, &export), option_reply(3, &blocks), option_reply(1, &[])].concat()
    }
    let hello = b"NBDMAGICIHAVEOPT\0\x03".to_vec();
    let with = |rest: Vec<u8>| [hello.clone(), rest].concat();
    let mut huge = option_reply(3, &[]);
    huge[16..].copy_from_slice(&u32::MAX.to_be_bytes());
    for (bytes, what) in [
        (b"SSH-2.0-OpenSSH_9.2p1\r\n".to_vec(), "not an NBD server"),
        (b"NBDMAGIC\0\0\x42\x02\x81\x86\x12\x53\0\0".to_vec(), "old form"),
        (b"NBDMAGICIHAVEOPT\0\0".to_vec(), "fixed newstyle"),
        (with(huge), "4294967295 bytes"),
        (with(vec![0x55; 64]), "belongs to no question"),
        (with(option_reply(1, &[])), "nothing about the export"),
        (with(option_reply(3, &[0, 0, 1])), "wrong length"),
        (with(option_reply(3, &[])), "wrong length"),
        (with(option_reply(9, &[])), "unknown kind"),
        (with(option_reply(1 << 31 | 6, b"gone\n\x1b[0m")), "no export \"disk\": gone[0m"),
        (with(option_reply(1 << 31 | 5, &[])), "TLS"),
        (with(option_reply(3, &[0, 1]).repeat(1000)), "no end of answers"),
        (with(info(u64::MAX, [1, 4096, 1 << 20])), "18446744073709551615 bytes"),
        (with(info(1 << 20, [0, 4096, 1 << 20])), "blocks of 0"),
        (with(info(1 << 20, [3, 4096, 1 << 20])), "blocks of 3"),
        (with(info(1 << 20, [65536, 65536, 1 << 20])), "larger than 4096"),
        (with(info(1 << 20, [1, 1, 512])), "less than 4096"),
        (with(info(1 << 20, [512, 512, 1])), "blocks of 512 to 1"),
    ] {
        let errors = against(said(bytes));
        assert!(errors.first().is_some_and(|e| e.contains(what)), "{what}: {errors:?}");
    }
    let errors = against(|_| None);
    assert!(errors[0].contains("closed"), "{errors:?}");
}

#[test]
fn a_handshake_that_never_ends_is_given_up() {
    let errors = against(|mut stream| {
        for byte in b"NBDMAGICIHAVEOPT".iter().cycle() {
            stream.write_all(&[*byte]).ok()?;
            std::thread::sleep(Duration::from_millis(400));
        }
        None
    });
    assert!(errors[0].contains("does not answer"), "{errors:?}");
}

#[test]
fn lies_in_answers_end_the_connection_and_nothing_else() {
    // Answers each request with these bytes, in which the cookie can be put.
    fn answering(make: fn(&[u8]) -> Vec<u8>) -> Vec<String> {
        against(move |mut stream| {
            greet(&mut stream, SIZE as u64, FLAGS)?;
            loop {
                let mut head = [0; 28];
                stream.read_exact(&mut head).ok()?;
                if head[7] == 1 {
                    stream
                        .read_exact(&mut vec![0; u32::from_be_bytes(head[24..].try_into().unwrap()) as usize])
                        .ok()?;
                }
                stream.write_all(&make(&head[8..16])).ok()?;
            }
        })
    }
    let both = |errors: Vec<String>, what: &str| {
        assert_eq!(errors.len(), 2, "{errors:?}");
        assert!(errors.iter().all(|e| e.contains(what)), "{what}: {errors:?}");
    };
    both(answering(|_| vec![0xff; 16]), "begins with 0xffffffff");
    both(answering(|_| [&[0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0][..], &[9; 8]].concat()), "was not made");
    both(answering(|cookie| [&[0x67, 0x44, 0x66, 0x98, 0, 0, 0, 5], cookie].concat()), "input/output error");
    both(answering(|cookie| [&[0x67, 0x44, 0x66, 0x98, 0, 0, 3, 0], cookie].concat()), "error 768");
    both(answering(|cookie| [&[0x67, 0x44, 0x66, 0x98, 0, 0, 0, 108], cookie].concat()), "shutting down");
    // Half of the data of a read, then nothing; the write is answered twice.
    let errors = answering(|cookie| [&[0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0], cookie, &[0; 4096]].concat());
    assert!(errors.iter().all(|e| e.contains("no answer")), "{errors:?}");
    // Floods.
    let flood = answering(|_| vec![0x67; 8 << 20]);
    both(flood, "no answer");
}
