//! The Python interpreter, which runs the scripts of the tests.

/// The interpreter itself: `python3` may be the wrapper of a version manager,
/// which takes its time.
pub fn python() -> &'static str {
    static PYTHON: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    PYTHON.get_or_init(|| {
        let output = std::process::Command::new("python3")
            .args(["-c", "import sys; print(sys.executable)"])
            .output()
            .expect("run python3");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    })
}
