//! How commands talk to the process that redirects or follows: one line of
//! JSON each way, over a socket of the network namespace.

use std::io::{self, Read as _, Write as _};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::unistd::{Gid, Group, Uid, User, getgrouplist};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use crate::config::settings::Settings;
use crate::observe::report::Report;
use crate::sys::peer::Owner;

/// An abstract name: it belongs to the network namespace, and nothing of it is
/// left when the process ends.
const NAME: &str = "portredir.control";

/// Members may read without being root.
const GROUP: &str = "portredir";

const TIMEOUT: Duration = Duration::from_secs(5);

/// When to listen again after it was not possible.
const RETRY: Duration = Duration::from_millis(100);

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// Tell who answers.
    Who,
    /// Tell what there is.
    Status,
    /// Somebody changed the rules: read them again. For root alone.
    Changed,
    /// End: in the foreground as by Ctrl-C, else and leave everything attached.
    /// For root alone.
    Stop,
}

/// What kind of process answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// It redirects for as long as it runs.
    Foreground,
    /// It keeps what `portredir up` left in step with interfaces and addresses.
    Follower,
}

/// Who answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Who {
    /// What kind of process it is.
    pub role: Role,
    /// Its ID.
    pub pid: u32,
}

impl Who {
    /// This process.
    #[must_use]
    pub fn this(role: Role) -> Self {
        let pid = std::process::id();
        Self { role, pid }
    }
}

/// Who answers, and what there is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Answer {
    /// What kind of process it is; none where it only looked at the pins.
    pub role: Option<Role>,
    /// Its ID.
    pub pid: u32,
    /// Its version.
    pub version: String,
    /// Options and rules.
    pub settings: Settings,
    /// Seconds until an unconfirmed change is taken back.
    pub confirm_within: Option<u64>,
    /// Interfaces and counters.
    #[serde(flatten)]
    pub report: Report,
}

/// Asks the process of this network namespace what there is; `None` when there
/// is no such process.
///
/// # Errors
///
/// When it does not answer, or refuses.
pub fn status() -> io::Result<Option<Answer>> {
    match exchange(Request::Status)? {
        Some(Reply::Answer(answer)) => Ok(Some(*answer)),
        None => Ok(None),
        Some(_) => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Asks the process of this network namespace for something; who answers, or
/// `None` when there is no such process.
///
/// # Errors
///
/// When it does not answer, or refuses.
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

/// What was asked, and is not answered yet.
#[derive(Debug)]
#[must_use = "what is not answered may not be done"]
pub struct Question {
    request: Request,
    stream: UnixStream,
}

/// Asks the process of this network namespace for something, and does not wait;
/// `None` when there is no such process. It is done also if the one who asks
/// ends.
///
/// # Errors
///
/// When it cannot be asked.
pub fn send(request: Request) -> io::Result<Option<Question>> {
    let Some((mut stream, _)) = connect()? else {
        return Ok(None);
    };
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.write_all(&line(&request))?;
    Ok(Some(Question { request, stream }))
}

impl Question {
    /// Waits until it is done, or begun.
    ///
    /// # Errors
    ///
    /// When there is no answer, or it is refused.
    pub fn wait(self) -> io::Result<()> {
        self.reply().map(drop)
    }

    fn reply(mut self) -> io::Result<Option<Reply>> {
        let mut text = String::new();
        self.stream.read_to_string(&mut text)?;
        if self.request == Request::Stop && text.is_empty() {
            // It was faster to end than to answer.
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
/// When it cannot be asked.
pub fn pid() -> io::Result<Option<i32>> {
    Ok(connect()?.map(|(_, owner)| owner.pid))
}

/// Anybody may take the name, so what has no rights to redirect is not believed.
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
            format!("{owner} has taken the place of portredir"),
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

/// Waits until a process answers, or none does any more; says whether it came to
/// that within `timeout`.
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

/// What is answered.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// What was asked for is done, or begun.
    Done(Who),
    /// What there is.
    Answer(Box<Answer>),
    /// It is not, and why.
    Refused(String),
}

fn address() -> io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(NAME)
}

fn line(value: &impl Serialize) -> Vec<u8> {
    let mut line = serde_json::to_vec(value).expect("messages are JSON");
    line.push(b'\n');
    line
}

/// A request that came in.
#[derive(Debug)]
pub struct Call {
    /// What is asked.
    pub request: Request,
    reply: oneshot::Sender<Reply>,
}

impl Call {
    /// Answers it.
    pub fn answer(self, reply: Reply) {
        // Who asked may be gone.
        let _ = self.reply.send(reply);
    }
}

/// Takes requests.
#[derive(Debug)]
pub struct Control(mpsc::Receiver<Call>);

impl Control {
    /// Begins to listen. Must be called inside a runtime.
    ///
    /// # Errors
    ///
    /// `AddrInUse` when another process does.
    pub fn listen() -> io::Result<Self> {
        let listener = std::os::unix::net::UnixListener::bind_addr(&address()?)?;
        listener.set_nonblocking(true)?;
        let listener = UnixListener::from_std(listener)?;
        let (calls, receiver) = mpsc::channel(8);
        tokio::spawn(async move {
            let seats = Seats::default();
            loop {
                let stream = match listener.accept().await {
                    Ok((stream, _)) => stream,
                    Err(error) => {
                        // Too many open files, here or in the whole system. To listen
                        // no longer would be worse than to be late.
                        log::debug!("a command that asked: {error}");
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
                        log::debug!("a command that asked: {error}");
                    }
                    drop(seat);
                });
            }
        });
        Ok(Self(receiver))
    }

    /// The next request.
    pub async fn next(&mut self) -> Call {
        match self.0.recv().await {
            Some(call) => call,
            None => std::future::pending().await,
        }
    }
}

/// How many are listened to at a time who are not root: anybody may connect, say
/// nothing and keep a file of ours open.
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
    /// A place for a user; root needs none, and there may be none for others.
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

async fn serve(
    mut stream: tokio::net::UnixStream,
    uid: Uid,
    calls: mpsc::Sender<Call>,
) -> io::Result<()> {
    const LONGEST: u64 = 4096;
    let (read, mut write) = stream.split();
    let mut text = String::new();
    tokio::io::BufReader::new(read.take(LONGEST))
        .read_line(&mut text)
        .await?;
    let request: Request = serde_json::from_str(&text)?;
    let reply = if may(uid, request) {
        let (reply, answer) = oneshot::channel();
        let call = Call { request, reply };
        calls.send(call).await.map_err(io::Error::other)?;
        answer.await.map_err(io::Error::other)?
    } else {
        Reply::Refused(format!(
            "only root and members of the group `{GROUP}` may ask"
        ))
    };
    write.write_all(&line(&reply)).await
}

fn may(uid: Uid, request: Request) -> bool {
    if uid.is_root() || uid == Uid::effective() {
        return true;
    }
    matches!(request, Request::Status | Request::Who) && is_member(uid).unwrap_or(false)
}

fn is_member(uid: Uid) -> Option<bool> {
    let group = Group::from_name(GROUP).ok()??;
    let user = User::from_uid(uid).ok()??;
    let name = std::ffi::CString::new(user.name).ok()?;
    let groups: Vec<Gid> = getgrouplist(&name, user.gid).ok()?;
    Some(groups.contains(&group.gid))
}
