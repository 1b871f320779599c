//! Writing dirty pages to the device, by threads of their own.
//!
//! Invariants:
//! 1. A job writes a page only if it is still dirty when its turn comes, to the block that was its mapping when the job was
//!    made. Mappings of dirty pages change only together with forgetting the pages, and blocks are reused only after a commit,
//!    which waits for all jobs.
//! 2. A page that could not be written is dirty again, and the failure is kept until a commit has seen it.
//! 3. Pages of a chunk do not change while they are being written.
//! 4. A page that is changed and submitted again while another job still writes it is written once more after that job, so
//!    that nothing submitted is left out and no older content can arrive last.

use std::collections::VecDeque;

use smallvec::SmallVec;

use super::pages::{Chunk, PAGE, mask, runs};
use super::state::FileState;
use crate::device::{BlockDevice, FlushTracker};
use crate::error::{Error, Result};
use crate::sync::{Arc, Condvar, Mutex, thread};

/// Bytes from which on a job is not made larger.
pub(super) const JOB_BYTES: usize = 2 << 20;
/// Writer threads.
const THREADS: usize = 2;

/// Pages of one chunk and where they go: (first page in the chunk, pages, block of the data device).
pub(super) struct Part {
    pub(super) file: Arc<FileState>,
    pub(super) chunk: Arc<Chunk>,
    pub(super) runs: SmallVec<[(u64, u64, u64); 2]>,
}

/// One batch of pages, of one large file or of many small ones, whose blocks mostly follow each other.
pub(super) struct Job {
    pub(super) parts: Vec<Part>,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    /// Queued and running.
    in_flight: usize,
    /// Jobs that have ended so far.
    ended: u64,
    /// The first failure that no commit has seen.
    failed: Option<Error>,
    wrote: bool,
    /// When all jobs have ended, the device is flushed.
    flush: bool,
    closed: bool,
}

/// The queue of writes and its threads.
pub(super) struct Writer {
    shared: Arc<Shared>,
    threads: Mutex<Vec<thread::JoinHandle<()>>>,
}

struct Shared {
    device: Arc<FlushTracker>,
    queue: Mutex<Queue>,
    work: Condvar,
    done: Condvar,
}

impl Writer {
    /// Starts the threads.
    pub(super) fn start(device: Arc<FlushTracker>) -> Result<Writer> {
        let shared = Arc::new(Shared {
            device,
            queue: Mutex::new(Queue::default()),
            work: Condvar::new(),
            done: Condvar::new(),
        });
        let mut threads = Vec::new();
        for n in 0..THREADS {
            let shared = shared.clone();
            let run = move || while shared.step() {};
            let thread = thread::Builder::new().name(format!("scoutfs-data-{n}")).spawn(run);
            threads.push(thread.map_err(|e| Error::invalid(format!("cannot start a thread: {e}")))?);
        }
        Ok(Writer { shared, threads: Mutex::new(threads) })
    }

    /// Queues a job.
    pub(super) fn submit(&self, job: Job) {
        job.parts.iter().for_each(|part| part.file.job_started());
        let mut queue = self.shared.queue.lock();
        queue.in_flight += 1;
        queue.jobs.push_back(job);
        drop(queue);
        self.shared.work.notify_one();
    }

    /// A commit has submitted all it has: when that is written, a thread begins to flush the device.
    pub(super) fn flush_behind(&self) {
        let mut queue = self.shared.queue.lock();
        queue.flush = queue.in_flight > 0 || queue.wrote;
        if queue.in_flight == 0 && queue.flush {
            drop(queue);
            self.shared.work.notify_one();
        }
    }

    /// Data was written to the device by somebody else: the commit has to flush it.
    pub(super) fn note_written(&self) {
        self.shared.queue.lock().wrote = true;
    }

    /// Is anything queued or running?
    pub(super) fn is_busy(&self) -> bool {
        self.shared.queue.lock().in_flight > 0
    }

    /// Waits until a job ends; returns at once if there is none.
    pub(super) fn wait_one(&self) {
        let mut queue = self.shared.queue.lock();
        if queue.in_flight > 0 {
            self.shared.done.wait(&mut queue);
        }
    }

    /// Waits until no job of `file` is left.
    pub(super) fn wait_file(&self, file: &FileState) {
        let mut queue = self.shared.queue.lock();
        while file.jobs() > 0 {
            self.shared.done.wait(&mut queue);
        }
    }

