//! The conversation of commands with the process that redirects or watches: one line of
//! JSON each way, over a socket of the network namespace.

use std::io::{self, Read as _, Write as _};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::unistd::{Gid, Group, Uid, User, getgrouplist};
use serde::Serialize;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use crate::observe::connections::Redirect;
use crate::observe::targets::List;
use crate::sys::peer::Owner;

pub use super::message::{Answer, Reply, Request, Role, Who};

/// An abstract name: it belongs to the network namespace, and disappears when the process
/// ends.
const NAME: &str = "portredir.control";

/// The group of users that may read without being root.
const GROUP: &str = "portredir";

const TIMEOUT: Duration = Duration::from_secs(5);

/// The time after which to listen again after a failure.
const RETRY: Duration = Duration::from_millis(100);

/// Asks the process of this network namespace for the running configuration; `None` when
/// there is no such process.
///
/// # Errors
///
/// When the process does not answer, or refuses.
pub fn status() -> io::Result<Option<Answer>> {
    match exchange(Request::Status)? {
        Some(Reply::Answer(answer)) => Ok(Some(*answer)),
        None => Ok(None),
        Some(_) => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Asks the process of this network namespace for the maps of its flows; `None` when there
/// is no such process.
///
/// # Errors
///
/// When the process does not answer, or refuses. An older process does not know the
/// question.
pub fn flows() -> io::Result<Option<Redirect>> {
    match exchange(Request::Flows)? {
        Some(Reply::Flows(redirect)) => Ok(Some(*redirect)),
        None => Ok(None),
        Some(_) => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Asks the process of this network namespace for the targets of its rules; `None` when
/// there is no such process.
///
/// # Errors
///
/// When the process does not answer, or refuses. An older process does not know the
/// question.
pub fn targets() -> io::Result<Option<List>> {
    match exchange(Request::Targets)? {
        Some(Reply::Targets(list)) => Ok(Some(*list)),
        None => Ok(None),
        Some(_) => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Sends a request to the process of this network namespace; returns the identity of the
/// process, or `None` when there is no such process.
///
/// # Errors
///
/// When the process does not answer, or refuses.
pub fn ask(request: Request) -> io::Result<Option<Who>> {
    match exchange(request)? {
        Some(Reply::Done(who)) => Ok(Some(who)),
        None => Ok(None),
        Some(_) => Err(io::ErrorKind::InvalidData.into()),
    }
}

fn exchange(request: Request) -> io::Result<Option<Reply>> {
    send(request)?.map_or(Ok(None), Question::reply)
}

/// A request without its answer.
#[derive(Debug)]
#[must_use = "what is not answered may not be done"]
pub struct Question {
    request: Request,
    stream: UnixStream,
}

/// Sends a request to the process of this network namespace, and does not wait; `None`
/// when there is no such process. The process carries the request out even if this one
/// ends.
///
/// # Errors
///
/// When the request cannot be sent.
pub fn send(request: Request) -> io::Result<Option<Question>> {
    let Some((mut stream, _)) = connect()? else {
        return Ok(None);
    };
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.write_all(&line(&request))?;
    Ok(Some(Question { request, stream }))
}

impl Question {
    /// Waits until the request is done, or begun.
    ///
    /// # Errors
    ///
    /// When there is no answer, or the request is refused.
    pub fn wait(self) -> io::Result<()> {
        self.reply().map(drop)
    }

    fn reply(mut self) -> io::Result<Option<Reply>> {
        let mut text = String::new();
        self.stream.read_to_string(&mut text)?;
        if self.request == Request::Stop && text.is_empty() {
            // The process ended before it could answer.
            return Ok(None);
        }
        match serde_json::from_str(&text)? {
            Reply::Refused(why) => Err(io::Error::new(io::ErrorKind::PermissionDenied, why)),
            reply => Ok(Some(reply)),
        }
    }
}

/// The ID of the process that would answer.
///
/// # Errors
///
/// When the process cannot be asked.
pub fn pid() -> io::Result<Option<i32>> {
    Ok(connect()?.map(|(_, owner)| owner.pid))
}

/// Connects to the process. Every process may take the name, so one without the rights to
/// redirect is not trusted.
fn connect() -> io::Result<Option<(UnixStream, Owner)>> {
    let stream = match UnixStream::connect_addr(&address()?) {
        Ok(stream) => stream,
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => return Ok(None),
        Err(error) => return Err(error),
    };
    let owner = Owner::of(&stream)?;
    if owner.may_redirect() {
        Ok(Some((stream, owner)))
    } else {
        Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!(
                "a process without privileges holds the control socket of portredir: {owner}; end that process, or \
                 use: portredir down --force"
            ),
        ))
    }
}

/// Whether a process answers in this network namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// A process answers.
    Answers,
    /// No process answers any more.
    Gone,
}

/// Waits until a process answers, or until none does; returns whether that happened
/// within `timeout`.
#[must_use]
pub fn wait_for(presence: Presence, timeout: Duration) -> bool {
    let is_there = presence == Presence::Answers;
    const POLL: Duration = Duration::from_millis(10);
    let end = Instant::now() + timeout;
    loop {
        let is_so = pid().is_ok_and(|pid| pid.is_some() == is_there);
        if is_so || Instant::now() >= end {
            return is_so;
        }
        std::thread::sleep(POLL);
    }
}

fn address() -> io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(NAME)
}

fn line(value: &impl Serialize) -> Vec<u8> {
    let mut line = serde_json::to_vec(value).expect("messages are JSON");
    line.push(b'\n');
    line
}

/// A request that came in, with the way to answer it.
#[derive(Debug)]
pub struct Call {
    /// The request.
    pub request: Request,
    reply: oneshot::Sender<Reply>,
}

impl Call {
    /// Sends the answer.
    pub fn answer(self, reply: Reply) {
        // The process that asked may be gone.
        let _ = self.reply.send(reply);
    }
}

/// The right to ask the process from inside.
#[derive(Clone, Debug)]
pub struct Caller(mpsc::Sender<Call>);

impl Caller {
    /// Asks, and waits for the answer; `None` when the process is ending.
    pub async fn ask(&self, request: Request) -> Option<Reply> {
        let (reply, answer) = oneshot::channel();
        self.0.send(Call { request, reply }).await.ok()?;
        answer.await.ok()
    }
}

#[cfg(test)]
impl Caller {
    /// The right to ask a test, and what it gets.
    pub(super) fn test() -> (Self, mpsc::Receiver<Call>) {
        let (calls, receiver) = mpsc::channel(8);
        (Self(calls), receiver)
    }
}

/// The receiver of requests.
#[derive(Debug)]
pub struct Control {
    calls: mpsc::Receiver<Call>,
    caller: Caller,
}

impl Control {
    /// Begins to listen. Must be called inside a runtime.
    ///
    /// # Errors
    ///
    /// `AddrInUse` when another process listens.
    pub fn listen() -> io::Result<Self> {
        let listener = std::os::unix::net::UnixListener::bind_addr(&address()?)?;
        listener.set_nonblocking(true)?;
        let listener = UnixListener::from_std(listener)?;
        let (calls, receiver) = mpsc::channel(8);
        let caller = Caller(calls);
        let calls = caller.clone();
        tokio::spawn(async move {
            let seats = Seats::default();
            loop {
                let stream = match listener.accept().await {
                    Ok((stream, _)) => stream,
                    Err(error) => {
                        // There are too many open files, here or in the whole system. An
                        // end of listening would be worse than a delay.
                        log::debug!("control connection: {error}");
                        tokio::time::sleep(RETRY).await;
                        continue;
                    }
                };
                let uid = stream.peer_cred().map(|peer| Uid::from_raw(peer.uid()));
                let Some((uid, seat)) = uid.ok().and_then(|uid| Some((uid, seats.take(uid)?)))
                else {
                    continue;
                };
                let calls = calls.clone();
                tokio::spawn(async move {
                    let serve = serve(stream, uid, calls);
                    if let Ok(Err(error)) = tokio::time::timeout(TIMEOUT, serve).await {
                        log::debug!("control connection: {error}");
                    }
                    drop(seat);
                });
            }
        });
        Ok(Self {
            calls: receiver,
            caller,
        })
    }

    /// The right to ask the process that this is the receiver of.
    #[must_use]
    pub fn caller(&self) -> Caller {
        self.caller.clone()
    }

    /// The next request.
    pub async fn next(&mut self) -> Call {
        match self.calls.recv().await {
            Some(call) => call,
            None => std::future::pending().await,
        }
    }
}

/// The number of users other than root that may be connected at a time: every user may
/// connect, send nothing and keep a file of ours open.
struct Seats {
    members: Arc<Semaphore>,
    strangers: Arc<Semaphore>,
}

impl Default for Seats {
    fn default() -> Self {
        let seats = || Arc::new(Semaphore::new(16));
        Self {
            members: seats(),
            strangers: seats(),
        }
    }
}

impl Seats {
    /// A place for a user; root needs none, and others may find none free.
    fn take(&self, uid: Uid) -> Option<Option<OwnedSemaphorePermit>> {
        if may(uid, Request::Stop) {
            return Some(None);
        }
        let seats = if may(uid, Request::Status) {
            &self.members
        } else {
            &self.strangers
        };
        Arc::clone(seats).try_acquire_owned().ok().map(Some)
    }
}

async fn serve(mut stream: tokio::net::UnixStream, uid: Uid, calls: Caller) -> io::Result<()> {
    const LONGEST: u64 = 4096;
    let (read, mut write) = stream.split();
    let mut text = String::new();
    tokio::io::BufReader::new(read.take(LONGEST))
        .read_line(&mut text)
        .await?;
    let request: Request = serde_json::from_str(&text)?;
    let reply = if may(uid, request) {
        let reply = calls.ask(request).await;
        reply.ok_or(io::ErrorKind::ConnectionAborted)?
    } else {
        Reply::Refused(format!(
            "permission denied: reading requires root or membership in group `{GROUP}`, changes require \
             root"
        ))
    };
    write.write_all(&line(&reply)).await
}

fn may(uid: Uid, request: Request) -> bool {
    if uid.is_root() || uid == Uid::effective() {
        return true;
    }
    (request.is_read() || request == Request::Who) && is_member(uid).unwrap_or(false)
}

fn is_member(uid: Uid) -> Option<bool> {
    let group = Group::from_name(GROUP).ok()??;
    let user = User::from_uid(uid).ok()??;
    let name = std::ffi::CString::new(user.name).ok()?;
    let groups: Vec<Gid> = getgrouplist(&name, user.gid).ok()?;
    Some(groups.contains(&group.gid))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Programs of other versions, and readers of `status --json`, know these words.
    #[test]
    fn roles_keep_their_words() {
        for (role, word) in [
            (Role::Foreground, "foreground"),
            (Role::Watcher, "follower"),
        ] {
            let json = format!("\"{word}\"");
            assert_eq!(serde_json::to_string(&role).expect("JSON"), json);
            assert_eq!(serde_json::from_str::<Role>(&json).expect("a role"), role);
        }
    }
}
