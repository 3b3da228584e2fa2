//! The pods of `examples/` do what their comments say. (`make demo` looks closer at the first one.)

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;
use vaina_tests::{
    http, images,
    node::{Node, e2e_with},
    require,
    running::{Ended, Running},
    wait,
};

use super::run::alone;

fn example(name: &str) -> Result<String> {
    Ok(require::examples()?.join(format!("{name}.yaml")).to_string_lossy().into_owned())
}

/// As [`Node::furnish`], with the image of the examples.
fn furnish(node: &mut Node) -> Result<()> {
    node.furnish_with(images::DEMO)
}

async fn ended(node: &mut Node, name: &str, code: i32) -> Result<Ended> {
    furnish(node)?;
    node.ended(&["run", &example(name)?]).await?.expect(code).with_context(|| name.to_owned())
}

async fn interrupt(running: Running) -> Result<Ended> {
    running.signal(Signal::SIGINT)?;
    running.end().await?.expect(130)
}

#[test]
fn web_and_puller() {
    e2e_with(alone(), async |node| {
        furnish(node)?;
        let running = node.run_manifests(&[&example("web-and-puller")?], 1).await?;
        wait::until("a page is served", async || Ok(http::get("127.0.0.1:8080", "/").ok())).await?;
        let page = http::get("127.0.0.1:8080", "/")?;
        assert!(page.starts_with("<h1>page ") && page.contains("written by web-and-puller"), "{page}");
        let inside = node.ended(&["exec", "web-and-puller", "-c", "puller", "--", "wget", "-qO-", "http://localhost/"]);
        assert!(inside.await?.expect(0)?.out.starts_with("<h1>page "));
        let ended = interrupt(running).await?;
        assert_eq!(ended.out.matches("| stopping").count(), 2, "{}", ended.out);
        Ok(())
    });
}

#[test]
fn job() {
    e2e_with(alone(), async |node| {
        let ended = ended(node, "job", 0).await?;
        assert_eq!(ended.out, "job | done by job\n");
        assert!(ended.err.contains("exit code 3") && ended.err.contains("last words: failing once"), "{}", ended.err);
        Ok(())
    });
}

#[test]
fn locked_down() {
    e2e_with(alone(), async |node| {
        let ended = ended(node, "locked-down", 0).await?;
        for words in [
            "uid=1000(default-user) gid=1000(default-user)",
            "CapEff:\t0000000000000000",
            "NoNewPrivs:\t1",
            "Seccomp:\t2",
            "1000     2000",
        ] {
            assert!(ended.out.contains(words), "no {words:?} in {}", ended.out);
        }
        assert!(ended.err.contains("touch: /x: Read-only file system"), "{}", ended.err);
        Ok(())
    });
}

#[test]
fn node_agent() {
    e2e_with(alone(), async |node| {
        let ended = ended(node, "node-agent", 0).await?;
        let host = nix::unistd::gethostname()?.to_string_lossy().into_owned();
        assert!(ended.out.contains(&format!("| node {host} runs ")), "{}", ended.out);
        let is_shown = |entry: &std::fs::DirEntry| !entry.file_name().to_string_lossy().starts_with('.');
        let entries = std::fs::read_dir("/etc")?.flatten().filter(is_shown).count();
        assert!(ended.out.contains(&format!("| its /etc has {entries} entries")), "{}", ended.out);
        Ok(())
    });
}

#[test]
fn shared_processes() {
    e2e_with(alone(), async |node| {
        furnish(node)?;
        let running = node.run_manifests(&[&example("shared-processes")?], 1).await?;
        running.wait_for("| ending process").await?;
        running.wait_for_times("| working in shared-processes", 2).await?;
        let ended = interrupt(running).await?;
        assert!(ended.err.contains("exit code 137"), "{}", ended.err);
        Ok(())
    });
}
