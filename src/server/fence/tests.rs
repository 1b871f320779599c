//! Fencers in front of real processes and files.

use std::net::{IpAddr, Ipv4Addr};

use super::{CommandFencer, FenceReason, Fencer, HostFencer, RefuseFencing};
use crate::error::Error;
use crate::format::Rid;

const REASON: FenceReason = FenceReason::ClientReconnect;

#[test]
fn the_default_refuses() {
    assert!(RefuseFencing.fence(Rid(1), None, REASON).is_err());
}

#[test]
fn a_mount_of_this_host_is_confirmed_when_it_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let ours = HostFencer::new(dir.path().join("marks")).unwrap();
    let theirs = HostFencer::new(dir.path().join("marks")).unwrap();
    let unknown = ours.fence(Rid(1), None, REASON);
    assert!(matches!(unknown, Err(Error::Unsupported(_))), "nothing is known of it: {unknown:?}");
    theirs.mounted(Rid(1)).unwrap();
    assert!(matches!(ours.mounted(Rid(1)), Err(Error::Busy(_))));
    // The process dies while we wait for it.
    let waiting = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| ours.fence(Rid(1), None, REASON));
        std::thread::sleep(std::time::Duration::from_millis(120));
        assert!(!waiting.is_finished(), "it is alive");
        drop(theirs);
        waiting.join().unwrap()
    });
    waiting.unwrap();
    // A later server asks again.
    ours.fence(Rid(1), None, REASON).unwrap();
}

/// What went wrong: a mount that was stopped (SIGSTOP) stayed alive for ever, so that no other member could take over.
#[test]
fn a_mount_that_hangs_is_killed() {
    use std::process::{Command, Stdio};
    let dir = tempfile::tempdir().unwrap();
    let mark = dir.path().join(format!("{:016x}", 7));
    std::fs::write(&mark, "").unwrap();
    let mut stopped = Command::new("flock")
        .args(["--no-fork", mark.to_str().unwrap(), "sh", "-c"])
        .arg("echo $$ $(sed 's/.*) //' /proc/$$/stat | cut -d' ' -f20) > \"$0\"; echo; exec sleep 1000")
        .arg(&mark)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Read::read_exact(&mut stopped.stdout.take().unwrap(), &mut [0]).unwrap();
    let text = std::fs::read_to_string(&mark).unwrap();
    let (pid, started) = text.trim().split_once(' ').unwrap();
    assert_eq!(pid, stopped.id().to_string());
    // Another process that has got the number is left alone.
    std::fs::write(&mark, format!("{pid} {}\n", started.parse::<u64>().unwrap() + 1)).unwrap();
    super::host::kill_holder(&mark, Rid(7)).unwrap();
    assert!(stopped.try_wait().unwrap().is_none());
    std::fs::write(&mark, text).unwrap();
    HostFencer::new(dir.path()).unwrap().killing().fence(Rid(7), None, REASON).unwrap();
    assert!(!stopped.wait().unwrap().success());
}

#[test]
fn a_clean_end_leaves_no_mark_and_a_forced_one_can_be_confirmed() {
    let dir = tempfile::tempdir().unwrap();
    let fencer = HostFencer::new(dir.path()).unwrap();
    for rid in [Rid(1), Rid(2)] {
        fencer.mounted(rid).unwrap();
        fencer.left(rid, rid == Rid(1));
    }
    assert!(fencer.fence(Rid(1), None, REASON).is_err());
    fencer.fence(Rid(2), None, REASON).unwrap();
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn a_command_gets_the_originals_environment() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let script = "echo $SCOUTFS_FENCED_REQ_RID $SCOUTFS_FENCED_REQ_IP $SCOUTFS_FENCED_REQ_REASON > \"$0\"; exit $1";
    for (status, ok) in [("0", true), ("3", false)] {
        let args = ["-c".into(), script.into(), out.clone().into_os_string(), status.into()];
        let fencer = CommandFencer::new("/bin/sh", args);
        let result = fencer.fence(Rid(0xabc), Some(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 7))), REASON);
        assert_eq!(result.is_ok(), ok, "{result:?}");
        assert_eq!(std::fs::read_to_string(&out).unwrap(), "0000000000000abc 10.0.0.7 client_reconnect\n");
    }
    assert!(CommandFencer::new("/nonexistent/fence", [""; 0]).fence(Rid(1), None, REASON).is_err());
}