    /// Forgets an old failure: everything dirty is about to be submitted again.
    pub(super) fn clear_failure(&self) {
        self.shared.queue.lock().failed = None;
    }

    /// Waits for all jobs; the first failure, or whether anything was written since the last call.
    pub(super) fn wait_all(&self) -> Result<bool> {
        let mut queue = self.shared.queue.lock();
        while queue.in_flight > 0 {
            self.shared.done.wait(&mut queue);
        }
        match queue.failed.take() {
            Some(e) => Err(e),
            None => Ok(std::mem::take(&mut queue.wrote)),
        }
    }

    /// Ends and joins the threads. What is queued is still written.
    pub(super) fn close(&self) {
        self.shared.queue.lock().closed = true;
        self.shared.work.notify_all();
        for thread in self.threads.lock().drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread that writes file data panicked");
            }
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.close();
    }
}

impl Shared {
    /// Runs the next job; false when there will be none.
    fn step(&self) -> bool {
        let mut queue = self.queue.lock();
        let job = loop {
            if let Some(job) = queue.jobs.pop_front() {
                break job;
            }
            if queue.flush && queue.in_flight == 0 {
                queue.flush = false;
                drop(queue);
                self.device.flush_ahead();
                return true;
            }
            if queue.closed {
                return false;
            }
            self.work.wait(&mut queue);
        };
        let ended = queue.ended;
        drop(queue);
        let (result, left) = self.run(&job);
        let mut queue = self.queue.lock();
        queue.ended += 1;
        queue.wrote = true;
        if !left.is_empty() {
            // The job that is still at these pages had not ended when this one began: it counts besides this one.
            self.done.notify_all();
            while queue.ended < ended + 2 {
                self.done.wait(&mut queue);
            }
            left.iter().for_each(|part| part.file.job_started());
            queue.in_flight += 1;
            queue.jobs.push_back(Job { parts: left });
            self.work.notify_one();
        }
        job.parts.iter().for_each(|part| part.file.job_ended());
        queue.in_flight -= 1;
        if let Err(e) = result {
            tracing::warn!("writing file data failed, it stays dirty: {e}");
            queue.failed.get_or_insert(e);
        }
        drop(queue);
        self.done.notify_all();
        true
    }

    /// Writes what is still dirty; also gives what has to be written once more because another job is at it.
    fn run(&self, job: &Job) -> (Result<()>, Vec<Part>) {
        let mut left = Vec::new();
        let mut take = |part: &Part| {
            let wanted = part.runs.iter().fold(0, |bits, (first, n, _)| bits | mask(*first, *n));
            let mut state = part.chunk.state.write();
            if wanted & state.dirty & state.writing != 0 {
                left.push(Part { file: part.file.clone(), chunk: part.chunk.clone(), runs: part.runs.clone() });
            }
            part.file.pages.start_writing(&mut state, wanted)
        };
        let taken: Vec<u32> = job.parts.iter().map(&mut take).collect();
        let result = self.write(job, &taken);
        for (part, bits) in job.parts.iter().zip(&taken) {
            if *bits == 0 {
                continue;
            }
            let again = part.file.pages.end_writing(&mut part.chunk.state.write(), *bits, result.is_ok());
            if again {
                part.file.work.lock().dirty_chunks.insert(part.chunk.index);
            }
        }
        (result, left)
    }

    fn write(&self, job: &Job, taken: &[u32]) -> Result<()> {
        // Readers share the chunks meanwhile, writers wait.
        let states: Vec<_> = job.parts.iter().map(|p| p.chunk.state.read()).collect();
        let mut batch: Vec<(u64, &[u8])> = Vec::new();
        for ((part, bits), state) in job.parts.iter().zip(taken).zip(&states) {
            for (first, n, block) in &part.runs {
                for (from, n) in runs(bits & mask(*first, *n)) {
                    let bytes = &state.bytes()[from as usize * PAGE..(from + n) as usize * PAGE];
                    batch.push(((block + (from - first)) * PAGE as u64, bytes));
                }
            }
        }
        batch.sort_unstable_by_key(|(offset, _)| *offset);
        if batch.is_empty() { Ok(()) } else { self.device.write_batch(&batch) }
    }
}
