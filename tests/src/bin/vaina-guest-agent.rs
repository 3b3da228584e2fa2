//! Runs inside the guest node and executes what the host asks for.

fn main() -> anyhow::Result<()> {
    let port = std::env::args().nth(1).ok_or_else(|| anyhow::anyhow!("usage: vaina-guest-agent PORT"))?;
    vaina_tests::guest::agent::serve(std::path::Path::new(&port))
}
