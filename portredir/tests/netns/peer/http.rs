//! Files, sent to an HTTP server and got back by curl.

use std::fs;
use std::net::SocketAddr;

use crate::lab::Dir;
use crate::lab::namespace::Namespace;

/// A file that no two packets of are alike.
pub fn noise(dir: &Dir, len: usize) -> (String, Vec<u8>) {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        // xorshift64
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_ne_bytes());
    }
    bytes.truncate(len);
    let path = dir.0.join("noise");
    fs::write(&path, &bytes).expect("write a file");
    (path.to_str().expect("text").to_owned(), bytes)
}

/// Sends a file to an HTTP server.
pub fn put(from: &Namespace, file: &str, to: SocketAddr) {
    let url = format!("http://{to}/");
    curl(from, &["--upload-file", file, &url]);
}

/// Gets the file back.
pub fn get(from: &Namespace, dir: &Dir, to: SocketAddr) -> Vec<u8> {
    let path = dir.0.join("answer");
    let url = format!("http://{to}/");
    curl(from, &["--output", path.to_str().expect("text"), &url]);
    fs::read(path).expect("read the answer")
}

fn curl(from: &Namespace, args: &[&str]) {
    let mut all = vec!["curl", "-qsSfg", "--noproxy", "*", "--connect-timeout", "5"];
    all.extend(args);
    from.run(&all);
}
