//! A session of the Kubernetes project's own client through all of its subcommands: what it prints is what a person at a node sees.
//!
//! One test on one node, scene by scene. Each scene is in the module of its matter; [`session`] runs the commands, takes what
//! differs from run to run out of what they print, and remembers which subcommands were used, so that one which a later
//! crictl has and nobody drives here fails the test.

mod about;
mod containers;
mod figures;
mod images;
mod pods;
mod session;
mod streams;

use anyhow::ensure;
use vaina_tests::node::e2e;

use self::session::Session;

#[test]
fn a_session_of_every_subcommand() {
    e2e(async |node| {
        let mut session = Session::new(node);
        about::scene(&mut session).await?;
        images::scene(&mut session).await?;
        pods::scene(&mut session).await?;
        containers::scene(&mut session).await?;
        streams::scene(&mut session).await?;
        figures::scene(&mut session).await?;
        let left = session.unused()?;
        ensure!(left.is_empty(), "crictl has subcommands that this session does not use: {left:?}");
        Ok(())
    });
}
