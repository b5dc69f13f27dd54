//! Which configuration an answer comes of. One of another generation is never used.

use std::sync::Arc;

use palisade_plugin_proto::v1::ConfigureResponse;

use super::super::{CallError, clip};

/// Which configuration answers have to come of.
#[derive(Debug, Clone)]
pub(in crate::plugin) struct Generation {
    pub(in crate::plugin) hash: Arc<str>,
    /// Whether saying nothing about it will do. It does for a process of our own, which has never had another one; not
    /// for one that others have started, which may have been given another one since.
    pub(in crate::plugin) may_be_silent: bool,
}

impl Generation {
    /// Whether an answer with this hash counts.
    pub(in crate::plugin) fn check(&self, said: &str) -> Result<(), CallError> {
        match said {
            "" if self.may_be_silent => Ok(()),
            said if *said == *self.hash => Ok(()),
            said => Err(CallError::OtherConfig(clip(said))),
        }
    }

    /// What a plugin says after it was configured.
    pub(in crate::plugin) fn check_configured(&self, configured: &ConfigureResponse) -> Result<(), String> {
        self.check(&configured.hash).map_err(|_| match configured.hash.as_str() {
            "" => "it does not say by which configuration it answers, which a plugin at an `address` has to".to_owned(),
            other => format!("it has put another configuration in force, {:?}", clip(other)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_counts_where_there_was_never_another_configuration() {
        for (may_be_silent, said, counts) in [
            (true, "", true),
            (true, "a", true),
            (true, "b", false),
            (false, "", false),
            (false, "a", true),
            (false, "b", false),
        ] {
            let generation = Generation { hash: "a".into(), may_be_silent };
            assert_eq!(generation.check(said).is_ok(), counts, "{may_be_silent} {said:?}");
            let configured = ConfigureResponse { hash: said.to_owned(), ..ConfigureResponse::default() };
            assert_eq!(generation.check_configured(&configured).is_ok(), counts, "{may_be_silent} {said:?}");
        }
    }
}
