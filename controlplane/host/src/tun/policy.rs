//! Rules of policy routing: set, compared, and retried after the kernel has refused them.

use std::collections::BTreeSet;

use hyphae_time::monotonic as now;

use super::reconciler::{RETRY, Reconciler};
use crate::error::HostError;
use crate::kernel::Kernel;
use crate::rules::{self, Rule};

impl Reconciler {
    /// Missing rules, and excess rules.
    pub(super) async fn wrong_rules(
        &self,
        kernel: &Kernel,
        index: u32,
    ) -> Result<(Vec<Rule>, Vec<Rule>), HostError> {
        let found = kernel.rules(index).await?;
        let mut excess: Vec<_> = found.dead.iter().copied().collect();
        if !self.learned {
            return Ok((Vec::new(), excess));
        }
        let lengths = match self.device.mark {
            0 => BTreeSet::new(),
            _ => self.lengths(),
        };
        let wanted = rules::wanted(index, self.device.mark, lengths.into_iter());
        let unwanted = found.ours.difference(&wanted);
        excess.extend(unwanted.filter(|rule| !found.shared.contains(rule)));
        Ok((wanted.difference(&found.ours).copied().collect(), excess))
    }

    /// Sets rules. After a failure, routes that cover the address of a peer are withdrawn until it succeeds.
    pub(super) async fn set_rules(&mut self, kernel: &Kernel, index: u32) {
        match self.try_rules(kernel, index).await {
            Ok(()) => {
                if self.rules_at.take().is_some() {
                    self.unmarked = None;
                    tracing::info!("rules of policy routing are set");
                }
            }
            // No rules are needed; remaining ones point to an empty table.
            Err(error) if self.device.mark == 0 => {
                tracing::debug!(%error, "rules of an earlier control plane were not deleted");
            }
            Err(error) => {
                if self.rules_at.is_none() {
                    tracing::error!(%error, "rules of policy routing cannot be set; they are retried");
                }
                self.unmarked = Some(error.to_string());
                let at = now();
                self.rules_backoff.record(at);
                let next = self.rules_backoff.next(at).max(at + RETRY);
                self.rules_at = Some(next);
                self.check_at(next);
            }
        }
    }

    pub(super) async fn try_rules(&self, kernel: &Kernel, index: u32) -> Result<(), HostError> {
        let (missing, excess) = self.wrong_rules(kernel, index).await?;
        for rule in excess {
            kernel.delete_rule(rule).await?;
        }
        if missing.is_empty() {
            return Ok(());
        }
        for rule in missing {
            kernel.add_rule(rule).await?;
        }
        let (missing, _) = self.wrong_rules(kernel, index).await?;
        // A rule for the main table counts as ours only before its rule for our table, so the last one is the cause.
        let conflict = missing
            .last()
            .map(|rule| HostError::RuleConflict(rule.priority));
        conflict.map_or(Ok(()), Err)
    }
}
